"""kvgauge: did a switch of NIXL backend, build or setting make disaggregated serving faster, and why."""

__version__ = "0.1.0"

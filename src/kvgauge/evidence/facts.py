"""Facts about what ran, as read from logs, counters and the transport itself. Judging them is proof.py's work."""

from typing import Literal

import msgspec

from kvgauge.samples.records import Connection


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was seen: `value`, and the line or sum that shows it."""

    name: str
    value: str
    shown_by: str


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """A value that could not be had, and why."""

    reason: str


class MachineUse(msgspec.Struct, frozen=True, kw_only=True):
    """Processor time of the whole machine over a run, in fractions of all cores together (0..1)."""

    busy: float
    steal: float
    cores: int
    processes_cpu_s: dict[str, float]  # frontend, prefill-0, decode-0, client
    rss_bytes: dict[str, int]


class Proving(msgspec.Struct, frozen=True, kw_only=True):
    """What `kvgauge prove` found of the deployment beside this run: proof.json holds all of it.

    headline       expected, moved, over what, in one line
    contradicted   each thing that cannot be if the claim holds, with the line or the sum that shows it
    """

    verdict: Literal["proved", "contradicted", "unproved"]
    headline: str
    contradicted: tuple[str, ...] = ()


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What proves which transport ran, and what it cost to connect.

    backends       as `query_xfer_backend` answered for real transfers: name -> transfers
    providers      libfabric provider names from start-up lines; UCX lanes (tl/dev) that carried remote memory access
    unobserved     why nothing is known of the transport, where the target cannot see it; then nothing is judged
    proving        what a proof of a deployment found; None: nobody asked for one
    wire_bytes     bytes the kernel counted on network interfaces over the run (a lower bound check for fabric tcp)
    """

    backends: dict[str, int]
    providers: tuple[str, ...]
    facts: tuple[Fact, ...]
    connections: tuple[Connection, ...]
    handshakes_nixl: int | Missing
    handshakes_efa: int | Missing
    wire_bytes: int | Missing
    gpu_memory_bytes: int | Missing
    build_sha256: dict[str, str]  # file role (plugin, libnixl, libfabric, ucx) -> sha256
    machine: MachineUse | Missing
    unobserved: str | None = None
    proving: Proving | None = None

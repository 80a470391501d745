"""UCX log lines to facts: which transports (lanes) carry remote memory access. Pure."""

import re

import msgspec

from kvgauge.evidence.facts import Fact
from kvgauge.evidence.nixl import unique

_CONFIG = re.compile(r"(\S+) (self|intra-node|inter-node) cfg#(\d+) (.*)")
_LANES = re.compile(r"(\w+)\(([^)]*)\)")
_FALLBACK = re.compile(r"transports? (.*) (?:is|are) not available")


class Lanes(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint configuration. `use` -> transports, each as tl/device.

    rma       remote memory access as the hardware does it;  rma_am: emulated by active messages
    """

    reach: str  # self, intra-node, inter-node
    use: dict[str, tuple[str, ...]]
    line: str

    @property
    def remote_access(self) -> tuple[str, ...]:
        """What carries READ and WRITE: rma lanes, else the active messages that emulate them."""
        return self.use.get("rma") or self.use.get("rma_am") or ()


def lanes(log: str) -> list[Lanes]:
    """Every endpoint configuration UCX announced, in order."""
    found = []
    for line in log.splitlines():
        if "cfg#" not in line or (match := _CONFIG.search(line)) is None:
            continue
        use = {name: tuple(devices.split()) for name, devices in _LANES.findall(match[4])}
        found.append(Lanes(reach=match[2], use=use, line=line.strip()))
    return found


def facts(log: str, process: str) -> list[Fact]:
    """Lanes to other processes, and requested transports that were not there (a silent fall-back)."""
    found = []
    for config in lanes(log):
        if config.reach == "self":
            continue
        how = "" if config.use.get("rma") else " by active messages"
        shown = f"{process}: {config.line[:240]}"
        found += [Fact(name="lane", value=f"{lane}{how}", shown_by=shown) for lane in config.remote_access]
    for line in log.splitlines():
        if match := _FALLBACK.search(line):
            found.append(Fact(name="fallback", value=match[1], shown_by=f"{process}: {line.strip()[:240]}"))
    return unique(found)

"""UCX log lines to facts: which transports (lanes) carry remote memory access, and what its protocol tables say. Pure.

Lines of UCX_LOG_LEVEL=info (`cfg#`) and tables of UCX_PROTO_INFO=y, as recorded from UCX 1.20 to 1.23.
"""

import re
from collections.abc import Iterator

import msgspec

from kvgauge.evidence.facts import Fact
from kvgauge.evidence.nixl import SHOWN_CHARACTERS, Seen, unique

PROCESSES_MAX = 256  # whose tables are read at a time
CELL_CHARACTERS_MAX = 200
RMA_CAPABLE = {"cma", "knem", "xpmem", "posix", "sysv", "cuda_ipc", "rocm_ipc", "rc_mlx5", "dc_mlx5", "rc_verbs", "srd"}

_CONFIG = re.compile(r"(\S+) (self|intra-node|inter-node) cfg#(\d+)(?: (.*))?")
_LANES = re.compile(r"(\w+)\(([^)]*)\)")
_FALLBACK = re.compile(r"transports? (.{1,200}?) (?:is|are) not available")
_DEVICE = re.compile(r"network devices? (.{1,200}?) (?:is|are) not available")
_UNUSABLE = re.compile(r"(no usable transports/devices|no active messages transport|no remote memory access transport)")
_VERSION = re.compile(r"UCX +INFO +Version (\S+) \(loaded")
_ASKED = re.compile(r"UCX_\* env variables?: (.*)")
_ROW = re.compile(r"\[[\d.]+\] \[([^\]]{1,100})\] +([|+].*)")
_KIND = re.compile(r"\b(?:from|to|into) ([a-z]+)")
_LANE = re.compile(r"\b([a-z][a-z0-9_]*)/([\w:.\-\[\]]+)")
_RANGE = re.compile(r"(\d+)(?:\.\.(\d+|inf))?$")


class Lanes(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint configuration. `use` -> transports, each as tl/device.

    rma       remote memory access as the hardware does it;  rma_am: emulated by active messages
    """

    reach: str  # self, intra-node, inter-node
    use: dict[str, tuple[str, ...]]
    line: str

    @property
    def beside(self) -> tuple[str, ...]:
        """Other transports of the configuration: UCX may move remote memory over these too, whatever `rma` says."""
        every = {lane.split("[")[0] for lanes in self.use.values() for lane in lanes}
        return tuple(sorted(lane for lane in every - set(self.remote_access) if lane.split("/")[0] in RMA_CAPABLE))

    @property
    def remote_access(self) -> tuple[str, ...]:
        """What carries READ and WRITE: rma lanes, else the active messages that emulate them."""
        return self.use.get("rma") or self.use.get("rma_am") or ()


def config(line: str) -> Lanes | None:
    """The endpoint configuration that a line announces."""
    if "cfg#" not in line or "|" in line or (match := _CONFIG.search(line)) is None:
        return None
    use = {name: tuple(devices.split()) for name, devices in _LANES.findall(match[4] or "")}
    return Lanes(reach=match[2], use=use, line=line.strip())


def lanes(log: str) -> list[Lanes]:
    """Every endpoint configuration UCX announced, in order."""
    return [found for line in log.splitlines() if (found := config(line)) is not None]


def read(line: str) -> Iterator[Seen]:
    """What one line says; lanes to this process itself are left out."""
    if (found := config(line)) is not None:
        if found.reach != "self":
            how = "" if found.use.get("rma") else " by active messages"
            for lane in found.remote_access:
                yield "lane", f"{lane}{how}"
                yield f"lane_{found.reach}", f"{lane}{how}"
            yield from (("lane_beside", lane) for lane in found.beside)
    elif match := _FALLBACK.search(line):
        yield "fallback", match[1]
    elif match := _DEVICE.search(line):
        yield "device_missing", match[1]
    elif match := _UNUSABLE.search(line):
        yield "ucx_error", match[1]
    elif match := _VERSION.search(line):
        yield "ucx_library", match[1]
    elif match := _ASKED.search(line):
        yield from (("ucx_asked", word) for word in match[1].split()[:100] if word.startswith(("UCX_TLS=", "UCX_NET")))


class Tables:
    """UCX_PROTO_INFO tables, row by row; rows of several processes may come mixed.

    Yields `protocol` for each row that says how remote memory of another endpoint is reached, and `emulated` where
    that is by software emulation. KV moves between memories of one kind: tables from host memory to a GPU's or back are
    left out, of which UCX writes some, emulated, beside every transfer of GPU memory.

    kind  of memory that alone is meant: "host", "cuda"; None: all
    """

    def __init__(self, kind: str | None = None) -> None:
        self._kind = kind
        self._titles: dict[str, tuple[str, str]] = {}  # process -> endpoint, operation

    def take(self, line: str) -> Iterator[Seen]:
        match = _ROW.match(line)
        if match is None or match[2][0] == "+":
            return
        process = match[1]
        cells = [cell.strip()[:CELL_CHARACTERS_MAX] for cell in match[2].strip().strip("|").split("|")]
        if "cfg#" in cells[0]:
            if len(self._titles) < PROCESSES_MAX or process in self._titles:
                self._titles[process] = cells[0], cells[1] if len(cells) > 1 else ""
        elif process not in self._titles:
            return
        elif len(cells) == 1:
            self._titles[process] = self._titles[process][0], cells[0]
        elif len(cells) >= 3 and _RANGE.match(cells[0]):
            yield from self._row(*self._titles[process], cells)

    def _row(self, endpoint: str, operation: str, cells: list[str]) -> Iterator[Seen]:
        if "remote memory" not in operation or " self " in f" {endpoint} ":
            return
        kinds = set(_KIND.findall(operation))
        if len(kinds) > 1 or (self._kind is not None and kinds and kinds != {self._kind}):
            return
        kind = "write" if "ucp_put" in operation else "read"
        carried = ", ".join(f"{name}/{device}" for name, device in _LANE.findall(cells[2])) or cells[2]
        row = f"{kind} {cells[0]}: {cells[1]} over {carried}"
        yield "protocol", row
        yield (
            f"{'gpu_' if 'cuda' in kinds else ''}protocol_{'inter' if 'inter-node' in endpoint else 'intra'}-node",
            row,
        )
        if "emulation" in cells[1]:
            yield "emulated", row


def facts(log: str, process: str) -> list[Fact]:
    """Lanes to other processes, protocols, and requested transports that were not there (a silent fall-back)."""
    tables = Tables()
    return unique(
        Fact(name=name, value=value, shown_by=f"{process}: {line.strip()[:SHOWN_CHARACTERS]}")
        for line in log.splitlines()
        for name, value in (*read(line), *tables.take(line))
    )

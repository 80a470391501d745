"""Which tool wrote a file or folder, and what it holds."""

import re
from collections.abc import Sequence
from pathlib import Path

from kvgauge.failures import SamplesError, UsageError
from kvgauge.peers import aiperf, nixlbench, vllm
from kvgauge.peers.records import TOOLS, Piece, Tool

FILE_BYTES_MAX = 256 << 20
FILES_MAX = 1000
RECORDS, SUMS = "profile_export.jsonl", "profile_export_aiperf.json"
LOOKED_FOR = (
    f"AIPerf's {RECORDS} or {SUMS}, the JSON of `vllm bench serve --save-result`, or the table that nixlbench prints"
)
_VLLM = re.compile(rb'"(ttfts|mean_ttft_ms|request_throughput)"\s*:')


def find(paths: Sequence[Path], tool: Tool | None = None) -> list[Piece]:
    """Everything measured in these files and folders, in their order.

    tool    what wrote them; None: it is told from what stands in them
    raises  UsageError for what is not there, is of no known tool or is in twice, SamplesError for what is damaged
    """
    pieces: list[Piece] = []
    known: dict[Path, object] = {}
    for path in paths:
        for found in _runs(path, tool):
            held = _read(found, tool)
            seen = [(piece.model, piece.cell, piece.metrics, piece.exchanges) for piece in held]
            if twin := next((earlier for earlier, theirs in known.items() if theirs == seen), None):
                raise UsageError(f"{found} holds what {twin} does: a result that is in twice is no repetition")
            known[found] = seen
            pieces += held
            if len(pieces) > FILES_MAX:
                raise UsageError(f"more than {FILES_MAX} results: import fewer at a time")
    return pieces


def _runs(path: Path, tool: Tool | None) -> list[Path]:
    """The folders and files that hold one result each."""
    if not path.exists():
        raise UsageError(f"{path} is not there: name a file or folder with {LOOKED_FOR}")
    if not path.is_dir():
        return [path]
    if tool in (None, "aiperf"):
        if any((path / name).is_file() for name in (RECORDS, SUMS)):
            return [path]
        repeated = sorted(each for each in path.glob("profile_runs/run_*") if each.is_dir())
        if repeated:
            return repeated
    if tool != "aiperf":
        held = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))[:FILES_MAX]
        known = [each for each in held if not each.name.endswith(".pytorch.json") and _told_by(each) in _wanted(tool)]
        if known:
            return known
    raise UsageError(f"{path} holds none of {LOOKED_FOR}")


def _wanted(tool: Tool | None) -> tuple[Tool, ...]:
    return tuple(TOOLS) if tool is None else (tool,)


def _told_by(path: Path) -> Tool | None:
    """What its first and last bytes look like."""
    with path.open("rb") as file:
        head = file.read(65536)
        file.seek(max(0, path.stat().st_size - 65536))
        ends = head + file.read(65536)
    if head.lstrip()[:1] == b"{":
        if b'"aiperf_version"' in head or (b'"metadata"' in head and b'"request_start_ns"' in head):
            return "aiperf"
        return "vllm" if _VLLM.search(ends) else None
    return "nixlbench" if nixlbench.HEAD.encode() in ends else None


def _read(path: Path, tool: Tool | None) -> list[Piece]:
    try:
        if path.is_dir():
            records, sums = (_bytes(each) if each.is_file() else None for each in (path / RECORDS, path / SUMS))
            return [aiperf.read(records, sums, source=str(path))]
        wrote = tool or _told_by(path)
        if wrote is None:
            raise UsageError(f"{path} is none of {LOOKED_FOR}; say which with --from, or name another file")
        data = _bytes(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; name another file") from None
    if wrote == "vllm":
        return vllm.read(data, source=path.name)
    if wrote == "nixlbench":
        return nixlbench.read(data, source=path.name)
    if path.suffix != ".jsonl":
        return [aiperf.read(None, data, source=path.name)]
    beside = path.with_name(f"{path.stem}_aiperf.json")
    return [aiperf.read(data, _bytes(beside) if beside.is_file() else None, source=path.name)]


def _bytes(path: Path) -> bytes:
    """The whole file, as long as it is no larger than any result."""
    with path.open("rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise SamplesError(f"{path} is larger than {FILE_BYTES_MAX >> 20} MiB: import a part of it")
    return data

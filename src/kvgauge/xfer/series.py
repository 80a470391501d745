"""Rows of `kvgauge xfer` to what a chart draws: which rows are a sweep, its panels and its lines. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kvgauge.xfer.figures import RowResult
from kvgauge.xfer.workload import Workload, size_text

USUAL = ("blocks", "depth 1", "1 thread")  # goes without saying
DASHES_MAX = 4  # more are not told apart: then each value has a panel of its own
DIMENSIONS: Mapping[str, Callable[[Workload], str]] = {
    "size": lambda work: size_text(work.block_bytes),
    "count": lambda work: f"{work.blocks:,} block{'s' if work.blocks > 1 else ''}",
    "depth": lambda work: f"depth {work.depth}",
    "threads": lambda work: f"{work.threads} thread{'s' if work.threads > 1 else ''}",
    "operation": lambda work: work.operation,
    "strategy": lambda work: work.strategy,
    "pattern": lambda work: work.pattern,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Rows that differ in their block size alone (or their count), ascending in bytes; dash: a number, 0 is solid."""

    backend: str
    said: str
    dash: int
    rows: tuple[RowResult, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Lines that are drawn together. said: what sets them apart from other panels', empty where there are none"""

    said: str
    lines: tuple[Line, ...]

    @property
    def rows(self) -> list[RowResult]:
        return [row for line in self.lines for row in line.rows]


def bytes_of(row: RowResult) -> int:
    return row.workload.transfer_bytes


def is_blocks(row: RowResult) -> bool:
    """Of --block-size, not of a model: one region, and named after its blocks."""
    work = row.workload
    return work.regions == 1 and row.name.startswith(f"{work.blocks} x {size_text(work.block_bytes)}")


def sweep_of(rows: Sequence[RowResult]) -> tuple[list[Panel], list[RowResult]]:
    """Panels of the block rows where their bytes were swept, and the rows that are in none: each stands for itself."""
    blocks = [row for row in rows if is_blocks(row)]
    sizes, counts = (len(_values(blocks, name)) for name in ("size", "count"))
    if max(sizes, counts) < 2:
        return [], list(rows)
    along = "size" if sizes >= counts else "count"
    rest = [name for name in DIMENSIONS if name != along and len(_values(blocks, name)) > 1]
    dashed = next((name for name in rest if len(_values(blocks, name)) <= DASHES_MAX), None)
    faceted = [name for name in rest if name != dashed]
    panels: dict[str, dict[tuple[str, str], list[RowResult]]] = {}
    for row in blocks:
        said = ", ".join(DIMENSIONS[name](row.workload) for name in faceted)
        value = DIMENSIONS[dashed](row.workload) if dashed else ""
        panels.setdefault(said, {}).setdefault((row.backend, value), []).append(row)
    dashes = _values(blocks, dashed) if dashed else [""]
    return [_panel(said, lines, dashes) for said, lines in panels.items()], [row for row in rows if not is_blocks(row)]


def _values(rows: Sequence[RowResult], name: str) -> list[str]:
    return list(dict.fromkeys(DIMENSIONS[name](row.workload) for row in rows))


def _panel(said: str, lines: Mapping[tuple[str, str], Sequence[RowResult]], dashes: Sequence[str]) -> Panel:
    made = [
        Line(
            backend=backend,
            said=f"{backend} {value}".rstrip(),
            dash=dashes.index(value),
            rows=tuple(sorted(rows, key=bytes_of)),
        )
        for (backend, value), rows in lines.items()
    ]
    return Panel(said=said, lines=tuple(made))


def common_of(rows: Sequence[RowResult]) -> list[str]:
    """What every row shares, for the head of the page."""
    names = ("operation", "pattern", "strategy", "depth", "threads")
    said = [found[0] for name in names if len(found := _values(rows, name)) == 1 and found[0] not in USUAL]
    works = [row.workload for row in rows]
    said += sorted({work.memory for work in works})
    said += sorted({f"{work.initiators} initiators to 1 target" for work in works if work.initiators > 1})
    said += sorted({f"1 initiator to {work.targets} targets" for work in works if work.targets > 1})
    return said

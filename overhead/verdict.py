"""What the runs of a fidelity bench add up to: a table, and each target met or missed by how much. Pure.

A run during which others took more than a twentieth of the client's core, or kept the server from its schedule, is
left out of medians while a quiet run of the same tool and setting is there; where none is, its figures stand with a
"!" and no target is judged by them.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from truth import Spread

INFLATION_US = {1: (60, 300), 8: (60, 300), 32: (60, 300), 128: (100, 500)}  # mean, p99
INFLATION_P50_US, REFILL_US, KEPT = 20, 300, 0.999  # kept: a refill of 0.3 ms after 365 ms costs 0.0008
FLOOD_RATE, FLOOD_CPU, LAUNCH_S, EXIT_S, RSS_MB = 0.95, 1.1, 0.5, 0.3, 100
QUIET, LATE_US = 0.05, 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run of one tool.

    inflation, refill, kept_chunks_s  as truth.py has them; of a paced run
    chunks_s     of a flood
    late         chunks left after they were due; of a paced run
    every_chunk  the tool stamped as many content chunks as left; None where it does not tell
    foreign      share of the client's core that went to others
    """

    tool: str
    streams: int
    flood: bool
    round: int
    requests: int
    inflation: Spread | None
    refill: Spread | None
    kept_chunks_s: float | None
    offered_chunks_s: float | None
    late: Spread | None
    chunks_s: float | None
    cpu_ms_per_1000: float | None
    every_chunk: bool | None
    launch_s: float
    exit_s: float
    rss_mb: float
    foreign: float

    @property
    def quiet(self) -> bool:
        return self.foreign <= QUIET and (self.late is None or self.late.p99 <= LATE_US)


Rows = Sequence[Row]
Value = Callable[[Row], float | None]


def chosen(rows: Rows, tool: str, *, streams: int | None = None, flood: bool | None = None) -> list[Row]:
    """The quiet ones of these runs; all where none is."""
    some = [
        row
        for row in rows
        if row.tool == tool and streams in (None, row.streams) and (flood is None or row.flood == flood)
    ]
    return [row for row in some if row.quiet] or some


def median(rows: Rows, value: Value) -> float | None:
    values = [found for found in map(value, rows) if found is not None]
    return statistics.median(values) if values else None


def part(spread: str, name: str) -> Value:
    """A field of `inflation` or `refill`, in us."""

    def value(row: Row) -> float | None:
        held = getattr(row, spread)
        return None if held is None else getattr(held, name)

    return value


def kept(row: Row) -> float | None:
    return row.kept_chunks_s / row.offered_chunks_s if row.kept_chunks_s and row.offered_chunks_s else None


def over(rows: Rows, base: Rows, field: str) -> float | None:
    """Median of the ratios to the same round's base; None where no round has both."""
    of_round = {row.round: getattr(row, field) for row in base}
    pairs = [(getattr(row, field), of_round.get(row.round)) for row in rows]
    ratios = [value / whole for value, whole in pairs if value is not None and whole]
    return statistics.median(ratios) if ratios else None


def table(rows: Rows) -> list[str]:
    """floor: the first tool there is."""
    tools = list(dict.fromkeys(row.tool for row in rows))
    lines = [
        f"{'paced':>7} {'':22}{'':7}{'TTFT inflation, us':^33}{'refill, ms':^16}{'chunks/s kept':^18}{'others':>8}",
        f"{'streams':>7} {'tool':22}{'n':>7}{'mean':>9}{'p50':>8}{'p99':>8}{'max':>8}{'mean':>8}{'p99':>8}"
        f"{'':>9}{'of all':>9}{'on core':>8}",
    ]
    for streams in sorted({row.streams for row in rows if not row.flood}):
        lines += [line for tool in tools if (line := _paced(streams, tool, rows))]
    lines += [
        "",
        f"{'flood':22} {'chunks/s':>10}{'of floor':>10}{'CPU ms/1000':>13}{'of floor':>10}{'every chunk':>13}"
        f"{'others':>8}",
    ]
    lines += [line for tool in tools if (line := _flood(tool, tools[0], rows))]
    lines += ["", f"{'life':22} {'launch to 1st request, s':>25}{'last byte to exit, s':>22}{'memory, MB':>12}"]
    for tool in tools:
        some = chosen(rows, tool)
        launch, ended = median(some, lambda row: row.launch_s), median(some, lambda row: row.exit_s)
        lines.append(f"{tool:22} {launch:25.3f}{ended:22.3f}{max(row.rss_mb for row in some):12.0f}")
    return lines


def _paced(streams: int, tool: str, rows: Rows) -> str:
    some = chosen(rows, tool, streams=streams, flood=False)
    if not some:
        return ""
    inflation = [median(some, part("inflation", name)) for name in ("mean", "p50", "p99", "max")]
    refill = [median(some, part("refill", name)) for name in ("mean", "p99")]
    return (
        f"{streams:7} {tool:22}{some[0].requests:7,}"
        + "".join(_number(value, width, 0) for value, width in zip(inflation, (9, 8, 8, 8), strict=True))
        + "".join(_number(None if value is None else value / 1e3, 8, 2) for value in refill)
        + _number(median(some, lambda row: row.kept_chunks_s), 9, 0)
        + _number(median(some, kept), 9, 4)
        + _others(some)
    )


def _flood(tool: str, floor: str, rows: Rows) -> str:
    some, base = chosen(rows, tool, flood=True), chosen(rows, floor, flood=True)
    if not some:
        return ""
    every = {True: "stamped", False: "NOT ALL", None: "-"}[every_chunk(some)]
    return (
        f"{tool:22} {_number(median(some, lambda row: row.chunks_s), 10, 0)}"
        f"{_number(over(some, base, 'chunks_s'), 10, 2)}"
        f"{_number(median(some, lambda row: row.cpu_ms_per_1000), 13, 2)}"
        f"{_number(over(some, base, 'cpu_ms_per_1000'), 10, 2)}{every:>13}{_others(some)}"
    )


def _others(some: Rows) -> str:
    share = statistics.median(row.foreign for row in some)
    return f"{share:8.0%}" + ("" if all(row.quiet for row in some) else "!")


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width},.{digits}f}"


def every_chunk(some: Rows) -> bool | None:
    known = [row.every_chunk for row in some if row.every_chunk is not None]
    return all(known) if known else None


def judge(rows: Rows, tool: str, floor: str) -> list[str]:
    """A line for each target that has figures: what it was, what was asked, by how much it was missed."""
    lines = []

    def line(what: str, some: Rows, value: float | None, limit: float, unit: str, *, least: bool = False) -> None:
        if value is None:
            return
        if not any(row.quiet for row in some):
            verdict = "NOT JUDGED: others took the client's or the server's core in every round"
        elif value >= limit if least else value <= limit:
            verdict = "met"
        else:
            verdict = f"MISSED by {abs(value - limit):,.3g} {unit}".rstrip()
        lines.append(f"  {what:42} {value:10,.4g} {'>=' if least else '<='} {limit:<6g} {unit:3} {verdict}")

    for streams, (mean, p99) in INFLATION_US.items():
        some = chosen(rows, tool, streams=streams, flood=False)
        named = f"{streams} stream" + "s" * (streams > 1)
        for name, limit in (("mean", mean), ("p50", INFLATION_P50_US), ("p99", p99)):
            line(f"TTFT inflation, {name}, {named}", some, median(some, part("inflation", name)), limit, "us")
        line(f"slot refill, mean, {named}", some, median(some, part("refill", "mean")), REFILL_US, "us")
        if streams == max(INFLATION_US):
            line(f"chunks kept of those offered, {named}", some, median(some, kept), KEPT, "", least=True)
    some, base = chosen(rows, tool, flood=True), chosen(rows, floor, flood=True)
    line("flood: of the floor's chunks/s", some, over(some, base, "chunks_s"), FLOOD_RATE, "", least=True)
    line("flood: of the floor's CPU", some, over(some, base, "cpu_ms_per_1000"), FLOOD_CPU, "")
    stamped = every_chunk(some)
    line("flood: every chunk stamped", some, None if stamped is None else float(stamped), 1, "", least=True)
    some = chosen(rows, tool)
    line("launch to first request", some, median(some, lambda row: row.launch_s), LAUNCH_S, "s")
    line("last byte to exit", some, median(some, lambda row: row.exit_s), EXIT_S, "s")
    line("memory", some, max((row.rss_mb for row in some), default=None), RSS_MB, "MB")
    return lines

"""The result of `kvgauge xfer` for a terminal: a table that holds nixlbench's columns and ours, bars, ratios, notes."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kvgauge.report.numbers import NONE, interval_text, number, plain, value_text
from kvgauge.report.packed import Column, Footnotes, Packed, Value
from kvgauge.stats.estimate import Estimate
from kvgauge.xfer.figures import Ratio, RowResult
from kvgauge.xfer.tools import Figure

if TYPE_CHECKING:
    from rich.console import RenderableType

INVALID = "red"
BAR_CELLS = 40
# (key, head lines); nixlbench's are: block size, batch size, B/W, aggregate B/W, network util, avg lat, prep, post, tx
COLUMNS: tuple[tuple[str, tuple[str, str, str]], ...] = (
    ("bandwidth_gb_s", ("B/W", "one initiator", "GB/s")),
    ("aggregate_gb_s", ("aggregate", "B/W", "GB/s")),
    ("stream_share_pct", ("network", "util¹", "%")),
    ("latency_us_mean", ("avg", "lat.", "us")),
    ("latency_us_p50", ("lat.", "P50", "us")),
    ("latency_us_p90", ("lat.", "P90", "us")),
    ("latency_us_p99", ("lat.", "P99", "us")),
    ("latency_us_p999", ("lat.", "P99.9", "us")),
    ("prepare_us_mean", ("avg", "prep", "us")),
    ("prepare_us_p99", ("P99", "prep", "us")),
    ("post_us_mean", ("avg", "post", "us")),
    ("post_us_p99", ("P99", "post", "us")),
    ("transfer_us_mean", ("avg", "tx", "us")),
    ("transfer_us_p99", ("P99", "tx", "us")),
    ("gather_us_mean", ("avg", "gather", "us")),
    ("scatter_us_mean", ("avg", "scatter", "us")),
    ("signal_us_mean", ("avg", "signals", "us")),
    ("stamp_error_us_p50", ("stamp", "error P50", "us")),
    ("stamp_error_us_p99", ("stamp", "error P99", "us")),
    ("connect_cold_ms", ("connect", "cold", "ms")),
    ("connect_warm_ms", ("connect", "warm", "ms")),
    ("first_cold_ms", ("first", "xfer cold", "ms")),
    ("first_warm_ms", ("first", "xfer warm", "ms")),
    ("first_excess_ms", ("first's", "excess", "ms")),
    ("handshakes", ("hand-", "shakes", "")),
    ("agent_start_ms", ("agent", "start", "ms")),
    ("register_ms", ("register", "a pool", "ms")),
    ("prepare_lists_ms", ("prepare", "lists", "ms")),
    ("copy_gb_s", ("limit:", "copy", "GB/s")),
    ("stream_gb_s", ("limit:", "TCP", "GB/s")),
)


def render(
    rows: Sequence[RowResult], ratios: Sequence[Ratio], tools: Sequence[Figure] = ()
) -> "Iterator[RenderableType]":
    """Parts to print in order."""
    from rich.text import Text

    notes = Footnotes()
    notes.mark("bandwidth of all together beside a plain TCP stream between the same processes, in the same round")
    label = Column(("workload", "", ""), tuple(_label(row) for row in rows))
    columns = [_sizes(rows), _counts(rows), *(_column(rows, key, head, notes) for key, head in COLUMNS), _merged(rows)]
    columns.append(Column(("blocks", "checked", "wrong"), tuple(_integrity(row) for row in rows)))
    yield Packed(label, columns, lines=True)
    yield Text("")
    yield from bars(rows)
    if ratios:
        yield Text("")
        yield from (Text(plain(ratio_line(ratio))) for ratio in ratios)
    yield from (Text(plain(tool_line(tool))) for tool in tools)
    yield Text("")
    for row in rows:
        yield Text(plain(f"{row.name}, {row.backend}: {proof_line(row)}"), style="" if row.valid else INVALID)
        for failure in row.failures:
            yield Text(plain(f"  FAILED {failure}"), style=INVALID)
    yield from (Text(plain(note), style="dim") for note in notes.texts())


def _label(row: RowResult) -> Value:
    work = row.workload
    how = [row.backend, work.operation, work.pattern, work.memory]
    how += [work.strategy] if work.strategy != "blocks" else []
    how += [f"depth {work.depth}"] if work.depth > 1 else []
    how += [f"{work.threads} threads"] if work.threads > 1 else []
    how += [f"{work.initiators} to 1"] if work.initiators > 1 else []
    how += [f"1 to {work.targets}"] if work.targets > 1 else []
    state = f"n={row.rounds} rounds, {row.transfers:,} transfers"
    if not row.valid:
        state = f"INVALID {state}" if row.rounds else "FAILED"
    return Value((row.name, " ".join(how), state), "" if row.valid else INVALID)


def _sizes(rows: Sequence[RowResult]) -> Column:
    return Column(("block", "size", "B"), tuple(Value((f"{row.workload.block_bytes:,}",)) for row in rows))


def _counts(rows: Sequence[RowResult]) -> Column:
    return Column(("batch", "size", "blocks"), tuple(Value((f"{row.workload.descriptors:,}",)) for row in rows))


def _column(rows: Sequence[RowResult], key: str, head: tuple[str, str, str], notes: Footnotes) -> Column:
    return Column(head, tuple(_value(row.figures[key], notes, row.valid) for row in rows))


def _value(estimate: Estimate, notes: Footnotes, valid: bool) -> Value:
    mark = ""
    if estimate.reason is not None and not estimate.reason.startswith("one round"):
        mark = notes.mark(estimate.reason)
    return Value((value_text(estimate) + mark, interval_text(estimate)), "" if valid else INVALID)


def _merged(rows: Sequence[RowResult]) -> Column:
    values = []
    for row in rows:
        told = row.descriptors["merged"]
        values.append(Value((NONE if told is None else f"{told:,}", f"of {row.descriptors['listed']:,}")))
    return Column(("descr.", "merged", ""), tuple(values))


def _integrity(row: RowResult) -> Value:
    found = row.integrity
    wrong = found.blocks_wrong + found.blocks_outside
    return Value((f"{found.blocks_checked:,}", f"{wrong:,} wrong"), "" if found.right else INVALID)


def bars(rows: Sequence[RowResult]) -> "Iterator[RenderableType]":
    """Aggregate bandwidth of each row, with where the plain TCP stream of the same rounds stands (|)."""
    from rich.text import Text

    points = [
        value
        for row in rows
        for key in ("aggregate_gb_s", "stream_gb_s")
        if (value := row.figures[key].point) is not None
    ]
    if not points:
        return
    longest = max(points)
    names = [f"{row.name} {row.backend} {row.workload.operation}" for row in rows]
    width = min(48, max(map(len, names)))
    for row, name in zip(rows, names, strict=True):
        value, limit = row.figures["aggregate_gb_s"].point, row.figures["stream_gb_s"].point
        cells = ["█"] * round(BAR_CELLS * (value or 0) / longest)
        cells += [" "] * (BAR_CELLS + 1 - len(cells))
        if limit is not None:
            cells[min(BAR_CELLS, round(BAR_CELLS * limit / longest))] = "|"
        said = NONE if value is None else f"{number(value)} GB/s"
        yield Text(plain(f"{name[:width]:{width}} {''.join(cells)} {said}"), style="" if row.valid else INVALID)


def ratio_line(ratio: Ratio) -> str:
    found = ratio.ratio
    what = f"{ratio.name}: time over {ratio.numerator} / time over {ratio.denominator}"
    if found.point is None:
        return f"{what} = {NONE} ({found.reason})"
    if found.low is None or found.high is None:
        return f"{what} = {found.point:.2f} ({found.reason})"
    return f"{what} = {found.point:.2f}, 95 % interval {found.low:.2f} to {found.high:.2f}, n={found.n} pairs of rounds"


def tool_line(tool: Figure) -> str:
    if tool.latency_us is None or tool.bandwidth_gb_s is None:
        return f"{tool.tool}, {tool.size_bytes:,} B: no figure ({tool.reason})"
    figures = f"{number(tool.latency_us)} us, {number(tool.bandwidth_gb_s)} GB/s"
    return f"{tool.tool}, {tool.size_bytes:,} B: {figures} (one run, no interval)"


def proof_line(row: RowResult) -> str:
    """What carried it, and what speaks against it."""
    seen = [f"{name} {value}" for name, value in row.evidence.items() if value]
    return "; ".join(([f"INVALID: {', '.join(row.against)}"] if row.against else []) + (seen or ["nothing was seen"]))

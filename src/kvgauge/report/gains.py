"""The gains of one test: the deciding metric first, then the headline metrics of the same cell."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kvgauge.compare.values import RUNS, GainRow
from kvgauge.report import rows
from kvgauge.report.numbers import NONE, signed_pct
from kvgauge.report.packed import Column, Footnotes, Packed, Value
from kvgauge.report.records import Results, TestResult
from kvgauge.stats.paired import UNIT as PAIRS

if TYPE_CHECKING:
    from rich.console import RenderableType

NARROW_PCT = 1.0  # an interval below this width is shown with a digit more
STYLES = {"better": "green", "worse": "bold red", "invalid": "red"}


def gains_table(results: Results, test: TestResult, notes: Footnotes) -> "Iterator[RenderableType]":
    """A table for each baseline, and one line on the gains that are left to results.json."""
    from rich.text import Text

    for baseline in test.baseline:
        listed = [row for row in test.gains if row.baseline == baseline]
        shown = [row for row in listed if row.primary or _is_headline(row, rows.deciding_cell(results))]
        if not shown:
            continue
        yield Text("")
        yield _table(shown, baseline, notes)
        rest = [row for row in listed if row not in shown]
        if rest:
            yield Text(_rest(rest), style="dim")


def _is_headline(row: GainRow, cell: str | None) -> bool:
    return (row.cell == cell and row.metric in rows.HEADLINE) or row.metric == "connection_ms_max"


def _table(shown: Sequence[GainRow], baseline: str, notes: Footnotes) -> Packed:
    label = Column(
        (f"gain over {baseline}",), tuple(Value((_what(row),), "bold" if row.primary else "") for row in shown)
    )
    return Packed(
        label,
        [
            Column(("gain",), tuple(Value((point_text(row),), STYLES.get(row.verdict, "")) for row in shown)),
            Column(("95 % interval",), tuple(Value((span_text(row),)) for row in shown)),
            Column(("n",), tuple(Value((count_text(row),)) for row in shown)),
            Column(("p",), tuple(Value((_p_value(row),)) for row in shown)),
            Column(("verdict",), tuple(verdict_value(row, notes) for row in shown), text=True),
        ],
    )


def _what(row: GainRow) -> str:
    words = rows.metric_words(row.metric) + (f", {row.cell}" if row.cell else "")
    return f"{words} (decides)" if row.primary else words


def point_text(row: GainRow) -> str:
    if row.gain.point is None:
        return NONE
    return f"{row.gain.point:+,.2f} %" if _narrow(row) else signed_pct(row.gain.point)


def _narrow(row: GainRow) -> bool:
    return row.gain.low is not None and row.gain.high is not None and row.gain.high - row.gain.low < NARROW_PCT


def count_text(row: GainRow) -> str:
    """n, and of what where it does not count runs."""
    if not row.gain.n:
        return NONE
    of = "pairs" if row.of == PAIRS else row.of
    return str(row.gain.n) if row.of == RUNS else f"{row.gain.n:,} {of}"


def span_text(row: GainRow) -> str:
    if row.gain.low is None or row.gain.high is None:
        return NONE
    digits = 2 if _narrow(row) else 1
    return f"{row.gain.low:+,.{digits}f} to {row.gain.high:+,.{digits}f} %"


def _p_value(row: GainRow) -> str:
    if row.p_value is None:
        return NONE
    return "<0.001" if row.p_value < 0.001 else f"{row.p_value:.3f}"


def verdict_value(row: GainRow, notes: Footnotes) -> Value:
    mark = notes.mark(row.reason) if row.reason else ""
    return Value((f"{row.verdict}{mark}",), STYLES.get(row.verdict, ""))


def _rest(rest: Sequence[GainRow]) -> str:
    counts: dict[str, int] = {}
    for row in rest:
        counts[row.verdict] = counts.get(row.verdict, 0) + 1
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return f"{len(rest)} more gains in results.json: {told}"

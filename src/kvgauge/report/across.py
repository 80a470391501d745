"""Across tests: what decides, how many runs stand behind it, and the gain over each baseline."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kvgauge.compare.values import GainRow
from kvgauge.report import rows
from kvgauge.report.gains import STYLES, count_text, point_text, span_text, verdict_value
from kvgauge.report.numbers import interval_text, value_text
from kvgauge.report.packed import Column, Footnotes, Packed, Value
from kvgauge.report.records import Results, TestResult
from kvgauge.stats.estimate import Estimate

if TYPE_CHECKING:
    from rich.console import RenderableType

Line = tuple[TestResult, str | None]  # a test and the cell that is shown of it

SHOWN = ("e2e_latency_ms_mean", "e2e_latency_ms_p99", "ttft_ms_mean", "output_token_throughput_tok_s")


def across_tests(results: Results) -> "Iterator[RenderableType]":
    """Measured results show the deciding cell; published ones every cell they have, as no plan says which decides."""
    from rich.text import Text

    cell = rows.deciding_cell(results)
    lines: list[Line] = [
        (test, at) for test in results.tests for at in (rows.cells_of(test) if results.published else [cell])
    ]
    notes = Footnotes()
    if not results.published:
        yield from _head(results, cell)
    names = tuple(_name(*line, results) for line in lines)
    apart = any(len(name.lines) > 2 for name in names)
    yield Packed(Column(("test", "", ""), names), _columns(results, lines, notes), lines=apart)
    yield Text("")
    pairs = [(line, row) for line in lines for row in _gains(*line, results)]
    if pairs:
        yield _gains_table(pairs, results, notes)
        yield Text("")
    yield from (Text(note, style="dim") for note in notes.texts())


def _head(results: Results, cell: str | None) -> "Iterator[RenderableType]":
    from rich.rule import Rule
    from rich.text import Text

    from kvgauge.report.numbers import plain

    yield Text("")
    yield Rule(Text("across tests" if cell is None else plain(f"across tests: cell {cell}"), style="bold"))
    warning = rows.rehearsal_text(results)
    if warning:
        yield Text(warning, style="yellow")
    yield Text("")


def _columns(results: Results, lines: Sequence[Line], notes: Footnotes) -> list[Column]:
    columns = [
        Column(rows.HEADLINE[metric], tuple(_value(test, cell, metric, results, notes) for test, cell in lines))
        for metric in SHOWN
    ]
    if results.published:
        return columns
    shakes = tuple(_handshakes(test, notes) for test, _ in lines)
    connect = tuple(_value(test, None, "connection_ms_max", results, notes) for test, _ in lines)
    runs = tuple(Value(tuple(rows.runs_text(test).split(" (")[:1]) + _others(test)) for test, _ in lines)
    return [
        *columns,
        Column(("hand-", "shakes", ""), shakes, text=True),
        Column(("connect", "slowest", "ms"), connect),
        Column(("valid", "runs", ""), runs, text=True),
    ]


def _others(test: TestResult) -> tuple[str, ...]:
    """The runs that do not count, one kind a line."""
    states = [state for _, state in rows.run_states(test)]
    kinds = ("invalid", "failed", "interrupted", "pending")
    return tuple(f"{states.count(kind)} {kind}" for kind in kinds if kind in states)


def _handshakes(test: TestResult, notes: Footnotes) -> Value:
    told = []
    for name, metric in (("NIXL", "handshake_count_nixl"), ("EFA", "handshake_count_efa")):
        estimate = rows.summary_of(test, None, metric)
        told.append(f"{name} {value_text(estimate)}{_mark(estimate, notes)}")
    return Value(tuple(told))


def _name(test: TestResult, cell: str | None, results: Results) -> Value:
    """Name, then under it what would mislead if it stood elsewhere: the stand-in and the build."""
    if results.published:
        facts = [test.model, cell if cell != "as published" else None, test.build if "NIXL" in test.build else None]
        return Value((test.name, ", ".join(fact for fact in facts if fact)))
    stand_in, build = rows.stand_in_text(test.stand_in), rows.build_text(test.build)
    under = [stand_in, "" if build in stand_in else build]
    if test.model:
        under.append(f"{test.model} TP {test.tp.prefill}" if test.tp.prefill else test.model)
    if test.cold_start is not None:
        under.append("cold start modelled")
    if test.planted is not None:
        under.append(f"planted: {test.planted.line}")
    return Value((test.name, *(line for line in under if line)))


def _mark(estimate: Estimate, notes: Footnotes) -> str:
    told = estimate.reason is not None and not estimate.reason.startswith("one run")
    return notes.mark(estimate.reason or "") if told else ""


def _value(test: TestResult, cell: str | None, metric: str, results: Results, notes: Footnotes) -> Value:
    estimate = rows.summary_of(test, cell, metric)
    if results.published:
        return Value((value_text(estimate),))
    n = f"n={estimate.n}" if estimate.point is not None else ""
    under = (line for line in (interval_text(estimate), n) if line)
    return Value((value_text(estimate) + _mark(estimate, notes), *under))


def _gains(test: TestResult, cell: str | None, results: Results) -> list[GainRow]:
    """The primary metric's gain over each baseline; of published numbers every gain in this cell."""
    return [row for row in test.gains if row.primary or (results.published and row.cell == cell)]


def _gains_table(pairs: Sequence[tuple[Line, GainRow]], results: Results, notes: Footnotes) -> Packed:
    """Stand-ins stand beside the names here too."""
    labels = []
    for (test, cell), row in pairs:
        under = rows.stand_in_text(test.stand_in)
        if results.published:
            under = ", ".join([rows.metric_words(row.metric), *([cell] if cell and cell != "as published" else [])])
        labels.append(Value((test.name, under) if under else (test.name,)))
    found = [row for _, row in pairs]
    metric = "" if results.published else rows.metric_words(found[0].metric)
    columns = [
        Column(("over",), tuple(Value((row.baseline,)) for row in found), text=True, width=28),
        Column(("gain",), tuple(Value((point_text(row),), STYLES.get(row.verdict, "")) for row in found)),
        Column(("95 % interval",), tuple(Value((span_text(row),)) for row in found)),
        Column(("n",), tuple(Value((count_text(row),)) for row in found)),
        Column(("verdict",), tuple(verdict_value(row, notes) for row in found), text=True),
    ]
    return Packed(Column((f"gain in {metric}" if metric else "gain",), tuple(labels)), columns)

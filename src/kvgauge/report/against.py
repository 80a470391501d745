"""Two sides beside one another: picked from results, and as tables for a terminal."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from kvgauge.compare.gates import Passed
from kvgauge.compare.ranks import Ranked
from kvgauge.compare.sides import Comparison, Row, Side
from kvgauge.compare.values import Key, TestValues
from kvgauge.failures import SamplesError, UsageError
from kvgauge.plan.records import Primary, Test
from kvgauge.report import rows
from kvgauge.report.gains import STYLES, count_text, point_text, span_text
from kvgauge.report.numbers import NONE, plain, signed_pct, with_interval
from kvgauge.report.packed import Column, Footnotes, Packed, Value
from kvgauge.report.records import Results
from kvgauge.report.results import stopping_confidence, values_of

if TYPE_CHECKING:
    from rich.console import RenderableType

OUTCOMES = {"within": "green", "beyond": "bold red", "undecided": "yellow"}


def side_of(results: Results, source: str, name: str, *, label: str | None = None) -> Side:
    """The test of this name.

    raises  UsageError when there is none, SamplesError when its record cannot be read
    """
    by_name = {test.name: test for test in results.tests}
    if name not in by_name:
        raise UsageError(f"{source} has no test {name!r}; there are {', '.join(map(repr, by_name)) or 'none'}")
    return Side(
        label=label or name,
        source=source,
        values=_values(results, source, name),
        cells={str(cell.get("name")): cell for cell in _listed(results, "cells")},
        machine=_place(results),
        primary=primary_of(results),
        rehearsal=results.rehearsal,
        limits=rows.limits_of(by_name[name]),
    )


def _place(results: Results) -> dict[str, object]:
    """The machine; how the client behaved; the tool, its version aside, where it was another one."""
    found = {**results.machine, "quick_ack": bool(results.plan.get("quick_ack")), "seed": results.plan.get("seed")}
    tool = results.machine.get("imported from")
    return found | {"tool": str(tool).rstrip("0123456789. ")} if tool else found


def primary_of(results: Results) -> Key | None:
    """What its plan decides by."""
    try:
        primary = msgspec.convert(results.plan.get("primary"), Primary)
    except msgspec.ValidationError:
        return None
    return (primary.cell, primary.metric)


def all_values(results: Results, source: str) -> list[TestValues]:
    """Every test of a plan."""
    return [_values(results, source, test.name) for test in results.tests]


def _values(results: Results, source: str, name: str) -> TestValues:
    runs = next(test.runs for test in results.tests if test.name == name)
    stops, mode = results.plan.get("gain_within_pct") is not None, str(results.plan.get("mode", "runs"))
    confidence = stopping_confidence(stops=stops, mode=mode)
    host = results.machine.get("host")
    return values_of(_test(results, source, name), runs, confidence=confidence, host=str(host) if host else None)


def _test(results: Results, source: str, name: str) -> Test:
    for found in _listed(results, "tests"):
        if found.get("name") == name:
            try:
                return msgspec.convert(found, Test)
            except msgspec.ValidationError as error:
                raise SamplesError(f"{source}: the plan's test {name!r} cannot be read: {error}") from error
    raise SamplesError(f"{source}: its plan does not have the test {name!r} that it has results of")


def _listed(results: Results, key: str) -> list[dict[str, object]]:
    found = results.plan.get(key)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list | tuple) else []


def render(comparison: Comparison, *, everything: bool = False) -> "Iterator[RenderableType]":
    """What decides, then a table for each cell.

    everything  all metrics; else the headline ones
    """
    from rich.rule import Rule
    from rich.text import Text

    yield Rule(Text(plain(f"{comparison.after} beside {comparison.before}"), style="bold"), characters="━")
    yield Text(plain("; ".join(one.words for one in comparison.differences if one.cell is None) or "nothing differs"))
    for remark in ((f"a verdict about {comparison.scope}",) if comparison.scope else ()) + comparison.remarks:
        yield Text(plain(remark), style="yellow")
    yield Text("")
    notes = Footnotes()
    yield _decides(comparison)
    for cell in dict.fromkeys(row.row.cell for row in comparison.rows):
        shown = [row for row in comparison.rows if row.row.cell == cell and (everything or _is_shown(row))]
        if shown:
            yield Text("")
            yield _table(comparison, cell, shown, notes)
            yield from _arose(comparison, cell)
    if notes.texts():
        yield Text("")
    yield from (Text(plain(note), style="dim") for note in notes.texts())


def _is_shown(row: Row) -> bool:
    return row.row.primary or row.row.metric in rows.HEADLINE or row.row.metric == "connection_ms_max"


def _decides(comparison: Comparison) -> "RenderableType":
    from rich.text import Text

    row = next(row for row in comparison.rows if row.row.primary)
    text = Text(plain(f"{rows.metric_words(row.row.metric)} of {row.row.cell or 'whole runs'} decides: "))
    text.append(row.row.verdict, style=STYLES.get(row.row.verdict, "bold"))
    if row.row.gain.point is not None:
        text.append(plain(f", {point_text(row.row)} {span_text(row.row)}".rstrip()))
    if row.row.reason:
        text.append(plain(f" ({row.row.reason})"), style="dim")
    return text


def _table(comparison: Comparison, cell: str | None, shown: Sequence[Row], notes: Footnotes) -> Packed:
    label = Column(
        (cell or "whole runs",),
        tuple(Value((_named(row),), "bold" if row.row.primary else "") for row in shown),
    )
    return Packed(
        label,
        [
            Column((_short(comparison.before),), tuple(Value((with_interval(row.before),)) for row in shown)),
            Column((_short(comparison.after),), tuple(Value((with_interval(row.after),)) for row in shown)),
            Column(("gain",), tuple(Value((point_text(row.row),), STYLES.get(row.row.verdict, "")) for row in shown)),
            Column(("95 %",), tuple(Value((span_text(row.row),)) for row in shown)),
            Column(("n",), tuple(Value((count_text(row.row),)) for row in shown)),
            Column(("verdict",), tuple(_verdict(row, notes) for row in shown), text=True),
        ],
    )


def _short(label: str) -> str:
    return label if len(label) <= 24 else label[:23] + "…"


def _named(row: Row) -> str:
    unit = row.after.unit or row.before.unit
    return f"{rows.metric_words(row.row.metric)}{f', {unit}' if unit else ''}"


def _verdict(row: Row, notes: Footnotes) -> Value:
    mark = f" {notes.mark(row.row.reason)}" if row.row.reason else ""
    return Value((row.row.verdict + mark,), STYLES.get(row.row.verdict, ""))


def _arose(comparison: Comparison, cell: str | None) -> "Iterator[RenderableType]":
    """Where the TTFT's difference arose; parts whose interval excludes 0 stand out."""
    from rich.text import Text

    parts = [part for part in comparison.arose if part.cell == cell]
    if not parts:
        return
    line = Text("TTFT changed by, ms: ")
    for place, part in enumerate(parts):
        shown = part.change.low is not None and part.change.high is not None
        sure = shown and (part.change.low > 0 or part.change.high < 0)  # type: ignore[operator]
        said = NONE if part.change.point is None else f"{part.change.point:+.1f}"
        text = f"{', ' if place else ''}{part.phase.replace('_', ' ')} {said}"
        line.append(text, style="bold" if sure else "dim")
    yield line


def render_gates(passed: Sequence[Passed]) -> "Iterator[RenderableType]":
    """One line for each gate."""
    from rich.text import Text

    yield Text("")
    for one in passed:
        line = Text(plain(f"gate: {one.gate.words}: "))
        line.append(one.outcome, style=OUTCOMES[one.outcome])
        line.append(plain(f" ({one.reason})"))
        yield line


def render_ranks(
    ranked: Sequence[Ranked], key: Key, sentence: str, *, scope: str | None = None
) -> "Iterator[RenderableType]":
    """A plan's tests, best first. scope: whom that is about, where deployments were not repeated"""
    from rich.rule import Rule
    from rich.text import Text

    yield Rule(Text(plain(f"{rows.metric_words(key[1])} of {key[0] or 'whole runs'}, best first"), style="bold"))
    notes = Footnotes()
    label = Column(("test",), tuple(Value((one.test,)) for one in ranked))
    behind = [one.behind for one in ranked]
    yield Packed(
        label,
        [
            Column((rows.unit_of(key[1]),), tuple(Value((with_interval(one.value),)) for one in ranked)),
            Column(
                ("first is better by",),
                tuple(Value((NONE if b is None or b.point is None else signed_pct(b.point),)) for b in behind),
            ),
            Column(
                ("95 %",),
                tuple(
                    Value(("" if b is None or b.low is None or b.high is None else f"{b.low:+.1f} to {b.high:+.1f}",))
                    for b in behind
                ),
            ),
            Column(
                ("told apart",),
                tuple(
                    Value((("yes" if one.apart else "no") + (notes.mark(one.reason) if one.reason else ""),))
                    if one.behind is not None or one.reason
                    else Value((NONE,))
                    for one in ranked
                ),
                text=True,
            ),
        ],
    )
    yield Text("")
    yield Text(plain(sentence), style="bold")
    if scope:
        yield Text(plain(f"a verdict about {scope}"), style="yellow")
    yield from (Text(plain(note), style="dim") for note in notes.texts())

"""One server under load: for each cell, what its requests took, as load generators show it."""

from typing import TYPE_CHECKING

from kvgauge.report import rows
from kvgauge.report.numbers import plain, value_text
from kvgauge.report.packed import Column, Footnotes, Packed, Value
from kvgauge.report.parts import part_lines
from kvgauge.report.records import TestResult

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

STATISTICS = ("mean", "p50", "p90", "p95", "p99")
FAMILIES = {
    "ttft_ms": "time to first token, ms",
    "e2e_latency_ms": "end-to-end latency, ms",
    "tpot_ms": "time per output token, ms",
    "itl_ms": "inter-token latency, ms",
}
RATES = {
    "output_token_throughput_tok_s": "output tok/s",
    "request_throughput_req_s": "requests/s",
    "offered_rate_req_s": "offered requests/s",
    "sent_rate_req_s": "sent requests/s",
    "late_ms_max": "sent late by at most, ms",
}


def load_tables(test: TestResult, notes: Footnotes) -> "Iterator[RenderableType]":
    """For each cell a line of rates and a table: metrics down, statistics across; over its valid runs."""
    from rich.text import Text

    for cell in rows.cells_of(test):
        runs = rows.runs_in(test, cell, "valid")
        yield Text(plain(cell), style="bold").append(plain(f"  {_rates(test, cell, notes)}"), style="not bold")
        if not runs:
            yield from (Text(plain(line)) for line in part_lines(test, cell))
            continue
        label = Column(("",), tuple(Value((name,)) for name in FAMILIES.values()))
        yield Packed(
            label, [Column((of,), tuple(_value(test, cell, f"{family}_{of}", notes) for family in FAMILIES))
                    for of in STATISTICS],
        )  # fmt: skip
        yield from (Text(plain(line)) for line in part_lines(test, cell))
        yield Text("")


def _value(test: TestResult, cell: str, metric: str, notes: Footnotes) -> Value:
    estimate = rows.summary_of(test, cell, metric)
    told = estimate.reason or ""
    marked = told if told.startswith(("max of", "n=")) or estimate.point is None else ""
    marks = "".join(notes.mark(text) for text in (marked, estimate.note) if text)
    return Value((value_text(estimate) + marks,))


def _rates(test: TestResult, cell: str, notes: Footnotes) -> str:
    runs = rows.runs_in(test, cell, "valid")
    if not runs:
        return "no valid run"
    requests = sum(estimate.point or 0 for run in runs if (estimate := run.metrics.get("requests")) is not None)
    failed = sum(estimate.point or 0 for run in runs if (estimate := run.metrics.get("failures")) is not None)
    said = [f"{requests:,.0f} requests", f"{failed:,.0f} failed"]
    for metric, name in RATES.items():
        estimate = rows.summary_of(test, cell, metric)
        if estimate.point is not None:
            said.append(f"{name} {value_text(estimate)}{notes.mark(estimate.note) if estimate.note else ''}")
    if len(runs) > 1:
        said.append(f"{len(runs)} runs")
    return " · ".join(said)

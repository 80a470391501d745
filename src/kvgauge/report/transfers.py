"""Transfers measured by themselves, as nixlbench does: a row for each size of block and batch."""

from typing import TYPE_CHECKING

from kvgauge.report import rows
from kvgauge.report.numbers import value_text
from kvgauge.report.packed import Column, Footnotes, Packed, Value
from kvgauge.report.records import TestResult

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

HEADS = {
    "bandwidth_gb_s": ("band-", "width", "GB/s"),
    "bandwidth_aggregate_gb_s": ("of all", "pairs", "GB/s"),
    "descriptor_us_mean": ("each de-", "scriptor", "us"),
    "prep_us_mean": ("prepare", "mean", "us"),
    "prep_us_p99": ("prepare", "P99", "us"),
    "post_us_mean": ("post", "mean", "us"),
    "post_us_p99": ("post", "P99", "us"),
    "wait_us_mean": ("wait", "mean", "us"),
    "wait_us_p99": ("wait", "P99", "us"),
}


def moves_only(test: TestResult) -> bool:
    """Whether this test has transfers and no requests."""
    measured = {metric for run in test.runs for metric in run.metrics}
    return "bandwidth_gb_s" in measured and "ttft_ms_mean" not in measured


def transfers_table(test: TestResult, notes: Footnotes) -> "Iterator[RenderableType]":
    """Over the valid runs of each cell."""
    from rich.text import Text

    measured = {metric for run in test.runs for metric in run.metrics}
    cells = rows.cells_of(test)
    columns = [
        Column(head, tuple(_value(test, cell, metric, notes) for cell in cells))
        for metric, head in HEADS.items()
        if metric in measured
    ]
    yield Packed(Column(("block", "and batch", ""), tuple(Value((cell,)) for cell in cells)), columns)
    yield Text("")


def _value(test: TestResult, cell: str, metric: str, notes: Footnotes) -> Value:
    estimate = rows.summary_of(test, cell, metric)
    missing = estimate.reason or "" if estimate.point is None else ""
    return Value((value_text(estimate) + (notes.mark(missing) if missing else ""),))

"""What is compared: tests with their run-level values, the rows that come of it, and which tests may be. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from kvgauge.plan.metrics import METRICS
from kvgauge.plan.records import Test
from kvgauge.stats.estimate import Estimate
from kvgauge.stats.paired import LogRatio
from kvgauge.stats.runs import (
    CONFIDENCE,
    Better,
)

Verdict = Literal["better", "worse", "equivalent", "no difference shown", "cannot tell", "invalid"]


Key = tuple[str | None, str]  # cell (None: the whole run) and metric


RUNS = "runs"


# fields of a test that must agree before its numbers may be set against another's
MUST_AGREE = (
    "model", "prefill_tp", "decode_tp", "kv_dtype", "operation", "prefill_workers", "decode_workers", "gpu", "fabric",
    "full_check", "progress_thread", "cold_start",
)  # fmt: skip


RUN_LEVEL: dict[str, Better] = {  # beside the metrics a plan can decide by
    "connection_ms_max": "lower",
    "connection_ms_mean": "lower",
    **dict.fromkeys(("bandwidth_gb_s", "bandwidth_aggregate_gb_s"), "higher"),  # of transfers by themselves: nixlbench
    **dict.fromkeys(("descriptor_us_mean", "prep_us_mean", "post_us_mean", "wait_us_mean"), "lower"),
}


class Stay(msgspec.Struct, frozen=True, kw_only=True):
    """A run on its deployment.

    deployment   None: it failed before it had one, or names none
    began, ended by the wall clock of `host`, which conducted it (None: not known which)
    """

    deployment: str | None
    began: datetime
    ended: datetime
    host: str | None


class TestValues(msgspec.Struct, frozen=True, kw_only=True):
    """A test and its run-level values.

    values      (cell, metric) -> repetition -> value, of valid runs only
    left_out    (cell, repetition) -> why that run does not enter: "invalid", "failed", "interrupted", "pending"
    no_verdict  (cell, metric) -> why this metric gives no verdict, as a P99 of few requests does
    units       (cell, metric) -> its unit
    confidence  of its gains' intervals: more than 95 % where the plan stopped once they were narrow
    counted_by  (cell, metric) -> which tokenizer counted the tokens it rests on; absent: the server did
    beside      the test that stood beside it under one load; None: it had its target's machine to itself
    pairs       (cell, metric) -> repetition -> how this test differs from the one beside it, pair by pair of requests;
                one of the two has it
    deployments  repetition -> the deployment it was measured on, of valid runs that name one
    stays       repetition -> when its run was made, valid or not; absent: not recorded
    unit        what a repetition stands for
    """

    __test__ = False  # pytest: not a test class

    test: Test
    values: Mapping[Key, Mapping[int, float]]
    left_out: Mapping[tuple[str | None, int], str] = {}
    no_verdict: Mapping[Key, str] = {}
    units: Mapping[Key, str] = {}
    confidence: float = CONFIDENCE
    counted_by: Mapping[Key, str] = {}
    beside: str | None = None
    pairs: Mapping[Key, Mapping[int, LogRatio]] = {}
    deployments: Mapping[int, str] = {}
    stays: Mapping[int, Stay] = {}
    unit: Literal["run", "deployment", "block"] = "run"


class GainRow(msgspec.Struct, frozen=True, kw_only=True):
    """What `test` gained over `baseline` in one metric of one cell (None: of whole runs).

    gain     percent, positive is better
    p_value  two-sided, of the paired t test; Holm-adjusted: primary rows over all pairs of tests, others over
             the secondary metrics of their pair
    reason   why the verdict is not better or worse, or what was left out
    of       what n counts
    """

    test: str
    baseline: str
    cell: str | None
    metric: str
    primary: bool
    gain: Estimate
    verdict: Verdict
    p_value: float | None = None
    reason: str | None = None
    of: str = RUNS


def direction(metric: str) -> Better | None:
    """Which way is better; None for what is neither (counts, bytes, phases: they can move into one another)."""
    known = METRICS.get(metric)
    return known.better if known is not None else RUN_LEVEL.get(metric)


def comparable(test_a: Test, test_b: Test, vary: Sequence[str] = ()) -> str | None:
    """The first field that keeps these tests from being compared, None when they may be.

    vary  fields whose difference is the experiment
    """
    for field in MUST_AGREE:
        if field not in vary and getattr(test_a, field) != getattr(test_b, field):
            return field
    return None

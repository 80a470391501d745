"""When a plan with `gain_within` may end. Pure."""

from collections.abc import Sequence

import msgspec

from kvgauge.compare.gains import gains
from kvgauge.compare.values import GainRow, Key, TestValues
from kvgauge.plan.records import Plan
from kvgauge.stats.runs import (
    RUNS_MIN,
    STOPPING_EXTRA,
)


def may_stop(tests: Sequence[TestValues], plan: Plan, reached: int) -> bool:
    """Whether a plan with `gain_within` ends after repetition `reached`: its gains were known well enough
    STOPPING_EXTRA repetitions before. Those more are what luck does not choose.
    """
    if plan.gain_within_pct is None:
        return False
    key: Key = (plan.primary.cell, plan.primary.metric)
    seen = [
        msgspec.structs.replace(
            one, values={key: {k: v for k, v in one.values.get(key, {}).items() if k <= reached - STOPPING_EXTRA}}
        )
        for one in tests
    ]
    return known_within(gains(seen, plan), plan.gain_within_pct)


def known_within(rows: Sequence[GainRow], half_width_pct: float) -> bool:
    """Whether every primary gain that has an interval is known within so many percentage points; False without any."""
    widths = [
        (row.gain.high - row.gain.low) / 2
        for row in rows
        if row.primary and row.gain.low is not None and row.gain.high is not None
    ]
    counts = [row.gain.n for row in rows if row.primary and row.gain.low is not None]
    return bool(widths) and min(counts) >= RUNS_MIN and max(widths) <= half_width_pct

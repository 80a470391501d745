"""A plan that stops once its gains are narrow: whether their intervals still hold the truth 95 +- 1.5 times in 100.

The rule is the one that `kvgauge run` stops by; `make calibrate` counts the same with more plans.
"""

import random
from math import sqrt

import pytest

from calibrate import stopping
from kvgauge.stats.runs import CONFIDENCE, RUNS_MIN, STOPPING_EXTRA, gain

PLANS = 700
ERROR_PCT = 100 * sqrt(0.05 * 0.95 / PLANS)


@pytest.mark.parametrize("kind", ["normal", "bimodal"])
@pytest.mark.parametrize("spread", [0.01, 0.045, 0.1])
def test_an_interval_that_stopped_its_plan_covers_as_often_as_any_other(kind, spread):
    found = stopping.stop(kind, spread, PLANS, seed=1)
    assert 93.5 - 3 * ERROR_PCT <= found.coverage.pct <= 96.5 + 3 * ERROR_PCT
    assert found.runs == RUNS_MIN + STOPPING_EXTRA if spread < 0.03 else found.stopped.pct < 100


def test_at_the_ordinary_confidence_and_without_more_repetitions_it_would_not():
    rng, covered, plans = random.Random(2), 0, 2_000
    for _ in range(plans):
        logs = {}
        for k in range(16):
            logs[k] = 1 + rng.gauss(0, 0.05)
            seen = gain(dict.fromkeys(logs, 1.0), logs, "higher", confidence=CONFIDENCE).estimate
            if len(logs) >= RUNS_MIN and (seen.high - seen.low) / 2 <= 3:
                break
        covered += seen.low <= 0 <= seen.high
    assert covered / plans < 0.95 - 2 * sqrt(0.05 * 0.95 / plans)

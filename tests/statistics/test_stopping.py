"""A plan that stops once its gains are narrow: whether their intervals still hold the truth 95 times in 100."""

import random
from math import exp, log, sqrt

import pytest

from kvgauge.stats.runs import CONFIDENCE, RUNS_MIN, STOPPING_CONFIDENCE, gain, percent

REPLICATES, MOST, WITHIN_PCT = 2_000, 16, 3.0
ERROR = sqrt(0.05 * 0.95 / REPLICATES)


def noise(kind, rng, spread):
    if kind == "bimodal":
        return spread * ((2.0 if rng.random() < 0.3 else 0.0) - 0.6 + rng.gauss(0, 1)) / sqrt(1.84)
    return rng.gauss(0, spread)


def share_that_covers(kind, spread, confidence, seed):
    rng, covered, stopped = random.Random(seed), 0, 0
    truth = percent(log(0.9), "lower")
    for _ in range(REPLICATES):
        before, after = {}, {}
        for k in range(MOST):
            before[k], after[k] = 100.0, 90 * exp(noise(kind, rng, spread))
            if len(before) < RUNS_MIN:
                continue
            seen = gain(before, after, "lower", confidence=confidence).estimate
            if (seen.high - seen.low) / 2 <= WITHIN_PCT:
                stopped += 1
                break
        covered += seen.low <= truth <= seen.high
    return covered / REPLICATES, stopped / REPLICATES


@pytest.mark.parametrize("kind", ["normal", "bimodal"])
@pytest.mark.parametrize("spread", [0.01, 0.04, 0.055, 0.1])
def test_an_interval_that_stopped_its_plan_covers_as_often_as_any_other(kind, spread):
    covered, stopped = share_that_covers(kind, spread, STOPPING_CONFIDENCE, seed=int(spread * 1000))
    assert covered >= 0.95 - 3 * ERROR
    assert stopped > 0.9 if spread < 0.03 else stopped < 1.0 if spread > 0.09 else True


def test_at_the_ordinary_confidence_it_would_not():
    covered, _ = share_that_covers("normal", 0.05, CONFIDENCE, seed=2)
    assert covered < 0.95 - 2 * ERROR

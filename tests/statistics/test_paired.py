"""Pairs of requests: how often intervals hold the truth, and looks raise a false alarm, over fixed seeds."""

from math import log, sqrt

import numpy as np
import pytest

from kvgauge.stats.paired import LEVEL, PAIRS_MIN, log_ratio, looks_of

REPLICATES, MOST = 2_000, 1_600
ERROR = sqrt(LEVEL * (1 - LEVEL) / REPLICATES)
SPREAD = 0.08  # of one pair's log ratio


def series(kind, seed, pairs=MOST):
    """REPLICATES rows of log ratios about 0: independent, with far outliers, or each like the last by so much."""
    rng = np.random.default_rng(seed)
    if kind == "outliers":
        far = (rng.random((REPLICATES, pairs)) < 0.01) * rng.exponential(1.0, (REPLICATES, pairs))
        return SPREAD * rng.standard_t(4, (REPLICATES, pairs)) + far * rng.choice([-1, 1], (REPLICATES, pairs))
    drawn = rng.normal(0, SPREAD, (REPLICATES, pairs + 100))
    if kind.startswith("alike"):
        for at in range(1, pairs + 100):
            drawn[:, at] += float(kind.split()[1]) * drawn[:, at - 1]
    return drawn[:, 100:]


def looked_at(row):
    """What each look of a cell says, its end last."""
    looks = looks_of(MOST)
    return [log_ratio(row[:pairs], looks=len(looks) + 1) for pairs in (*looks, MOST)]


@pytest.mark.parametrize(
    ("kind", "pairs"),
    [(kind, pairs) for kind in ("independent", "outliers", "alike 0.5") for pairs in (PAIRS_MIN, 800)]
    + [("alike 0.9", 800)],
)
def test_an_interval_over_pairs_holds_the_truth_as_often_as_it_claims(kind, pairs):
    held = []
    for row in series(kind, seed=pairs, pairs=pairs).tolist():
        seen = log_ratio(row)
        if seen.error is not None:
            held.append(abs(seen.mean) <= seen.half_width())
    assert len(held) > 0.93 * REPLICATES, "batches so alike that nothing is said are the exception"
    assert sum(held) / len(held) >= 1 - LEVEL - 3 * ERROR


@pytest.mark.parametrize("kind", ["independent", "alike 0.5"])
def test_stopping_at_a_look_neither_narrows_the_truth_nor_raises_alarms(kind):
    held, alarms = [], 0
    for row in series(kind, seed=11).tolist():
        looks = looked_at(row)
        narrow = (seen for seen in looks if seen.error is not None and seen.half_width() <= 0.012)
        stopped = next(narrow, looks[-1])
        if stopped.error is not None:
            held.append(abs(stopped.mean) <= stopped.half_width())
        alarms += any(seen.p_value is not None and seen.p_value < LEVEL for seen in looks)
    assert sum(held) / len(held) >= 1 - LEVEL - 3 * ERROR
    assert alarms / REPLICATES <= LEVEL, "not even somebody who stops at the first alarm is misled more often"


def test_one_percent_is_found_at_the_number_of_pairs_that_a_noisy_machine_needs():
    truth, found = log(1.01), 0
    for row in (series("independent", seed=3)[:500] + truth).tolist():
        seen = looked_at(row)[-1]
        found += seen.p_value is not None and seen.p_value < LEVEL and seen.mean > 0
    assert found / 500 >= 0.9

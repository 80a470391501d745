"""Deployments above runs: coverage with both spreads, counted, and proposals that show what they promise."""

import random
from math import log, sqrt

import pytest

from calibrate.levels import nest
from kvgauge.stats.design import levels, spreads_of_arm
from kvgauge.stats.runs import LEVEL, PRIMARY_SHARE, unpaired_gain

COMPARISONS = 400
ERROR_PCT = 100 * sqrt(0.05 * 0.95 / COMPARISONS)


@pytest.mark.parametrize(("deployments", "runs"), [(5, 3), (10, 3)])
def test_the_interval_over_deployments_covers_as_often_as_it_claims(deployments, runs):
    found = nest(deployments, runs, COMPARISONS, seed=1)
    assert 93.5 - 3 * ERROR_PCT <= found.coverage.pct <= 96.5 + 3 * ERROR_PCT
    assert found.alarms.pct <= 5 + 3 * ERROR_PCT
    assert found.as_runs.pct < 85  # runs of one deployment are no replicates of it


def test_a_planted_tenth_is_found_nine_times_in_ten_with_the_deployments_that_were_proposed():
    rng, found, plans = random.Random(5), 0, 150

    def arm(level, deployments, runs):
        return [
            [level + base + rng.gauss(0, 0.04) for _ in range(runs)]
            for base in (rng.gauss(0, 0.04) for _ in range(deployments))
        ]

    for _ in range(plans):
        made = levels(spreads_of_arm(arm(0, 5, 4)), 10, "lower", deploy_s=600, run_s=120)
        sides = [
            [2.718281828 ** (sum(runs) / len(runs)) for runs in arm(level, made.deployments, made.runs)]
            for level in (0, log(0.9))
        ]
        seen = unpaired_gain(*sides, "lower")
        found += seen.p_value < LEVEL * PRIMARY_SHARE and seen.estimate.point > 0
    assert found / plans >= 0.9 - 3 * sqrt(0.09 / plans)

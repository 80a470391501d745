"""Deployments above runs: coverage with both spreads, counted, and proposals that show what they promise."""

import random
from math import exp, log, sqrt

import pytest

from calibrate.levels import drift, nest
from kvgauge.stats.design import levels, spreads_of_arm, spreads_of_arms, spreads_of_blocks
from kvgauge.stats.runs import LEVEL, PRIMARY_SHARE, gain

COMPARISONS = 400
ERROR_PCT = 100 * sqrt(0.05 * 0.95 / COMPARISONS)


@pytest.mark.parametrize(("deployments", "runs"), [(5, 3), (10, 3)])
def test_the_interval_over_deployments_covers_as_often_as_it_claims(deployments, runs):
    found = nest(deployments, runs, COMPARISONS, seed=1)
    assert 93.5 - 3 * ERROR_PCT <= found.coverage.pct <= 96.5 + 3 * ERROR_PCT
    assert found.alarms.pct <= 5 + 3 * ERROR_PCT
    assert found.as_runs.pct < 85  # runs of one deployment are no replicates of it


@pytest.mark.parametrize("kind", ["line", "walk"])
def test_blocks_hold_the_truth_while_the_machine_drifts_and_sides_apart_do_not(kind):
    found = {(one.order, one.by): one for one in drift(kind, 10, COMPARISONS, seed=1)}
    blocks, turned, apart = (found[key] for key in (("ABBA", "block"), ("ABBA", "side"), ("AABB", "side")))
    assert 93.5 - 3 * ERROR_PCT <= blocks.coverage.pct <= 96.5 + 3 * ERROR_PCT
    assert blocks.alarms.pct <= 5 + 3 * ERROR_PCT
    assert apart.alarms.low_pct > 20
    assert turned.width_pct > 1.15 * blocks.width_pct


def pilot_of(rng, deployments, walk, *, level=0.0, runs=4, spread=0.04):
    """Blocks in the order ABBA.. on a machine that drifts: of each, the log values of both deployments' runs."""
    machine, found = 0.0, []
    for place in range(deployments):
        block = {}
        for letter in "AB" if place % 2 == 0 else "BA":
            machine += rng.gauss(0, walk)
            base = machine + (level if letter == "B" else 0) + rng.gauss(0, spread)
            block[letter] = [base + rng.gauss(0, 0.04) for _ in range(runs)]
        found.append((block["A"], block["B"]))
    return found


@pytest.mark.parametrize(("walk", "source"), [(0.0, "one arm"), (0.0, "both arms"), (0.0, "blocks"), (0.03, "blocks")])
def test_a_planted_tenth_is_found_nine_times_in_ten_in_the_blocks_that_were_proposed(walk, source):
    rng, found, plans = random.Random(5), 0, 150
    for _ in range(plans):
        pilot = pilot_of(rng, 5, walk)
        sides = [before for before, _ in pilot], [after for _, after in pilot]
        spreads = {
            "blocks": lambda pilot=pilot: spreads_of_blocks(pilot),
            "both arms": lambda sides=sides: spreads_of_arms(*sides),
            "one arm": lambda sides=sides: spreads_of_arm(sides[0]),
        }[source]()
        assert spreads.source == source
        made = levels(spreads, 10, "lower", deploy_s=600, run_s=120)
        blocks = pilot_of(rng, made.deployments, walk, level=log(0.9), runs=made.runs)
        before, after = ({k: exp(sum(block[arm]) / made.runs) for k, block in enumerate(blocks)} for arm in (0, 1))
        seen = gain(before, after, "lower")
        found += seen.p_value < LEVEL * PRIMARY_SHARE and seen.estimate.point > 0
    assert found / plans >= 0.9 - 3 * sqrt(0.09 / plans)

"""How many runs are proposed, and whether they do what was promised: counted with fixed seeds."""

import random
from math import exp, log, sqrt

import pytest

from kvgauge.failures import TooFewSamples
from kvgauge.stats.design import (
    POWER,
    RUNS_MOST,
    abba,
    design,
    detectable_pct,
    levels,
    log_effect,
    power_of,
    runs_for,
    spread_bound,
    spreads_of_arm,
    spreads_of_arms,
    spreads_of_blocks,
)
from kvgauge.stats.runs import LEVEL, PRIMARY_SHARE, gain

REPLICATES = 2_000


@pytest.mark.parametrize("spread", [0.03, 0.08, 0.15])
def test_a_planted_tenth_is_found_nine_times_in_ten_at_the_number_that_was_proposed(spread):
    rng, found = random.Random(17), 0
    for _ in range(400):
        proposed = design([rng.gauss(log(0.9), spread) for _ in range(5)], 10, "lower").runs
        before = {k: 100 * exp(rng.gauss(0, spread / sqrt(2))) for k in range(proposed)}
        after = {k: 90 * exp(rng.gauss(0, spread / sqrt(2))) for k in range(proposed)}
        seen = gain(before, after, "lower")
        found += seen.p_value < LEVEL * PRIMARY_SHARE and seen.estimate.point > 0
    assert found / 400 >= 0.9 - 3 * sqrt(0.09 / 400)


@pytest.mark.parametrize(("n", "effect", "spread"), [(5, 0.1, 0.05), (12, 0.05, 0.06), (30, 0.02, 0.04)])
def test_the_power_is_what_a_simulation_counts(n, effect, spread):
    rng, shown = random.Random(n), 0
    for _ in range(REPLICATES):
        logs = [rng.gauss(effect, spread) for _ in range(n)]
        seen = gain(dict.fromkeys(range(n), 1.0), {k: exp(v) for k, v in enumerate(logs)}, "higher")
        shown += seen.p_value < LEVEL * PRIMARY_SHARE
    assert abs(shown / REPLICATES - power_of(n, effect, spread)) < 3 * sqrt(0.25 / REPLICATES)


def test_the_bound_of_a_spread_holds_as_often_as_it_claims():
    rng, held = random.Random(3), 0
    for _ in range(REPLICATES):
        values = [rng.gauss(0, 1) for _ in range(6)]
        mean = sum(values) / 6
        held += spread_bound(sqrt(sum((v - mean) ** 2 for v in values) / 5), 6) >= 1
    assert abs(held / REPLICATES - 0.8) < 3 * sqrt(0.16 / REPLICATES)


def test_what_a_number_of_runs_detects_is_what_that_number_was_proposed_for():
    for better in ("lower", "higher"):
        runs = runs_for(log_effect(7, better), 0.06)
        assert detectable_pct(runs, 0.06, better) <= 7
        assert detectable_pct(runs - 1, 0.06, better) > 7


def test_an_effect_too_small_for_any_number_of_runs_has_no_number():
    assert runs_for(1e-6, 0.5) is None
    assert design([0.5, -0.5, 0.4, -0.4, 0.1], 0.01, "lower", budget=20).runs is None
    assert design([0.5, -0.5, 0.4, -0.4, 0.1], 0.01, "lower", budget=20).detectable_pct > 10
    assert runs_for(0.1, 0.0) == 5


def test_a_pilot_of_four_pairs_is_too_small():
    with pytest.raises(TooFewSamples):
        design([0.1] * 4, 5, "lower")


def test_the_variances_of_deployments_and_runs_are_told_apart():
    rng, deploys, runs = random.Random(9), [], []
    for _ in range(300):
        pilot = [[base + rng.gauss(0, 0.02) for _ in range(4)] for base in (rng.gauss(0, 0.06) for _ in range(8))]
        found = levels(spreads_of_arm(pilot), 5, "lower", deploy_s=900, run_s=60)
        deploys.append(found.s2_deploy)
        runs.append(found.s2_run)
    assert sum(runs) / 300 == pytest.approx(0.02**2, rel=0.05)
    assert sum(deploys) / 300 == pytest.approx(0.06**2, rel=0.1)


def test_what_the_two_deployments_of_a_block_share_is_no_spread_of_theirs():
    rng, left, apart, runs = random.Random(9), [], [], []
    for _ in range(300):
        machine = [rng.gauss(0, 0.2) for _ in range(8)]
        blocks = [
            tuple([base + rng.gauss(0, 0.02) for _ in range(4)] for base in (common + rng.gauss(0, 0.06) for _ in "AB"))
            for common in machine
        ]
        found = spreads_of_blocks(blocks)
        left.append(found.s2_deploy)
        runs.append(found.s2_run)
        apart.append(spreads_of_arms([one for one, _ in blocks], [other for _, other in blocks]))
    assert found.freedom == 7
    assert sum(runs) / 300 == pytest.approx(0.02**2, rel=0.05)
    assert sum(left) / 300 == pytest.approx(0.06**2, rel=0.1)
    assert sum(one.s2_deploy for one in apart) / 300 == pytest.approx(0.2**2 + 0.06**2, rel=0.1)
    assert all(7 <= one.freedom <= 14 for one in apart)


def test_the_spread_of_a_block_is_that_of_its_pilot_at_the_pilots_runs():
    blocks = [([0.0, 0.1], [0.2, 0.3]), ([0.1, 0.2], [0.6, 0.5]), ([0.3, 0.3], [0.2, 0.3])]
    differences = [0.2, 0.4, -0.05]
    mean = sum(differences) / 3
    spread = sqrt(sum((one - mean) ** 2 for one in differences) / 2)
    assert spreads_of_blocks(blocks).of_block(2) == pytest.approx(spread)


def test_blocks_without_their_other_half_or_without_a_second_run_tell_nothing():
    with pytest.raises(TooFewSamples, match="two blocks at least"):
        spreads_of_blocks([([0.1, 0.2], [0.3, 0.4]), ([0.1, 0.2], [])])
    with pytest.raises(TooFewSamples):
        spreads_of_blocks([([0.1], [0.3]), ([0.1], [0.2])])


def test_dear_deployments_get_more_runs_each_and_noisy_ones_fewer():
    rng = random.Random(4)
    pilot = [[base + rng.gauss(0, 0.05) for _ in range(4)] for base in (rng.gauss(0, 0.02) for _ in range(6))]
    cheap, dear = (levels(spreads_of_arm(pilot), 5, "lower", deploy_s=cost, run_s=60, gpus=8) for cost in (60, 1200))
    assert dear.runs > cheap.runs
    assert dear.gpu_hours == pytest.approx(8 * dear.hours)
    assert dear.hours == pytest.approx(2 * dear.deployments * (1200 + 60 * dear.runs) / 3600)


def test_deployments_that_do_not_differ_need_no_more_than_runs():
    pilot = [[0.0, 0.1], [0.1, 0.0], [0.05, 0.05]]
    assert levels(spreads_of_arm(pilot), 5, "lower", deploy_s=900, run_s=60).s2_deploy == 0


def test_one_deployment_tells_nothing_of_deployments():
    with pytest.raises(TooFewSamples):
        spreads_of_arm([[0.1, 0.2, 0.3]])


def test_arms_alternate_so_that_a_drift_cancels():
    assert abba(4) == "ABBAABBA"
    order = abba(6)
    places = {arm: [place for place, one in enumerate(order) if one == arm] for arm in "AB"}
    assert sum(places["A"]) == sum(places["B"])


def test_no_number_is_beyond_the_most_that_is_proposed():
    assert power_of(RUNS_MOST, 0.01, 0.09) > POWER
    assert runs_for(0.01, 0.09) <= RUNS_MOST

"""How often intervals cover the truth and verdicts cry wolf, counted with fixed seeds.

Bounds are what is claimed, less or plus three standard errors of the count.
"""

import random
from math import ceil, exp, log, sqrt

import pytest

from kvgauge.compare.gains import gains, verdict_of
from kvgauge.compare.values import TestValues
from kvgauge.plan.records import Cell, Plan, Primary, Test
from kvgauge.stats.batches import LOOK_FIRST, LOOK_GROWTH, batch_mean
from kvgauge.stats.means import mean_estimate
from kvgauge.stats.quantiles import quantile_interval
from kvgauge.stats.runs import change, gain, over_runs, percent, unpaired_gain

REPLICATES = 2_000
ERROR = sqrt(0.05 * 0.95 / REPLICATES)
QUANTILE_TRUTH = {q: -log(1 - q) for q in (0.5, 0.9, 0.95, 0.99)}  # of Exp(1)


@pytest.mark.parametrize("runs", [3, 5, 10])
def test_the_t_interval_over_runs_covers_as_often_as_it_claims(runs):
    rng = random.Random(runs)
    covered = 0
    for _ in range(REPLICATES):
        estimate = over_runs([rng.gauss(250, 12) for _ in range(runs)], "ms")
        covered += estimate.low <= 250 <= estimate.high
    assert abs(covered / REPLICATES - 0.95) <= 3 * ERROR


@pytest.mark.parametrize("runs", [3, 5, 10])
@pytest.mark.parametrize("better", ["lower", "higher"])
def test_the_paired_gain_covers_the_true_gain_through_a_drift_both_sides_share(runs, better):
    rng = random.Random(100 + runs)
    covered = 0
    truth = percent(log(0.9), better)
    for _ in range(REPLICATES):
        shared = {k: 100 * exp(rng.gauss(0, 0.3) + 0.1 * k) for k in range(runs)}
        before = {k: v * exp(rng.gauss(0, 0.03)) for k, v in shared.items()}
        after = {k: v * 0.9 * exp(rng.gauss(0, 0.03)) for k, v in shared.items()}
        estimate = gain(before, after, better).estimate
        covered += estimate.low <= truth <= estimate.high
    assert abs(covered / REPLICATES - 0.95) <= 3 * ERROR


@pytest.mark.parametrize("runs", [3, 5, 10])
@pytest.mark.parametrize("spreads", [(0.03, 0.03), (0.02, 0.08)])
def test_the_gain_of_runs_that_are_no_pairs_covers_the_true_gain(runs, spreads):
    rng = random.Random(300 + runs)
    covered = changed = 0
    truth = percent(log(0.9), "lower")
    for _ in range(REPLICATES):
        before, after = (
            [level * exp(rng.gauss(0, spread)) for _ in range(runs)]
            for level, spread in zip((100, 90), spreads, strict=True)
        )
        estimate = unpaired_gain(before, after, "lower").estimate
        covered += estimate.low <= truth <= estimate.high
        moved = change(dict(enumerate(before)), dict(enumerate(after)), "ms", paired=False)
        changed += moved.low <= 90 * exp(spreads[1] ** 2 / 2) - 100 * exp(spreads[0] ** 2 / 2) <= moved.high
    assert covered / REPLICATES >= 0.95 - 3 * ERROR  # Welch's is a little wide at 3 runs
    assert covered / REPLICATES <= 0.985
    assert changed / REPLICATES >= 0.94 - 3 * ERROR


@pytest.mark.parametrize(
    ("q", "n"), [(0.5, 20), (0.5, 301), (0.9, 100), (0.95, 59), (0.95, 200), (0.99, 299), (0.99, 400)]
)
def test_quantile_intervals_cover_at_least_as_often_as_they_claim(q, n):
    rng = random.Random(n)
    covered = 0
    for _ in range(REPLICATES):
        low, high = quantile_interval(sorted(rng.expovariate(1) for _ in range(n)), q)
        covered += low <= QUANTILE_TRUTH[q] <= high
    assert covered / REPLICATES >= 0.95 - 3 * ERROR


@pytest.mark.parametrize("runs", [5, 10])
@pytest.mark.parametrize("draw", ["lognormal", "bimodal"])
def test_the_verdict_on_two_equal_tests_is_a_false_alarm_at_most_one_time_in_twenty(runs, draw):
    rng = random.Random(7 * runs)

    def run():
        slow = 0.06 if draw == "bimodal" and rng.random() < 0.3 else 0.0
        return 100 * exp(slow + rng.gauss(0, 0.04))

    alarms = 0
    for _ in range(REPLICATES):
        gained = gain({k: run() for k in range(runs)}, {k: run() for k in range(runs)}, "lower")
        alarms += verdict_of(gained, gained.p_value) in ("better", "worse")
    assert alarms / REPLICATES <= 0.05 + 3 * ERROR


METRICS = [
    f"{family}_{s}"
    for family in ("e2e_latency_ms", "tpot_ms", "itl_ms", "transfer_ms")
    for s in ("mean", "p50", "p90", "p95")
]


def row(name, baseline=()):
    return Test(
        name=name, backend="UCX", fabric="tcp", build="1", patches="none", stand_in=None, model="m", prefill_tp=1, decode_tp=1, baseline=baseline
    )  # fmt: skip


def test_two_equal_tests_raise_any_alarm_at_most_one_time_in_twenty_over_all_their_metrics():
    rng, replicates = random.Random(11), 500
    cell = Cell(name="c", load="closed", concurrency=1, requests=1, output_tokens=1, warmup_requests=0, input_tokens=1)
    a, b = row("a"), row("b", ("a",))
    plan = Plan(
        name="p",
        source="s",
        tests=(a, b),
        cells=(cell,),
        repetitions=5,
        primary=Primary(metric="ttft_ms_mean", cell="c"),
    )
    families = primaries = 0
    for _ in range(replicates):
        sides = [
            TestValues(
                test=t,
                values={("c", m): {k: exp(rng.gauss(0, 0.05)) for k in range(5)} for m in ("ttft_ms_mean", *METRICS)},
            )
            for t in (a, b)
        ]
        alarms = [r.primary for r in gains(sides, plan) if r.verdict in ("better", "worse")]
        families += bool(alarms)
        primaries += True in alarms
    assert families / replicates <= 0.05 + 3 * sqrt(0.05 * 0.95 / replicates)
    assert 0.02 < primaries / replicates < 0.06  # most of it is the primary metric's


def _latencies(draw, rng, count):
    """Positive values with mean 1: independent, or each resembling the last, as requests under load do."""
    carried, last = {"independent": 0.0, "alike": 0.9}[draw], rng.gauss(0, 1)
    for _ in range(count):
        last = carried * last + sqrt(1 - carried**2) * rng.gauss(0, 1)
        yield 1 + 0.3 * last


@pytest.mark.parametrize("draw", ["independent", "alike"])
def test_a_cell_that_stops_when_its_mean_is_known_knows_it_as_often_as_it_claims(draw):
    """Looking several times and stopping at the first success must not cost coverage."""
    covered, replicates, half_width = 0, 400, 0.05
    for replicate in range(replicates):
        rng, values, look_at = random.Random(replicate), [], LOOK_FIRST
        stream = _latencies(draw, rng, 200_000)
        while True:
            values += [next(stream) for _ in range(look_at - len(values))]
            seen = batch_mean(values, "ms")
            if seen.high is not None and (seen.high - seen.point) / seen.point <= half_width:
                break
            look_at = ceil(look_at * LOOK_GROWTH)
        covered += abs(seen.point - 1) <= half_width * seen.point
    assert covered / replicates >= 0.95 - 3 * sqrt(0.05 * 0.95 / replicates)


def test_students_t_over_requests_that_resemble_one_another_would_know_too_little():
    """Why batches."""
    covered, replicates = 0, 200
    for replicate in range(replicates):
        seen = mean_estimate(list(_latencies("alike", random.Random(replicate), LOOK_FIRST * 2)), "ms")
        covered += seen.low <= 1 <= seen.high
    assert covered / replicates < 0.8

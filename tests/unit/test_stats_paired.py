import random
from math import log

import msgspec
import pytest

from kvgauge.samples.records import Exchange
from kvgauge.stats.paired import (
    BATCHES,
    LOOKS_MAX,
    PAIRS_MIN,
    LogRatio,
    Pairs,
    log_ratio,
    looks_of,
    pairs_needed,
    together,
)
from kvgauge.stats.runs import gain_of_pairs

MS = 1_000_000


def answer(ttft_ms, failure=None):
    arrivals = () if failure else (round(ttft_ms * MS), round(ttft_ms * MS) + 10 * MS)
    return Exchange(
        seq=0, run_id="r", cell="c", warmup=False, slot=0, worker=0, host="h", clock="monotonic", stamp_source="user",
        due_ns=0, sent_ns=0, arrivals_ns=arrivals, done_ns=None, tokens_in=1, tokens_out=2, tokens_source="usage",
        status=200, failure=failure, detail=None, request_id=None,
    )  # fmt: skip


def drawn(pairs, spread=0.05, truth=0.0, seed=1):
    rng = random.Random(seed)
    return [truth + rng.gauss(0, spread) for _ in range(pairs)]


def test_a_pair_is_two_requests_whichever_ended_first():
    pairs = Pairs(metric="ttft_ms_mean")
    for number in range(PAIRS_MIN):
        order = (0, 1) if number % 3 else (1, 0)
        for arm in order:
            pairs.add(number, arm, answer(10.0 if arm == 0 else 11.0 + number % 2))
    ratio = pairs.ratios()["ttft_ms_mean"]
    assert ratio.mean == pytest.approx((log(1.1) + log(1.2)) / 2)
    assert (ratio.pairs, ratio.batches, ratio.lost, ratio.looks) == (PAIRS_MIN, BATCHES, 0, 1)


def test_a_pair_of_which_one_failed_is_counted_as_lost_and_nothing_is_trimmed():
    logs = [*drawn(PAIRS_MIN), None, 40.0]
    ratio = log_ratio(logs)
    assert ratio.lost == 1
    assert ratio.mean == pytest.approx(sum(value for value in logs[1:] if value is not None) / PAIRS_MIN)
    pairs = Pairs(metric="ttft_ms_mean")
    pairs.add(0, 0, answer(1))
    pairs.add(0, 1, answer(1, failure="reset"))
    assert pairs.ratios()["ttft_ms_mean"].lost == 1


def test_too_few_pairs_and_batches_that_are_alike_give_no_interval_and_say_why():
    assert "199 pairs of requests: an interval needs at least 200" in (log_ratio(drawn(199)).reason or "")
    drift = [index / 1000 for index in range(400)]
    ratio = log_ratio(drift)
    assert ratio.error is None
    assert "resemble their neighbours" in (ratio.reason or "")
    assert ratio.half_width() is None
    assert ratio.p_value is None


def test_looks_are_fixed_beforehand_and_few():
    assert looks_of(300) == ()
    assert looks_of(1600) == (400, 800)
    assert len(looks_of(10**9)) == LOOKS_MAX - 1


def test_a_look_waits_for_the_slow_ones_among_the_first_pairs():
    pairs = Pairs(metric="ttft_ms_mean", looks=(400,), within=0.02)
    values = drawn(401)
    for number in range(1, 401):
        pairs.add(number, 0, answer(10))
        pairs.add(number, 1, answer(10 * 2.718281828 ** values[number]))
    assert not pairs.met, "pair 0 is still under way"
    pairs.add(0, 0, answer(10))
    assert pairs.unfinished == 1
    pairs.add(0, 1, answer(10))
    assert pairs.met_at == 400


def test_looks_cost_width_and_without_a_wish_there_are_none():
    logs = drawn(400)
    assert log_ratio(logs, looks=3).half_width() > log_ratio(logs).half_width()
    assert log_ratio(logs, looks=3).p_value == pytest.approx(min(1.0, 3 * log_ratio(logs).p_value))
    assert Pairs(metric="ttft_ms_mean", looks=(400, 800)).looks_planned == 1


def test_few_repetitions_are_strata_and_five_are_runs():
    ratios = {k: log_ratio(drawn(400, truth=log(1.02), seed=k)) for k in range(1, 6)}
    two = gain_of_pairs({k: ratios[k] for k in (1, 2)}, "lower")
    assert two.pairs is not None
    assert two.estimate.n == 800
    assert two.estimate.low < two.estimate.point < two.estimate.high
    assert two.estimate.point == pytest.approx(-2, abs=1)
    assert two.pairs.error < ratios[1].error
    five = gain_of_pairs(ratios, "lower")
    assert five.pairs is None
    assert five.estimate.n == 5


def test_one_repetition_without_an_interval_takes_it_from_all():
    short = LogRatio(mean=0.1, error=None, freedom=0, pairs=3, batches=0, lost=0, reason="3 pairs")
    both = together({1: log_ratio(drawn(400)), 2: short})
    assert both is not None
    assert (both.error, both.reason) == (None, "3 pairs")
    assert together({1: msgspec.structs.replace(short, mean=None)}) is None


def test_the_pairs_that_would_be_enough_grow_with_the_square_of_the_spread():
    few, many = (pairs_needed(log_ratio(drawn(400, spread=spread))) for spread in (0.05, 0.1))
    assert many == pytest.approx(4 * few, rel=0.15)
    assert pairs_needed(log_ratio(drawn(10))) is None

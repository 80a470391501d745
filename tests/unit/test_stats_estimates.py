"""Quantiles, means and gains: what they promise for any values."""

from math import comb, exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.failures import TooFewSamples
from kvgauge.stats.means import mean_estimate
from kvgauge.stats.quantiles import interval_ranks, nearest_rank, quantile_estimate, quantile_interval, samples_needed
from kvgauge.stats.runs import RUNS_MAX, RUNS_MIN, gain, holm, over_runs, percent, point_gain, runs_needed

times = st.floats(min_value=1e-3, max_value=1e6)


def coverage(low, high, n, q):
    return sum(comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(low, high))


@pytest.mark.parametrize("q", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [6, 29, 40, 59, 72, 100, 299, 320, 368, 700])
def test_ranks_cover_as_much_as_claimed_and_no_closer_rank_would(n, q):
    ranks = interval_ranks(n, q, 0.95)
    if n < samples_needed(q):
        assert ranks is None
        return
    assert coverage(*ranks, n, q) >= 0.95
    assert coverage(ranks[0] + 1, ranks[1] - 1, n, q) < 0.95


def test_ranks_with_equal_tails_are_those_of_scipy():
    from scipy.stats import binom

    for n, q in [(1_000, 0.5), (1_000, 0.9), (1_000, 0.99), (5_000, 0.95), (1_000_000, 0.5), (1_000_000, 0.99)]:
        low, high = interval_ranks(n, q, 0.95)
        assert binom.cdf(low - 1, n, q) <= 0.025 < binom.cdf(low, n, q)
        assert binom.sf(high - 1, n, q) <= 0.025 < binom.sf(high - 2, n, q)


@pytest.mark.parametrize(("q", "needed"), [(0.5, 6), (0.9, 29), (0.95, 59), (0.99, 299)])
def test_the_number_of_samples_a_quantile_needs(q, needed):
    assert samples_needed(q) == needed
    with pytest.raises(TooFewSamples, match=f"needs {needed} samples and there are {needed - 1}"):
        quantile_interval(range(needed - 1), q)
    assert quantile_interval(range(needed), q)[1] == needed - 1


def test_nearest_rank_is_not_fooled_by_rounding():
    assert [nearest_rank(range(1, 11), q) for q in (0.1, 0.5, 0.9, 0.99, 1)] == [1, 5, 9, 10, 10]
    assert nearest_rank(range(1, 101), 0.29) == 29


@given(st.lists(times, min_size=1, max_size=400), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_a_quantile_lies_inside_its_interval_and_among_the_values(values, q):
    estimate = quantile_estimate(sorted(values), q, "ms")
    assert estimate.point in values
    assert estimate.n == len(values)
    if estimate.low is None:
        assert estimate.reason
    else:
        assert estimate.low <= estimate.point <= estimate.high


def test_a_p99_below_299_requests_is_the_largest_and_says_so():
    estimate = quantile_estimate(list(range(298)), 0.99, "ms")
    assert (estimate.point, estimate.low, estimate.high) == (297, None, None)
    assert estimate.reason == "max of n=298: a P99 interval needs 299 requests"
    assert quantile_estimate(list(range(299)), 0.99, "ms").high == 298


@given(st.lists(times, min_size=2, max_size=50), st.randoms())
def test_a_mean_does_not_depend_on_order_and_lies_inside_its_interval(values, rng):
    shuffled = rng.sample(values, len(values))
    estimate = mean_estimate(values, "ms")
    assert estimate == mean_estimate(shuffled, "ms")
    assert estimate.low <= estimate.point <= estimate.high


def test_the_t_interval_of_a_textbook_example():
    estimate = mean_estimate([10.0, 12.0, 14.0], "ms")
    assert estimate.point == 12
    assert estimate.high - 12 == pytest.approx(4.30265 * 2 / 3**0.5, rel=1e-5)


@given(st.lists(st.none() | times | st.just(float("nan")), max_size=12))
def test_missing_runs_do_not_count_and_never_become_zero(values):
    estimate = over_runs(values, "ms")
    known = [v for v in values if v is not None and v == v]
    assert estimate.n == len(known)
    assert (estimate.point is None) == (not known)
    if len(known) < 2:
        assert estimate.low is None
        assert estimate.reason
    assert over_runs(known, "ms") == estimate


@given(
    st.dictionaries(st.integers(1, 12), times, max_size=12),
    st.dictionaries(st.integers(1, 12), times, max_size=12),
    st.sampled_from(["lower", "higher"]),
)
def test_a_gain_counts_pairs_only_and_lies_inside_its_interval(before, after, better):
    gained = gain(before, after, better)
    pairs = before.keys() & after.keys()
    assert gained.estimate.n == len(pairs)
    assert set(gained.left_out) == before.keys() ^ after.keys()
    if len(pairs) < 2:
        assert gained.estimate.low is None
        assert gained.estimate.reason
    else:
        e = gained.estimate
        assert e.low - 1e-9 * abs(e.low) <= e.point <= e.high + 1e-9 * abs(e.high)
        assert 0 <= gained.p_value <= 1
    assert RUNS_MIN <= runs_needed(gained) <= RUNS_MAX


def test_gains_are_signed_so_that_better_is_positive():
    assert point_gain(403, 337, "lower") == pytest.approx(100 * (403 - 337) / 403)
    assert point_gain(301, 487, "higher") == pytest.approx(100 * (487 / 301 - 1))
    assert percent(log(1.1), "lower") == pytest.approx(-10)


def test_a_gain_is_paired_a_shift_that_all_repetitions_share_is_found_through_any_drift():
    before = {k: 100.0 * 2**k for k in range(1, 6)}
    after = {k: value * 0.9 * exp(0.001 * (-1) ** k) for k, value in before.items()}
    gained = gain(before, after, "lower")
    assert gained.estimate.low > 9
    assert gained.estimate.high < 11
    assert gained.p_value < 1e-6


def test_values_without_a_logarithm_leave_their_pair_out():
    gained = gain({1: 1.0, 2: 0.0, 3: 2.0, 4: float("inf")}, {1: 1.0, 2: 1.0, 3: -1.0, 4: 1.0}, "lower")
    assert gained.estimate.n == 1
    assert gained.left_out == (2, 3, 4)


def test_runs_without_any_spread_have_an_interval_of_no_width():
    same = gain(dict.fromkeys(range(5), 5.0), dict.fromkeys(range(5), 5.0), "lower")
    assert (same.estimate.low, same.estimate.high, same.p_value) == (0, 0, 1)
    faster = gain(dict.fromkeys(range(5), 8.0), dict.fromkeys(range(5), 4.0), "lower")
    assert (faster.estimate.low, faster.estimate.high) == pytest.approx((50, 50))
    assert faster.p_value < 1e-9


def spread_gain(effect, spread):
    return gain(dict.fromkeys(range(6), 1.0), {k: exp(effect + spread * (-1) ** k) for k in range(6)}, "lower")


def test_more_spread_or_a_smaller_effect_needs_more_runs_up_to_the_maximum():
    assert runs_needed(spread_gain(-0.3, 0.01)) == RUNS_MIN
    assert runs_needed(spread_gain(-0.1, 0.1)) < runs_needed(spread_gain(-0.1, 0.2)) < RUNS_MAX
    assert runs_needed(spread_gain(-0.1, 2.0)) == RUNS_MAX
    assert runs_needed(spread_gain(0.0, 0.05)) == runs_needed(spread_gain(-0.02, 0.05))


def test_holm_agrees_with_its_worked_example_and_keeps_the_order_given():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=30))
def test_holm_never_makes_a_p_value_smaller_or_larger_than_one(p_values):
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))


def test_quantiles_of_a_million_values_take_no_time():
    import time

    interval_ranks.cache_clear()
    started = time.perf_counter()
    for q in (0.5, 0.9, 0.95, 0.99):
        interval_ranks(1_000_000, q, 0.95)
    assert time.perf_counter() - started < 0.5


def test_the_statistics_import_neither_scipy_nor_rich():
    import subprocess
    import sys

    code = "import sys, kvgauge.stats.runs, kvgauge.stats.cells, kvgauge.compare.gains, kvgauge.report.text, kvgauge.cli.report; sys.exit('scipy' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""What a P99 rests on: the effective n of values that come in clusters, and from when on it may decide."""

import numpy as np
import pytest
from scipy.signal import lfilter

from kvgauge.stats.cells import family
from kvgauge.stats.estimate import counted
from kvgauge.stats.quantiles import quantile_estimate
from kvgauge.stats.tails import independent, no_tail, tau


def ar1(rng, n, correlation):
    """Standard normal, each like its neighbour."""
    noise = rng.standard_normal(n) * np.sqrt(1 - correlation**2)
    noise[0] = rng.standard_normal()
    return lfilter([1.0], [1.0, -correlation], noise)


def test_independent_values_keep_nearly_all_of_their_n():
    rng = np.random.default_rng(1)
    worth = [independent(rng.lognormal(size=1000), 0.99) for _ in range(200)]
    assert np.median(worth) == 1000
    assert np.mean(worth) > 950


def test_slow_requests_that_come_in_clusters_of_ten_are_worth_a_tenth():
    rng = np.random.default_rng(2)
    calm = rng.random(20_000)
    for start in rng.choice(1990, 20, replace=False) * 10:
        calm[start : start + 10] += 5
    assert independent(calm, 0.99) == pytest.approx(2_000, rel=0.25)


def test_the_variance_of_the_share_above_is_what_tau_says():
    rng = np.random.default_rng(3)
    series = [ar1(rng, 2000, 0.8) for _ in range(300)]
    level = 1.2816  # the P90 of a standard normal
    shares = [float((values > level).mean()) for values in series]
    wanted = np.var(shares) / (0.1 * 0.9 / 2000)
    assert np.mean([tau(values > level) for values in series]) == pytest.approx(wanted, rel=0.25)


def test_values_that_are_all_equal_or_hardly_any_have_an_n():
    assert independent(np.ones(50), 0.5) == 50
    assert independent(np.array([1.0, 2.0]), 0.99) == 2


def test_intervals_of_correlated_values_hold_the_quantile_often_enough():
    """1,000 replicates, less three standard errors; without the effective n half of them are lost."""
    rng = np.random.default_rng(4)
    true, held, plain = 1.2816, 0, 0
    for _ in range(1000):
        values = ar1(rng, 1000, 0.9)
        ordered = np.sort(values).tolist()
        found = quantile_estimate(ordered, 0.9, "ms", effective_n=independent(values, 0.9))
        naive = quantile_estimate(ordered, 0.9, "ms")
        held += found.low is None or found.low <= true <= found.high
        plain += naive.low <= true <= naive.high
    assert plain / 1000 < 0.6
    assert held / 1000 >= 0.95 - 3 * (0.95 * 0.05 / 1000) ** 0.5


def test_an_interval_of_fewer_independent_values_is_wider_and_says_its_n():
    ordered = [float(value) for value in range(1000)]
    whole, half = (quantile_estimate(ordered, 0.99, "ms", effective_n=n) for n in (1000, 500))
    assert whole == quantile_estimate(ordered, 0.99, "ms")
    assert (half.n, half.point) == (500, whole.point)
    assert half.low < whole.low
    assert half.high >= whole.high
    few = quantile_estimate(ordered, 0.99, "ms", effective_n=200)
    assert few.low is None
    assert few.reason == "1000 requests that resemble their neighbours are worth 200: a P99 interval needs 299"


@pytest.mark.parametrize(
    ("n", "words"),
    [(200, "max of n=200"), (400, "a verdict needs 1,000 in each run"), (999, "P99 of 999 requests"), (1000, None)],
)
def test_a_p99_decides_from_a_thousand_requests_on(n, words):
    found = family("ttft_ms", np.random.default_rng(5).random(n))
    why = no_tail("ttft_ms_p99", found["ttft_ms_p99"], counted(n, "requests", n))
    assert (why is None) if words is None else words in why
    assert no_tail("ttft_ms_p50", found["ttft_ms_p50"], counted(n, "requests", n)) is None


def test_a_thousand_requests_that_are_worth_too_few_decide_nothing():
    values = np.repeat(np.random.default_rng(6).random(100), 10)
    found = family("ttft_ms", values)["ttft_ms_p99"]
    assert "worth" in no_tail("ttft_ms_p99", found, counted(1000, "requests", 1000))

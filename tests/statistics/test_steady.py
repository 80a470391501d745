"""When a load has settled: how often that is said rightly, on traces whose truth is known, with fixed seeds."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.stats.steady import BATCHES_MIN, Batch, batches, drift, judge, mser, width_ns

spec = importlib.util.spec_from_file_location("steady_bench", Path(__file__).parents[2] / "overhead" / "steady.py")
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)

REPLICATES = 60


def outcomes(kind, rule="judge"):
    rng = np.random.default_rng(11)
    found = [bench.measured(rule, bench.trace(kind, rng)) for _ in range(REPLICATES)]
    truth = bench.SETTLED.get(kind, bench.LEVEL)
    return [100 * (one[1].mean() / truth - 1) for one in found if one is not None]


@pytest.mark.parametrize(
    "kind", ["steady", "step", "exponential decay", "minutes of compilation", "periodic collection"]
)
def test_what_settles_is_measured_within_a_hundredth_of_its_level(kind):
    biases = outcomes(kind)
    assert len(biases) >= 0.95 * REPLICATES
    assert abs(np.mean(biases)) < 0.5
    assert np.quantile(np.abs(biases), 0.9) < 1.2


@pytest.mark.parametrize(("kind", "at_most"), [("slow drift", 0.05), ("never steady", 0.3)])
def test_what_never_settles_is_given_up(kind, at_most):
    assert len(outcomes(kind)) <= at_most * REPLICATES


def test_the_rule_is_less_biased_than_the_window_rule_on_a_step_and_on_compilation():
    for kind in ("step", "minutes of compilation"):
        assert abs(np.mean(outcomes(kind))) < abs(np.mean(outcomes(kind, "window"))) / 10


def test_the_interval_of_a_trend_covers_it_as_often_as_it_claims():
    rng, covered = np.random.default_rng(5), 0
    for _ in range(1000):
        estimate = drift(100 + 0.2 * np.arange(40) + rng.normal(0, 2, 40))
        covered += estimate.low <= 100 * 0.2 * 39 / (100 + 0.2 * 19.5) <= estimate.high
    assert 0.92 <= covered / 1000 <= 0.98


def test_too_few_batches_say_nothing():
    found = [Batch(begin_ns=i, end_ns=i + 1, n=3, mean=100.0) for i in range(BATCHES_MIN - 1)]
    assert judge(found).state == "unsettled"
    assert judge([*found, Batch(begin_ns=9, end_ns=10, n=3, mean=100.0)]).state == "steady"


def test_a_batch_lasts_three_requests():
    assert width_ns([4_000_000_000] * 5) == 12_000_000_000
    assert width_ns([1_000]) == 1_000_000_000
    assert width_ns([]) == 1_000_000_000


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.floats(1, 1000)), max_size=60),
    st.integers(1, 500),
    st.integers(0, 11_000),
)
def test_each_request_is_in_the_batch_it_was_sent_in(requests, width, until):
    found = batches([sent for sent, _ in requests], [value for _, value in requests], width_ns=width, until_ns=until)
    for batch in found:
        inside = [value for sent, value in requests if batch.begin_ns <= sent < batch.end_ns]
        assert (batch.n, batch.end_ns - batch.begin_ns) == (len(inside), width)
        assert batch.mean == pytest.approx(np.mean(inside))
        assert batch.end_ns <= until
    begins = [batch.begin_ns for batch in found]
    assert begins == sorted(set(begins))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=80))
def test_any_series_gets_an_answer(values):
    cut = mser(np.array(values))
    assert cut is None or 0 <= cut <= len(values) // 2
    judge([Batch(begin_ns=i, end_ns=i + 1, n=1, mean=v) for i, v in enumerate(values)])

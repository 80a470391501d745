"""When the requests of an open load are due: how many, in what order, how evenly, and always the same."""

from itertools import islice, pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kvgauge.load.schedules import bursts, constant, gamma, poisson, ramp, replay, schedule, steps
from kvgauge.plan.records import Burst, Conversation, Ramp, Step, Steps
from kvgauge.plan.trace import TraceRequest
from scene import make_cell

rates = st.floats(0.01, 10_000)


def open_cell(**changes):
    return make_cell(**{"load": "poisson", "rate": 100.0, "requests": 500, "concurrency": 64, **changes})


def gaps_s(times_ns):
    return [(after - before) / 1e9 for before, after in pairwise([0, *times_ns])]


SHAPES = (
    {"load": "constant"},
    {"load": "poisson"},
    {"load": "gamma", "burstiness": 0.4},
    {"load": "ramp", "rate": None, "ramp": Ramp(from_rate=1, to_rate=50, over_s=7)},
    {"load": "ramp", "rate": None, "ramp": Ramp(from_rate=50, to_rate=3, over_s=7)},
    {"load": "burst", "rate": None, "burst": Burst(size=7, every_s=0.3)},
    {"load": "steps", "rate": None, "steps": Steps(steps=(Step(rate=9, for_s=1), Step(rate=60, for_s=90)))},
    {
        "load": "steps",
        "rate": None,
        "steps": Steps(steps=(Step(rate=9, for_s=1), Step(rate=60, for_s=90)), arrivals="poisson"),
    },
)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_as_many_times_as_requests_in_order_and_the_same_again(shape):
    times = list(schedule(open_cell(**shape), seed=3))
    assert len(times) == 500
    assert times == sorted(times)
    assert times[0] >= 0
    assert times == list(schedule(open_cell(**shape), seed=3))


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_due_at_or_after_the_duration(shape):
    whole = list(schedule(open_cell(**shape), seed=3))
    cut = list(schedule(open_cell(**shape, duration_s=2.0), seed=3))
    assert cut == [time for time in whole if time < 2_000_000_000]
    assert 0 < len(cut) < 500


def test_seeds_and_cells_have_times_of_their_own():
    assert list(schedule(open_cell(), seed=3)) != list(schedule(open_cell(), seed=4))
    assert list(schedule(open_cell(), seed=3)) != list(schedule(open_cell(name="d"), seed=3))


@settings(max_examples=50)
@given(rates, st.integers(0, 1_000_000))
def test_a_constant_rate_never_drifts(rate, number):
    [due_ns] = islice(constant(rate), number % 2000, number % 2000 + 1)
    assert abs(due_ns - (number % 2000) * 1e9 / rate) <= 1


def test_a_day_of_requests_is_not_listed_ahead():
    cell = open_cell(rate=10_000.0, requests=1_000_000, duration_s=86_400.0)
    assert len(list(islice(schedule(cell, seed=1), 3))) == 3


def test_poisson_gaps_are_exponential():
    gaps = gaps_s(islice(poisson(200, Random(11)), 20_000))
    assert stats.kstest(gaps, "expon", args=(0, 1 / 200)).pvalue > 0.01
    assert stats.pearsonr(gaps[:-1], gaps[1:]).pvalue > 0.01


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_rate_and_the_shape_that_were_asked_for(burstiness):
    gaps = gaps_s(islice(gamma(200, burstiness, Random(12)), 20_000))
    far = stats.kstest(gaps, "gamma", args=(burstiness, 0, 1 / (200 * burstiness))).statistic
    assert far < 0.02  # not a p-value: 1.5 % of the gaps of shape 0.25 are below a nanosecond, and are 0 here
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert mean == pytest.approx(1 / 200, rel=0.05)
    assert variance / mean**2 == pytest.approx(1 / burstiness, rel=0.1)


@settings(max_examples=60)
@given(st.floats(0, 500), st.floats(0.5, 500), st.floats(0.1, 50), st.floats(0.05, 1.5))
def test_a_ramp_has_offered_the_integral_of_its_rate_at_every_moment(start, end, over_s, share):
    at_s = over_s * share
    within_s = min(at_s, over_s)
    wanted = start * within_s + (end - start) / over_s * within_s**2 / 2 + end * max(0.0, at_s - over_s)
    times = islice(ramp(Ramp(from_rate=start, to_rate=end, over_s=over_s)), int(wanted) + 3)
    due = sum(time < at_s * 1e9 for time in times)
    assert abs(due - wanted) <= 1.01


def test_a_ramp_down_to_nothing_ends():
    times = list(ramp(Ramp(from_rate=10, to_rate=0, over_s=4)))
    assert len(times) == 20
    assert times[-1] < 4_000_000_000


def test_bursts_come_together_and_keep_their_distance():
    assert list(islice(bursts(Burst(size=3, every_s=2.5)), 7)) == [0] * 3 + [2_500_000_000] * 3 + [5_000_000_000]


def test_a_trace_is_replayed_at_its_times_or_faster():
    trace = [TraceRequest(at_ns=at, input_tokens=1, output_tokens=1, hash_ids=()) for at in (0, 0, 3_000, 9_000)]
    assert list(replay(trace, 1.0)) == [0, 0, 3_000, 9_000]
    assert list(replay(trace, 3.0)) == [0, 0, 1_000, 3_000]


def test_a_closed_load_has_no_schedule():
    with pytest.raises(ValueError, match="no schedule"):
        schedule(make_cell(), seed=1)


step_lists = st.lists(
    st.builds(Step, rate=st.one_of(st.just(0.0), st.floats(0.1, 500)), for_s=st.floats(0.01, 20)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=100)
@given(step_lists)
def test_each_step_has_its_rate_and_nothing_is_due_after_the_last(shape):
    times_ns = list(islice(steps(Steps(steps=tuple(shape)), Random(1)), 20_000))
    assert times_ns == sorted(times_ns)
    begun_s = 0.0
    for step in shape:
        end_s = begun_s + step.for_s
        if len(times_ns) < 20_000:
            inside = sum(begun_s * 1e9 <= time_ns < end_s * 1e9 - 1 for time_ns in times_ns)
            assert abs(inside - step.rate * step.for_s) <= 1.001
        begun_s = end_s
    assert all(time_ns <= begun_s * 1e9 + 1 for time_ns in times_ns)


def test_steps_at_random_have_their_rates_and_exponential_gaps_inside_each():
    shape = Steps(steps=(Step(rate=5, for_s=400), Step(rate=0, for_s=50), Step(rate=50, for_s=40)), arrivals="poisson")
    times_ns = list(steps(shape, Random(3)))
    assert times_ns == list(steps(shape, Random(3)))
    slow = [time_ns for time_ns in times_ns if time_ns < 400e9]
    fast = [time_ns - 450 * 10**9 for time_ns in times_ns if time_ns >= 450e9]
    assert len(slow) + len(fast) == len(times_ns), "a pause sends nothing"
    assert len(slow) == pytest.approx(2000, abs=4 * 2000**0.5)
    assert len(fast) == pytest.approx(2000, abs=4 * 2000**0.5)
    assert stats.kstest(gaps_s(slow), "expon", args=(0, 1 / 5)).pvalue > 0.001
    assert stats.kstest(gaps_s(fast), "expon", args=(0, 1 / 50)).pvalue > 0.001


def test_with_conversations_the_clock_makes_sessions_due():
    cell = open_cell(conversation=Conversation(turns=3), sessions=7, requests=21)
    assert len(list(schedule(cell, seed=3))) == 7

"""Axes, ticks, cut intervals and labels that keep apart."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.report.axes import Axis, axis_over, bar_of, spread, thinned
from kvgauge.stats.estimate import Estimate, bare, missing


def estimate(point, half):
    return Estimate(point=point, low=point - half, high=point + half, n=2, unit="x")


def test_numbers_that_are_near_get_an_axis_from_0_and_numbers_far_apart_a_logarithmic_one():
    near = axis_over([estimate(1.0, 0.1), estimate(5.0, 0.1)])
    assert (near.low, near.log) == (0, False)
    assert near.high > 5.1
    far = axis_over([estimate(0.01, 0.001), estimate(5.0, 0.1)], [9.0])
    assert far.log
    assert far.low < 0.009
    assert far.high > 9


def test_an_interval_below_0_or_far_off_is_cut_at_the_frame_and_told_on_which_side():
    wild = estimate(1.0, 40.0)
    axis = axis_over([wild, estimate(2.0, 0.1)], log=True)
    bar = bar_of(wild, axis)
    assert (bar.cut_low, bar.cut_high) == (True, True)
    assert (bar.low, bar.high) == (axis.low, axis.high)
    assert axis.high < 10
    kept = bar_of(estimate(2.0, 0.1), axis)
    assert (kept.low, kept.high, kept.cut_low, kept.cut_high) == (1.9, 2.1, False, False)


def test_no_interval_is_no_bar():
    axis = axis_over([bare(3.0, "x", 1, "one round")])
    assert bar_of(bare(3.0, "x", 1, "one round"), axis) is None


@pytest.mark.parametrize("log", [True, False])
def test_nothing_known_still_has_an_axis(log):
    axis = axis_over([missing("x", "no round came to its end")], log=log)
    assert (axis.log, axis.low < axis.high) == (log, True)


@given(st.floats(1e-6, 1e6), st.floats(1.05, 1e12), st.booleans())
def test_ticks_are_two_at_least_ascending_and_within(low, ratio, log):
    axis = Axis(low=low if log else 0, high=low * ratio, log=log)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 20
    assert all(a < b for a, b in pairwise(ticks))
    assert axis.low <= ticks[0]
    assert ticks[-1] <= axis.high * (1 + 1e-9)


@given(st.floats(1e-3, 1e3), st.floats(1.1, 1e9), st.floats(0, 1), st.booleans())
def test_a_place_on_an_axis_and_its_value_are_one_anothers_inverse(low, ratio, share, log):
    axis = Axis(low=low, high=low * ratio, log=log)
    assert axis.share(axis.at(share)) == pytest.approx(share, abs=1e-6)


@given(st.lists(st.floats(0, 300), max_size=12))
def test_labels_end_at_least_a_gap_apart_in_their_order(wanted):
    found = spread(wanted, 13)
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    assert all(found[b] - found[a] >= 13 - 1e-6 for a, b in pairwise(order))


def test_labels_that_do_not_touch_stay_where_they_want_to_be_and_neighbours_share_the_way():
    assert spread([100, 10, 50], 13) == [100, 10, 50]
    assert spread([50, 50], 14) == [43, 57]
    assert spread([], 13) == []


def test_ticks_that_would_touch_are_left_out():
    axis = Axis(low=1, high=1024, log=True)
    assert thinned([1024, 1, 2, 4, 32, 32], axis, 250, 49) == [1, 4, 32, 1024]

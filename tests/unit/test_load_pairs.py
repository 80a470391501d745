from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.load.arrivals import Closed, ClosedLoop
from kvgauge.load.open import OpenLoad
from kvgauge.load.pairs import Half, InPairs, Order


def test_each_arm_comes_first_about_as_often_and_the_seed_decides():
    order = Order(1, "p")
    firsts = [order.first(pair) for pair in range(2000)]
    assert 900 < sum(firsts) < 1100
    assert firsts == [Order(1, "p").first(pair) for pair in range(2000)]
    assert firsts != [Order(2, "p").first(pair) for pair in range(2000)]
    assert firsts != [Order(1, "q").first(pair) for pair in range(2000)]


@given(st.integers(0, 2**31), st.integers(1, 300), st.integers(0, 50))
def test_the_numbers_of_both_arms_are_all_numbers_and_say_whose_they_are(seed, pairs, begin):
    order = Order(seed, "p")
    numbers = [[Half(order, arm, begin).number(nth) for nth in range(pairs)] for arm in (0, 1)]
    assert sorted(numbers[0] + numbers[1]) == list(range(2 * pairs))
    for arm in (0, 1):
        assert {order.arm(2 * begin + number) for number in numbers[arm]} == {arm}


def walk_closed(slots, requests, seed=5):
    """(slot, arm, pair) in the order the requests begin; the slot that began first ends first, but slot 0 is slow."""
    load = InPairs(
        Closed(ClosedLoop(slots=slots, requests=requests, start_ns=0)), Order(seed, "p"), begin=0, by_slot=True
    )
    under_way, begun, now_ns = [], [], 0
    dues = load.first()
    while dues or under_way:
        for due in dues:
            begun.append((due.slot // 2, due.slot % 2, load.pair(due.slot)))
            load.begun(due.slot, due.due_ns)
            under_way.append(due.slot)
        now_ns += 10
        slow = len(begun) % 3 and len(under_way) > 1 and under_way[0] < 2
        dues = load.ended(under_way.pop(1 if slow else 0), now_ns)
    return begun


@pytest.mark.parametrize("slots", [1, 4])
def test_in_a_closed_load_a_pair_is_a_slots_two_requests_in_a_row(slots):
    begun = walk_closed(slots, 40)
    assert len(begun) == 40
    for slot in range(slots):
        own = [(arm, pair) for at, arm, pair in begun if at == slot]
        for one, other in zip(own[::2], own[1::2], strict=False):
            assert one[1] == other[1]
            assert {one[0], other[0]} == {0, 1}
    counts = Counter(pair for _, _, pair in begun)
    assert set(counts) == set(range(len(counts)))
    assert sum(count == 1 for count in counts.values()) <= slots


def test_an_open_load_is_given_out_in_blocks_of_two_as_it_becomes_due():
    order = Order(9, "p")
    load = InPairs(OpenLoad(iter(range(0, 1000, 10)), slots=3, start_ns=0), order, begin=7, by_slot=False)
    dues, given = load.first(), []
    while dues:
        due = dues.pop()
        given.append((load.pair(due.slot), due.slot % 2))
        dues += load.begun(due.slot, due.due_ns)
        dues += load.ended(due.slot, due.due_ns + 1)
    assert [pair for pair, _ in given] == [nth // 2 for nth in range(100)]
    assert [arm for _, arm in given[::2]] == [order.first(7 + pair) for pair in range(50)]
    assert all(one[1] != other[1] for one, other in zip(given[::2], given[1::2], strict=True))

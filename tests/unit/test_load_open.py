"""An open load and its slots, on a clock that the test moves."""

import heapq

from hypothesis import given
from hypothesis import strategies as st

from kvgauge.load.open import OpenLoad


class World:
    """Sends what is due at once, and ends each request after its time; what the real loop does, without sockets."""

    def __init__(self, load, service_ns, *, look_every_ns=10, stop_at_ns=None):
        self.sent, self.lost = [], []  # (due, begun) in order; due times given up
        dues, ends, nth = load.first(), [], 0
        look_ns = 0
        while dues or ends:
            now_ns = min([due.due_ns for due in dues] + [end for end, _ in ends])
            while look_ns <= now_ns:
                self.lost += load.overflow(look_ns)
                if stop_at_ns is not None and look_ns >= stop_at_ns:
                    load.stop(look_ns)
                    dues = [due for due in dues if due.due_ns <= look_ns]
                    stop_at_ns = None
                look_ns += look_every_ns
            for end in sorted(ends):
                if end[0] <= now_ns:
                    ends.remove(end)
                    dues += load.ended(end[1], end[0])
            while dues and min(dues).due_ns <= now_ns:
                heapq.heapify(dues)
                due = heapq.heappop(dues)
                self.sent.append((due.due_ns, now_ns))
                ends.append((now_ns + service_ns[nth % len(service_ns)], due.slot))
                nth += 1
                assert len(ends) <= load._slots
                assert len({slot for _, slot in ends}) == len(ends), "a slot sends one request at a time"
                dues += load.begun(due.slot, now_ns)


times = st.lists(st.integers(0, 3_000), max_size=80).map(sorted)
services = st.lists(st.integers(1, 400), min_size=1, max_size=20)


@given(times, services, st.integers(1, 9))
def test_every_due_request_is_sent_once_in_order_and_none_before_its_time(due, service, slots):
    load = OpenLoad(iter(due), slots=slots, start_ns=7)
    world = World(load, service)
    assert [at - 7 for at, _ in world.sent] == due
    assert all(begun >= at for at, begun in world.sent)
    assert (world.lost, load.given_up, load.requests) == ([], 0, len(due))
    assert load.own_late_ns_max == 0, "here the client is never late: only slots are"
    assert load.queued == sum(begun > at for at, begun in world.sent)


def test_slots_freed_at_one_moment_serve_several_that_waited():
    load = OpenLoad(iter([0] * 6), slots=3, start_ns=7)
    assert len(World(load, [1]).sent) == 6
    assert (load.queued, load.own_late_ns_max) == (3, 0)


@given(times, services, st.integers(1, 4), st.integers(0, 10))
def test_what_is_due_is_sent_or_given_up_and_nothing_else_becomes_due_after(due, service, slots, waiting_max):
    load = OpenLoad(iter(due), slots=slots, start_ns=0, waiting_max=waiting_max)
    world = World(load, service)
    seen = [at for at, _ in world.sent] + world.lost
    assert sorted(seen) == due[: len(seen)] or not world.lost
    assert len(world.lost) == load.given_up
    if world.lost:
        assert len(world.lost) > waiting_max
        assert max(at for at, _ in world.sent) <= min(world.lost)
    else:
        assert seen == due


@given(times, services, st.integers(1, 4), st.integers(0, 3_000))
def test_after_stop_only_what_was_due_by_then_is_sent(due, service, slots, stop_at):
    load = OpenLoad(iter(due), slots=slots, start_ns=0)
    world = World(load, service, stop_at_ns=stop_at)
    sent = [at for at, _ in world.sent]
    assert sent == due[: len(sent)]
    assert [at for at in due if at <= stop_at] == [at for at in sent if at <= stop_at]
    assert all(at <= stop_at + 10 or (at <= max(due) and len(sent) == len(due)) for at in sent)


def test_a_busy_server_makes_requests_wait_and_the_client_is_not_blamed():
    load = OpenLoad(iter([0, 10, 20]), slots=1, start_ns=0)
    [first] = load.first()
    assert load.begun(first.slot, 0) == []
    [second] = load.ended(0, 500)
    assert second.due_ns == 10, "due when it was due, not when a slot was free"
    load.begun(0, 503)
    assert (load.queued, load.own_late_ns_max) == (1, 3)


def test_a_late_client_is_late_though_slots_are_free():
    load = OpenLoad(iter([0, 10]), slots=4, start_ns=0)
    [first] = load.first()
    [second] = load.begun(first.slot, 50)
    load.begun(second.slot, 60)
    assert (load.queued, load.own_late_ns_max, load.under_way_max) == (0, 50, 2)


def test_low_slots_are_used_again_so_that_their_connections_stay():
    load = OpenLoad(iter(range(0, 1000, 100)), slots=1024, start_ns=0)
    world = World(load, [50])
    assert load.under_way_max == 1
    assert len(world.sent) == 10


@given(times, services, st.integers(1, 4), st.integers(1, 2_000), st.integers(0, 500), st.booleans())
def test_what_waits_long_after_the_end_is_given_up_and_counted(due, service, slots, end_ns, drain_ns, by_stop):
    """By the clock, or by `stop`, the same."""
    due = [at for at in due if at < end_ns or by_stop]
    load = OpenLoad(
        iter(due), slots=slots, start_ns=0, end_ns=None if by_stop else end_ns, drain_ns=drain_ns, waiting_max=10_000
    )
    world = World(load, service, stop_at_ns=end_ns if by_stop else None)
    stopped_ns = -(-end_ns // 10) * 10 if by_stop else end_ns  # it is looked at every 10 ns
    sent = [at for at, _ in world.sent]
    assert sent + world.lost == sorted(sent + world.lost)
    assert sent + world.lost == due[: len(sent + world.lost)]
    assert len(sent + world.lost) >= sum(at <= end_ns for at in due)
    assert load.given_up == len(world.lost)
    assert all(begun <= stopped_ns + drain_ns + 10 + max(service) for _, begun in world.sent)


def test_a_load_that_kept_its_rate_has_nothing_to_give_up_at_its_end():
    load = OpenLoad(iter(range(0, 1000, 10)), slots=2, start_ns=0, end_ns=1000, drain_ns=0)
    world = World(load, [15])
    assert (len(world.sent), world.lost) == (100, [])

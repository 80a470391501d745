"""One offer without a pause, on a clock that the test moves: which requests are measured, and when it ends."""

import heapq

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.load.continuous import going_on
from kvgauge.load.open import OpenLoad
from kvgauge.load.work import Begin
from scene import make_cell

MS = 1_000_000
CHECK_NS = 50 * MS


class At:
    """Says that the load is steady from the first question at or after this moment on."""

    def __init__(self, moment_ns):
        self.moment_ns, self.begin_ns, self.asked = moment_ns, None, 0

    def measure_from(self, now_ns):
        assert self.begin_ns is None, "it is asked until it has said a moment, not after that"
        self.asked += 1
        if self.moment_ns is not None and now_ns >= self.moment_ns:
            self.begin_ns = now_ns
        return self.begin_ns


class World:
    """Ends each request after its time. sent: (due, begun, ended, measured) in the order they began; lost: those given
    up, likewise."""

    def __init__(self, cell, steady, takes_ms, *, enough_ns=None, spread_ns_max=None, until_ns=10**13):
        self.sent, self.lost, self.most = [], [], 0
        self.now_ns = 0
        slots = cell.concurrency
        self.offer, self.open = going_on(
            cell, steady, slots=slots, seed=3, begin=Begin(0, 0), spread_ns_max=spread_ns_max,
            enough=lambda: enough_ns is not None and self.now_ns >= enough_ns,
        )  # fmt: skip
        dues, ends, check_ns = list(self.offer.first()), [], 0
        while (dues or ends) and check_ns < until_ns:
            self.now_ns = now_ns = min([due.due_ns for due in dues] + [end[0] for end in ends])
            while check_ns <= now_ns:
                if self.offer.over:
                    instead = self.offer.stop(check_ns)
                    dues = [due for due in dues if due.due_ns <= check_ns] + instead
                self.lost += [(at, self.offer.measured(0, at, False)) for at in self.offer.overflow(check_ns)]
                check_ns += CHECK_NS
            while ends and ends[0][0] <= now_ns:
                end_ns, nth, slot = heapq.heappop(ends)
                due_ns, begun_ns = self.sent[nth]
                self.sent[nth] = (due_ns, begun_ns, end_ns, self.offer.measured(slot, due_ns, True))
                dues += self.offer.ended(slot, end_ns)
            for due in sorted(due for due in dues if due.due_ns <= now_ns):
                dues.remove(due)
                nth = len(self.sent)
                self.sent.append((due.due_ns, now_ns))
                heapq.heappush(ends, (now_ns + takes_ms[nth % len(takes_ms)] * MS, nth, due.slot))
                self.most = max(self.most, len(ends))
                assert len({end[2] for end in ends}) == len(ends), "a slot sends one request at a time"
                dues += self.offer.begun(due.slot, now_ns)

    @property
    def measured(self):
        return [each for each in self.sent if each[3]]


takes = st.lists(st.integers(1, 400), min_size=1, max_size=20)
loads = st.sampled_from([("closed", None), ("wave", None), ("constant", 40.0), ("poisson", 60.0)])


@settings(max_examples=50)
@given(loads, takes, st.integers(1, 6), st.integers(0, 2_000), st.integers(1, 20), st.booleans())
def test_what_was_due_in_the_stretch_is_measured_whole_and_nothing_else(load, takes_ms, slots, at_ms, count, timed):
    kind, rate = load
    requests = count * slots
    end = {"duration_s": 0.7} if timed else {}
    cell = make_cell(load=kind, rate=rate, concurrency=slots, requests=10**6 if timed else requests, **end)
    steady = At(at_ms * MS)
    world = World(cell, steady, takes_ms)
    begin_ns, closed_ns = steady.begin_ns, world.offer.edges.closed_ns
    assert world.offer.over
    assert world.offer.edges.begin_ns == begin_ns
    assert world.offer.edges.unsent == sum(measured for _, measured in world.lost)
    assert timed or world.lost == [], "only what waits some time after an end is given up"
    if not timed:
        assert len(world.measured) == requests
    for due_ns, begun_ns, _, measured in world.sent:
        assert begin_ns <= due_ns <= closed_ns if measured else not begin_ns <= due_ns < closed_ns, (due_ns, begun_ns)
        if measured and timed:
            assert due_ns < begin_ns + 700 * MS
    if world.measured:
        last_ns = max(ended_ns for _, _, ended_ns, _ in world.measured)
        late = [due_ns for due_ns, *_ in world.sent if due_ns > last_ns + CHECK_NS]
        assert late == [], "the load ends with the last measured request"


def test_the_load_goes_on_until_the_last_measured_request_has_ended():
    cell = make_cell(concurrency=4, requests=8)
    world = World(cell, At(300 * MS), [100, 100, 100, 100, 100, 100, 100, 900])
    last_ns = max(ended for _, _, ended, measured in world.sent if measured)
    for moment_ns in range(0, last_ns, 10 * MS):
        under_way = sum(begun <= moment_ns < ended for _, begun, ended, _ in world.sent)
        assert under_way == 4, f"at {moment_ns / MS} ms a slot was idle"
    assert any(due > world.offer.edges.closed_ns for due, *_ in world.sent), "surplus keeps the load up"


def test_a_request_that_straddles_the_edge_stays_warm_up():
    world = World(make_cell(concurrency=2, requests=4), At(250 * MS), [200])
    straddling = [each for each in world.sent if each[1] < 250 * MS < each[2]]
    assert [each[3] for each in straddling] == [False, False]


def test_waves_are_measured_whole_and_no_surplus_wave_is_sent():
    world = World(make_cell(load="wave", concurrency=3, requests=6), At(100 * MS), [40, 70, 60])
    assert [each[3] for each in world.sent][-6:] == [True] * 6
    assert [each[3] for each in world.sent][:-6] == [False] * (len(world.sent) - 6)


def test_slots_that_began_together_are_parted_once_and_only_then():
    world = World(make_cell(concurrency=4, requests=40), At(2_000 * MS), [400], spread_ns_max=2_000 * MS)
    assert [due for due, *_ in world.sent[:4]] == [0] * 4
    assert [due // MS for due, *_ in world.sent[4:8]] == [400, 500, 600, 700]
    assert [due // MS for due, *_ in world.sent[8:12]] == [800, 900, 1000, 1100]


@pytest.mark.parametrize("load", [{"load": "closed"}, {"load": "poisson", "rate": 2.0}])
def test_enough_closes_the_stretch_and_what_was_due_in_it_is_waited_for(load):
    cell = make_cell(concurrency=4, requests=10**6, **load)
    world = World(cell, At(500 * MS), [300], enough_ns=4_000 * MS)
    assert max(due for due, *_ in world.measured) <= 4_050 * MS
    assert world.offer.over
    assert all(due >= world.offer.edges.closed_ns for due, _, _, measured in world.sent if due > 4_100 * MS)


def test_a_load_that_is_never_steady_is_not_measured_and_goes_on():
    world = World(make_cell(concurrency=2, requests=4), At(None), [100], until_ns=3_000 * MS)
    assert len(world.sent) >= 55
    assert world.offer.edges.begin_ns is None


def test_an_open_load_that_is_not_kept_while_it_warms_up_counts_what_was_given_up():
    cell = make_cell(load="constant", rate=50_000.0, concurrency=1, requests=300)
    world = World(cell, At(None), [60_000], until_ns=2_000 * MS)
    assert isinstance(world.open, OpenLoad)
    assert len(world.lost) > 10_000
    assert sum(measured for _, measured in world.lost) == world.offer.edges.unsent == 300


def test_an_open_load_that_is_not_kept_up_with_is_given_up_some_time_after_its_end():
    cell = make_cell(load="constant", rate=10.0, concurrency=1, requests=10**6, duration_s=10.0)
    world = World(cell, At(5_000 * MS), [500], until_ns=100_000 * MS)
    last_ns = max(ended for _, _, ended, _ in world.sent)
    assert last_ns <= (5 + 10 + 10 + 1) * 1000 * MS
    asked = len(world.measured) + sum(measured for _, measured in world.lost)
    assert asked == pytest.approx(100, abs=1), "every request of the stretch is measured or counted as lost"
    assert world.offer.edges.unsent == sum(measured for _, measured in world.lost) > 0

"""The timed loop: what its stamps mean, how deep it goes, and that nothing is waited for without end."""

import numpy as np
import pytest

from kvgauge.failures import TransferError
from kvgauge.xfer.loop import COLUMNS, Batch, Leg, run

AT = {name: number for number, name in enumerate(COLUMNS)}


class Clock:
    """Each look at it takes a microsecond."""

    def __init__(self):
        self.now_ns = 0

    def __call__(self):
        self.now_ns += 1_000
        return self.now_ns


class Wheel:
    """A NIXL agent whose transfers are done at the k-th look. Its calls take time on the clock."""

    def __init__(self, clock, *, looks=3, ends="DONE", at_once="PROC"):
        self.clock, self.looks, self.ends, self.at_once = clock, looks, ends, at_once
        self.open, self.released, self.most, self.slots = [], [], 0, []

    def make_prepped_xfer(self, operation, ours, our_rows, theirs, their_rows, note):
        assert (operation, ours, theirs, note) == ("READ", "ours", "theirs", b"n")
        self.slots.append((int(our_rows[0]), int(their_rows[0])))
        self.clock.now_ns += 5_000
        return {"looks": 0}

    def transfer(self, handle):
        self.open.append(handle)
        self.most = max(self.most, len(self.open))
        self.clock.now_ns += 7_000
        if self.at_once == "DONE":
            self.open.remove(handle)
        return self.at_once

    def check_xfer_state(self, handle):
        handle["looks"] += 1
        self.clock.now_ns += 2_000
        if handle["looks"] < self.looks:
            return "PROC"
        self.open.remove(handle)
        return self.ends

    def release_xfer_handle(self, handle):
        self.released.append(handle)


def leg(wheel, slots=8):
    rows = tuple(np.array([slot], dtype=np.int32) for slot in range(slots))
    return Leg(wheel, "ours", rows, "theirs", rows)


def batch(**changes):
    return Batch(
        **{"operation": "READ", "turn": 1, "note": b"n", "count": 4, "depth": 1, "timeout_ns": 10**9} | changes
    )


def timed(wheels, clock, **changes):
    seen = []
    table = np.array(run(6, [leg(wheel) for wheel in wheels], batch(**changes), seen.append, clock))
    return table, seen


def test_one_transfer_is_stamped_before_it_is_prepared_before_it_is_posted_and_at_the_look_that_says_done():
    clock = Clock()
    table, _ = timed([Wheel(clock, looks=3)], clock, count=1)
    row = dict(zip(COLUMNS, table[0].tolist(), strict=True))
    assert row == {
        "lane": 6, "slot": 0, "begun_ns": 1_000, "prepare_ns": 6_000, "posted_ns": 7_000, "post_ns": 8_000,
        "done_ns": 15_000 + 3 * 3_000, "gap_ns": 3_000, "moved_ns": 15_000 + 3 * 3_000, "gather_ns": 0,
        "scatter_ns": 0, "signal_ns": 0,
    }  # fmt: skip


def test_the_gap_of_a_transfer_that_is_done_when_posted_is_its_post():
    clock = Clock()
    table, _ = timed([Wheel(clock, at_once="DONE")], clock, count=1)
    assert table[0, AT["gap_ns"]] == table[0, AT["post_ns"]] == 8_000


@pytest.mark.parametrize("wheels", [1, 3])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_so_many_are_under_way_as_was_asked_and_each_fills_its_slot(wheels, depth):
    clock = Clock()
    agents = [Wheel(clock, looks=2 + number) for number in range(wheels)]
    table, seen = timed(agents, clock, count=7, depth=depth)
    assert table[:, AT["slot"]].tolist() == list(range(7))
    for agent in agents:
        assert agent.most == depth
        assert agent.slots == [(slot, slot) for slot in range(7)]
        assert len(agent.released) == 7
    assert [len(handles) for handles in seen] == [wheels]  # the last transfer's alone, before they are released
    assert (table[:, AT["posted_ns"]] >= table[:, AT["begun_ns"]]).all()
    assert (table[:, AT["gap_ns"]] > 0).all()


def test_a_transfer_of_several_agents_is_done_when_the_last_of_them_is():
    clock = Clock()
    table, _ = timed([Wheel(clock, looks=1), Wheel(clock, looks=9)], clock, count=1)
    slow = Clock()
    alone, _ = timed([Wheel(slow, looks=9)], slow, count=1)
    assert table[0, AT["done_ns"]] > alone[0, AT["done_ns"]]


@pytest.mark.parametrize("wheels", [1, 2])
def test_a_transfer_that_never_ends_is_given_up_at_its_time_limit(wheels):
    clock = Clock()
    agents = [Wheel(clock, looks=10**9) for _ in range(wheels)]
    with pytest.raises(
        TransferError, match=r"READ past its time limit of 0.001 s: \d of \d pairs of agents unfinished"
    ):
        timed(agents, clock, timeout_ns=1_000_000)
    assert clock.now_ns < 3_000_000


@pytest.mark.parametrize("wheels", [1, 2])
@pytest.mark.parametrize("fault", [{"ends": "ERR"}, {"at_once": "ERR"}])
def test_an_error_is_said_and_no_row_is_made_of_it(wheels, fault):
    clock = Clock()
    with pytest.raises(TransferError, match="NIXL reports ERR for a READ"):
        timed([Wheel(clock, **fault) for _ in range(wheels)], clock)

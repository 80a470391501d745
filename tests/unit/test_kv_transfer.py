"""Moves pair by pair: what they add up to, how they fail, and that every handle is given back exactly once."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.failures import TransferError
from kvgauge.kv.layout import Pair, PoolShape
from kvgauge.kv.transfer import Mover, RankInfo, WorkerInfo

SHAPE = PoolShape(regions=2, blocks=8, pieces=2, piece_bytes=64)
BLOCKS = np.array([1, 5, 2], dtype=np.int32)
ROWS = len(BLOCKS) * SHAPE.regions  # descriptors of one leg


class ScriptedAgent:
    """States of every transfer in turn; the last one stays. `bad_post`: which posts raise, counted from 0."""

    def __init__(self, name, clock, *, states=("DONE",), moved=lambda count: count * 64, bad_post=(), bad_release=()):
        self.name, self.backend, self._clock = name, "UCX", clock
        self.states, self.moved, self.bad_post, self.bad_release = states, moved, bad_post, bad_release
        self.posted, self.released, self.connected, self.prepared, self.forgotten = [], [], [], [], []
        self.post_takes_ns = 10

    def connect(self, metadata):
        self.connected.append(metadata)
        return metadata.decode(), 3, 4

    def prepare(self, descriptors, peer=None):
        self.prepared.append((peer, len(descriptors), int(descriptors[0, 0])))
        return (peer, len(self.prepared))

    def forget(self, peer, prepared):
        self.forgotten.append((peer, len(prepared)))

    def post(self, operation, local, remote, notification):
        at = len(self.posted)
        self._clock.now_ns += self.post_takes_ns
        if at in self.bad_post:
            self.posted.append(None)
            raise TransferError(f"{self.name} cannot post a {operation}")
        handle = SimpleNamespace(
            at=at, seen=0, rows=len(local[1]), remote=remote, local=local, note=notification, name=self.name
        )
        self.posted.append(handle)
        return handle, "PROC"

    def state(self, handle):
        handle.seen += 1
        return self.states[min(handle.seen, len(self.states)) - 1]

    def used_backend(self, _handle):
        return "UCX"

    def moved_bytes(self, handle):
        return self.moved(handle.rows)

    def release(self, handle):
        self.released.append(handle)
        if handle.at in self.bad_release:
            raise TransferError("cannot release")

    @property
    def handles(self):
        return [handle for handle in self.posted if handle is not None]


class Bench:
    def __init__(self, clock, *, agents=2, pieces=2, **script):
        self.clock = clock
        self.agents = [ScriptedAgent(f"a{rank}", clock, **script) for rank in range(agents)]
        self.mover = Mover(self.agents, [4096 * (rank + 1) for rank in range(agents)], SHAPE, clock.monotonic_ns)
        self.peer = WorkerInfo(
            index=7,
            shape=SHAPE,
            ranks=tuple(RankInfo(metadata=b"b%d" % r, address=10**6 * (r + 1)) for r in range(agents)),
        )
        pairs = [
            Pair(our_rank=rank, our_piece=piece, their_rank=rank, their_piece=piece)
            for rank in range(agents)
            for piece in range(pieces)
        ]
        self.mover.connect(self.peer, pairs)
        self.legs = len(pairs)

    def begin(self, key=1, timeout_ns=10_000):
        return self.mover.begin(key, 7, "READ", (BLOCKS, BLOCKS), self.clock.now_ns + timeout_ns)

    def carry(self, limit=50):
        ended = []
        for _ in range(limit):
            ended += self.mover.progress()
            if not self.mover.busy:
                break
        return ended

    def handles_back_once(self):
        for agent in self.agents:
            assert sorted(h.at for h in agent.released) == sorted(h.at for h in agent.handles)


@pytest.fixture
def bench(clock_class):
    return lambda **more: Bench(clock_class(), **more)


def test_each_pair_of_agents_is_joined_once_and_each_list_prepared_once(bench):
    it = bench()
    assert [agent.connected for agent in it.agents] == [[b"b0"], [b"b1"]]
    assert it.mover.connected(7)
    assert not it.mover.connected(8)
    for rank, agent in enumerate(it.agents):
        own = sorted(first for peer, _, first in agent.prepared if peer is None)
        theirs = sorted(first for peer, _, first in agent.prepared if peer == f"b{rank}")
        assert own == [4096 * (rank + 1), 4096 * (rank + 1) + 64]
        assert theirs == [10**6 * (rank + 1), 10**6 * (rank + 1) + 64]
        assert {count for _, count, _ in agent.prepared} == {SHAPE.regions * SHAPE.blocks}
    assert [(c.initiator, c.peer, c.add_remote_ns, c.make_connection_ns) for c in it.mover.connections()] == [
        ("a0", "b0", 3, 4),
        ("a1", "b1", 3, 4),
    ]


def test_a_second_peer_does_not_have_our_own_lists_prepared_again(bench):
    it = bench()
    it.mover.connect(
        WorkerInfo(index=9, shape=SHAPE, ranks=it.peer.ranks),
        [Pair(our_rank=0, our_piece=0, their_rank=0, their_piece=0)],
    )
    assert len([peer for peer, _, _ in it.agents[0].prepared if peer is None]) == 2


def test_one_pair_is_posted_a_turn_so_that_nothing_else_waits_long(bench):
    it = bench(states=("PROC", "PROC", "PROC", "PROC", "PROC", "DONE"))
    it.begin()
    posted = []
    for _ in range(it.legs):
        it.mover.progress()
        posted.append(sum(len(agent.posted) for agent in it.agents))
    assert posted == [1, 2, 3, 4]


def test_a_move_adds_up_over_its_pairs(bench):
    it = bench(states=("PROC", "DONE"))
    move = it.begin(key=258)
    start_ns = it.clock.now_ns
    assert it.carry() == [move]
    assert move.descriptors == ROWS * it.legs
    assert move.bytes_listed == move.bytes_moved == ROWS * it.legs * SHAPE.piece_bytes
    assert (move.posted_ns, move.post_ns, move.backends, move.failure) == (start_ns, 40, {"UCX"}, None)
    assert move.done_ns == it.clock.now_ns
    handle = it.agents[0].handles[0]
    assert handle.note == (258).to_bytes(8, "little")
    assert handle.local[1].tolist() == [1, 5, 2, 9, 13, 10]
    it.handles_back_once()
    assert not it.mover.busy


def test_bytes_nixl_did_not_count_for_one_pair_are_unknown_for_the_move(bench):
    it = bench()
    it.agents[1].moved = lambda _count: None
    (move,) = [it.begin()]
    it.carry()
    assert move.bytes_moved is None
    assert move.bytes_listed > 0


def given_up(it, move):
    """What NIXL still moves is watched until it lets go, and its handles come back once, then."""
    assert it.mover.progress() == []
    assert move.settled is False
    assert it.mover.settled() == []
    for agent in it.agents:
        agent.states = ("DONE",)
    assert it.mover.settled() == [move.key]
    assert it.mover.settled() == []
    it.handles_back_once()


def test_a_pair_that_fails_fails_the_move_and_the_others_are_watched_until_they_end(bench):
    it = bench(states=("PROC",))
    it.agents[1].states = ("ERR",)
    move = it.begin()
    assert it.carry() == [move]
    assert move.failure == "NIXL reports ERR for a READ over UCX"
    assert move.done_ns is not None
    given_up(it, move)


def test_a_post_that_fails_half_way_leaves_no_handle_of_those_already_posted(bench):
    it = bench(states=("PROC",), bad_post=(1,))
    move = it.begin()
    assert it.carry() == [move]
    assert move.failure == "a0 cannot post a READ"
    assert [len(agent.posted) for agent in it.agents] == [2, 0]
    given_up(it, move)


def test_a_first_post_that_fails_leaves_nothing_to_wait_for(bench):
    it = bench(bad_post=(0,))
    move = it.begin()
    assert it.carry() == [move]
    assert (move.settled, it.mover.settled()) == (True, [])


def test_a_move_past_its_deadline_fails_and_says_how_many_pairs_are_missing(bench):
    it = bench(states=("PROC",))
    move = it.begin(timeout_ns=1_000)
    assert it.carry(it.legs + 2) == []
    it.clock.now_ns = move.deadline_ns
    assert it.mover.progress() == []
    it.clock.now_ns += 1
    assert it.mover.progress() == [move]
    assert move.failure == "READ past its deadline: 4 of 4 pairs of ranks unfinished"
    given_up(it, move)


def test_time_spent_waiting_for_other_moves_does_not_count_against_a_deadline(bench):
    it = bench(agents=1, pieces=2, states=("PROC",))
    it.begin(1, timeout_ns=10**9)
    behind = it.begin(2, timeout_ns=1_000)
    it.clock.now_ns += 5_000
    for _ in range(3):
        assert it.mover.progress() == []
    posted_ns = behind.posted_ns
    assert behind.deadline_ns == posted_ns + 1_000
    it.clock.now_ns = behind.deadline_ns + 1
    assert it.mover.progress() == [behind]


def test_a_connection_that_fails_half_way_is_dropped_and_can_be_made_later(bench, monkeypatch):
    it = bench()
    other = WorkerInfo(index=9, shape=SHAPE, ranks=it.peer.ranks)
    pairs = [Pair(our_rank=rank, our_piece=0, their_rank=rank, their_piece=0) for rank in range(2)]

    def refuse(_metadata):
        raise TransferError("a1 cannot connect over UCX")

    with monkeypatch.context() as broken:
        broken.setattr(it.agents[1], "connect", refuse)
        with pytest.raises(TransferError, match="a1 cannot connect"):
            it.mover.connect(other, pairs)
    assert not it.mover.connected(9)
    assert it.agents[0].forgotten == [("b0", 0)]
    it.mover.connect(other, pairs)
    assert it.mover.connected(9)


def test_a_handle_that_cannot_be_given_back_fails_the_move_but_not_the_worker(bench):
    it = bench(bad_release=(0,))
    move = it.begin()
    assert it.carry() == [move]
    assert move.failure == "cannot release"
    it.handles_back_once()


def test_moves_are_posted_in_the_order_they_were_asked_for(bench):
    it = bench(agents=1, pieces=2, states=("PROC", "PROC", "DONE"))
    first, second = it.begin(1), it.begin(2)
    assert it.carry() == [first, second]
    notes = [int.from_bytes(handle.note, "little") for handle in it.agents[0].handles]
    assert notes == [1, 1, 2, 2]


def test_looking_without_posting_leaves_the_rest_for_later(bench):
    it = bench()
    it.begin()
    assert it.mover.progress(post=False) == []
    assert [len(agent.posted) for agent in it.agents] == [0, 0]


def test_a_peer_that_ended_is_forgotten_once_and_connected_to_anew(bench):
    it = bench()
    it.mover.forget(7, it.clock.now_ns)
    it.mover.forget(7, it.clock.now_ns)
    assert not it.mover.connected(7)
    assert [agent.forgotten for agent in it.agents] == [[("b0", 2)], [("b1", 2)]]
    it.mover.connect(it.peer, [Pair(our_rank=0, our_piece=0, their_rank=0, their_piece=0)])
    assert it.mover.connected(7)


def test_what_was_posted_to_a_peer_that_ended_may_still_end_well(bench):
    it = bench(agents=1, pieces=1, states=("PROC", "PROC", "DONE"))
    move = it.begin()
    it.mover.progress()
    it.mover.forget(7, it.clock.now_ns + 1_000)
    assert it.agents[0].forgotten == []  # its lists are in use
    assert it.carry() == [move]
    assert move.failure is None
    assert len(it.agents[0].forgotten) == 1
    it.handles_back_once()


@pytest.mark.parametrize("posted", [0, 2])
def test_nothing_more_is_posted_to_a_peer_that_ended_and_its_moves_fail_when_their_time_is_over(bench, posted):
    it = bench(states=("PROC",))
    move = it.begin(timeout_ns=10**9)
    for _ in range(posted):
        it.mover.progress()
    it.mover.forget(7, it.clock.now_ns + 1_000)
    ended = it.mover.progress()
    assert ended == ([] if posted else [move])
    it.clock.now_ns += 1_001
    ended += it.mover.progress()
    assert ended == [move]
    assert move.failure == "READ: the worker on the other side has ended"
    assert sum(len(agent.posted) for agent in it.agents) == posted
    it.handles_back_once()
    assert [len(agent.forgotten) for agent in it.agents] == [1, 1]


def test_what_was_given_up_is_let_go_some_time_after_its_peer_has_ended_whatever_nixl_says(bench):
    it = bench(states=("PROC",))
    move = it.begin(timeout_ns=1_000)
    it.carry(it.legs)
    it.clock.now_ns += 1_001
    assert it.mover.progress() == [move]
    assert it.mover.settled() == []
    it.mover.forget(7, it.clock.now_ns + 1_000)
    assert it.mover.settled() == []
    it.clock.now_ns += 60_000_000_000
    assert it.mover.settled() == [move.key]
    it.handles_back_once()
    assert [len(agent.forgotten) for agent in it.agents] == [1, 1]


def took(it, nanoseconds):
    """One whole move whose only pair takes this long."""
    it.begin(timeout_ns=10**9)
    it.agents[0].states = ("PROC", "DONE")
    it.mover.progress()
    it.clock.now_ns += nanoseconds - it.agents[0].post_takes_ns
    assert len(it.mover.progress()) == 1


def test_what_a_first_transfer_cost_beyond_later_ones_is_known_after_three_of_its_size(bench):
    it = bench(agents=1, pieces=1)
    known = []
    for duration in (900, 120, 100, 110):
        took(it, duration)
        (connection,) = it.mover.connections()
        known.append((connection.first_transfer_ns, connection.first_excess_ns))
    assert known == [(900, None), (900, None), (900, None), (900, 900 - 110)]


def test_later_transfers_of_another_size_say_nothing_of_the_first(bench):
    it = bench(agents=1, pieces=1)
    took(it, 900)
    for _ in range(4):
        it.mover.begin(5, 7, "READ", (BLOCKS[:1], BLOCKS[:1]), it.clock.now_ns + 10**9)
        it.carry()
    assert it.mover.connections()[0].first_excess_ns is None


@settings(max_examples=80, deadline=None)
@given(
    scripts=st.lists(
        st.lists(st.sampled_from(["PROC", "PROC", "ERR", "DONE"]), min_size=1, max_size=4), min_size=2, max_size=2
    ),
    bad_post=st.sets(st.integers(0, 5), max_size=2),
    moves=st.integers(1, 4),
    hurry=st.integers(0, 200),
)
def test_whatever_the_agents_say_every_move_ends_and_every_handle_comes_back_once(
    clock_class, scripts, bad_post, moves, hurry
):
    it = Bench(clock_class(), bad_post=tuple(bad_post))
    for agent, states in zip(it.agents, scripts, strict=True):
        agent.states = tuple(states)
    begun = [it.begin(key, timeout_ns=1_000) for key in range(moves)]
    ended = []
    for _ in range(100):
        it.clock.now_ns += hurry
        ended += it.mover.progress()
    for _ in range(2 * moves * it.legs):  # the last one is posted only when those before it have ended
        it.clock.now_ns += 10_000
        ended += it.mover.progress()
    assert sorted(move.key for move in ended) == [move.key for move in begun]
    assert not it.mover.busy
    for agent in it.agents:
        agent.states = ("DONE",)
    assert sorted(it.mover.settled()) == sorted(move.key for move in ended if not move.settled)
    it.handles_back_once()
    for move in ended:
        assert (move.failure is None) == (move.bytes_moved == ROWS * it.legs * SHAPE.piece_bytes)
        assert move.settled or move.failure is not None

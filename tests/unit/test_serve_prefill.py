"""A prefill worker: who is admitted, when blocks come back, and what a client that left costs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.models import BLOCK_TOKENS
from kvgauge.serve import prefill as module
from kvgauge.serve.messages import Peers, Prefill, Prefilled, Refused, Release, Settled, Written, called_off, encode
from kvgauge.serve.prefill import KEEP_TIMEOUTS, PrefillWorker


class Bench:
    """A prefill worker whose every surrounding the test plays."""

    def __init__(self, worker_spec, ranks_class, outbox_class, tiny, *, kv=True, **changes):
        self.spec = worker_spec("prefill", **changes)
        self.ranks = ranks_class(self.spec, tiny, kv=kv)
        self.outbox = outbox_class()
        self.worker = PrefillWorker(self.spec, self.ranks, self.outbox)

    def ask(self, key, blocks=1, **more):
        self.worker.on_message(encode(Prefill(key, 70 + key, blocks * BLOCK_TOKENS, **more)))

    def release(self, key):
        self.worker.on_message(encode(Release(key)))

    def turn(self):
        return self.worker.turn(module.time.monotonic_ns())

    @property
    def free(self):
        return self.worker.report().blocks_free

    def done(self):
        return [message.key for message in self.outbox.of(Prefilled)]


@pytest.fixture
def bench(worker_spec, ranks_class, outbox_class, tiny):
    return lambda **more: Bench(worker_spec, ranks_class, outbox_class, tiny, **more)


@pytest.fixture
def clock(clock_class, monkeypatch):
    made = clock_class()
    monkeypatch.setattr(module, "time", made)
    return made


def turns(it, count=4):
    for _ in range(count):
        it.turn()


def test_without_kv_blocks_come_back_as_soon_as_the_step_is_over(bench):
    it = bench(kv=False)
    it.ask(1, 3)
    turns(it)
    (done,) = it.outbox.take()
    assert (done.key, len(done.blocks), done.start_ns <= done.end_ns) == (1, 3, True)
    assert it.free == 16
    assert it.ranks.written == []


def test_every_block_is_stamped_with_the_requests_nonce_and_digest_before_decode_hears_of_it(bench):
    it = bench()
    it.ask(5, 2)
    it.turn()
    ((identity, blocks),) = it.ranks.written
    assert (identity.nonce, identity.digest, len(blocks)) == (5, 75, 2)
    assert it.outbox.sent == []
    turns(it)
    assert it.outbox.of(Prefilled)[0].blocks == blocks


def test_blocks_are_kept_until_every_share_has_been_notified(bench):
    it = bench(prefill_tp=2, decode_tp=2, tp=2)
    it.ask(1, 3)
    turns(it)
    assert len(it.ranks.shares) == 2
    it.ranks.notes = [1, 77]  # 77: of a request that is long gone
    turns(it, 1)
    assert it.free == 13
    it.ranks.notes = [1]
    turns(it, 1)
    assert it.free == 16
    it.ranks.notes = [1]
    turns(it, 1)
    assert it.free == 16


def test_a_full_pool_queues_and_goes_on_in_order_when_blocks_come_back(bench):
    it = bench(blocks=4)
    for key in (1, 2, 3):
        it.ask(key, 3)
    turns(it)
    assert it.done() == [1]
    it.ranks.notes = [1]
    turns(it)
    assert it.done() == [1, 2]
    it.release(2)
    turns(it)
    assert it.done() == [1, 2, 3]


def test_a_step_holds_as_many_prompt_tokens_as_are_allowed_and_at_least_one_request(bench):
    it = bench(kv=False, blocks=64, max_batch_tokens=4 * BLOCK_TOKENS)
    for key, blocks in ((1, 2), (2, 2), (3, 1), (4, 9), (5, 1)):
        it.ask(key, blocks)
    steps = []
    for _ in range(8):
        it.turn()
        if keys := it.done():
            steps.append(keys)
            it.outbox.take()
    assert steps == [[1, 2], [3], [4], [5]]
    assert it.worker.report().steps == 4


def test_a_request_nobody_wants_any_more_is_not_computed(bench):
    it = bench()
    it.ask(1)
    it.ask(2)
    it.release(1)
    turns(it)
    assert it.done() == [2]
    assert it.outbox.of(Written) == []


def test_blocks_that_wait_for_decode_come_back_when_nobody_wants_them(bench):
    it = bench()
    it.ask(1, 2)
    turns(it)
    assert it.free == 14
    it.release(1)
    it.release(1)
    it.release(9)
    assert it.free == 16


def test_blocks_that_decode_never_fetches_come_back_after_three_time_outs(bench, clock):
    it = bench(transfer_timeout_s=1.0)
    it.ask(1, 2)
    turns(it)
    clock.now_ns += int(KEEP_TIMEOUTS * 1e9)
    turns(it)
    assert it.free == 14
    clock.now_ns += 1
    turns(it)
    assert it.free == 16


def writer(bench, some_peer, **more):
    it = bench(operation="WRITE", **more)
    it.worker.on_peers(Peers([some_peer(0), some_peer(1)]))
    return it


def test_a_write_goes_from_the_stamped_blocks_to_those_decode_reserved(bench, clock, some_peer):
    it = writer(bench, some_peer, transfer_timeout_s=2.0)
    it.ask(1, 2, decode_worker=1, decode_blocks=[9, 8])
    turns(it)
    move = it.ranks.mover.begun[1]
    assert (move.peer, move.operation, move.remote_rows.tolist()) == (1, "WRITE", [9, 8])
    assert move.local_rows.tolist() == it.ranks.written[0][1] == it.outbox.of(Prefilled)[0].blocks
    assert move.remote_rows.dtype == np.int32
    assert move.deadline_ns == clock.now_ns + 2_000_000_000
    assert it.free == 14
    it.ranks.mover.end(1, size=64)
    turns(it)
    (account,) = it.outbox.of(Written)
    assert account == Written(1, 1, 5, 2, 3, 64, 64, "UCX", None)
    assert it.free == 16
    assert it.worker.report().backends == {"UCX": 1}


def test_a_peer_is_connected_once_however_many_requests_go_there(bench, some_peer, monkeypatch):
    it = writer(bench, some_peer)
    connected = []
    connect = it.ranks.mover.connect
    monkeypatch.setattr(
        it.ranks.mover, "connect", lambda peer, pairs: (connected.append(peer.index), connect(peer, pairs))
    )
    for key in (1, 2, 3):
        it.ask(key, decode_worker=key % 2, decode_blocks=[key])
    turns(it)
    assert sorted(connected) == [0, 1]
    assert set(it.ranks.mover.begun) == {1, 2, 3}


def test_a_write_that_fails_says_so_and_gives_its_blocks_back(bench, some_peer):
    it = writer(bench, some_peer)
    it.ask(1, 2, decode_blocks=[9, 8])
    turns(it)
    it.ranks.mover.end(1, failure="NIXL reports ERR")
    turns(it)
    (account,) = it.outbox.of(Written)
    assert (account.failure, account.backend) == ("NIXL reports ERR", "none")
    assert it.free == 16


def test_a_write_that_nixl_has_not_let_go_of_keeps_its_blocks_until_it_has(bench, some_peer):
    it = writer(bench, some_peer)
    it.ask(1, 2, decode_worker=1, decode_blocks=[9, 8])
    turns(it)
    it.ranks.mover.end(1, failure="WRITE past its deadline", settled=False)
    turns(it)
    (account,) = it.outbox.of(Written)
    assert (account.failure, account.settled) == ("WRITE past its deadline", False)
    it.release(1)
    turns(it)
    assert it.free == 14
    it.ranks.mover.settle(1)
    turns(it)
    assert it.free == 16
    assert it.outbox.of(Settled) == [Settled(1, 1)]


def test_a_write_under_way_keeps_its_blocks_though_nobody_wants_them_any_more(bench, some_peer):
    it = writer(bench, some_peer)
    it.ask(1, 2, decode_blocks=[9, 8])
    turns(it)
    it.release(1)
    turns(it)
    assert it.free == 14
    it.ranks.mover.end(1)
    turns(it)
    assert it.free == 16


def test_a_decode_worker_that_cannot_be_reached_fails_the_request_as_a_kv_failure(bench, some_peer):
    it = writer(bench, some_peer)
    it.ranks.mover.refuses = "cannot connect over UCX"
    it.ask(1, 2, decode_blocks=[9, 8])
    turns(it)
    failures = [m for m in it.outbox.sent if getattr(m, "failure", None) or getattr(m, "reason", None)]
    assert len(failures) == 1
    assert "cannot connect over UCX" in (getattr(failures[0], "failure", None) or failures[0].reason)
    assert isinstance(failures[0], Written) or failures[0].kv
    assert it.free == 16
    assert it.turn() is None


def test_a_write_that_has_not_begun_is_called_off_at_decode_when_its_client_leaves(bench, some_peer):
    it = writer(bench, some_peer, blocks=2)
    it.ask(1, 2, decode_blocks=[0, 1])
    it.ask(2, 2, decode_worker=1, decode_blocks=[2, 3])
    turns(it)
    it.release(2)
    assert it.outbox.of(Written) == [called_off(2, 1)]
    it.ranks.mover.end(1)
    turns(it)
    assert it.done() == [1]
    assert it.free == 2


def test_blocks_a_decode_worker_that_ended_will_not_fetch_come_back_and_those_of_others_stay(bench, some_peer):
    it = bench(blocks=3)
    it.worker.on_peers(Peers([some_peer(0), some_peer(1)]))
    for key, blocks, decode_worker in ((1, 1, 0), (2, 1, 1), (3, 2, 1), (4, 2, 0)):
        it.ask(key, blocks, decode_worker=decode_worker)
    turns(it)
    assert it.done() == [1, 2]  # 3 and 4 wait for room
    it.worker.on_peers(Peers([some_peer(0)]))
    assert it.free == 2
    turns(it)
    assert it.done() == [1, 2, 4]
    it.ranks.notes = [1]
    turns(it)
    assert it.free == 1


def test_what_is_computed_for_a_decode_worker_that_ended_meanwhile_is_thrown_away(bench, some_peer):
    it = bench()
    it.worker.on_peers(Peers([some_peer(0), some_peer(1)]))
    it.ask(1, decode_worker=1)
    it.ask(2, decode_worker=0)
    it.turn()
    it.worker.on_peers(Peers([some_peer(0)]))
    turns(it)
    assert it.done() == [2]
    assert it.free == 15


def test_blocks_that_are_being_written_from_are_kept_until_the_write_has_ended(bench, some_peer):
    it = writer(bench, some_peer)
    it.ask(1, 2, decode_worker=1, decode_blocks=[0, 1])
    turns(it)
    it.worker.on_peers(Peers([some_peer(0)]))
    turns(it)
    assert it.free == 14
    it.ranks.mover.end(1, failure="the worker on the other side has ended")
    turns(it)
    assert it.free == 16


def test_a_write_to_a_decode_worker_that_is_not_there_fails_and_one_to_a_worker_that_came_back_goes_on(
    bench, some_peer
):
    it = writer(bench, some_peer)
    it.worker.on_peers(Peers([some_peer(0)]))
    it.ask(1, decode_worker=1, decode_blocks=[0])
    turns(it)
    assert 1 not in it.ranks.mover.begun
    assert it.free == 16
    it.worker.on_peers(Peers([some_peer(0), some_peer(1)]))
    it.ask(2, decode_worker=1, decode_blocks=[0])
    turns(it)
    assert it.ranks.mover.begun[2].peer == 1


def modelled(monkeypatch, took_ns):
    """A step takes this long for each block of its prompts."""
    monkeypatch.setattr(module, "prefill_ns", lambda _model, _gpu, _tp, prompts: took_ns * sum(prompts) // BLOCK_TOKENS)


def test_steps_take_the_modelled_time_and_follow_each_other_without_a_gap(bench, clock, monkeypatch):
    modelled(monkeypatch, 1_000)
    it = bench(kv=False, compute=2.0, max_batch_tokens=BLOCK_TOKENS)
    start_ns = clock.now_ns
    it.ask(1)
    it.ask(2)
    assert it.turn() == start_ns + 2_000
    clock.now_ns += 1_999
    assert it.turn() == start_ns + 2_000
    assert it.done() == []
    clock.now_ns += 1
    assert it.turn() == start_ns + 4_000
    clock.now_ns += 5_000  # late by 3,000
    it.turn()
    first, second = it.outbox.of(Prefilled)
    assert (first.start_ns, first.end_ns) == (start_ns, start_ns + 2_000)
    assert (second.start_ns, second.end_ns) == (start_ns + 2_000, start_ns + 4_000)
    assert it.turn() is None


def test_filling_blocks_for_longer_than_the_modelled_step_is_reported(bench, clock, monkeypatch):
    modelled(monkeypatch, 1_000)
    it = bench(compute=1.0)
    monkeypatch.setattr(it.ranks, "write", lambda _identity, _blocks: setattr(clock, "now_ns", clock.now_ns + 1_700))
    it.ask(1)
    it.turn()
    report = it.worker.report()
    assert (report.steps, report.steps_late, report.step_late_ns_max) == (1, 1, 700)
    it.turn()
    assert it.outbox.of(Prefilled)[0].end_ns == clock.now_ns  # KV that is not there cannot be fetched


def test_filling_blocks_within_the_modelled_step_is_not_late(bench, clock, monkeypatch):
    modelled(monkeypatch, 1_000)
    it = bench(compute=1.0)
    monkeypatch.setattr(it.ranks, "write", lambda _identity, _blocks: setattr(clock, "now_ns", clock.now_ns + 900))
    it.ask(1)
    it.turn()
    assert it.worker.report().steps_late == 0


def test_it_asks_for_turns_at_once_while_decode_may_be_fetching(bench):
    it = bench()
    assert it.turn() is None
    it.ask(1)
    turns(it)
    assert it.turn() == 0
    it.ranks.notes = [1]
    assert it.turn() is None


@settings(max_examples=60, deadline=None)
@given(
    operation=st.sampled_from(["READ", "WRITE"]),
    steps=st.lists(st.tuples(st.sampled_from(["ask", "turn", "turn", "release", "note", "end"]), st.integers(0, 11))),
)
def test_whatever_happens_all_blocks_come_back_and_each_request_ends_once(
    worker_spec, ranks_class, outbox_class, tiny, some_peer, operation, steps
):
    it = Bench(worker_spec, ranks_class, outbox_class, tiny, blocks=8, operation=operation)
    it.worker.on_peers(Peers([some_peer(0)]))
    asked, released = set(), set()
    for what, key in [*steps, *[("turn", 0)] * 3]:
        if what == "ask" and key not in asked:
            asked.add(key)
            it.ask(key, 1 + key % 4, decode_blocks=[0] * (1 + key % 4) if operation == "WRITE" else None)
        elif what == "turn":
            turns(it, 1)
        elif what == "release" and key in asked:
            released.add(key)
            it.release(key)
        elif what == "note" and operation == "READ":
            it.ranks.notes.append(key)
        elif what == "end" and key in it.ranks.mover.begun:
            it.ranks.mover.end(key)
    for _ in range(60):
        turns(it, 1)
        if operation == "READ":
            it.ranks.notes += list(asked)
        for key in list(it.ranks.mover.begun):
            it.ranks.mover.end(key)
    assert it.free == 8
    accounts = [message.key for message in it.outbox.of(Written)]
    assert it.outbox.of(Refused) == []
    assert len(it.done()) == len(set(it.done()))
    assert len(accounts) == len(set(accounts))
    assert asked - set(it.done()) <= released
    if operation == "WRITE":
        assert set(accounts) == asked

"""A decode worker: admission, fetching, checking, the step clock, and that every block comes back."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.kv.stamps import Checked
from kvgauge.models import BLOCK_TOKENS, transfer_bytes
from kvgauge.serve import decode as module
from kvgauge.serve import vocabulary
from kvgauge.serve.decode import DecodeWorker
from kvgauge.serve.messages import (
    Abort,
    Decode,
    Peers,
    Refused,
    Released,
    Reserve,
    Reserved,
    Settled,
    Started,
    Tokens,
    Written,
    called_off,
    encode,
)


class Bench:
    """A decode worker whose every surrounding the test plays. A request asks for `blocks` blocks in all."""

    def __init__(self, made, *, kv=True, **changes):
        self.spec = made.spec(**changes)
        self.ranks = made.ranks(self.spec, made.model, kv=kv)
        self.outbox = made.outbox()
        self.worker = DecodeWorker(self.spec, self.ranks, self.outbox)
        self.worker.on_peers(Peers([made.peer(0), made.peer(1)]))

    def ask(self, key, blocks=2, answer=3, prefill_worker=0):
        prompt = blocks * BLOCK_TOKENS - answer
        theirs = list(range(-(-prompt // BLOCK_TOKENS)))
        if self.spec.operation == "READ":
            message = Decode(key, 70 + key, prompt, answer, prefill_worker, theirs)
        else:
            message = Reserve(key, 70 + key, prompt, answer, prefill_worker)
        self.says(message)

    def says(self, *messages):
        for message in messages:
            self.worker.on_message(encode(message))

    def turns(self, count=1):
        for _ in range(count):
            due = self.worker.turn(module.time.monotonic_ns())
        return due

    @property
    def free(self):
        return self.worker.report().blocks_free

    def given(self, key):
        """The tokens this request got, in order."""
        return [t for m in self.outbox.of(Tokens) for k, t in zip(m.keys, m.tokens, strict=True) if k == key]

    def ended(self):
        return [key for message in self.outbox.of(Tokens) for key in message.ended]


@pytest.fixture(scope="session")
def made(worker_spec, ranks_class, outbox_class, tiny, some_peer):
    return SimpleNamespace(spec=worker_spec, ranks=ranks_class, outbox=outbox_class, model=tiny, peer=some_peer)


@pytest.fixture
def bench(made):
    return lambda **more: Bench(made, **more)


@pytest.fixture
def clock(clock_class, monkeypatch):
    it = clock_class()
    monkeypatch.setattr(module, "time", it)
    return it


def written(key, **changes):
    base = {"posted_ns": 5, "post_ns": 2, "descriptors": 3, "bytes_listed": 64, "bytes_moved": 64, "backend": "UCX",
            "failure": None}  # fmt: skip
    return Written(key, 0, **(base | changes))


# -- without KV


def test_without_kv_a_request_starts_at_once_and_gets_a_token_a_step(bench):
    it = bench(kv=False)
    it.ask(1, answer=3)
    it.turns()
    assert it.outbox.take() == [Started(1, None)]
    it.turns(3)
    assert it.given(1) == vocabulary.answer(71, 3)
    assert [message.ended for message in it.outbox.of(Tokens)] == [[], [], [1]]
    assert it.free == 16
    assert it.turns() is None


def test_requests_share_a_step_and_join_those_that_run(bench):
    it = bench(kv=False)
    it.ask(1, answer=3)
    it.turns(2)
    it.ask(2, answer=3)
    it.turns(4)
    assert [message.keys for message in it.outbox.of(Tokens)] == [[1], [1], [1, 2], [2], [2]]
    assert it.given(1) == vocabulary.answer(71, 3)
    assert it.given(2) == vocabulary.answer(72, 3)


def test_a_full_pool_queues_in_order_and_never_fails(bench):
    it = bench(kv=False, blocks=4)
    for key, blocks in ((1, 3), (2, 3), (3, 1)):
        it.ask(key, blocks, answer=2)
    it.turns(2)
    assert [message.key for message in it.outbox.of(Started)] == [1]  # 3 would fit, but 2 came first
    it.turns(6)
    assert [message.key for message in it.outbox.of(Started)] == [1, 2, 3]
    assert it.ended() == [1, 2, 3] or it.ended() == [1, 3, 2]
    assert it.outbox.of(Refused) == []
    assert it.free == 4


def test_the_batch_never_grows_beyond_its_bound(bench):
    it = bench(kv=False, max_batch=2)
    for key in range(1, 6):
        it.ask(key, answer=2)
    it.turns(12)
    assert max(len(message.keys) for message in it.outbox.of(Tokens)) == 2
    assert sorted(it.ended()) == [1, 2, 3, 4, 5]


def test_requests_on_their_way_in_count_for_the_batch(bench):
    it = bench(max_batch=1)
    it.ask(1)
    it.ask(2)
    it.turns()
    assert set(it.ranks.mover.begun) == {1}
    it.ranks.mover.end(1)
    it.turns(6)
    assert set(it.ranks.mover.begun) == {2}


# -- READ


def test_a_read_pulls_prefills_blocks_checks_them_and_starts_with_a_record_of_the_move(bench, made, clock):
    it = bench(prefill_tp=2, decode_tp=2, tp=2, transfer_timeout_s=2.0)
    it.ask(1, 3, answer=17, prefill_worker=1)
    assert it.turns() == 0
    move = it.ranks.mover.begun[1]
    assert (move.peer, move.operation, move.deadline_ns) == (1, "READ", clock.now_ns + 2_000_000_000)
    assert move.remote_rows.tolist() == [0, 1]
    assert len(move.local_rows) == 2  # of 3: those for the answer are not fetched
    assert len(it.ranks.mover.peers[1]) == 2
    assert it.outbox.sent == []
    it.ranks.mover.end(1, size=128)
    it.turns()
    (started,) = it.outbox.of(Started)
    record = started.transfer
    assert (record.request_id, record.prefill_worker, record.pairs) == (f"{1:016x}", 1, 2)
    assert record.bytes_expected == transfer_bytes(made.model, "bf16", 31, 2)
    assert (record.bytes_listed, record.bytes_moved, record.posted_ns, record.transferred_ns) == (128, 128, 5, 9)
    assert (record.pieces, record.pieces_wrong, record.failure) == (2, 0, None)
    ((identity, blocks),) = it.ranks.checked
    assert (identity.nonce, identity.digest, blocks) == (1, 71, move.local_rows.tolist())
    assert it.worker.report().backends == {"UCX": 1}


def test_the_answer_follows_from_what_was_found_in_the_blocks(bench):
    it = bench()
    it.ranks.outcome = Checked(pieces=2, wrong=0, faults={}, digest=12345)
    it.ask(1)
    it.turns()
    it.ranks.mover.end(1)
    it.turns(4)
    assert it.given(1) == vocabulary.answer(12345, 3) != vocabulary.answer(71, 3)


def test_a_request_that_is_recomputed_on_purpose_is_answered_right_and_moves_nothing(bench):
    it = bench(recompute_every=2)
    it.ask(1)
    it.ask(2)
    it.turns()
    assert set(it.ranks.mover.begun) == {1}
    assert it.outbox.of(Started) == [Started(2, None)]
    assert it.outbox.of(Released) == [Released(2)]  # prefill may give its blocks back
    it.ranks.mover.end(1)
    it.turns(6)
    assert it.given(2) == vocabulary.answer(72, 3)
    assert sorted(it.ended()) == [1, 2]
    assert it.free == 16


def test_wrong_blocks_refuse_the_request_with_what_was_found_and_no_token_is_sent(bench):
    it = bench()
    it.ranks.outcome = Checked(pieces=4, wrong=3, faults={"zero": 2, "stale": 1}, digest=None)
    it.ask(1)
    it.turns()
    it.ranks.mover.end(1)
    it.turns(4)
    (refused,) = it.outbox.sent
    assert (refused.key, refused.kv, refused.reason) == (1, True, "3 of 4 KV pieces wrong (1 stale, 2 zero)")
    assert (refused.transfer.pieces_wrong, refused.transfer.failure) == (3, refused.reason)
    assert it.free == 16


def test_a_read_that_fails_refuses_the_request_and_looks_at_no_block(bench):
    it = bench()
    it.ask(1)
    it.turns()
    it.ranks.mover.end(1, failure="READ past its deadline")
    it.turns(2)
    (refused,) = it.outbox.sent
    assert (refused.reason, refused.kv) == ("READ past its deadline", True)
    assert (refused.transfer.transferred_ns, refused.transfer.failure) == (None, "READ past its deadline")
    assert it.ranks.checked == []
    assert it.free == 16
    assert it.worker.report().backends == {}


def test_a_prefill_worker_that_cannot_be_reached_refuses_and_the_next_request_tries_again(bench):
    it = bench()
    it.ranks.mover.refuses = "cannot connect over UCX: no route"
    it.ask(1)
    it.turns()
    (refused,) = it.outbox.take()
    assert (refused.reason, refused.kv, refused.transfer) == ("cannot connect over UCX: no route", True, None)
    assert it.free == 16
    it.ranks.mover.refuses = None
    it.ask(2)
    it.turns()
    assert set(it.ranks.mover.begun) == {2}


# -- WRITE


@pytest.mark.parametrize("account_first", [True, False])
def test_a_write_has_arrived_when_every_note_and_prefills_account_are_here_in_either_order(bench, account_first):
    it = bench(operation="WRITE", prefill_tp=2, decode_tp=2, tp=2)
    it.ask(1, 3, answer=17)
    it.turns()
    (reserved,) = it.outbox.take()
    assert (reserved.key, reserved.decode_worker, len(reserved.blocks)) == (1, 0, 2)
    if account_first:
        it.says(written(1))
    it.ranks.notes = [1]
    it.turns(2)
    it.ranks.notes = [1]
    it.turns(2)
    if not account_first:
        assert it.outbox.sent == []
        it.says(written(1))
        it.turns()
    (started,) = it.outbox.of(Started)
    record = started.transfer
    assert (record.operation, record.bytes_moved, record.posted_ns) == ("WRITE", 64, 5)
    assert record.transferred_ns > 5
    assert it.ranks.checked[0][1] == reserved.blocks


def test_an_account_alone_does_not_make_a_write_arrive(bench):
    it = bench(operation="WRITE")
    it.ask(1)
    it.says(written(1))
    it.turns(3)
    it.says(written(1), written(99))
    it.turns(3)
    assert [type(message) for message in it.outbox.sent] == [Reserved]
    assert it.free == 14


def test_a_write_that_prefill_could_not_make_refuses_the_request(bench):
    it = bench(operation="WRITE")
    it.ask(1)
    it.turns()
    it.says(written(1, failure="NIXL reports ERR"))
    it.turns()
    (refused,) = it.outbox.of(Refused)
    assert (refused.reason, refused.transfer.failure) == ("NIXL reports ERR", "NIXL reports ERR")
    assert it.free == 16


def test_a_write_nobody_hears_of_is_refused_in_time_but_its_blocks_wait_for_the_writer(bench, clock):
    it = bench(operation="WRITE", transfer_timeout_s=1.0)
    it.ask(1)
    it.turns()
    clock.now_ns += module.PATIENCE * 1_000_000_000
    it.turns()
    assert it.outbox.of(Refused) == []
    clock.now_ns += 1
    it.turns()
    assert "past its deadline" in it.outbox.of(Refused)[0].reason
    assert it.turns() is None
    assert it.free == 14  # prefill lives, and may write yet
    it.says(written(1))
    assert it.free == 16
    assert len(it.outbox.of(Refused)) == 1


def test_a_write_that_prefill_has_ended_gives_its_blocks_back_though_its_notification_never_came(bench, clock):
    it = bench(operation="WRITE", transfer_timeout_s=1.0)
    it.ask(1)
    it.turns()
    it.says(written(1))
    clock.now_ns += module.PATIENCE * 1_000_000_000 + 1
    it.turns()
    assert "past its deadline" in it.outbox.of(Refused)[0].reason
    assert it.free == 16  # its word came before: nothing can write any more, and no further word will come


def test_a_write_given_up_while_it_may_still_write_keeps_its_blocks_until_prefill_says_it_is_over(bench):
    it = bench(operation="WRITE")
    it.ask(1)
    it.turns()
    it.says(written(1, failure="WRITE past its deadline", settled=False))
    it.turns()
    assert it.outbox.of(Refused)[0].reason == "WRITE past its deadline"
    assert it.free == 14
    it.says(Settled(1, 0))
    assert it.free == 16


def test_a_read_given_up_while_it_may_still_write_keeps_its_blocks_until_nixl_lets_go(bench):
    it = bench()
    it.ask(1)
    it.turns()
    it.ranks.mover.end(1, failure="READ past its deadline", settled=False)
    it.turns()
    assert it.outbox.of(Refused)[0].reason == "READ past its deadline"
    assert it.free == 14
    it.ranks.mover.settle(1)
    it.turns()
    assert it.free == 16


# -- clients that leave


def test_a_request_that_was_not_begun_tells_prefill_that_nobody_will_read(bench):
    it = bench(blocks=2)
    it.ask(1)
    it.ask(2)
    it.turns()
    it.says(Abort(2))
    assert it.outbox.take() == [Released(2)]
    it.ranks.mover.end(1)
    it.turns(8)
    assert it.ended() == [1]
    assert it.free == 2


def test_blocks_are_not_given_away_while_a_transfer_may_still_write_into_them(bench):
    it = bench()
    it.ask(1)
    it.turns()
    it.says(Abort(1))
    it.turns(3)
    assert it.free == 14
    it.ranks.mover.end(1)
    it.turns()
    assert it.free == 16
    assert it.outbox.of(Started) == it.outbox.of(Tokens) == []


def test_wrong_blocks_are_reported_though_the_client_has_left(bench):
    it = bench()
    it.ranks.outcome = Checked(pieces=4, wrong=1, faults={"cut": 1}, digest=None)
    it.ask(1)
    it.turns()
    it.says(Abort(1))
    it.ranks.mover.end(1)
    it.turns()
    assert it.outbox.of(Refused)[0].transfer.pieces_wrong == 1
    assert it.free == 16


def test_a_read_that_fails_for_a_client_that_left_gives_its_blocks_back(bench):
    it = bench()
    it.ask(1)
    it.turns()
    it.says(Abort(1))
    it.ranks.mover.end(1, failure="NIXL reports ERR")
    it.turns()
    assert it.free == 16
    assert it.outbox.of(Released) == [Released(1)]  # prefill keeps its blocks for nobody
    assert it.turns() is None


def test_a_reservation_that_is_called_off_gives_its_blocks_back(bench):
    it = bench(operation="WRITE")
    it.ask(1)
    it.turns()
    it.says(Abort(1), called_off(1, 0))
    it.turns()
    assert it.free == 16
    assert it.turns() is None


def test_a_client_that_leaves_within_its_answer_frees_its_place_in_the_batch(bench):
    it = bench(kv=False, max_batch=1)
    it.ask(1, answer=9)
    it.ask(2, answer=2)
    it.turns(4)
    it.says(Abort(1), Abort(1), Abort(77))
    it.turns(4)
    assert it.ended() == [2]
    assert len(it.given(1)) < 9
    assert it.free == 16


def test_a_client_that_leaves_before_its_first_step_gets_none(bench, clock, monkeypatch):
    modelled(monkeypatch, 1_000)
    it = bench(kv=False, compute=1.0)
    it.ask(1, answer=9)
    it.turns()
    it.ask(2, answer=9)
    it.turns()  # 2 waits for the next step
    it.says(Abort(2))
    clock.now_ns += 1_000
    it.turns()
    assert (len(it.given(1)), len(it.given(2))) == (1, 0)
    assert it.free == 14


def test_the_modelled_context_is_that_of_the_requests_that_run(bench, clock, monkeypatch):
    seen = []

    def modelled_ns(_model, _gpu, _tp, sequences, context, *_more):
        seen.append((sequences, context))
        return 10

    monkeypatch.setattr(module, "decode_ns", modelled_ns)
    it = bench(kv=False, compute=1.0)
    it.ask(1, 2, answer=2)
    it.ask(2, 2, answer=5)
    it.turns()
    for _ in range(3):
        clock.now_ns += 10
        it.turns()
    it.says(Abort(2))
    it.ask(3, 2, answer=4)
    clock.now_ns += 10
    it.turns(2)
    first, second = 2 * BLOCK_TOKENS - 2, 2 * BLOCK_TOKENS - 5
    assert seen[:4] == [(2, first + second), (2, first + second + 2), (1, second + 2), (1, second + 3)]
    assert seen[-1] == (1, 2 * BLOCK_TOKENS - 4)


# -- prefill workers that end


def test_a_prefill_worker_that_ended_refuses_what_was_not_begun_and_what_had_arrived_goes_on(bench, made):
    it = bench(blocks=6)
    for key, prefill_worker in ((1, 0), (2, 1), (3, 1), (4, 0), (5, 1)):
        it.ask(key, answer=2, prefill_worker=prefill_worker)
    it.turns()
    assert set(it.ranks.mover.begun) == {1, 2, 3}
    it.ranks.mover.end(2)
    it.turns()
    it.worker.on_peers(Peers([made.peer(0)]))
    assert [(m.key, m.reason) for m in it.outbox.of(Refused)] == [(5, "prefill-1 has ended")]
    it.ranks.mover.end(3, failure="the worker on the other side has ended")
    it.ranks.mover.end(1)
    it.turns(4)
    it.ranks.mover.end(4)
    it.turns(4)
    assert sorted(it.ended()) == [1, 2, 4]
    assert sorted(m.key for m in it.outbox.of(Refused)) == [3, 5]
    assert it.free == 6


def test_a_request_of_a_prefill_worker_that_is_not_there_is_refused(bench, made):
    for operation in ("READ", "WRITE"):
        it = bench(operation=operation)
        it.worker.on_peers(Peers([made.peer(0)]))
        it.ask(1, prefill_worker=1)
        it.turns()
        assert [(m.key, m.reason) for m in it.outbox.sent] == [(1, "prefill-1 has ended")]
        assert it.free == 16


def test_a_write_whose_writer_ended_is_refused_once_nothing_can_arrive_any_more(bench, made, clock):
    it = bench(operation="WRITE")
    it.ask(1, prefill_worker=1)
    it.turns()
    it.worker.on_peers(Peers([made.peer(0)]))
    it.turns()
    assert it.free == 14
    clock.now_ns += module.LOST_GRACE_NS + 1
    it.turns()
    assert it.outbox.of(Refused)[0].reason == "prefill-1 has ended"
    assert it.free == 16


@pytest.mark.parametrize("told", [True, False])
def test_blocks_that_waited_for_a_writer_come_back_when_it_has_ended(bench, made, clock, told):
    it = bench(operation="WRITE", transfer_timeout_s=1.0)
    it.ask(1, prefill_worker=1)
    it.turns()
    if told:
        it.says(written(1, failure="WRITE past its deadline", settled=False))
    else:
        clock.now_ns += 10_000_000_000
    it.turns()
    assert it.free == 14
    it.worker.on_peers(Peers([made.peer(0)]))
    clock.now_ns += module.LOST_GRACE_NS
    it.turns()
    assert it.free == 14  # bytes on their way may still be written
    clock.now_ns += 1
    it.turns()
    assert it.free == 16
    assert len(it.outbox.of(Refused)) == 1


@pytest.mark.parametrize("last_words", [True, False])
def test_a_writer_that_is_started_again_is_not_taken_for_the_one_that_ended(bench, made, clock, last_words):
    it = bench(operation="WRITE")
    it.ask(1, prefill_worker=1)
    it.turns()
    it.worker.on_peers(Peers([made.peer(0)]))
    it.worker.on_peers(Peers([made.peer(0), made.peer(1)]))
    if last_words:
        it.says(written(1, failure="WRITE past its deadline", settled=False))
    it.turns()
    assert it.free == 14
    clock.now_ns += module.LOST_GRACE_NS + 1
    it.turns()
    assert it.free == 16


def test_the_last_words_of_a_writer_that_ended_keep_blocks_no_longer_than_its_bytes_may_take(bench, made, clock):
    it = bench(operation="WRITE")
    it.ask(1, prefill_worker=1)
    it.turns()
    it.worker.on_peers(Peers([made.peer(0)]))
    it.says(written(1, failure="WRITE past its deadline", settled=False))
    it.turns()
    assert it.free == 14
    clock.now_ns += module.LOST_GRACE_NS + 1
    it.turns()
    assert it.free == 16


# -- the step clock


def modelled(monkeypatch, step_ns):
    monkeypatch.setattr(module, "decode_ns", lambda *_: step_ns)


def stamps_of(it):
    return [message.step_ns for message in it.outbox.of(Tokens)]


def test_steps_end_on_an_absolute_clock_and_lateness_below_a_step_does_not_shift_those_after_it(
    bench, clock, monkeypatch
):
    modelled(monkeypatch, 1_000)
    it = bench(kv=False, compute=1.0)
    it.ask(1, answer=5)
    start_ns = clock.now_ns
    assert it.turns() == start_ns + 1_000
    for at_ns, next_due_ns in ((1_300, 2_000), (2_990, 3_000), (3_000, 4_000), (4_999, 5_000)):
        clock.now_ns = start_ns + at_ns
        assert it.turns() == start_ns + next_due_ns
    assert [stamp - start_ns for stamp in stamps_of(it)] == [1_300, 2_990, 3_000, 4_999]
    assert it.worker.report().steps_late == 0


def test_lateness_beyond_a_step_is_counted_and_the_clock_starts_anew(bench, clock, monkeypatch):
    modelled(monkeypatch, 1_000)
    it = bench(kv=False, compute=1.0)
    it.ask(1, answer=5)
    start_ns = clock.now_ns
    it.turns()
    clock.now_ns = start_ns + 3_500  # the first step was due at 1,000
    assert it.turns() == start_ns + 4_500
    report = it.worker.report()
    assert (report.steps, report.steps_late, report.step_late_ns_max) == (1, 1, 2_500)
    clock.now_ns = start_ns + 4_500
    assert it.turns() == start_ns + 5_500
    assert it.worker.report().steps_late == 1


def test_without_modelled_compute_nothing_is_late(bench, clock):
    it = bench(kv=False, compute=0.0)
    it.ask(1, answer=3)
    it.turns()
    clock.now_ns += 10_000_000_000
    it.turns(4)
    assert it.ended() == [1]
    assert it.worker.report().steps_late == 0


def test_compute_multiplies_the_modelled_step(bench, clock, monkeypatch):
    modelled(monkeypatch, 1_000)
    it = bench(kv=False, compute=2.5)
    it.ask(1)
    assert it.turns() == clock.now_ns + 2_500


# -- whatever happens


@settings(max_examples=80, deadline=None)
@given(
    operation=st.sampled_from(["READ", "WRITE", "none"]),
    steps=st.lists(
        st.tuples(st.sampled_from(["ask", "turn", "turn", "abort", "end", "fail", "note"]), st.integers(0, 9)),
        max_size=60,
    ),
)
def test_whatever_happens_the_block_table_stays_whole_and_each_request_ends_once(made, operation, steps):
    it = Bench(
        made, kv=operation != "none", operation="WRITE" if operation == "WRITE" else "READ", blocks=8, max_batch=3
    )
    asked, aborted, failed, told = set(), set(), set(), set()

    def carry(key, *, fail=False):
        if operation == "READ" and key in it.ranks.mover.begun:
            it.ranks.mover.end(key, failure="lost" if fail else None)
        elif operation == "WRITE" and key in {m.key for m in it.outbox.of(Reserved)} - told:
            told.add(key)
            it.says(written(key, failure="lost" if fail else None))
            it.ranks.notes += [] if fail else [key]
        else:
            return
        if fail:
            failed.add(key)

    for what, key in steps:
        if what == "ask" and key not in asked:
            asked.add(key)
            it.ask(key, 1 + key % 4, answer=1 + key % 5)
        elif what == "abort" and key in asked:
            aborted.add(key)
            it.says(Abort(key))
        elif what == "turn":
            it.turns()
        elif what in ("end", "fail"):
            carry(key, fail=what == "fail")
        elif what == "note":
            it.ranks.notes.append(100 + key)  # of a request that is long gone
    for _ in range(80):
        for key in asked:
            carry(key)
        it.turns()
    assert it.free == 8
    refused = [message.key for message in it.outbox.of(Refused)]
    endings = it.ended() + refused + [message.key for message in it.outbox.of(Released)]
    assert len(endings) == len(set(endings))
    assert asked - aborted <= set(endings)
    assert set(refused) <= failed
    for key in set(it.ended()):
        assert it.given(key) == vocabulary.answer(70 + key, 1 + key % 5)

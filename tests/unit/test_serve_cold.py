"""A modelled first run: what is paid, when, how often, and that a worker goes on working meanwhile."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.kv.layout import Pair, PoolShape
from kvgauge.kv.transfer import Mover, RankInfo, WorkerInfo
from kvgauge.models import BLOCK_TOKENS
from kvgauge.plan.records import ColdStart
from kvgauge.serve import decode as decode_module
from kvgauge.serve import prefill as prefill_module
from kvgauge.serve.cold import Cold, connect_ns
from kvgauge.serve.decode import PATIENCE, DecodeWorker
from kvgauge.serve.messages import (
    Abort,
    Decode,
    Peers,
    Prefill,
    Prefilled,
    Refused,
    Release,
    Released,
    Reserve,
    Tokens,
    encode,
)
from kvgauge.serve.prefill import KEEP_TIMEOUTS, PrefillWorker

S = 1_000_000_000
STEP_NS = 1_000_000
SLOW = ColdStart(compile_s=20, graph_capture_s=0.5, graph_batch_max=4, connect_s=1.5)

starts = st.builds(
    ColdStart,
    compile_s=st.floats(0, 3600),
    graph_capture_s=st.floats(0, 20),
    graph_batch_max=st.integers(1, 256),
    connect_s=st.floats(0, 600),
)


# -- the model


@given(starts, st.sampled_from([0.0, 0.1, 1.0, 2.5]), st.lists(st.integers(1, 256), max_size=60))
def test_what_a_decode_worker_pays_is_exactly_what_was_declared(start, compute, batches):
    cold = Cold(start, compute)
    extra = [cold.decode_ns(sequences) for sequences in batches]
    sizes = {sequences for sequences in batches if sequences <= start.graph_batch_max}
    compile_ns, capture_ns = (round(each_s * 1e9 * compute) for each_s in (start.compile_s, start.graph_capture_s))
    assert sum(extra) == (compile_ns if batches else 0) + len(sizes) * capture_ns
    paid = cold.paid
    assert paid.compile_ns + paid.graphs_ns == sum(extra)
    assert sorted(paid.graphs) == (sorted(sizes) if capture_ns else [])
    assert [cold.decode_ns(sequences) for sequences in batches] == [0] * len(batches)


@given(starts, st.sampled_from([0.0, 0.1, 1.0, 2.5]), st.integers(1, 20))
def test_a_prefill_worker_compiles_once_and_captures_nothing(start, compute, steps):
    cold = Cold(start, compute)
    extra = [cold.prefill_ns() for _ in range(steps)]
    assert extra == [round(start.compile_s * 1e9 * compute)] + [0] * (steps - 1)
    assert cold.paid.graphs == []


@given(starts, st.lists(st.integers(1, 300), max_size=300))
def test_nobody_waits_longer_for_cold_starts_than_is_allowed_for(start, batches):
    prefill, decode = Cold(start, 1.0), Cold(start, 1.0)
    waited_ns = prefill.prefill_ns() + connect_ns(start) + sum(decode.decode_ns(size) for size in batches)
    assert waited_ns <= decode.patience_ns


def test_without_a_cold_start_nothing_is_paid():
    cold = Cold(None, 1.0)
    assert (cold.prefill_ns(), cold.decode_ns(1), cold.patience_ns, connect_ns(None)) == (0, 0, 0, 0)
    assert cold.paid.line == ""


def test_compute_scales_compile_and_capture_but_no_connection():
    half, none = Cold(SLOW, 0.5), Cold(SLOW, 0.0)
    assert (half.decode_ns(1), none.decode_ns(1)) == (10 * S + S // 4, 0)
    assert (half.patience_ns, none.patience_ns) == (20 * S + 1 * S + 3 * S // 2, 3 * S // 2)
    assert connect_ns(SLOW) == 3 * S // 2


def test_what_was_paid_is_told_in_words():
    cold = Cold(SLOW, 1.0)
    for sequences in (2, 1, 2, 7):
        cold.decode_ns(sequences)
    assert cold.paid.line == "compile 20 s; graphs of batch sizes 1, 2: 1 s"


# -- decode


class DecodeBench:
    def __init__(self, spec, ranks, outbox, peer):
        self.ranks, self.outbox = ranks, outbox
        self.worker = DecodeWorker(spec, ranks, outbox)
        self.worker.on_peers(Peers([peer]))

    def says(self, message):
        self.worker.on_message(encode(message))

    def ask(self, key, answer=3):
        self.says(Decode(key, 70 + key, BLOCK_TOKENS, answer, 0, [0]))

    def turn(self):
        return self.worker.turn(decode_module.time.monotonic_ns())


@pytest.fixture
def clock(clock_class, monkeypatch):
    it = clock_class()
    monkeypatch.setattr(decode_module, "time", it)
    monkeypatch.setattr(prefill_module, "time", it)
    monkeypatch.setattr(decode_module, "decode_ns", lambda *_: STEP_NS)
    monkeypatch.setattr(prefill_module, "prefill_ns", lambda *_: STEP_NS)
    return it


@pytest.fixture
def decode(worker_spec, ranks_class, outbox_class, tiny, some_peer):
    def make(*, kv=False, cold_start=SLOW, compute=1.0, **changes):
        spec = worker_spec(cold_start=cold_start, compute=compute, **changes)
        return DecodeBench(spec, ranks_class(spec, tiny, kv=kv), outbox_class(), some_peer(0))

    return make


@pytest.fixture
def prefill(worker_spec, ranks_class, outbox_class, tiny):
    def make(*, kv=False, cold_start=SLOW, **changes):
        spec = worker_spec("prefill", cold_start=cold_start, compute=1.0, **changes)
        return PrefillWorker(spec, ranks_class(spec, tiny, kv=kv), outbox_class())

    return make


def steps(it, clock, count=1):
    """How long each of the next steps takes, in ns; the clock moves to the end of each."""
    took = []
    for _ in range(count):
        due_ns = it.turn()
        took.append(due_ns - clock.now_ns)
        clock.now_ns = due_ns
    return took


def test_the_first_decode_step_compiles_and_each_batch_size_is_captured_once(decode, clock):
    it = decode()
    it.ask(1, answer=8)
    half = S // 2
    assert steps(it, clock, 2) == [20 * S + half + STEP_NS, STEP_NS]
    it.ask(2, answer=2)
    it.ask(3, answer=3)
    assert steps(it, clock, 6) == [half + STEP_NS, STEP_NS, half + STEP_NS, STEP_NS, STEP_NS, STEP_NS]
    keys = [len(message.keys) for message in it.outbox.of(Tokens)]
    assert keys == [1, 1, 3, 3, 2, 1, 1]  # sizes 1, 3 and 2, each paid when it was met first
    report = it.worker.report()
    assert (report.cold.compile_ns, report.cold.graphs, report.cold.graphs_ns) == (20 * S, [1, 3, 2], 3 * half)
    assert report.steps_late == 0


def test_above_the_largest_batch_no_graph_is_captured(decode, clock):
    it = decode(cold_start=ColdStart(graph_capture_s=0.5, graph_batch_max=2))
    for key in (1, 2, 3):
        it.ask(key, answer=5)
    assert steps(it, clock, 3) == [STEP_NS] * 3
    assert it.worker.report().cold.graphs == []


def test_a_decode_worker_that_compiles_polls_takes_requests_and_lets_aborted_ones_go(decode, clock):
    it = decode(kv=True)
    it.ask(1)
    it.turn()
    it.ranks.mover.end(1, size=64)
    it.turn()  # joined, and the cold step has begun
    end_ns = it.turn()
    for key in range(2, 8):
        clock.now_ns += S
        it.ask(key)
        assert it.turn() == 0  # a transfer is under way: called again at once
        assert key in it.ranks.mover.begun
        it.ranks.mover.end(key, size=64)
        assert it.turn() == end_ns
    it.says(Abort(1))
    it.says(Abort(2))
    assert it.outbox.of(Tokens) == []
    clock.now_ns = end_ns
    it.turn()
    clock.now_ns = it.turn()
    it.turn()
    (message,) = it.outbox.of(Tokens)
    assert message.keys == list(range(3, 8))
    assert it.worker.report().steps_late == 0


def test_a_write_is_waited_for_while_prefill_is_cold_and_not_for_ever(decode, clock):
    it = decode(kv=True, operation="WRITE", transfer_timeout_s=1.0)
    it.says(Reserve(1, 71, BLOCK_TOKENS, 3, 0))
    it.turn()
    cold_ns = (20 + 20 + 4 * 0.5 + 1.5) * S
    clock.now_ns += int(PATIENCE * S + cold_ns)
    it.turn()
    assert it.outbox.of(Refused) == []
    clock.now_ns += 1
    it.turn()
    assert [message.key for message in it.outbox.of(Refused)] == [1]


def test_a_client_that_leaves_during_a_slow_connection_costs_no_transfer(decode, clock):
    it = decode(kv=True)
    it.ask(1)
    it.turn()
    it.ranks.mover.unposted.add(1)
    it.says(Abort(1))
    assert it.worker.report().blocks_free == 16
    assert it.outbox.of(Released) == [Released(1)]
    assert it.turn() is None


# -- prefill


def test_a_prefill_worker_compiles_in_its_first_step_and_drops_what_nobody_wants_meanwhile(prefill, clock):
    it = prefill()
    turn = lambda: it.turn(clock.now_ns)  # noqa: E731
    it.on_message(encode(Prefill(1, 71, BLOCK_TOKENS)))
    start_ns = clock.now_ns
    assert turn() == start_ns + 20 * S + STEP_NS
    clock.now_ns += 10 * S
    for key in (2, 3):
        it.on_message(encode(Prefill(key, 70 + key, BLOCK_TOKENS)))
    it.on_message(encode(Release(2)))
    assert turn() == start_ns + 20 * S + STEP_NS
    clock.now_ns = start_ns + 20 * S + STEP_NS
    assert turn() == clock.now_ns + STEP_NS
    clock.now_ns += STEP_NS
    turn()
    assert [message.key for message in it._outbox.of(Prefilled)] == [1, 3]
    report = it.report()
    assert (report.cold.compile_ns, report.cold.graphs, report.steps_late) == (20 * S, [], 0)


def test_blocks_are_kept_while_decode_is_cold(prefill, clock):
    it = prefill(kv=True, transfer_timeout_s=1.0)
    it.on_message(encode(Prefill(1, 71, BLOCK_TOKENS)))
    clock.now_ns = it.turn(clock.now_ns) or it._batch.end_ns
    clock.now_ns = max(clock.now_ns, it._batch.end_ns)
    it.turn(clock.now_ns)
    assert it.report().blocks_free == 15
    clock.now_ns += int((KEEP_TIMEOUTS + 20 + 20 + 4 * 0.5 + 1.5) * S)
    it.turn(clock.now_ns)
    assert it.report().blocks_free == 15
    clock.now_ns += 1
    it.turn(clock.now_ns)
    assert it.report().blocks_free == 16


# -- connections

SHAPE = PoolShape(regions=1, blocks=4, pieces=1, piece_bytes=64)


class Instant:
    """An agent whose transfers are over as soon as they are posted."""

    name, backend = "ours", "UCX"

    def __init__(self):
        self.posted = []

    def connect(self, metadata):
        return metadata.decode(), 3, 4

    def prepare(self, descriptors, peer=None):
        return peer

    def forget(self, peer, prepared):
        pass

    def post(self, operation, local, remote, notification):
        self.posted.append(remote[0])
        return object(), "PROC"

    def state(self, _handle):
        return "DONE"

    def used_backend(self, _handle):
        return "UCX"

    def moved_bytes(self, _handle):
        return 64

    def release(self, _handle):
        pass


class Connecting:
    """A mover with one agent and slow connections."""

    def __init__(self, clock, wait_ns):
        self.clock, self.agent = clock, Instant()
        self.mover = Mover([self.agent], [4096], SHAPE, clock.monotonic_ns, connect_wait_ns=wait_ns)

    def connect(self, index, name=None):
        rank = RankInfo(metadata=(name or f"peer-{index}").encode(), address=10**6)
        self.mover.connect(WorkerInfo(index=index, shape=SHAPE, ranks=(rank,)), [PAIR])

    def begin(self, key, peer):
        blocks = decode_module.np.array([1], dtype="int32")
        return self.mover.begin(key, peer, "READ", (blocks, blocks), self.clock.now_ns + 100)


PAIR = Pair(our_rank=0, our_piece=0, their_rank=0, their_piece=0)


@pytest.fixture
def connecting(clock_class):
    return lambda wait_ns=5_000: Connecting(clock_class(), wait_ns)


def test_nothing_is_posted_until_the_connection_is_there_and_the_deadline_counts_from_then(connecting):
    it = connecting()
    it.connect(0)
    move = it.begin(1, 0)
    it.clock.now_ns += 4_999
    assert it.mover.progress() == []
    assert it.agent.posted == []
    it.clock.now_ns += 1
    assert it.mover.progress() == [move]
    assert (move.failure, move.posted_ns, move.deadline_ns) == (None, it.clock.now_ns, it.clock.now_ns + 100)
    again = it.begin(2, 0)
    assert it.mover.progress() == [again]  # once for each pair


def test_a_slow_connection_holds_up_no_other_pair(connecting):
    it = connecting()
    it.connect(0)
    it.clock.now_ns += 4_000
    it.connect(1)
    later, sooner = it.begin(1, 1), it.begin(2, 0)
    it.clock.now_ns += 1_000
    assert it.mover.progress() == [sooner]
    it.clock.now_ns += 4_000
    assert it.mover.progress() == [later]
    assert it.agent.posted == ["peer-0", "peer-1"]


def test_a_peer_that_was_started_again_is_connected_to_slowly_again(connecting):
    it = connecting()
    it.connect(0)
    it.clock.now_ns += 5_000
    it.begin(1, 0)
    assert len(it.mover.progress()) == 1
    it.mover.forget(0, it.clock.now_ns)
    it.connect(0, "peer-0-again-1")
    it.begin(2, 0)
    assert it.mover.progress() == []
    it.clock.now_ns += 5_000
    assert len(it.mover.progress()) == 1
    assert [(c.peer, c.modelled_ns) for c in it.mover.connections()] == [("peer-0", 5_000), ("peer-0-again-1", 5_000)]


def test_a_peer_lost_while_it_is_connected_to_fails_the_move_at_once(connecting):
    it = connecting()
    it.connect(0)
    move = it.begin(1, 0)
    it.mover.forget(0, it.clock.now_ns + 1_000)
    assert it.mover.progress() == [move]
    assert "has ended" in move.failure
    assert it.agent.posted == []


def test_only_a_move_of_which_nothing_is_posted_can_be_withdrawn(connecting):
    it = connecting()
    it.connect(0)
    one, other = it.begin(1, 0), it.begin(2, 0)
    assert it.mover.withdraw(one)
    it.clock.now_ns += 5_000
    assert it.mover.progress() == [other]
    assert not it.mover.withdraw(other)
    assert it.agent.posted == ["peer-0"]


def test_a_connections_cost_holds_what_was_modelled_and_says_how_much(connecting):
    it = connecting()
    it.connect(0)
    it.clock.now_ns += 5_000
    for key in range(1, 5):
        it.begin(key, 0)
        assert len(it.mover.progress()) == 1
    (connection,) = it.mover.connections()
    assert (connection.modelled_ns, connection.first_excess_ns) == (5_000, 0)
    assert connection.total_ns == 5_007
    assert msgspec.structs.replace(connection, modelled_ns=0).total_ns == 7

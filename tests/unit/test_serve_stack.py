"""Router, prefill and decode workers together in one process, over agents that copy memory: whatever order messages
arrive in and whoever leaves, answers are whole, blocks come back, and no KV is wrong."""

import time
from collections import deque
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.builds.records import Build
from kvgauge.kv import libraries
from kvgauge.models import BLOCK_TOKENS
from kvgauge.serve import vocabulary
from kvgauge.serve.decode import DecodeWorker
from kvgauge.serve.http import Connection
from kvgauge.serve.messages import Peers, ToFrontend
from kvgauge.serve.openai import Asked
from kvgauge.serve.prefill import PrefillWorker
from kvgauge.serve.ranks import Ranks
from kvgauge.serve.router import Router

BUILD = Build(name="b", version="1.5.0", folder="/b", module="m", preload=(), libcuda="", sha256={})


class Stack:
    """One prefill and one decode worker; a message waits in its queue until the test delivers it."""

    def __init__(self, made, operation, *, blocks=6, tp=(1, 1), **nixl):
        api = made.nixl(**nixl)
        self.queues = {name: deque() for name in ("prefill", "decode", "from prefill", "from decode")}
        common = {"prefill_tp": tp[0], "decode_tp": tp[1], "blocks": blocks, "backend": "UCX", "build": BUILD,
                  "operation": operation, "full_check": True}  # fmt: skip
        self.workers, self.made, ranks = {}, made, {}
        self.loading = pytest.MonkeyPatch()
        with self.loading.context() as patch:
            patch.setattr(libraries, "load", lambda _build, _backend: api)
            for index, (role, kind) in enumerate((("prefill", PrefillWorker), ("decode", DecodeWorker))):
                spec = made.spec(role, tp=tp[index], **common)
                ranks[role] = Ranks(spec, made.model)
                queue = self.queues[f"from {role}"]
                self.workers[role] = kind(spec, ranks[role], SimpleNamespace(send=queue.append))
        self.workers["prefill"].on_peers(Peers([ranks["decode"].info]))
        self.workers["decode"].on_peers(Peers([ranks["prefill"].info]))
        self.router = Router(
            "m",
            operation,
            (1, 1),
            (lambda _i, raw: self.queues["prefill"].append(raw), lambda _i, raw: self.queues["decode"].append(raw)),
        )
        self._decoder = msgspec.msgpack.Decoder(ToFrontend)

    def ask(self, digest, prompt_blocks, answer):
        client = Connection(self.made.socket())
        asked = Asked(
            chat=False, prompt_tokens=prompt_blocks * BLOCK_TOKENS, digest=digest, max_tokens=answer, stream=False,
            include_usage=False,
        )  # fmt: skip
        self.router.submit(client, asked, 0)
        return client

    def do(self, what):
        if what in self.workers:
            self.workers[what].turn(time.monotonic_ns())
        elif queue := self.queues[what.removeprefix("to ")]:
            raw = queue.popleft()
            if what.startswith("from "):
                self.router.on_message(self._decoder.decode(raw), 0)
            else:
                self.workers[what.removeprefix("to ")].on_message(raw)

    def rest(self, rounds=150):
        for _ in range(rounds):
            for what in STEPS:
                self.do(what)

    @property
    def held(self):
        reports = [worker.report() for worker in self.workers.values()]
        return [report.blocks_total - report.blocks_free for report in reports]


MOMENTS = ("received_ns", "prefill_start_ns", "prefill_end_ns", "posted_ns", "transferred_ns", "first_token_ns")
STEPS = ("to prefill", "prefill", "from prefill", "to decode", "decode", "from decode")


@pytest.fixture(scope="session")
def made(worker_spec, tiny, nixl_class, socket_class):
    return SimpleNamespace(spec=worker_spec, model=tiny, nixl=nixl_class, socket=socket_class)


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
@pytest.mark.parametrize("tp", [(1, 1), (2, 4), (4, 1)])
def test_every_request_is_answered_from_the_kv_that_was_moved_for_it(made, read_answer, operation, tp):
    stack = Stack(made, operation, tp=tp, pending=2)
    clients = {digest: stack.ask(digest, 1 + digest % 3, 1 + digest) for digest in range(6)}
    stack.rest()
    for digest, client in clients.items():
        client.flush()
        status, body = read_answer(client.sock.sent)
        assert status == 200
        words = "".join(vocabulary.word(token) for token in vocabulary.answer(digest, 1 + digest))
        assert body["choices"][0]["text"] == words
        phases = body["kvgauge"]["phases"]
        moments = [phases[name] for name in MOMENTS]
        assert moments == sorted(moments)
    assert stack.held == [0, 0]
    assert [(move.operation, move.failure, move.pieces_wrong) for move in stack.router.moved] == [
        (operation, None, 0)
    ] * 6
    assert {move.bytes_expected == move.bytes_listed == move.bytes_moved for move in stack.router.moved} == {True}


@settings(max_examples=100, deadline=None)
@given(
    operation=st.sampled_from(["READ", "WRITE"]),
    pending=st.integers(0, 3),
    lags=st.booleans(),
    steps=st.lists(
        st.one_of(st.sampled_from(STEPS), st.tuples(st.sampled_from(["ask", "leave"]), st.integers(0, 7))), max_size=100
    ),
)
def test_whoever_leaves_whenever_the_others_are_answered_and_every_block_comes_back(
    made, read_answer, operation, pending, lags, steps
):
    stack = Stack(made, operation, pending=pending, lags=lags)
    clients = {}
    for step in steps:
        if isinstance(step, str):
            stack.do(step)
        elif step[0] == "ask" and step[1] not in clients:
            clients[step[1]] = stack.ask(step[1], 1 + step[1] % 3, 1 + step[1])
        elif step[0] == "leave" and step[1] in clients:
            stack.router.drop(clients.pop(step[1]))
    stack.rest()
    for client in clients.values():
        client.flush()
        assert read_answer(client.sock.sent)[0] == 200
    assert stack.router.in_flight == 0
    assert stack.held == [0, 0]
    assert [move.failure for move in stack.router.moved if move.pieces_wrong] == []

"""A request's way through the frontend: what is sent to whom at each stage, and that nothing is ever forgotten."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.samples.records import Transfer
from kvgauge.serve import router as router_module
from kvgauge.serve import vocabulary
from kvgauge.serve.http import Connection
from kvgauge.serve.messages import (
    Abort,
    Decode,
    Prefill,
    Prefilled,
    Refused,
    Release,
    Released,
    Reserve,
    Reserved,
    Started,
    ToDecode,
    Tokens,
    ToPrefill,
    Written,
    called_off,
)
from kvgauge.serve.openai import ApiError, Asked
from kvgauge.serve.router import Router

TOKENS = [4, 5, 6]


def a_transfer(key, **changes):
    base = {
        "request_id": f"{key:016x}", "prefill_worker": 0, "decode_worker": 0, "operation": "READ", "backend": "UCX",
        "prompt_tokens": 20, "pairs": 1, "descriptors": 10, "bytes_expected": 100, "bytes_listed": 100,
        "bytes_moved": 100, "posted_ns": 40, "transferred_ns": 50, "post_ns": 1, "checked_ns": 1, "pieces": 10,
        "pieces_wrong": 0,
    }  # fmt: skip
    return Transfer(**(base | changes))


class Stack:
    """A router between workers that the test plays."""

    def __init__(self, socket_class, operation="READ", workers=(1, 1)):
        self.prefill, self.decode = [], []
        to_prefill, to_decode = msgspec.msgpack.Decoder(ToPrefill), msgspec.msgpack.Decoder(ToDecode)
        self.router = Router(
            "m",
            operation,
            workers,
            (
                lambda index, raw: self.prefill.append((index, to_prefill.decode(raw))),
                lambda index, raw: self.decode.append((index, to_decode.decode(raw))),
            ),
        )
        self._socket_class = socket_class

    def ask(self, **changes):
        """A new client with one request; its key, from what was sent for it."""
        base = {
            "chat": False, "prompt_tokens": 20, "digest": 7, "max_tokens": 3, "stream": True, "include_usage": True,
        }  # fmt: skip
        client = Connection(self._socket_class())
        prefill, decode = len(self.prefill), len(self.decode)
        self.router.submit(client, Asked(**(base | changes)), 10)
        ((_, message),) = self.prefill[prefill:] + self.decode[decode:]
        return client, message.key

    def take(self):
        prefill, decode = self.prefill[:], self.decode[:]
        self.prefill.clear()
        self.decode.clear()
        return prefill, decode

    def says(self, *messages):
        for message in messages:
            self.router.on_message(message, 0)

    def tokens(self, key, *, last=True):
        for at, token in enumerate(TOKENS[: None if last else -1]):
            self.says(Tokens(60 + at, [key], [token], [key] if last and at == len(TOKENS) - 1 else []))


@pytest.fixture
def stack(socket_class):
    return lambda *arguments: Stack(socket_class, *arguments)


def wire(client):
    client.flush()
    return client.sock.sent


def test_a_read_goes_to_prefill_then_to_decode_with_prefills_blocks_and_streams_its_tokens(stack, read_answer):
    it = stack()
    client, key = it.ask()
    assert it.take() == ([(0, Prefill(key, 7, 20))], [])
    it.says(Prefilled(key, [3, 1], 20, 30))
    assert it.take() == ([], [(0, Decode(key, 7, 20, 3, 0, [3, 1]))])
    it.says(Started(key, a_transfer(key)))
    it.tokens(key, last=False)
    assert it.router.in_flight == 1
    wire(client)
    it.says(Tokens(62, [key], [TOKENS[-1]], [key]))
    assert it.take() == ([], [])
    assert it.router.in_flight == 0
    assert client.busy is False
    status, events = read_answer(wire(client))
    *parts, usage, done = events
    assert (status, done) == (200, b"[DONE]")
    texts = [msgspec.json.decode(part)["choices"][0]["text"] for part in parts]
    assert texts == [vocabulary.word(token) for token in TOKENS]
    phases = msgspec.json.decode(usage)["kvgauge"]["phases"]
    assert [phases[name] for name in ("received_ns", "prefill_start_ns", "prefill_end_ns", "posted_ns")] == [
        10,
        20,
        30,
        40,
    ]
    assert (phases["transferred_ns"], phases["first_token_ns"]) == (50, 60)
    assert phases["written_ns"] > 62


def test_a_write_reserves_at_decode_first_and_passes_prefills_account_on(stack, read_answer):
    it = stack("WRITE", (1, 2))
    it.ask()
    it.take()
    client, key = it.ask()  # the second: decode worker 1
    assert it.take() == ([], [(1, Reserve(key, 7, 20, 3, 0))])
    it.says(Reserved(key, 1, [9, 8]))
    assert it.take() == ([(0, Prefill(key, 7, 20, 1, [9, 8]))], [])
    it.says(Prefilled(key, [3, 1], 20, 30))
    assert it.take() == ([], [])
    account = Written(key, 1, 40, 1, 10, 100, 100, "UCX", None)
    it.says(account)
    assert it.take() == ([], [(1, account)])
    it.says(Started(key, a_transfer(key, operation="WRITE")))
    it.tokens(key)
    assert read_answer(wire(client))[0] == 200
    assert it.router.in_flight == 1  # the first request is still waiting


def test_requests_go_to_every_pair_of_workers_in_turn(stack):
    it = stack("READ", (2, 3))
    for _ in range(6):
        it.ask()
    assert [index for index, _ in it.prefill] == [0, 1, 0, 1, 0, 1]
    from_prefill = {message.key: index for index, message in it.prefill}
    for key in from_prefill:
        it.says(Prefilled(key, [], 0, 0))
    pairs = {(from_prefill[message.key], index) for index, message in it.decode}
    assert pairs == {(prefill, decode) for prefill in range(2) for decode in range(3)}


def test_an_answer_that_is_not_streamed_leaves_whole_at_its_last_token(stack, read_answer):
    it = stack()
    client, key = it.ask(stream=False)
    it.says(Prefilled(key, [1], 20, 30), Started(key, None))
    it.tokens(key, last=False)
    assert client not in it.router.dirty
    assert wire(client) == b""
    it.says(Tokens(62, [key], [TOKENS[-1]], [key]))
    assert client in it.router.dirty
    status, body = read_answer(wire(client))
    assert (status, body["id"]) == (200, f"cmpl-{key:016x}")
    assert body["choices"][0]["text"] == "".join(vocabulary.word(token) for token in TOKENS)
    assert body["kvgauge"]["phases"]["posted_ns"] is None


@pytest.mark.parametrize("streamed", [True, False])
def test_a_chat_answer_is_named_as_one(stack, read_answer, streamed):
    it = stack()
    client, key = it.ask(chat=True, stream=streamed)
    it.says(Prefilled(key, [1], 20, 30), Started(key, None))
    it.tokens(key)
    _, answer = read_answer(wire(client))
    first = msgspec.json.decode(answer[0]) if streamed else answer
    assert first["id"] == f"chatcmpl-{key:016x}"


def leave_read(it, stage):
    """A client that goes at this stage of a READ; everything sent after it left."""
    client, key = it.ask()
    steps = [
        ("at prefill", lambda: None),
        ("at decode", lambda: it.says(Prefilled(key, [1], 0, 0))),
        ("before its first token", lambda: it.says(Started(key, a_transfer(key)))),
        ("in its stream", lambda: it.says(Tokens(1, [key], [4], []))),
    ]
    for name, step in steps:
        step()
        if name == stage:
            break
    it.take()
    it.router.drop(client)
    return client, key


@pytest.mark.parametrize(
    ("stage", "prefill_told"),
    [("at prefill", True), ("at decode", False), ("before its first token", False), ("in its stream", False)],
)
def test_whoever_still_works_for_a_client_that_left_is_told_at_once(stack, stage, prefill_told):
    it = stack()
    client, key = leave_read(it, stage)
    assert it.take() == ([(0, Release(key))] if prefill_told else [], [(0, Abort(key))])
    assert it.router.in_flight == 0
    assert it.router.metrics.counters["kvgauge:request_aborted_total"] == 1
    assert client not in it.router.dirty
    wire(client)
    sent = client.sock.sent
    it.says(Started(key, a_transfer(key)), Tokens(2, [key], [5], [key]))
    assert wire(client) == sent  # what comes late goes nowhere


def test_blocks_that_were_filled_for_a_client_that_left_meanwhile_are_released_everywhere(stack):
    it = stack("READ", (2, 1))
    client, key = it.ask()
    it.router.drop(client)
    it.take()
    it.says(Prefilled(key, [1, 2], 0, 0))
    assert it.take() == ([(0, Release(key)), (1, Release(key))], [])


def test_a_decode_worker_that_never_read_has_prefill_release_the_blocks(stack):
    it = stack()
    _, key = leave_read(it, "at decode")
    it.take()
    it.says(Released(key))
    assert it.take() == ([(0, Release(key))], [])


def test_a_write_that_was_reserved_for_a_client_that_left_is_called_off(stack):
    it = stack("WRITE")
    client, key = it.ask()
    it.take()
    it.router.drop(client)
    assert it.take() == ([(0, Release(key))], [(0, Abort(key))])
    it.says(Reserved(key, 0, [1, 2]))
    assert it.take() == ([], [(0, called_off(key, 0))])


def test_a_write_under_way_for_a_client_that_left_still_tells_decode_its_end(stack):
    it = stack("WRITE")
    client, key = it.ask()
    it.says(Reserved(key, 0, [1, 2]), Prefilled(key, [3, 4], 0, 0))
    it.take()
    it.router.drop(client)
    assert it.take() == ([], [(0, Abort(key))])
    account = Written(key, 0, 40, 1, 10, 100, 100, "UCX", None)
    it.says(account)
    assert it.take() == ([], [(0, account)])


def test_a_client_with_nothing_under_way_leaves_without_a_word(stack, socket_class):
    it = stack()
    it.router.drop(Connection(socket_class()))
    assert it.take() == ([], [])
    assert it.router.metrics.counters["kvgauge:request_aborted_total"] == 0


@pytest.mark.parametrize(("kv", "begins"), [(True, "KV transfer failed: 3 of 10 wrong"), (False, "3 of 10 wrong")])
def test_a_refusal_before_the_first_token_is_status_500_with_the_reason(stack, read_answer, kv, begins):
    it = stack()
    client, key = it.ask()
    it.says(Prefilled(key, [1], 0, 0))
    it.take()
    it.says(Refused(key, "3 of 10 wrong", kv=kv, transfer=a_transfer(key, pieces_wrong=3, failure="3 of 10 wrong")))
    assert it.take() == ([(0, Release(key))], [])
    status, body = read_answer(wire(client))
    assert (status, body["error"]["message"]) == (500, begins)
    assert (it.router.in_flight, client.busy) == (0, False)
    assert client in it.router.dirty
    assert [transfer.pieces_wrong for transfer in it.router.moved] == [3]


def test_a_refusal_within_a_stream_is_an_event_and_the_stream_ends(stack, read_answer):
    it = stack()
    client, key = it.ask()
    it.says(Prefilled(key, [1], 0, 0), Started(key, None), Tokens(1, [key], [4], []), Refused(key, "lost", kv=False))
    status, events = read_answer(wire(client))
    assert status == 200
    assert msgspec.json.decode(events[-2])["error"]["message"] == "lost"
    assert events[-1] == b"[DONE]"
    assert it.router.in_flight == 0


def test_a_request_nobody_knows_any_more_changes_nothing_but_its_move_is_still_counted(stack):
    it = stack()
    it.says(
        Tokens(1, [99], [4], [99]), Started(98, None), Refused(97, "x", kv=True, transfer=a_transfer(97, failure="x"))
    )
    assert it.router.in_flight == 0
    assert not it.router.dirty
    assert it.router.metrics.counters["kvgauge:request_failed_total"] == 0
    assert it.router.metrics.counters["vllm:nixl_num_failed_transfers_total"] == 1
    assert [transfer.request_id for transfer in it.router.moved] == [f"{97:016x}"]


def test_a_decode_worker_that_ends_fails_its_requests_and_those_that_come_go_to_the_others(stack, read_answer):
    it = stack("READ", (1, 2))
    (stays, kept), (waits, lost), _, (streams, begun) = it.ask(), it.ask(), it.ask(), it.ask()
    for key in (kept, lost, begun):
        it.says(Prefilled(key, [1], 0, 0))
    it.says(Started(begun, None), Tokens(1, [begun], [4], []))
    it.take()
    it.router.down("decode", 1, "decode-1 was killed by signal 9")
    assert it.take() == ([(0, Release(lost)), (0, Release(begun))], [])
    status, body = read_answer(wire(waits))
    assert (status, "decode-1 was killed by signal 9" in body["error"]["message"]) == (503, True)
    status, events = read_answer(wire(streams))
    assert status == 200
    assert "decode-1 was killed" in msgspec.json.decode(events[-2])["error"]["message"]
    assert (wire(stays), stays.busy) == (b"", True)
    for _ in range(3):
        _, key = it.ask()
        it.says(Prefilled(key, [1], 0, 0))
    assert {index for index, _ in it.decode} == {0}
    it.router.up("decode", 1)
    for _ in range(2):
        _, key = it.ask()
        it.says(Prefilled(key, [1], 0, 0))
    assert {index for index, _ in it.decode} == {0, 1}


def test_a_prefill_worker_that_ends_fails_only_what_decode_has_not_got_yet(stack, read_answer):
    it = stack("READ", (2, 1))
    (asked, first), _, (has_all, second) = it.ask(), it.ask(), it.ask()
    it.says(Prefilled(second, [1], 0, 0), Started(second, None))
    it.take()
    it.router.down("prefill", 0, "prefill-0 ended")
    assert read_answer(wire(asked))[0] == 503
    assert it.take() == ([], [(0, Abort(first))])
    it.tokens(second)
    assert read_answer(wire(has_all))[0] == 200
    assert it.router.in_flight == 1  # that of prefill worker 1


def test_with_a_whole_side_down_a_request_is_told_to_come_back(stack):
    it = stack()
    it.router.down("prefill", 0, "prefill-0 ended")
    it.router.down("prefill", 0, "prefill-0 ended")
    with pytest.raises(ApiError, match="no prefill worker is up") as caught:
        it.ask()
    assert caught.value.status == 503
    it.router.up("prefill", 0)
    it.ask()
    assert it.router.in_flight == 1


def test_more_than_the_bound_are_told_to_come_back_and_one_that_ends_makes_room(stack, monkeypatch):
    monkeypatch.setattr(router_module, "MAX_REQUESTS", 2)
    it = stack()
    client, _ = it.ask()
    it.ask()
    with pytest.raises(ApiError, match="2 requests are in flight already") as caught:
        it.ask()
    assert caught.value.status == 503
    assert len(it.prefill) == 2
    it.router.drop(client)
    it.ask()
    assert it.router.in_flight == 2


def test_metrics_count_a_success_its_tokens_its_times_and_its_move(stack):
    it = stack()
    _, key = it.ask()
    it.says(Prefilled(key, [1], 20, 30), Started(key, a_transfer(key)))
    it.tokens(key)
    text = it.router.metrics.text().decode()
    for line in (
        'vllm:request_success_total{model_name="m"} 1',
        'vllm:prompt_tokens_total{model_name="m"} 20',
        'vllm:generation_tokens_total{model_name="m"} 3',
        'vllm:nixl_bytes_transferred_sum{model_name="m"} 100.0',
        'vllm:prompt_tokens_by_source_total{model_name="m",source="external_kv_transfer"} 20',
        'vllm:prompt_tokens_by_source_total{model_name="m",source="local_compute"} 0',
        'vllm:time_to_first_token_seconds_count{model_name="m"} 1',
        'vllm:e2e_request_latency_seconds_count{model_name="m"} 1',
        'vllm:request_time_per_output_token_seconds_count{model_name="m"} 1',
        'kvgauge:request_failed_total{model_name="m"} 0',
    ):
        assert line in text


def test_an_answer_of_one_token_has_no_time_per_token(stack, read_answer):
    it = stack()
    client, key = it.ask(max_tokens=1)
    it.says(Prefilled(key, [1], 0, 0), Tokens(70, [key], [4], [key]))
    assert read_answer(wire(client))[1][-1] == b"[DONE]"
    text = it.router.metrics.text().decode()
    assert 'vllm:request_time_per_output_token_seconds_count{model_name="m"} 0' in text
    assert 'vllm:prompt_tokens_by_source_total{model_name="m",source="local_compute"} 20' in text  # no KV was moved


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["next", "next", "next", "leave", "refuse"])), max_size=80)
)
def test_whatever_happens_each_client_that_stays_gets_exactly_one_whole_answer(socket_class, read_answer, steps):
    it = Stack(socket_class)
    asked = {index: it.ask(stream=index % 2 == 0) for index in range(8)}
    place, ended = dict.fromkeys(asked, 0), set()
    for index, what in [*steps, *((index, "next") for index in asked for _ in range(6))]:
        client, key = asked[index]
        if index in ended:
            continue
        if what == "leave":
            it.router.drop(client)
            ended.add(index)
        elif what == "refuse" and place[index] < 2:  # no worker refuses what it has started to answer
            it.says(Refused(key, "no", kv=True))
            ended.add(index)
            assert read_answer(wire(client))[0] == 500
        else:
            if place[index] == 2:
                it.tokens(key)
            else:
                it.says(Started(key, None) if place[index] else Prefilled(key, [1], 0, 0))
            place[index] += 1
            if place[index] == 3:
                ended.add(index)
                status, answer = read_answer(wire(client))
                assert status == 200
                assert answer[-1] == b"[DONE]" if index % 2 == 0 else answer["usage"]["completion_tokens"] == 3
    assert ended == set(asked)
    assert it.router.in_flight == 0

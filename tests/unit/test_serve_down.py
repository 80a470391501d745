"""A worker that ends, as the router sees it: who is told, who goes on, and where new requests go."""

import msgspec
import pytest

from kvgauge.serve.http import Connection
from kvgauge.serve.messages import (
    Abort,
    Prefilled,
    Release,
    Reserved,
    Started,
    ToDecode,
    Tokens,
    ToPrefill,
    Written,
)
from kvgauge.serve.openai import ApiError, Asked
from kvgauge.serve.router import Router

HOW = "decode-0 was killed by signal 9"


class Stack:
    """A router between two workers on each side, which the test plays."""

    def __init__(self, socket_class, operation="READ"):
        self.sent = []
        to_prefill, to_decode = msgspec.msgpack.Decoder(ToPrefill), msgspec.msgpack.Decoder(ToDecode)
        self.router = Router(
            "m",
            operation,
            (2, 2),
            (
                lambda index, raw: self.sent.append((f"prefill-{index}", to_prefill.decode(raw))),
                lambda index, raw: self.sent.append((f"decode-{index}", to_decode.decode(raw))),
            ),
        )
        self._socket_class = socket_class

    def ask(self, *, stream=True):
        """(client, key, the prefill worker, the decode worker) of a new request."""
        client = Connection(self._socket_class())
        asked = Asked(chat=False, prompt_tokens=20, digest=7, max_tokens=3, stream=stream, include_usage=True)
        self.router.submit(client, asked, 10)
        request = list(self.router._requests.values())[-1]
        self.sent.clear()
        return client, request.key, request.prefill, request.decode

    def ask_of(self, role, index, **more):
        """A new request that went to that worker."""
        while True:
            client, key, prefill, decode = self.ask(**more)
            if {"prefill": prefill, "decode": decode}[role] == index:
                return client, key, {"prefill": decode, "decode": prefill}[role]
            self.router.drop(client)
            self.sent.clear()

    def says(self, *messages):
        for message in messages:
            self.router.on_message(message, 0)


@pytest.fixture
def stack(socket_class):
    return lambda *arguments: Stack(socket_class, *arguments)


def wire(client):
    client.flush()
    return client.sock.sent


@pytest.mark.parametrize("prefilled", [False, True])
def test_a_request_of_a_decode_worker_that_ended_is_status_503_and_prefill_frees_its_blocks(
    stack, read_answer, prefilled
):
    it = stack()
    client, key, prefill = it.ask_of("decode", 0)
    if prefilled:
        it.says(Prefilled(key, [1], 0, 0))
    it.sent.clear()
    it.router.down("decode", 0, HOW)
    status, body = read_answer(wire(client))
    assert (status, body["error"]["message"]) == (503, f"{HOW} while it had this request; send it again")
    assert it.sent == [(f"prefill-{prefill}", Release(key))]
    assert (it.router.in_flight, client.busy) == (0, False)
    assert it.router.metrics.counters["kvgauge:request_failed_total"] == 1


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_was_being_streamed_ends_with_an_event_and_another_one_with_a_status(stack, read_answer, stream):
    it = stack()
    client, key, _ = it.ask_of("decode", 0, stream=stream)
    it.says(Prefilled(key, [1], 0, 0), Started(key, None), Tokens(60, [key], [4], []))
    it.router.down("decode", 0, HOW)
    status, answer = read_answer(wire(client))
    assert status == (200 if stream else 503)
    error = msgspec.json.decode(answer[-2]) if stream else answer
    assert error["error"]["code"] == 503
    assert not stream or answer[-1] == b"[DONE]"


def test_what_has_its_kv_already_outlives_its_prefill_worker_and_the_rest_is_called_off_at_decode(stack, read_answer):
    it = stack()
    here, there = it.ask_of("prefill", 1), it.ask_of("prefill", 1)
    elsewhere, _, _ = it.ask_of("prefill", 0)
    for _, key, _ in (here, there):
        it.says(Prefilled(key, [1], 0, 0))
    it.says(Started(here[1], None))
    it.sent.clear()
    it.router.down("prefill", 1, "prefill-1 was killed by signal 9")
    assert it.sent == [(f"decode-{there[2]}", Abort(there[1]))]
    assert read_answer(wire(there[0]))[0] == 503
    assert wire(here[0]) == wire(elsewhere) == b""
    it.says(Tokens(60, [here[1]], [4], []), Tokens(61, [here[1]], [5], [here[1]]))
    assert read_answer(wire(here[0]))[0] == 200


def test_new_requests_go_to_those_that_are_up_until_the_others_are_back(stack):
    it = stack()
    it.router.down("decode", 0, HOW)
    it.router.down("decode", 0, HOW)  # told twice
    assert {it.ask()[3] for _ in range(8)} == {1}
    it.router.up("decode", 0)
    assert {it.ask()[2:] for _ in range(8)} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_a_side_that_is_down_as_a_whole_is_a_503_and_nothing_is_sent(stack, socket_class):
    it = stack()
    it.router.down("prefill", 0, HOW)
    it.router.down("prefill", 1, HOW)
    with pytest.raises(ApiError, match="no prefill worker is up; try again later") as caught:
        it.ask()
    assert caught.value.status == 503
    assert (it.sent, it.router.in_flight) == ([], 0)


def test_a_worker_that_is_down_is_sent_nothing_whatever_the_others_say(stack):
    it = stack("WRITE")
    client, key, _prefill = it.ask_of("decode", 0)
    it.router.down("decode", 0, HOW)
    it.sent.clear()
    it.says(Reserved(key, 0, [1]), Written(key, 0, 1, 1, 1, 1, 1, "UCX", None))
    it.router.drop(client)
    assert it.sent == []

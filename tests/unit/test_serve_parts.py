"""The pure parts of the embedded stack: block table, compute model, vocabulary, HTTP and OpenAI bodies, metrics."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.models import MODELS
from kvgauge.serve import openai, vocabulary
from kvgauge.serve.blocks import BlockTable
from kvgauge.serve.compute import GPUS, decode_ns, prefill_ns
from kvgauge.serve.http import BadRequest, Connection
from kvgauge.serve.metrics import Histogram, Metrics
from kvgauge.serve.openai import ApiError, read_request

H100 = GPUS["H100"]


@given(st.lists(st.integers(1, 6), max_size=40), st.randoms(use_true_random=False))
def test_blocks_are_never_held_twice_and_all_come_back(sizes, random):
    table = BlockTable(64)
    held = {}
    for key, size in enumerate(sizes):
        while not table.can_hold(size):
            gone = random.choice(list(held))
            del held[gone]
            assert table.release(gone)
        held[key] = table.allocate(key, size)
        everything = np.concatenate(list(held.values()))
        assert len(np.unique(everything)) == len(everything)
    for key in list(held):
        table.release(key)
    assert table.free == 64


def test_releasing_twice_is_harmless():
    table = BlockTable(4)
    table.allocate(1, 2)
    assert table.release(1)
    assert not table.release(1)
    assert table.free == 4


def test_neighbouring_blocks_are_not_handed_out_in_order():
    taken = BlockTable(640).allocate(1, 32)
    assert np.count_nonzero(np.diff(taken) == 1) < 4


def test_decode_gets_slower_with_batch_and_context_and_faster_with_tp():
    model = MODELS["Llama-3.1-70B"]
    alone = decode_ns(model, H100, 8, 1, 512)
    assert decode_ns(model, H100, 8, 20, 20 * 512) > alone
    assert decode_ns(model, H100, 8, 1, 100_000) > alone
    assert decode_ns(model, H100, 1, 1, 512) > alone


def test_a_70b_step_on_eight_h100_takes_about_ten_milliseconds():
    assert 8e6 < decode_ns(MODELS["Llama-3.1-70B"], H100, 8, 1, 512) < 15e6


def test_prefill_grows_with_the_prompt():
    model = MODELS["Llama-3.1-8B"]
    assert prefill_ns(model, H100, 1, [8192]) > 4 * prefill_ns(model, H100, 1, [512])
    assert prefill_ns(model, H100, 1, [8192]) > prefill_ns(model, H100, 1, [512] * 16)


def test_the_reference_prompts_are_one_and_two_tokens():
    assert vocabulary.token_count("Hello") == 1
    assert vocabulary.token_count("Explain AI") == 2
    assert vocabulary.token_count("") == 1


def test_words_differ_and_have_one_length():
    words = {vocabulary.word(token) for token in range(vocabulary.SIZE)}
    assert len(words) == vocabulary.SIZE
    assert {len(word) for word in words} == {7}


def test_an_answer_follows_from_the_prompt_alone():
    assert vocabulary.answer(vocabulary.digest("Hello"), 50) == vocabulary.answer(vocabulary.digest("Hello"), 60)[:50]
    assert vocabulary.answer(vocabulary.digest("Hello"), 50) != vocabulary.answer(vocabulary.digest("Hallo"), 50)
    assert vocabulary.digest([1, 2]) != vocabulary.digest([12])


def asked(body, *, chat=False, limit=100):
    return read_request(json.dumps(body).encode(), chat=chat, model="m", limit=limit)


def test_token_ids_and_text_are_both_prompts():
    assert asked({"prompt": [1, 2, 3], "max_tokens": 4}).prompt_tokens == 3
    assert asked({"prompt": "one two", "max_tokens": 4, "temperature": 0, "ignore_eos": True}).prompt_tokens == 2


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"prompt": "a", "model": "other"}, 404, "other"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": "a", "max_tokens": 100}, 400, "maximum context length"),
        ({"prompt": "a", "n": 2}, 400, "n is 2"),
        ({"prompt": [], "max_tokens": 1}, 400, "empty"),
        ({"prompt": [-1], "max_tokens": 1}, 400, "token ids"),
        ({"prompt": {"a": 1}}, 400, "cannot read"),
        ({"max_tokens": 3}, 400, "prompt"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(body, status, word):
    with pytest.raises(ApiError, match=word) as caught:
        asked(body)
    assert caught.value.status == status
    error = json.loads(caught.value.body)["error"]
    assert {"message", "type", "param", "code"} == set(error)


def test_chat_takes_parts_and_the_newer_name_of_max_tokens():
    body = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi there"}]}],
        "max_completion_tokens": 7,
    }
    got = asked(body, chat=True)
    assert (got.prompt_tokens, got.max_tokens) == (4, 7)


@given(st.binary(max_size=200))
def test_no_body_crashes_the_reader(body):
    try:
        read_request(body, chat=False, model="m", limit=100)
    except ApiError as error:
        assert error.status in (400, 404)


@pytest.mark.parametrize("chat", [False, True])
def test_streamed_events_are_json_and_frame_themselves(chat):
    body = {"messages": [{"role": "user", "content": "x"}]} if chat else {"prompt": "x"}
    got = asked({**body, "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}, chat=chat)
    writer = openai.Writer(got, "1", 'm"odel', 5)
    wire = writer.first() + writer.token(1) + writer.token(2) + writer.last(3) + writer.end(b"{}")
    events, rest = [], wire
    while True:
        size, rest = rest.split(b"\r\n", 1)
        length = int(size, 16)
        if length == 0:
            break
        data, rest = rest[:length], rest[length + 2 :]
        assert data.endswith(b"\n\n")
        events.append(data[6:].strip())
    assert events[-1] == b"[DONE]"
    parsed = [json.loads(event) for event in events[:-1]]
    assert parsed[-1]["usage"]["completion_tokens"] == 3
    texts = [c["delta"]["content"] if chat else c["text"] for event in parsed for c in event["choices"]]
    assert "".join(texts) == "".join(vocabulary.word(token) for token in (1, 2, 3))
    assert parsed[-2]["choices"][0]["finish_reason"] == "length"


class FakeSocket:
    def __init__(self, accept=1 << 20):
        self.sent, self.accept = b"", accept

    def send(self, data):
        if not self.accept:
            raise BlockingIOError
        self.sent += data[: self.accept]
        return min(len(data), self.accept)


WIRE = b"POST /v1/completions?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbodyGET /health HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_requests_do_not_depend_on_where_the_network_cut_them(piece):
    client = Connection(FakeSocket())
    for at in range(0, len(WIRE), piece):
        client.feed(WIRE[at : at + piece])
    first, second = client.next_request(), client.next_request()
    assert (first.method, first.path, first.body) == ("POST", "/v1/completions", b"body")
    assert (second.method, second.path) == ("GET", "/health")


def test_a_second_request_waits_for_the_first_answer():
    client = Connection(FakeSocket())
    client.feed(WIRE)
    client.next_request()
    client.busy = True
    assert client.next_request() is None


def test_a_body_too_large_is_refused_before_it_is_kept():
    client = Connection(FakeSocket())
    client.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n")
    with pytest.raises(BadRequest) as caught:
        for _ in range(200):
            client.feed(b"x" * 65536)
    assert caught.value.status == 413


@given(st.binary(min_size=1, max_size=300))
def test_garbage_is_a_bad_request(data):
    client = Connection(FakeSocket())
    try:
        client.feed(data)
    except BadRequest as error:
        assert error.status in (400, 413, 431)


def test_what_the_socket_does_not_take_is_kept_in_order():
    sock = FakeSocket(accept=3)
    client = Connection(sock)
    client.out += [b"abc", b"def"]
    assert client.flush()
    client.out.append(b"g")
    while client.flush():
        pass
    assert sock.sent == b"abcdefg"


def test_a_client_that_does_not_read_is_dropped():
    client = Connection(FakeSocket(accept=0))
    client.out.append(b"x" * (5 << 20))
    with pytest.raises(ConnectionResetError):
        client.flush()


def test_histogram_buckets_are_cumulative_and_end_at_all():
    histogram = Histogram("h", "help", (1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    lines = histogram.lines('a="b"')
    assert 'h_bucket{a="b",le="1.0"} 2' in lines
    assert 'h_bucket{a="b",le="2.0"} 3' in lines
    assert 'h_bucket{a="b",le="+Inf"} 4' in lines
    assert 'h_count{a="b"} 4' in lines


def test_metrics_carry_the_names_vllm_gives():
    text = Metrics("m").text().decode()
    for name in (
        "vllm:time_to_first_token_seconds_count",
        "vllm:nixl_bytes_transferred_sum",
        "vllm:num_requests_running",
        "vllm:generation_tokens_total",
    ):
        assert name in text

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.load.answers import Answer, Asked, answer_text, answer_texts, error_message, one_line, read_answer
from kvgauge.samples.records import Phases

ASKED = Asked(
    run_id="r", cell="c", seq=4, warmup=False, slot=1, worker=0, host="h", clock="monotonic", due_ns=100, sent_ns=110
)


def chunk(text="", **more):
    return b"data: " + json.dumps({"choices": [{"text": text}], **more}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":9}}\n\n'


def answer_of(*reads, status=200, content_type="text/event-stream", cut=None, detail=None, lag_ns=0):
    """Each of `reads` is what one read brought; their stamps are 1000, 2000, ..."""
    ends = [len(b"".join(reads[: at + 1])) for at in range(len(reads))]
    return Answer(
        status=status,
        content_type=content_type,
        body=b"".join(reads),
        stamps_ns=[1_000 * (at + 1) for at in range(len(reads))],
        ends=ends,
        read_ns=[1_000 * (at + 1) + lag_ns for at in range(len(reads))],
        ended_ns=99_000,
        cut=cut,
        detail=detail,
    )


def read(*reads, **more):
    return read_answer(ASKED, answer_of(*reads, **more))


def test_content_is_stamped_with_the_read_that_made_its_event_whole():
    one = chunk("a")
    exchange = read(one[:5], one[5:] + chunk("b"), chunk("c")[:-1], b"\n" + USAGE + DONE)
    assert exchange.arrivals_ns == (2_000, 2_000, 4_000)
    assert (exchange.failure, exchange.done_ns, exchange.ttft_ns, exchange.e2e_ns) == (None, 99_000, 1_900, 3_900)


def test_an_error_field_that_is_null_is_no_error():
    assert read(chunk("a", error=None), chunk("b", error=None), DONE).failure is None


def test_tokens_are_counted_from_usage_and_not_from_chunks():
    exchange = read(chunk("a b c"), chunk("d"), USAGE, DONE)
    assert (exchange.tokens_in, exchange.tokens_out, exchange.tokens_source) == (5, 9, "usage")


def test_without_usage_tokens_are_counted_from_events_and_marked_so():
    exchange = read(chunk("a"), chunk("b"), DONE)
    assert (exchange.tokens_in, exchange.tokens_out, exchange.tokens_source) == (None, 2, "events")


def test_an_empty_text_or_role_chunk_is_not_content():
    role = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    said = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
    thought = b'data: {"choices":[{"delta":{"content":null,"reasoning_content":"hm"}}]}\n\n'
    assert read(role, chunk(""), thought, said, DONE).arrivals_ns == (3_000, 4_000)


def test_phases_and_request_id_come_from_our_own_target():
    moments = {"clock": "monotonic", "host": "h", "received_ns": 1, "posted_ns": 4}
    last = chunk("", kvgauge={"request_id": "req-7", "phases": moments})
    exchange = read(chunk("a", id="cmpl-1"), last, DONE)
    assert exchange.request_id == "req-7"
    assert exchange.phases == Phases(clock="monotonic", host="h", received_ns=1, posted_ns=4)


@pytest.mark.parametrize(
    "extension", [1, "x", [], {"phases": 3}, {"phases": {"clock": "sundial", "host": "h"}}, {"phases": {}}, None]
)
def test_an_extension_that_is_not_ours_is_ignored(extension):
    exchange = read(chunk("a", id="cmpl-1", kvgauge=extension), DONE)
    assert (exchange.failure, exchange.phases, exchange.request_id) == (None, None, "cmpl-1")


def test_phases_too_large_for_the_files_are_ignored():
    moments = {"clock": "monotonic", "host": "h", "received_ns": 1 << 63}
    assert read(chunk("a", kvgauge={"phases": moments}), DONE).phases is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"no such model","code":404}}', "no such model"),
        (b'{"object":"error","message":"no such model"}', "no such model"),
        (b'{"error":"no such model"}', "no such model"),
        (b'{"detail":"no such model"}', "no such model"),
        (b"<h1>no such\nmodel</h1>", "<h1>no such model</h1>"),
        (b"", ""),
    ],
)
def test_a_status_other_than_200_carries_the_servers_message(body, message):
    exchange = read(body, status=404, content_type="application/json")
    assert exchange.failure == "status"
    assert exchange.detail == f"HTTP 404: {message}" if message else "without a message" in exchange.detail
    assert exchange.tokens_out == 0


def test_an_error_event_inside_a_200_stream_is_a_failure_that_keeps_what_came():
    exchange = read(chunk("a"), b'data: {"error":{"message":"decode worker died"}}\n\n', DONE)
    assert (exchange.failure, exchange.detail) == ("error_event", "decode worker died")
    assert exchange.arrivals_ns == (1_000,)


def test_an_event_named_error_is_one_whatever_it_holds():
    assert read(chunk("a"), b"event: error\ndata: out of memory\n\n").failure == "error_event"


@pytest.mark.parametrize("bad", [b"data: {oops\n\n", b"data: 12\n\n", b'data: {"choices":3}\n\n', b"data: \xff\n\n"])
def test_an_event_that_is_not_a_chunk_is_malformed(bad):
    exchange = read(chunk("a"), bad, DONE)
    assert exchange.failure == "malformed"
    assert exchange.arrivals_ns == (1_000,)


def test_a_negative_or_huge_usage_is_malformed():
    for count in (-1, 1 << 64):
        usage = b'data: {"choices":[],"usage":{"completion_tokens":%d}}\n\n' % count
        assert read(chunk("a"), usage, DONE).failure == "malformed"


def test_a_stream_without_done_is_truncated():
    assert read(chunk("a"), USAGE).failure == "truncated"
    assert read(chunk("a"), cut="truncated", detail="the server closed the connection").failure == "truncated"


def test_a_connection_that_closes_after_done_lost_nothing():
    assert read(chunk("a"), DONE, cut="truncated").failure is None


def test_silence_before_content_is_no_first_token_and_after_it_a_stall():
    assert read(cut="timeout", status=None).failure == "no_first_token"
    assert read(b": ping\n\n", cut="stall").failure == "no_first_token"
    assert read(chunk("a"), cut="stall").failure == "stall"
    assert read(chunk("a"), cut="timeout").failure == "timeout"


def test_a_connection_that_was_not_made_says_connect():
    exchange = read(status=None, cut="connect", detail="127.0.0.1:1: Connection refused")
    assert (exchange.failure, exchange.detail, exchange.arrivals_ns) == (
        "connect",
        "127.0.0.1:1: Connection refused",
        (),
    )


def test_an_answer_without_text_has_no_first_token():
    assert read(chunk(""), USAGE, DONE).failure == "no_first_token"


def test_an_answer_without_streaming_arrives_with_its_last_byte():
    body = b'{"choices":[{"text":"all of it"}],"usage":{"prompt_tokens":1,"completion_tokens":3}}'
    exchange = read(body[:20], body[20:], content_type="application/json")
    assert (exchange.arrivals_ns, exchange.tokens_out, exchange.failure) == ((2_000,), 3, None)
    chat = b'{"choices":[{"message":{"content":"hi"}}]}'
    assert read(chat, content_type="").arrivals_ns == (1_000,)


def test_a_200_that_is_an_error_object_is_an_error_event():
    assert read(b'{"error":{"message":"no"}}', content_type="application/json").failure == "error_event"


def test_text_from_outside_fits_one_bounded_line():
    assert one_line("a\x1b[31m\nb\t c") == "a [31m b c"
    assert len(one_line("x" * 10_000)) == 300
    assert error_message(b'{"error":' * 50_000) != ""


def delta(**said):
    return b"data: " + json.dumps({"choices": [{"delta": said}]}).encode() + b"\n\n"


def test_what_an_answer_said_is_put_together_and_thinking_aloud_is_left_out():
    assert (
        answer_text(answer_of(chunk("Hel"), chunk("lo"), chunk(" \u00e9"), USAGE, DONE, chunk("late")))
        == "Hello \u00e9"
    )
    thought = (delta(role="assistant", content=""), delta(reasoning_content="hm"), delta(content="yes"), DONE)
    assert answer_text(answer_of(*thought)) == "yes"
    whole = b'{"choices":[{"message":{"content":"all of it"}}]}'
    assert answer_text(answer_of(whole, content_type="application/json")) == "all of it"
    assert answer_text(answer_of(b'{"choices":[{"text":"all"}]}', content_type="application/json")) == "all"
    assert answer_text(answer_of(chunk("a"), b"data: {broken\n\n", DONE)) == "a"


@given(st.lists(st.text(max_size=20), max_size=20))
def test_the_text_is_that_of_all_chunks_in_their_order(texts):
    assert answer_text(answer_of(*map(chunk, texts), USAGE, DONE)) == "".join(texts)


def test_a_record_says_which_turn_of_which_session_it_is_and_when_its_first_byte_came():
    asked = msgspec.structs.replace(ASKED, session=3, turn=2, fresh=True)
    exchange = read_answer(asked, answer_of(USAGE, chunk("a"), DONE))
    assert (exchange.session, exchange.turn, exchange.fresh) == (3, 2, True)
    assert (exchange.first_byte_ns, exchange.arrivals_ns) == (1_000, (2_000,))


GOOD = (
    chunk("a", id="x") + chunk("b") + USAGE + chunk("", kvgauge={"phases": {"clock": "monotonic", "host": "h"}}) + DONE
)
MUTATION = st.tuples(st.integers(0, len(GOOD)), st.integers(0, 8), st.binary(max_size=8))


@settings(max_examples=400, deadline=None)
@given(
    st.lists(MUTATION, max_size=6),
    st.integers(1, 60),
    st.sampled_from(["text/event-stream", "application/json", ""]),
    st.sampled_from([None, "truncated", "stall", "timeout", "malformed", "interrupted"]),
    st.sampled_from([200, 500, None]),
)
def test_no_mutated_stream_raises_and_every_record_can_be_written(mutations, step, content_type, cut, status):
    body = GOOD
    for at, removed, added in mutations:
        body = body[:at] + added + body[at + removed :]
    reads = [body[at : at + step] for at in range(0, len(body), step)]
    exchange = read(*reads, status=status, content_type=content_type, cut=cut)
    assert msgspec.json.decode(msgspec.json.encode(exchange), type=type(exchange)) == exchange
    assert list(exchange.arrivals_ns) == sorted(exchange.arrivals_ns)
    assert exchange.failure is None or exchange.failure.isidentifier()
    assert len(exchange.detail or "") <= 300
    assert "\n" not in (exchange.detail or "")


def texts(body):
    answer = Answer(status=200, content_type="", body=body, stamps_ns=[], read_ns=[], ends=[], ended_ns=0)
    return answer_texts(answer)


def test_the_texts_of_an_answer_are_its_reasoning_and_its_content_in_order():
    def delta(**said):
        return b"data: " + json.dumps({"choices": [{"delta": said}]}).encode() + b"\n\n"

    streamed = delta(reasoning_content="think ") + delta(reasoning="more") + delta(content="a\n") + delta(content="é")
    assert texts(streamed + DONE) == ("think more", "a\né")
    assert texts(chunk("Hel") + b": comment\n\n" + chunk("lo") + DONE) == ("", "Hello")
    assert texts(json.dumps({"choices": [{"message": {"content": "whole"}}]}).encode()) == ("", "whole")
    assert texts(chunk("a") + b"data: {broken\n\n" + b'data: {"choices":[]}') == ("", "a")


@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from([chunk("a"), DONE, USAGE, b"data: {}\n\n", b"{", b"\xff"])).map(b"".join)
)
def test_no_body_makes_the_reading_of_texts_fail(body):
    assert all(isinstance(text, str) for text in texts(body))

"""Reading alike events at once gives what reading each as JSON gives."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvgauge.load import alike, answers
from kvgauge.load.answers import Answer, Asked, read_answer

ASKED = Asked(
    run_id="r", cell="c", seq=0, warmup=False, slot=0, worker=0, host="h", clock="monotonic", due_ns=0, sent_ns=0
)
DONE = b"data: [DONE]\n\n"


def completion(text, **more):
    return json.dumps({"id": "x", "choices": [{"index": 0, "text": text}], **more}, ensure_ascii=False).encode()


def chat(text):
    return json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": None}]}).encode()


def event(data):
    return b"data: " + data + b"\n\n"


def read(body, step=37):
    ends = [*range(step, len(body), step), len(body)]
    moments = [1_000 * (at + 1) for at in range(len(ends))]
    answer = Answer(
        status=200,
        content_type="text/event-stream",
        body=body,
        stamps_ns=moments,
        read_ns=moments,
        ends=ends,
        ended_ns=0,
        cut=None,
    )
    return read_answer(ASKED, answer)


def both(body, step=37):
    """(with runs, event by event)"""
    fast = read(body, step)
    learn, alike.Alike.learn = alike.Alike.learn, lambda self, data, content_of: False
    try:
        return fast, read(body, step)
    finally:
        alike.Alike.learn = learn


def count_decoded(monkeypatch, body):
    decoded = []
    decode = answers._chunk
    monkeypatch.setattr(answers, "_chunk", lambda data: decoded.append(1) or decode(data))
    exchange = read(body)
    return exchange, len(decoded)


@pytest.mark.parametrize("make", [completion, chat])
def test_events_that_differ_in_their_text_only_are_not_decoded_one_by_one(monkeypatch, make):
    texts = [f" word{at}" for at in range(2_000)]
    exchange, decoded = count_decoded(monkeypatch, b"".join(event(make(text)) for text in texts) + DONE)
    assert (exchange.failure, len(exchange.arrivals_ns)) == (None, 2_000)
    assert decoded < 50


def test_texts_that_need_escapes_or_are_not_ascii_stay_in_the_run(monkeypatch):
    body = b"".join(event(completion(text)) for text in ["a", "\n", '"', "\\", "é", "\u2019", "\t"] * 40) + DONE
    exchange, decoded = count_decoded(monkeypatch, body)
    assert (exchange.failure, len(exchange.arrivals_ns)) == (None, 280)
    assert decoded < 20


def test_events_that_are_never_alike_are_soon_read_one_by_one(monkeypatch):
    tried = []
    learn = alike.Alike.run
    monkeypatch.setattr(alike.Alike, "run", lambda *given: tried.append(1) or learn(*given))
    body = b"".join(event(completion("a", created=at)) for at in range(500)) + DONE
    assert len(read(body).arrivals_ns) == 500
    assert len(tried) <= alike.POOR_RUNS_MAX


PIECES = st.one_of(
    st.sampled_from(["a", " b", "", "é", "\n", '"', "\\", "\ud83d", "data: ", "}"]).map(
        lambda text: event(json.dumps({"id": "x", "choices": [{"index": 0, "text": text}]}).encode())
    ),
    st.sampled_from(["a", " b", "", "é"]).map(lambda text: event(completion(text))),
    st.sampled_from(["a", ""]).map(lambda text: event(chat(text))),
    st.sampled_from(
        [
            DONE,
            b": ping\n\n",
            b"event: error\n",
            b"\n",
            b"data: ",
            b'data: {"id":"x",\ndata: "choices":[{"text":"c"}]}\n\n',
            event(b'{"choices":[{"text":"\x01"}]}'),
            event(b'{"choices":[{"text":"\xff"}]}'),
            event(b'{"id": "x", "choices": [{"index": 0, "text": "\xff"}]}'),
            event(b'{"id": "x", "choices": [{"index": 0, "text": "a"b"}]}'),
            event(b'{"id": "x", "choices": [{"index": 0, "text": "\\ud800"}]}'),
            event(b'{"id": "x", "choices": [{"index": 0, "text": "a\\"}]}'),
            event(completion("a")).replace(b"\n", b"\r\n"),
            event(completion("a", usage={"prompt_tokens": 1, "completion_tokens": 2})),
            event(completion("a", error={"message": "no"})),
            event(completion("a", error=None)),
            event(b'{"a": "text", "choices": [{"text": "b", "text": ""}]}'),
        ]
    ),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(PIECES, st.integers(1, 12)), max_size=12), st.sampled_from([1, 7, 97, 100_000]))
@example([(event(completion("a")), 3), (event(completion("")), 1), (event(completion("b")), 3), (DONE, 1)], 5)
def test_runs_change_nothing(pieces, step):
    fast, slow = both(b"".join(piece * times for piece, times in pieces), step)
    assert fast == slow


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 9), st.binary(max_size=4)), max_size=6))
def test_runs_change_nothing_in_a_mutated_stream(mutations):
    body = b"".join(event(completion(text)) for text in ("a", " bc", "d") * 5) + DONE
    for at, removed, added in mutations:
        body = body[:at] + added + body[at + removed :]
    fast, slow = both(body)
    assert fast == slow


def test_a_window_that_ends_inside_an_event_goes_on_behind_it(monkeypatch):
    monkeypatch.setattr(alike, "WINDOW_BYTES", 700)
    body = b"".join(event(completion(f"{at}")) for at in range(200)) + DONE
    fast, slow = both(body)
    assert fast == slow
    assert len(fast.arrivals_ns) == 200

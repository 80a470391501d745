import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.load import stream
from kvgauge.load.offset import RealtimeOffset
from kvgauge.load.stream import Incoming

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WIRE = HEAD + b"3\r\nabc\r\n5;x=y\r\ndefgh\r\n0\r\nTrailer: t\r\n\r\n"


def take(wire, step, *, close=False):
    incoming = Incoming()
    for at in range(0, len(wire), step):
        if incoming.take(wire[at : at + step], at + step):
            return incoming
    if close:
        incoming.take(b"", 0)
    return incoming


def answer_of(incoming):
    return incoming.answer(RealtimeOffset(lambda: 0, lambda: 0), ended_ns=0, cut=None, detail=None)


@pytest.mark.parametrize("step", [1, 2, 7, 10_000])
def test_the_body_does_not_depend_on_where_the_network_cut_it(step):
    incoming = take(WIRE, step)
    answer = answer_of(incoming)
    assert (incoming.end, incoming.keep_alive, answer.status) == ("complete", True, 200)
    assert (answer.body, answer.content_type) == (b"abcdefgh", "text/event-stream")
    assert answer.ends[-1] == 8
    assert len(answer.ends) == len(answer.stamps_ns)


def test_each_read_has_a_stamp_and_an_offset():
    answer = answer_of(take(WIRE, 1))
    assert sorted(set(answer.ends)) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert answer.stamps_ns == answer.read_ns == list(range(1, len(WIRE) + 1))
    assert answer.stamps_ns[answer.ends.index(1)] == len(HEAD) + 4


@pytest.mark.parametrize("extra", [b"garbage", WIRE])
def test_bytes_after_the_answer_are_left_out_and_end_the_connection(extra):
    incoming = take(WIRE + extra, 10_000)
    assert incoming.end == "complete"
    assert not incoming.keep_alive
    assert answer_of(incoming).body == b"abcdefgh"


def test_an_interim_answer_is_skipped():
    incoming = take(b"HTTP/1.1 100 Continue\r\n\r\n" + WIRE, 3)
    assert (incoming.end, incoming.status) == ("complete", 200)


def test_without_a_length_the_close_is_the_end():
    incoming = take(b"HTTP/1.0 200 OK\r\n\r\nall", 2, close=True)
    assert (incoming.end, answer_of(incoming).body) == ("complete", b"all")


def test_a_close_inside_a_chunked_body_is_not_the_end():
    incoming = take(WIRE[:-9], 5, close=True)
    assert incoming.end == "closed"


@pytest.mark.parametrize(
    "wire",
    [
        b"\x16\x03\x01\x02",
        b"HTTP/1.1 99999 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        HEAD + b"zz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
    ],
)
def test_what_is_not_http_is_malformed(wire):
    assert take(wire, 1_000).end == "malformed"


def test_an_endless_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(stream, "ANSWER_BYTES_MAX", 1_000)
    incoming = take(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5_000, 100)
    assert incoming.end == "malformed"
    assert incoming.received_bytes < 1_200


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WIRE)), st.integers(0, 6), st.binary(max_size=6)), max_size=5))
def test_no_mutated_answer_raises_and_its_offsets_never_leave_its_body(mutations):
    wire = WIRE
    for at, removed, added in mutations:
        wire = wire[:at] + added + wire[at + removed :]
    for step in (1, 11, 10_000):
        incoming = take(wire, step, close=True)
        answer = answer_of(incoming)
        assert incoming.end is not None
        assert answer.ends == sorted(answer.ends)
        assert (answer.ends[-1] if answer.ends else 0) == len(answer.body)

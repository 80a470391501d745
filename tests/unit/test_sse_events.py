import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.load.sse import Event, EventSplitter

WIRE = (
    b"\xef\xbb\xbfdata: a\n\n: a comment\n\ndata: b\r\n\r\nevent: error\ndata: {\ndata:}\n\nid: 7\nretry: 5\ndata\n\n"
    b"event: ping\n\ndata: c\n\ndata: [DONE]\n\n"
)
EXPECTED = [(b"a", b""), (b"b", b""), (b"{\n}", b"error"), (b"", b""), (b"c", b""), (b"[DONE]", b"")]


def events_of(wire, cuts, limit=1 << 20):
    splitter = EventSplitter(limit)
    got, start = [], 0
    for stop in [*sorted(cuts), len(wire)]:
        got += splitter.feed(wire[start:stop])
        start = stop
    return got, splitter


@pytest.mark.parametrize("step", [1, 2, 3, 7, 10_000])
def test_events_do_not_depend_on_where_the_network_cut_them(step):
    got, _ = events_of(WIRE, range(step, len(WIRE), step))
    assert [(event.data, event.name) for event in got] == EXPECTED


@pytest.mark.parametrize("step", [1, 10_000])
def test_trailing_garbage_is_held_back_and_changes_no_event(step):
    wire = WIRE + b"\xff\0garb"
    got, splitter = events_of(wire, range(step, len(wire), step))
    assert [(event.data, event.name) for event in got] == EXPECTED
    assert splitter.close() is None


def test_an_event_ends_after_its_blank_line():
    wire = b"data: a\n\n: ping\n\ndata: b\r\n\r\n"
    got, _ = events_of(wire, [])
    assert [event.end for event in got] == [len(b"data: a\n\n"), len(wire)]


def test_an_event_without_its_blank_line_comes_out_at_the_end_only():
    splitter = EventSplitter()
    assert splitter.feed(b"data: [DONE]\r") == []
    assert splitter.close() == Event(b"[DONE]", b"", 13)


def test_an_event_may_be_as_large_as_the_bound_and_not_larger():
    fits = b"data: " + b"x" * 94
    assert [event.data for event in events_of(fits + b"\n\n", [], 100)[0]] == [b"x" * 94]
    got, splitter = events_of(b"data: a\n\n" + fits + b"x\n\ndata: b\n\n", [], 100)
    assert [event.data for event in got] == [b"a"]
    assert splitter.overlong


def test_a_line_that_never_ends_is_not_gathered():
    splitter = EventSplitter(1_000)
    for _ in range(1_000):
        splitter.feed(b"x" * 100)
    assert splitter.overlong
    assert len(splitter._pending) == 0


def test_data_lines_that_never_end_an_event_are_not_gathered():
    splitter = EventSplitter(1_000)
    for _ in range(1_000):
        splitter.feed(b"data: more\n")
    assert splitter.overlong
    assert splitter.close() is None


LINES = st.sampled_from(
    [b"data: {}\n", b"data: {}\r\n", b"\n", b"\r\n", b"\r", b": c\n", b"event: e\n", b"data:", b"\xff", b"x" * 40, b""]
)


@given(
    st.lists(LINES, max_size=30).map(b"".join),
    st.lists(st.integers(0, 400), max_size=12),
    st.sampled_from([30, 1 << 20]),
)
def test_any_bytes_cut_anywhere_give_the_same_events(wire, cuts, limit):
    whole, one = events_of(wire, [], limit)
    parts, other = events_of(wire, [cut for cut in cuts if cut < len(wire)], limit)
    assert parts == whole
    assert all(wire[event.end - 1 : event.end] == b"\n" for event in whole)
    assert one.close() == other.close()

"""A small part of `make fuzz`: its promises hold for the first streams, and it finds a broken one."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "overhead"))
import fuzz

STREAMS = 3_000


def test_no_mutated_answer_breaks_a_promise_of_the_response_path():
    ended, broken = fuzz.fuzz(0, STREAMS, seed=1)
    assert broken is None
    assert sum(ended.values()) == STREAMS
    assert {"answered", "malformed", "error_event", "truncated", "status"} <= set(ended)


def test_a_stream_that_raises_is_named(monkeypatch):
    def raises(asked, answer):
        raise RecursionError("too deep")

    monkeypatch.setattr(fuzz, "read_answer", raises)
    assert fuzz.fuzz(7, 9, seed=1)[1] == "stream 7: RecursionError: too deep"


@pytest.mark.parametrize("number", [0, 1, 2_999])
def test_a_streams_number_and_seed_give_the_same_bytes_again(number):
    first, again = (fuzz.read_one(number, 1) for _ in range(2))
    assert first == again

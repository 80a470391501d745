"""The sums of overhead/truth.py and verdict.py, on records made by hand."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "overhead"))

from truth import (
    Spread,
    Truth,
    inflation_ns,
    kept_chunks_s,
    lateness_ns,
    offered_chunks_s,
    read_truth,
    refill_ns,
    spread,
)
from verdict import Row, chosen, judge

MS = 1_000_000
ZERO = np.zeros(4, dtype=np.int64)


def truth(*, refill_ms=1, late_ns=0):
    """Two streams, two requests each, 2 tokens: ttft 5 ms, itl 5 ms."""
    second_ms = 10 + refill_ms
    received = np.array([0, 0, second_ms, second_ms], dtype=np.int64) * MS
    left = received[:, None] + np.array([5, 10, 10], dtype=np.int64) * MS + late_ns
    return Truth(
        tokens=2,
        ttft_ns=5 * MS,
        itl_ns=5 * MS,
        flood=0,
        refused=0,
        offset_ns=0,
        offset_end_ns=0,
        connection=ZERO,
        received_ns=received,
        heard_ns=received,
        tag=ZERO,
        blocked=ZERO,
        pieces=ZERO + 3,
        left_ns=left,
        taken_ns=left + 1,
    )


def row(**changed):
    same = Spread(n=10, mean=10, p50=10, p99=10, max=10)
    first = Row(
        tool="kvgauge",
        streams=8,
        flood=False,
        round=0,
        requests=10,
        inflation=same,
        refill=same,
        kept_chunks_s=None,
        offered_chunks_s=None,
        late=same,
        chunks_s=None,
        cpu_ms_per_1000=None,
        every_chunk=None,
        launch_s=0.1,
        exit_s=0.1,
        rss_mb=10,
        foreign=0.0,
    )
    return replace(first, **changed)


def test_inflation_is_what_the_client_says_beyond_what_the_server_did():
    said_ns = np.array([5 * MS + 7, 5 * MS + 9], dtype=np.int64)
    assert inflation_ns(truth(), np.array([2, 0]), said_ns).tolist() == [7, 9]


def test_a_refill_is_the_time_from_an_answers_end_to_the_request_that_takes_its_slot():
    assert refill_ns(truth(refill_ms=3), np.arange(4), 2).tolist() == [3 * MS, 3 * MS]


def test_every_chunk_is_kept_when_refills_take_no_time():
    assert kept_chunks_s(truth(refill_ms=0), np.arange(4), 2) == offered_chunks_s(truth(), 2) == 400


def test_slow_refills_lose_chunks():
    assert kept_chunks_s(truth(refill_ms=10), np.arange(4), 2) == 200


def test_lateness_is_against_the_absolute_schedule():
    assert set(lateness_ns(truth(late_ns=40)).tolist()) == {40}


def test_nothing_has_no_spread():
    assert spread(np.array([], dtype=np.int64)) is None


def test_a_file_that_is_not_the_servers_is_refused(tmp_path):
    path = tmp_path / "pacer.bin"
    path.write_bytes(b"\0" * 400)
    with pytest.raises(ValueError, match="not the pacing server's file"):
        read_truth(path)


def test_a_run_that_others_disturbed_does_not_count_while_there_is_a_quiet_one():
    noisy, late = row(foreign=0.4), row(late=Spread(n=1, mean=9_000, p50=9_000, p99=9_000, max=9_000))
    assert chosen([noisy, late, row(round=1)], "kvgauge") == [row(round=1)]
    assert chosen([noisy, late], "kvgauge") == [noisy, late]
    assert all("NOT JUDGED" in line for line in judge([noisy, late], "kvgauge", "floor"))


def test_a_missed_target_says_by_how_much():
    slow = Spread(n=10, mean=75, p50=10, p99=10, max=10)
    lines = judge([row(inflation=slow)], "kvgauge", "floor")
    assert [line for line in lines if "MISSED" in line] == [line for line in lines if "mean, 8 streams" in line][:1]
    assert "MISSED by 15 us" in lines[0]


def test_a_flood_is_judged_by_the_ratio_to_the_floor_of_its_own_round():
    flood = {"flood": True, "inflation": None, "refill": None, "late": None, "streams": 32}
    rows = [
        row(tool=tool, round=at, chunks_s=rate, cpu_ms_per_1000=cpu, every_chunk=True, **flood)
        for tool, at, rate, cpu in (
            ("floor", 0, 100, 2),
            ("floor", 1, 200, 2),
            ("kvgauge", 0, 96, 2),
            ("kvgauge", 1, 192, 3),
        )
    ]
    lines = judge(rows, "kvgauge", "floor")
    assert "0.96" in lines[0]
    assert lines[0].endswith("met")
    assert lines[1].endswith("MISSED by 0.15")

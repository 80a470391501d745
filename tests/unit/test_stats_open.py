"""Open loads judged, and cells that end when their mean is known."""

import random

import msgspec
import pytest

from kvgauge.evidence import proof
from kvgauge.load.tally import CellLoad, OpenOffer
from kvgauge.plan.records import Until
from kvgauge.plan.trace import parse, summary
from kvgauge.samples.records import Exchange
from kvgauge.stats.batches import BATCHES, LOOK_FIRST, Narrow, batch_mean
from kvgauge.stats.cells import cell_metrics
from kvgauge.stats.offered import offered_metrics, offered_troubles
from scene import make_cell

OFFER = OpenOffer(
    start_ns=0,
    slots=8,
    under_way_max=8,
    queued=30,
    given_up=0,
    due_span_ns=9_000_000_000,
    sent_span_ns=9_100_000_000,
    own_late_ns_mean=50_000.0,
    own_late_ns_max=1_000_000,
)
CELL = make_cell(load="poisson", rate=10.0, concurrency=8, requests=100)


def load_of(**offer):
    return CellLoad(
        cell="c", clock="monotonic", started_ns=0, ended_ns=10_000_000_000, offered=91, completed=90, failed=1,
        warmups=0, cpu_s=0.1, late_ns_max=1, late_ns_mean=1.0, stagger_ns=0, interrupted=False, new_connections=3,
        open=msgspec.structs.replace(OFFER, **offer),
    )  # fmt: skip


def exchange(seq=0, ttft_ms=10.0, **changes):
    base = {
        "seq": seq, "run_id": "r", "cell": "c", "warmup": False, "slot": 0, "worker": 0, "host": "h",
        "clock": "monotonic", "stamp_source": "user", "due_ns": 0, "sent_ns": 0,
        "arrivals_ns": (int(ttft_ms * 1e6), int(ttft_ms * 1e6) + 7_000_000), "done_ns": 2, "tokens_in": 1,
        "tokens_out": 8, "tokens_source": "usage", "status": 200,
    }  # fmt: skip
    return Exchange(**(base | changes))


def test_what_was_offered_stands_beside_what_was_sent():
    found = offered_metrics(load_of())
    assert found["offered_rate_req_s"].point == pytest.approx(10.0)
    assert found["sent_rate_req_s"].point == pytest.approx(90 / 9.1)
    assert found["sent_rate_req_s"].reason == "one value for the whole run"
    slow = offered_metrics(load_of(sent_span_ns=30_000_000_000))["sent_rate_req_s"]
    assert "below the 10 req/s offered: latency grows" in slow.reason
    assert (found["queued"].point, found["new_connections"].point, found["under_way_max"].point) == (30, 3, 8)
    assert found["client_late_ms_mean"].point == pytest.approx(0.05)
    closed = msgspec.structs.replace(load_of(), open=None)
    assert set(offered_metrics(closed)) == {"new_connections"}
    assert offered_metrics(load_of(sent_span_ns=None))["sent_rate_req_s"].point is None


def test_requests_that_wait_for_a_slow_server_do_not_make_a_cell_invalid():
    assert offered_troubles(CELL, load_of(), 500.0) == []
    assert offered_troubles(CELL, msgspec.structs.replace(load_of(), open=None), 500.0) == []


def test_a_rate_that_is_not_kept_is_blamed_on_the_saturated_server():
    [reason] = offered_troubles(CELL, load_of(given_up=70), 500.0)
    assert "poisson 10 req/s) was not kept: 70 requests" in reason
    assert "The server is saturated: all 8 requests that may be under way were, and it finished 9 req/s" in reason


def test_or_on_the_descriptors_when_those_are_what_is_short():
    cell = msgspec.structs.replace(CELL, concurrency=100)
    assert "file descriptors allow no more: raise `ulimit -n`" in offered_troubles(cell, load_of(given_up=7), 1.0)[0]


def test_or_on_the_client_when_slots_were_free():
    [reason] = offered_troubles(CELL, load_of(given_up=70, under_way_max=2), 500.0)
    assert "Only 2 of 8 possible requests were under way: this client could not offer the rate" in reason


def test_a_client_whose_own_lateness_shapes_ttft_is_the_bottleneck():
    late = load_of(own_late_ns_mean=6e6, own_late_ns_max=40_000_000)
    assert "this client was the bottleneck" in offered_troubles(CELL, late, 50.0)[0]
    assert "late on average (at most 40.0 ms)" in offered_troubles(CELL, late, None)[0]
    assert offered_troubles(CELL, late, 500.0) == []
    assert offered_troubles(CELL, load_of(own_late_ns_mean=1e6), 1.0) == []


def test_lateness_is_the_mean_and_the_most_of_what_was_sent():
    ones = [exchange(0, sent_ns=1_000_000), exchange(1, sent_ns=3_000_000)]
    lost = exchange(2, failure="unsent", sent_ns=900_000_000, arrivals_ns=())
    found = cell_metrics([*ones, lost], [], 0, 10)
    assert (found["late_ms_mean"].point, found["late_ms_max"].point, found["failures"].point) == (2, 3, 1)
    assert cell_metrics([lost], [], 0, 10)["late_ms_mean"].point is None


def test_each_answer_of_a_trace_is_held_against_its_own_length():
    data = b'{"timestamp":0,"input_length":5,"output_length":8}\n{"timestamp":1,"input_length":6,"output_length":2}'
    trace = parse(data, "t")
    cell = make_cell(
        load="trace", trace=summary("t", data, trace), input_tokens=None, output_tokens=8, warmup_requests=1
    )
    right = [exchange(1, tokens_in=5, tokens_out=8), exchange(2, tokens_in=6, tokens_out=2)]
    assert proof.cell_troubles(cell, right, trace) == []
    wrong = [right[0], exchange(2, tokens_in=5, tokens_out=8)]
    troubles = proof.cell_troubles(cell, wrong, trace)
    assert "1 of 2 answers have another length than the 2 tokens asked for (the first: 8)" in troubles[0]
    assert "another length than 6 tokens (the first: 5)" in troubles[1]


def test_batches_of_few_values_or_of_a_drift_have_no_interval():
    assert batch_mean([], "ms").point is None
    assert batch_mean([1.0] * (BATCHES - 1), "ms").low is None
    drift = batch_mean([float(n) for n in range(1000)], "ms")
    assert drift.low is None
    assert "resemble their neighbours" in drift.reason
    flat = batch_mean([3.0] * 100, "ms")
    assert (flat.low, flat.high, flat.n) == (3.0, 3.0, BATCHES)


def narrow(half_width=0.05, metric="ttft_ms_mean", first_seq=0):
    return Narrow(Until(metric=metric, half_width=half_width), first_seq=first_seq)


def test_steady_values_are_enough_at_the_first_look_and_not_before():
    end = narrow()
    for seq in range(LOOK_FIRST):
        assert not end.met
        end.add(exchange(seq))
    assert end.met
    assert "reached at 100 requests" in end.outcome().reason


def test_a_look_waits_for_the_slow_ones_that_were_sent_first():
    end = narrow(first_seq=2)
    end.add(exchange(0, warmup=True))
    for seq in range(3, 2 + LOOK_FIRST):
        end.add(exchange(seq))
    assert not end.met
    end.add(exchange(2, ttft_ms=10))
    assert end.met


def test_failed_requests_have_no_value_and_wide_values_are_not_enough():
    end = narrow(half_width=0.001)
    rng = random.Random(1)
    for seq in range(400):
        failed = {"failure": "timeout"} if seq % 10 == 0 else {}
        end.add(exchange(seq, ttft_ms=rng.expovariate(0.1), **failed))
    assert not end.met
    assert "not reached at 338 requests" in (end.outcome().reason or "") or end.outcome().point is None
    assert narrow().outcome().point is None


@pytest.mark.parametrize("metric", ["ttft_ms_mean", "e2e_latency_ms_mean", "tpot_ms_mean"])
def test_each_mean_that_may_end_a_cell_is_looked_at(metric):
    end = narrow(metric=metric)
    for seq in range(LOOK_FIRST):
        end.add(exchange(seq))
    assert end.met

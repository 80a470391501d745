"""A modelled first run on the embedded target: paid once, by whom it should be, and again after a restart.

Only lower bounds and ratios: a machine that is busy makes everything longer, never shorter.
"""

import os
import signal
import time

import pytest

from kvgauge.load.drive import Driver
from kvgauge.plan.records import ColdStart
from kvgauge.stats.run_level import run_metrics
from scene import make_cell, make_test

pytestmark = pytest.mark.nixl

COLD = ColdStart(compile_s=1.0, graph_capture_s=0.2, graph_batch_max=4, connect_s=0.7)
ONE = make_cell(name="one", load="single", concurrency=1, requests=5, output_tokens=4, warmup_requests=1)


def offer(driver, target, cell):
    exchanges = []
    driver.run_cell(cell, run_id="r", seed=1, on_exchange=exchanges.append, tick=target.phases)
    assert [exchange.failure for exchange in exchanges] == [None] * len(exchanges)
    return sorted(exchanges, key=lambda exchange: exchange.due_ns)


def ttfts_s(exchanges):
    return [exchange.ttft_ns / 1e9 for exchange in exchanges]


def graphs(target):
    return target._reports()["decode-0"].cold.graphs


@pytest.mark.parametrize(
    ("backend", "operation"),
    [pytest.param("UCX", "READ", marks=pytest.mark.long), ("LIBFABRIC", "READ"), ("UCX", "WRITE")],
)
def test_the_first_request_pays_what_was_declared_the_later_ones_do_not_and_it_is_said_to_be_modelled(
    embedded, backend, operation
):
    cold = ColdStart(compile_s=1.0, graph_capture_s=0.2, graph_batch_max=4, connect_s=2.5)
    test = make_test(backend=backend, operation=operation, cold_start=cold)
    target, endpoint = embedded(test, ONE, transfer_timeout_s=2.0)  # shorter than the connection: counted from posting
    with Driver(endpoint.url, endpoint.model, host="h", request_timeout_s=30) as driver:
        cell = offer(driver, target, ONE)
    first, *later = ttfts_s(cell)
    assert first >= 2 * 1.0 + 0.2 + 2.5
    assert sorted(later)[len(later) // 2] < first / 3
    evidence = target.evidence()
    penalty = run_metrics(evidence, cell)["first_request_penalty_s"].point
    assert first - max(later) <= penalty <= first
    (connection,) = evidence.connections
    assert connection.modelled_ns == 2_500_000_000
    assert "are modelled (cold_start)" in run_metrics(evidence)["connection_ms_max"].reason
    facts = [(fact.name, fact.value) for fact in evidence.facts]
    assert ("note", f"cold start modelled: {cold.line}") in facts
    assert ("cold_start", "compile 1 s") in facts
    assert ("cold_start", "compile 1 s; graphs of batch sizes 1: 0.2 s") in facts
    phases = cell[0].phases
    assert phases.prefill_end_ns - phases.prefill_start_ns >= 1.0e9
    assert phases.posted_ns - phases.prefill_end_ns >= 2.5e9
    assert phases.first_token_ns - phases.transferred_ns >= 1.2e9


def test_each_batch_size_is_paid_once_and_those_above_the_largest_never(embedded):
    test = make_test(cold_start=ColdStart(graph_capture_s=0.3, graph_batch_max=4))
    wide = make_cell(name="wide", load="wave", concurrency=6, requests=18, output_tokens=24, warmup_requests=0)
    target, endpoint = embedded(test, wide)
    with Driver(endpoint.url, endpoint.model, host="h", request_timeout_s=60) as driver:
        began = time.monotonic()
        offer(driver, target, wide)
        took_s, captured = time.monotonic() - began, graphs(target)
        assert len(captured) == len(set(captured))
        assert set(captured) <= {1, 2, 3, 4}
        assert captured
        assert took_s >= 0.3 * len(captured)
        for size in range(1, 7):
            offer(driver, target, make_cell(name=f"w{size}", load="wave", concurrency=size, requests=2 * size,
                                            output_tokens=24, warmup_requests=0))  # fmt: skip
        again = graphs(target)
    assert again[: len(captured)] == captured
    assert len(again) == len(set(again))
    assert set(again) <= {1, 2, 3, 4}
    assert 1 in again


@pytest.mark.long
def test_a_worker_that_is_started_again_pays_again_and_answers_while_it_does(embedded):
    target, endpoint = embedded(make_test(cold_start=COLD), ONE)
    with Driver(endpoint.url, endpoint.model, host="h", request_timeout_s=30) as driver:
        offer(driver, target, ONE)
        for name, again_s in (
            ("decode-0", COLD.compile_s + COLD.graph_capture_s + COLD.connect_s),
            ("prefill-0", COLD.compile_s + COLD.connect_s),
        ):
            os.kill(target.pids()[name], signal.SIGKILL)
            until = time.monotonic() + 5
            while target.trouble() is None and time.monotonic() < until:
                time.sleep(0.01)
            target.restart(name)
            first, *later = ttfts_s(offer(driver, target, ONE))
            assert first >= again_s
            assert sorted(later)[len(later) // 2] < first / 3
    assert {connection.modelled_ns for connection in target.evidence().connections} == {round(COLD.connect_s * 1e9)}


def test_a_worker_that_compiles_answers_its_parent_and_drops_what_its_client_left(embedded):
    test = make_test(cold_start=ColdStart(compile_s=4))
    target, endpoint = embedded(test, ONE)
    with Driver(endpoint.url, endpoint.model, host="h", request_timeout_s=1.0) as driver:
        asked = make_cell(name="left", load="single", concurrency=1, requests=1, output_tokens=4, warmup_requests=0)
        exchanges = []
        driver.run_cell(asked, run_id="r", seed=1, on_exchange=exchanges.append, tick=target.phases)
    assert [exchange.failure for exchange in exchanges] == ["no_first_token"]
    began = time.monotonic()
    report = target._reports()["prefill-0"]
    assert time.monotonic() - began < 2  # within the compile
    assert report.blocks_free < report.blocks_total
    until = time.monotonic() + 15
    while time.monotonic() < until:
        held = {name: r.blocks_total - r.blocks_free for name, r in target._reports().items()}
        if not any(held.values()):
            break
        time.sleep(0.05)
    assert held == {"prefill-0": 0, "decode-0": 0}
    assert all(report.steps_late == 0 for report in target._reports().values())

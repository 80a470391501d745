"""kvgauge against NVIDIA Dynamo 1.6.1: its real frontend, router and workers, with simulated compute and transfer."""

import json
import platform
import signal
import statistics
import time

import pytest

from engines import dynamo
from kvgauge.failures import LoadError
from kvgauge.load.drive import Driver
from kvgauge.load.site import wait_ready
from kvgauge.plan.records import Cell

TOKENS_OUT = 32
SINGLE = f"name: single, load: single, concurrency: 1, prompt: Hello, output_tokens: {TOKENS_OUT}, requests: 8"
WAVE = f"name: wave, load: wave, concurrency: 4, input_tokens: 64, output_tokens: {TOKENS_OUT}, requests: 16"
CLOSED = f"name: closed, load: closed, concurrency: 4, input_tokens: 512, output_tokens: {TOKENS_OUT}, requests: 24"
LONG = (
    "name: long, load: closed, concurrency: 2, input_tokens: 64, output_tokens: 3000, requests: 2, warmup_requests: 0"
)
AFTER = "name: after, load: single, concurrency: 1, prompt: Hello, output_tokens: 4, requests: 2, warmup_requests: 0"
TOKENS_SUM = "dynamo_frontend_output_sequence_tokens_sum"  # dynamo_frontend_output_tokens_total misses some
TTFT_COUNT = "dynamo_frontend_time_to_first_token_seconds_count"
TTFT_SUM = "dynamo_frontend_time_to_first_token_seconds_sum"


def ttfts_ms(exchanges):
    return [(exchange.arrivals_ns[0] - exchange.due_ns) / 1e6 for exchange in exchanges]


def wait_until_streaming(deployment, requests):
    deployment.wait_for(f"{requests} first tokens", lambda: (deployment.metric(TTFT_COUNT) or 0) >= requests)


def failures(exchanges):
    return {(exchange.failure, exchange.status) for exchange in exchanges}


def test_single_wave_and_closed_cells_are_valid_and_their_tokens_are_the_servers(fast, running):
    counted = fast.metric(TOKENS_SUM) or 0
    measured = running(fast, SINGLE, WAVE, CLOSED).result()
    assert measured.returncode == 0, measured.said
    assert {name: run["status"] for name, run in measured.cells.items()} == dict.fromkeys(
        ("single", "wave", "closed"), "valid"
    )
    assert [len(measured.of(cell)) for cell in ("single", "wave", "closed")] == [8, 16, 24]
    assert {exchange.tokens_in for exchange in measured.of("wave")} == {64}
    assert {exchange.tokens_in for exchange in measured.of("closed")} == {512}
    assert {(exchange.tokens_source, exchange.tokens_out) for exchange in measured.exchanges} == {("usage", TOKENS_OUT)}
    on_the_server = fast.metric(TOKENS_SUM) - counted
    assert on_the_server == sum(exchange.tokens_out for exchange in measured.exchanges)
    chunks = [len(exchange.arrivals_ns) for exchange in measured.exchanges]
    assert min(chunks) < TOKENS_OUT, "every chunk was one token: nothing here tells chunks from tokens"
    assert max(chunks) <= TOKENS_OUT
    assert "unproved" in measured.said
    print("\n" + measured.said)


def test_a_slower_kv_transfer_shows_in_the_ttft_and_the_client_agrees_with_the_frontend(fast, deploy, running):
    cell = "name: kv, load: single, concurrency: 1, input_tokens: 512, output_tokens: 8, requests: 8"
    slow = deploy()
    gb_s = 0.1
    slow.start(kv_gb_s=gb_s)
    try:
        slower, faster = running(slow, cell).result(), running(fast, cell).result()
        frontend_ms = 1e3 * slow.metric(TTFT_SUM) / slow.metric(TTFT_COUNT)
    finally:
        slow.stop()
    assert {slower.cells["kv"]["status"], faster.cells["kv"]["status"]} == {"valid"}
    delay_ms = 512 * dynamo.KV_BYTES_PER_TOKEN / (gb_s * 1e9) * 1e3
    slow_ms, fast_ms = ttfts_ms(slower.of("kv")), ttfts_ms(faster.of("kv"))
    client_ms = statistics.mean(ttfts_ms(slower.exchanges))
    print(f"\nKV delay {delay_ms:.0f} ms; TTFT ms median slow {statistics.median(slow_ms):.0f}, "
          f"fast {statistics.median(fast_ms):.0f}; mean of the client {client_ms:.0f}, of the frontend {frontend_ms:.0f}")  # fmt: skip
    assert min(slow_ms) >= 0.95 * delay_ms
    assert statistics.median(slow_ms) > 3 * statistics.median(fast_ms)
    assert 0.98 * frontend_ms < client_ms < 1.5 * frontend_ms


def test_a_frontend_without_workers_is_healthy_and_not_ready_and_a_run_waits_for_them(deploy, running):
    deployment = deploy()
    deployment.start_frontend()
    try:
        deployment.wait_for("health", lambda: deployment.get("/health")[0] == 200)
        status, body = deployment.get("/v1/models")
        assert (status, json.loads(body)["data"]) == (200, [])
        with pytest.raises(LoadError, match="it lists no model yet"):
            wait_ready(deployment.url, 1.0)
        begun = running(deployment, AFTER)
        time.sleep(2)
        assert begun.process.poll() is None
        deployment.start_workers(kv_gb_s=50)
        measured = begun.result()
    finally:
        deployment.stop()
    assert measured.returncode == 0, measured.said
    assert measured.cells["after"]["status"] == "valid"


def test_a_model_that_is_not_served_is_refused_by_name_before_any_request(fast, running):
    measured = running(fast, AFTER, flags=("--model", "qwen-nope")).result()
    assert measured.returncode == 3
    assert measured.exchanges == []
    assert any(f"serves {dynamo.MODEL}, not qwen-nope" in reason for reason in measured.runs[0]["reasons"])


@pytest.mark.parametrize(
    ("stream", "model", "input_tokens", "failure", "status", "detail"),
    [
        (True, "qwen-nope", 16, "status", 404, "HTTP 404: Model not found"),
        (False, dynamo.MODEL, dynamo.LENGTH_MAX + 100, "status", 500, "HTTP 500: Internal server error"),
        (True, dynamo.MODEL, dynamo.LENGTH_MAX + 100, "error_event", 200, "Internal server error"),
    ],
)
def test_errors_of_one_request_are_told_apart(fast, stream, model, input_tokens, failure, status, detail):
    cell = Cell(
        name="e", load="single", concurrency=1, input_tokens=input_tokens, output_tokens=4, requests=1,
        warmup_requests=0, stream=stream,
    )  # fmt: skip
    got = []
    with Driver(fast.url, model, host=platform.node(), request_timeout_s=30) as driver:
        driver.run_cell(cell, run_id="r", seed=1, on_exchange=got.append)
    assert [(e.failure, e.status, e.detail, e.arrivals_ns) for e in got] == [(failure, status, detail, ())]


def test_a_prompt_over_the_models_length_fails_its_cell_and_says_what_the_server_said(fast, running):
    over = f"name: over, load: single, concurrency: 1, input_tokens: {dynamo.LENGTH_MAX + 100}, output_tokens: 4, requests: 2"
    measured = running(fast, over, AFTER).result()
    assert measured.returncode == 3
    assert failures(measured.of("over")) == {("error_event", 200)}
    reasons = " ".join(measured.cells["over"]["reasons"])
    assert measured.cells["over"]["status"] in ("invalid", "failed")
    assert "Internal server error" in reasons, reasons


def test_a_decode_worker_killed_mid_stream_is_an_error_event_and_not_a_short_answer(doomed, running):
    begun = running(doomed, LONG, AFTER)
    wait_until_streaming(doomed, 2)
    doomed.kill("decode")
    measured = begun.result()
    assert measured.returncode == 3
    assert failures(measured.of("long")) == {("error_event", 200)}
    assert {exchange.detail for exchange in measured.of("long")} == {"Service temporarily unavailable"}
    assert all(exchange.arrivals_ns for exchange in measured.of("long"))
    assert measured.cells["long"]["status"] in ("invalid", "failed")
    assert "Service temporarily unavailable" in " ".join(measured.cells["long"]["reasons"])
    assert measured.cells["after"]["status"] == "failed"


def test_a_killed_prefill_worker_is_503_though_the_model_is_still_listed(doomed, running):
    cell = "name: many, load: closed, concurrency: 2, input_tokens: 64, output_tokens: 150, requests: 12, warmup_requests: 0"
    begun = running(doomed, cell)
    wait_until_streaming(doomed, 2)
    doomed.kill("prefill")
    measured = begun.result()
    assert json.loads(doomed.get("/v1/models")[1])["data"][0]["id"] == dynamo.MODEL
    assert measured.returncode == 3
    answered = [exchange for exchange in measured.of("many") if exchange.failure is None]
    refused = [exchange for exchange in measured.of("many") if exchange.failure is not None]
    assert {exchange.tokens_out for exchange in answered} == {150}
    assert failures(refused) == {("status", 503)}
    assert {exchange.detail for exchange in refused} == {"HTTP 503: Service temporarily unavailable"}
    assert measured.cells["many"]["status"] in ("invalid", "failed")
    assert "HTTP 503" in " ".join(measured.cells["many"]["reasons"])


@pytest.mark.parametrize("how", ["ctrl-c", "time-out"])
def test_a_client_that_gives_up_disconnects_and_the_server_stops_its_requests(fast, running, how):
    gone = fast.metric("dynamo_frontend_disconnected_clients") or 0
    streams = (fast.metric(TTFT_COUNT) or 0) + 2
    begun = running(fast, LONG, flags=("--request-timeout", "2") if how == "time-out" else ())
    wait_until_streaming(fast, streams)
    if how == "ctrl-c":
        begun.process.send_signal(signal.SIGINT)
    measured = begun.result()
    assert measured.returncode == (130 if how == "ctrl-c" else 3)
    assert failures(measured.of("long")) == {("interrupted" if how == "ctrl-c" else "timeout", 200)}
    assert all(0 < len(exchange.arrivals_ns) < 3000 for exchange in measured.of("long"))
    fast.wait_for("two disconnections", lambda: fast.metric("dynamo_frontend_disconnected_clients") == gone + 2, 10)
    fast.wait_for("an idle server", lambda: fast.metric("dynamo_frontend_inflight_requests") == 0, 10)


KEPT = "name: kept, load: single, concurrency: 1, input_tokens: 512, output_tokens: 32, requests: 24"


def ttft_of_kept_connections(deployment, running, flags=()):
    """(what the client measured, its TTFT, the frontend's own TTFT of the same requests), means in ms."""
    counted, summed = deployment.metric(TTFT_COUNT) or 0, deployment.metric(TTFT_SUM) or 0
    measured = running(deployment, KEPT, flags=flags).result()
    frontend_ms = 1e3 * (deployment.metric(TTFT_SUM) - summed) / (deployment.metric(TTFT_COUNT) - counted)
    client_ms = statistics.mean(ttfts_ms(measured.exchanges))
    print(f"\nkept connection {flags}: TTFT ms mean of the client {client_ms:.1f}, of the frontend {frontend_ms:.1f}")
    assert measured.returncode == 0, measured.said
    assert not any(exchange.fresh for exchange in measured.of("kept"))
    return measured, client_ms, frontend_ms


def test_with_quick_acks_the_ttft_on_a_kept_connection_is_the_one_the_frontend_counts(fast, running):
    measured, client_ms, frontend_ms = ttft_of_kept_connections(fast, running, ("--quick-ack",))
    assert 0.98 * frontend_ms < client_ms < frontend_ms + 20
    assert measured.cells["kept"]["remarks"] == []
    assert "quick acknowledgements" in measured.said


def test_without_them_it_waits_for_a_delayed_acknowledgement_and_a_remark_says_so(fast, running):
    measured, client_ms, frontend_ms = ttft_of_kept_connections(fast, running)
    assert frontend_ms + 30 < client_ms < frontend_ms + 70
    [remark] = measured.cells["kept"]["remarks"]
    assert "held back the first tokens" in remark
    assert "--quick-ack" in remark
    assert "held back the first tokens" in measured.said

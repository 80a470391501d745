"""The embedded target as its users meet it: real processes, real NIXL, real sockets."""

import http.client
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from kvgauge.evidence import proof
from kvgauge.evidence.facts import Missing
from kvgauge.evidence.proof import cell_troubles
from kvgauge.failures import TargetError
from kvgauge.load.drive import Driver
from kvgauge.models import MODELS, transfer_bytes
from scene import children_of, held_blocks, make_cell, make_test

pytestmark = pytest.mark.nixl


def post(endpoint, body, path="/v1/completions", timeout=60):
    host = endpoint.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=timeout)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def get(endpoint, path):
    connection = http.client.HTTPConnection(endpoint.url.removeprefix("http://"), timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def moves(target, count, seconds=10):
    found, until = [], time.monotonic() + seconds
    while len(found) < count and time.monotonic() < until:
        found += target.phases()
        time.sleep(0.02)
    return found


COMBINATIONS = [
    ("UCX", "Qwen3-0.6B", 1, 1, "READ", "1.5.0"),
    ("LIBFABRIC", "Qwen3-0.6B", 1, 1, "READ", "1.5.0"),
    ("UCX", "Qwen3-0.6B", 1, 1, "WRITE", "1.2.0"),
    ("LIBFABRIC", "Qwen3-0.6B", 1, 1, "WRITE", "1.4.1"),
    ("UCX", "Llama-3.1-70B", 8, 8, "READ", "1.5.0"),
    ("LIBFABRIC", "Llama-3.1-70B", 8, 8, "READ", "1.5.0"),
    ("UCX", "Llama-3.1-8B", 2, 4, "READ", "1.2.0"),
    ("LIBFABRIC", "Llama-3.1-8B", 4, 2, "READ", "1.4.1"),
    ("UCX", "Qwen3-0.6B", 16, 8, "READ", "1.5.0"),
    ("UCX", "DeepSeek-V3", 2, 4, "WRITE", "1.5.0"),
]


@pytest.mark.parametrize(("backend", "model", "prefill_tp", "decode_tp", "operation", "build"), COMBINATIONS)
def test_every_byte_of_a_request_arrives_and_is_proved(
    embedded, backend, model, prefill_tp, decode_tp, operation, build
):
    test = make_test(
        backend=backend, model=model, prefill_tp=prefill_tp, decode_tp=decode_tp, operation=operation, build=build,
        full_check=True,
    )  # fmt: skip
    target, endpoint = embedded(test, make_cell(concurrency=1), compute=0.1)
    for prompt in ("Hello", list(range(64))):
        status, raw = post(endpoint, {"prompt": prompt, "max_tokens": 3})
        assert status == 200, raw
    found = moves(target, 2)
    assert [move.failure for move in found] == [None, None]
    for move, tokens in zip(found, (1, 64), strict=True):
        expected = transfer_bytes(MODELS[model], "bf16", tokens, decode_tp)
        assert move.bytes_expected == move.bytes_listed == move.bytes_moved == expected
        assert move.pieces == move.descriptors > 0
        assert move.operation == operation
        assert move.posted_ns < move.transferred_ns
    evidence = target.evidence()
    assert proof.contradictions(test, evidence, found) == []
    assert evidence.backends == {backend: 2}
    assert any(name.startswith("tcp") for name in evidence.providers)
    assert len(evidence.connections) == len({(c.initiator, c.peer) for c in evidence.connections}) > 0


def test_libfabric_counts_its_handshakes_since_1_4_and_says_why_not_before(embedded):
    target, endpoint = embedded(make_test(backend="LIBFABRIC"), compute=0)
    post(endpoint, {"prompt": "Hello", "max_tokens": 1})
    moves(target, 1)
    assert target.evidence().handshakes_nixl == 2  # one on each side
    target, endpoint = embedded(make_test(backend="LIBFABRIC", build="1.2.0"), compute=0)
    post(endpoint, {"prompt": "Hello", "max_tokens": 1})
    count = target.evidence().handshakes_nixl
    assert isinstance(count, Missing)
    assert "1.4.0" in count.reason


def test_the_driver_gets_phases_that_explain_its_ttft(embedded):
    cell = make_cell(load="single", concurrency=1, requests=6, input_tokens=512, warmup_requests=2)
    _target, endpoint = embedded(make_test(), cell)
    exchanges = []
    with Driver(endpoint.url, endpoint.model, host="h") as driver:
        driver.run_cell(cell, run_id="r", seed=1, on_exchange=exchanges.append)
    good = [e for e in exchanges if not e.warmup]
    assert [e.failure for e in good] == [None] * 6
    explained = sum(e.phases.written_ns - e.phases.received_ns for e in good) / sum(e.ttft_ns for e in good)
    assert 0.95 < explained <= 1.0
    for exchange in good:
        phases = exchange.phases
        moments = [
            exchange.sent_ns, phases.received_ns, phases.prefill_start_ns, phases.prefill_end_ns, phases.posted_ns,
            phases.transferred_ns, phases.first_token_ns, phases.written_ns, exchange.arrivals_ns[0],
        ]  # fmt: skip
        assert moments[1:] == sorted(moments[1:])
        assert moments[0] <= moments[-1]
        assert (exchange.tokens_in, exchange.tokens_out, len(exchange.arrivals_ns)) == (512, 8, 8)


def test_the_same_prompt_gives_the_same_answer_however_it_is_asked(embedded):
    _target, endpoint = embedded(make_test(), compute=0)
    body = {"prompt": "Explain AI", "max_tokens": 9}
    whole = json.loads(post(endpoint, body)[1])
    _, raw = post(endpoint, {**body, "stream": True})
    streamed = [json.loads(line[6:]) for line in raw.decode().split("\n\n") if line and line != "data: [DONE]"]
    assert "".join(event["choices"][0]["text"] for event in streamed) == whole["choices"][0]["text"]
    assert whole["usage"] == {"prompt_tokens": 2, "completion_tokens": 9, "total_tokens": 11}
    assert whole["kvgauge"]["phases"]["transferred_ns"] > 0
    other = json.loads(post(endpoint, {"prompt": "Explain IA", "max_tokens": 9})[1])
    assert other["choices"][0]["text"] != whole["choices"][0]["text"]


def test_chat_models_health_metrics_and_errors_look_like_openais(embedded):
    _target, endpoint = embedded(make_test(), compute=0)
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "model": endpoint.model}
    answer = json.loads(post(endpoint, chat, "/v1/chat/completions")[1])
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert json.loads(get(endpoint, "/v1/models")[1])["data"][0]["id"] == "Qwen3-0.6B"
    assert get(endpoint, "/health")[0] == 200
    metrics = get(endpoint, "/metrics")[1].decode()
    assert 'vllm:request_success_total{model_name="Qwen3-0.6B"} 1' in metrics
    assert 'vllm:nixl_bytes_transferred_count{model_name="Qwen3-0.6B"} 1' in metrics
    for body, status in (({"prompt": "x", "model": "nope"}, 404), ({"prompt": "x", "max_tokens": 10**6}, 400)):
        got, raw = post(endpoint, body)
        assert got == status
        assert json.loads(raw)["error"]["code"] == status
    assert get(endpoint, "/nowhere")[0] == 404


def test_more_requests_than_the_pool_holds_wait_and_none_fails(embedded):
    tiny = make_cell(concurrency=1, input_tokens=512)
    target, endpoint = embedded(make_test(), tiny, compute=0.1)
    many = make_cell(load="wave", concurrency=12, requests=12, input_tokens=512, warmup_requests=0)
    exchanges = []
    with Driver(endpoint.url, endpoint.model, host="h") as driver:
        driver.run_cell(many, run_id="r", seed=1, on_exchange=exchanges.append)
    assert [e.failure for e in exchanges] == [None] * 12
    found = moves(target, 12)
    assert len(found) == 12
    needed = 12 * (512 + many.output_tokens) // 16
    assert needed > 3 * target._reports()["decode-0"].blocks_total  # it was full indeed
    queued = [e.phases.posted_ns - e.phases.prefill_end_ns for e in exchanges]
    assert max(queued) > 2 * min(queued)  # and what the answers say of their phases shows who waited
    assert held_blocks(target) == {}
    assert proof.contradictions(make_test(), target.evidence(), found, exchanges) == []
    status, raw = post(endpoint, {"prompt": [1] * 5000, "max_tokens": 1})
    assert status == 400, "one that could never be admitted is refused, it does not wait"
    assert b"5,000" in raw or b"5000" in raw or b"5001" in raw


@pytest.mark.parametrize("backend", ["UCX", "LIBFABRIC"])
@pytest.mark.parametrize("operation", ["READ", "WRITE"])
def test_a_client_that_leaves_frees_its_blocks_and_the_others_finish(embedded, operation, backend):
    cell = make_cell(concurrency=4, input_tokens=256, output_tokens=400)
    target, endpoint = embedded(make_test(operation=operation, backend=backend), cell)
    host, port = endpoint.url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": list(range(256)), "max_tokens": 400, "stream": True})
    stays = http.client.HTTPConnection(host, int(port), timeout=20)
    stays.request("POST", "/v1/completions", body)
    for pause in (0.0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.3):
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        connection.request("POST", "/v1/completions", body)
        time.sleep(pause)
        connection.close()
    assert post(endpoint, {"prompt": "Hello", "max_tokens": 4})[0] == 200
    streamed = stays.getresponse().read().decode()
    assert streamed.count('"text"') >= 400
    assert streamed.endswith("data: [DONE]\n\n")
    assert held_blocks(target, seconds=20) == {}
    assert not [move.failure for move in target.phases() if move.pieces_wrong]
    counted = get(endpoint, "/metrics")[1].decode()
    assert 'kvgauge:request_aborted_total{model_name="Qwen3-0.6B"} 8' in counted


def test_nixls_own_progress_thread_can_be_switched_on(embedded):
    target, endpoint = embedded(make_test(progress_thread=True, backend="LIBFABRIC"), compute=0)
    assert post(endpoint, {"prompt": [1] * 64, "max_tokens": 2})[0] == 200
    assert [move.failure for move in moves(target, 1)] == [None]


def test_several_workers_on_each_side_all_carry_requests(embedded):
    target, endpoint = embedded(make_test(prefill_workers=2, decode_workers=2), compute=0.1)
    for index in range(6):
        assert post(endpoint, {"prompt": [index] * 40, "max_tokens": 2})[0] == 200
    found = moves(target, 6)
    assert {(m.prefill_worker, m.decode_worker) for m in found} == {(0, 0), (1, 0), (0, 1), (1, 1)}


def test_a_killed_worker_is_named_and_nothing_is_left_behind(embedded):
    target, _endpoint = embedded(make_test())
    pids = target.pids()
    os.kill(pids["decode-0"], signal.SIGKILL)
    until = time.monotonic() + 5
    while target.trouble() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert "decode-0 was killed by signal 9" in target.trouble()
    with pytest.raises(TargetError, match="decode-0"):
        target.evidence()
    target.stop()
    assert not [pid for name, pid in pids.items() if name != "client" and Path(f"/proc/{pid}").exists()]


def test_a_port_in_use_is_one_clear_error(embedded):
    _target, endpoint = embedded(make_test(), kv=False)
    port = int(endpoint.url.rsplit(":", 1)[1])
    before = children_of(os.getpid())
    with pytest.raises(TargetError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another"):
        embedded(make_test(), kv=False, port=port)
    assert children_of(os.getpid()) == before
    assert post(endpoint, {"prompt": "Hello", "max_tokens": 2})[0] == 200


def test_a_fabric_this_target_cannot_use_is_refused_before_anything_starts(embedded):
    with pytest.raises(TargetError, match="fabric 'efa' needs real workers"):
        embedded(make_test(fabric="efa"))


def test_the_stack_listens_on_loopback_only(embedded):
    _target, endpoint = embedded(make_test(), kv=False)
    port = int(endpoint.url.rsplit(":", 1)[1])
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if line.split()[3] == "0A"]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_without_kv_and_compute_streams_carry_one_event_a_token(embedded):
    cell = make_cell(concurrency=16, requests=64, output_tokens=64, input_tokens=16, warmup_requests=0)
    _target, endpoint = embedded(make_test(), cell, kv=False, compute=0)
    exchanges = []
    with Driver(endpoint.url, endpoint.model, host="h") as driver:
        driver.run_cell(cell, run_id="r", seed=1, on_exchange=exchanges.append)
    assert {(e.failure, len(e.arrivals_ns), e.tokens_out) for e in exchanges} == {(None, 64, 64)}


def test_a_second_target_beside_the_first_does_not_disturb_it(embedded):
    (_a, one), (_b, two) = embedded(make_test(), compute=0), embedded(make_test(backend="LIBFABRIC"), compute=0)
    answers = {}

    def ask(name, endpoint):
        answers[name] = [post(endpoint, {"prompt": [i] * 64, "max_tokens": 2})[0] for i in range(4)]

    threads = [threading.Thread(target=ask, args=pair) for pair in (("one", one), ("two", two))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {"one": [200] * 4, "two": [200] * 4}


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
@pytest.mark.parametrize("backend", ["UCX", "LIBFABRIC"])
def test_transfers_past_their_deadline_fail_alone_blame_nobody_and_give_their_blocks_back(embedded, backend, operation):
    test = make_test(backend=backend, operation=operation)
    cell = make_cell(load="wave", concurrency=8, requests=16, input_tokens=512, output_tokens=4, warmup_requests=0)
    target, endpoint = embedded(test, cell, transfer_timeout_s=0.06)
    exchanges = []
    with Driver(endpoint.url, endpoint.model, host="h") as driver:
        driver.run_cell(cell, run_id="r", seed=1, on_exchange=exchanges.append)
    failed = [e for e in exchanges if e.failure]
    assert failed, "the time limit was meant to be too short for eight at once"
    assert {e.failure for e in failed} == {"status"}
    assert all("past its deadline" in e.detail for e in failed)
    assert held_blocks(target, seconds=20) == {}
    assert post(endpoint, {"prompt": "Hello", "max_tokens": 2})[0] == 200  # alone it is in time
    found = target.phases()
    assert not [move for move in found if move.pieces_wrong]
    told = [move.failure for move in found if move.failure]
    assert all("past its deadline" in failure for failure in told)
    reasons = proof.contradictions(test, target.evidence(), found)
    assert not [reason for reason in reasons if "carried otherwise" in reason], reasons
    failures = proof.cell_troubles(cell, exchanges)
    assert any(f"{len(failed)} of 16 requests" in line and "past its deadline" in line for line in failures), failures


@pytest.mark.parametrize("changes", [{"stream": False}, {"shared_prefix_tokens": 40, "prefixes": 2}, {}])
def test_text_over_chat_reaches_the_target_as_long_as_it_was_meant(embedded, changes):
    cell = make_cell(api="chat", prompt_kind="text", requests=4, input_tokens=64, **changes)
    target, endpoint = embedded(make_test(), cell, compute=0)
    exchanges = []
    with Driver(endpoint.url, endpoint.model, host="h") as driver:
        driver.run_cell(cell, run_id="r", seed=1, on_exchange=exchanges.append)
    assert [e.failure for e in exchanges] == [None] * 5
    assert {(e.tokens_in, e.tokens_out) for e in exchanges} == {(66, 8)}, "the frontend writes the role before it"
    assert cell_troubles(cell, exchanges) == []
    assert len(moves(target, 5)) == 5

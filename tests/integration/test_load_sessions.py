"""Conversations of three turns: against a server that plays vLLM, and against our own frontend and workers."""

import json
import socket
import statistics
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from integration.test_load_driver import DONE, END, HEAD, Server, framed, offer, plain, usage
from integration.test_load_requests import TEMPLATE, bodies, vllm
from kvgauge.evidence.proof import cell_troubles
from kvgauge.load.drive import Driver
from kvgauge.plan.records import Conversation
from kvgauge.samples.read import load_exchanges
from kvgauge.stats.held_back import held_back
from kvgauge.stats.turns import turn_metrics, turn_troubles
from scene import make_cell, make_test

THREE = Conversation(turns=3, delay_ms=20)
CHAT = {
    "api": "chat", "prompt_kind": "text", "prompt": None, "input_tokens": 30, "output_tokens": 4, "concurrency": 2,
    "sessions": 4, "requests": 12, "conversation": THREE,
}  # fmt: skip


def by_session(exchanges):
    found = {}
    for exchange in exchanges:
        found.setdefault(exchange.session, []).append(exchange)
    return found


def test_a_chat_of_three_turns_holds_the_models_answers_and_waits_its_delay():
    with Server(vllm) as server:
        load, exchanges = offer(server.url, {**CHAT, "warmup_requests": 2})
        sent = bodies(server)
        questions = sum(b"/v1/c" not in request[:40] for request in server.requests)
        assert server.connections == 2 + questions, "a session keeps its slot, and its connection"
    assert [each.failure for each in exchanges] == [None] * 14
    assert (load.offered, load.warmups) == (12, 2)
    assert (load.sessions.begun, load.sessions.whole) == (4, 4)
    talks = by_session(exchanges)
    assert sorted(talks) == [0, 1, 2, 3, 4, 5], "warm-up first"
    for session in (2, 3, 4, 5):
        first, second, third = talks[session]
        assert [each.turn for each in talks[session]] == [1, 2, 3]
        assert first.slot == second.slot == third.slot
        assert second.due_ns >= first.done_ns + 20_000_000
        assert third.due_ns >= second.done_ns + 20_000_000
        grown = 30 + 4 * 0 + 1 + 2 * TEMPLATE  # the answer "aaaa" is one word to this server
        assert [each.tokens_in for each in talks[session]] == [30, 30 + grown, 30 + 2 * grown]
    longest = [body["messages"] for body in sent if len(body["messages"]) == 5]
    assert len(longest) == 4
    assert all([m["role"] for m in said] == ["user", "assistant"] * 2 + ["user"] for said in longest)
    assert {said[1]["content"] for said in longest} == {"aaaa"}
    cell = make_cell(**CHAT)
    measured = [each for each in exchanges if not each.warmup]
    assert cell_troubles(cell, measured) + turn_troubles(measured) == []
    assert turn_metrics(cell, exchanges, load)["input_tokens_turn_3_mean"].point > 90


@pytest.mark.parametrize("stream", [True, False])
def test_over_completions_the_answer_stands_in_the_next_prompt_streamed_or_not(stream):
    with Server(vllm) as server:
        offer(
            server.url, {**CHAT, "api": "completions", "sessions": 1, "requests": 3, "concurrency": 1, "stream": stream}
        )
        first, second, third = [body["prompt"] for body in bodies(server)]
    said = "aaaa" if stream else "hi"
    assert second.startswith(f"{first}\n{said}\n")
    assert third.startswith(f"{second}\n{said}\n")


def test_a_turn_that_fails_ends_its_session_and_the_others_go_on():
    def answer(sock, nth, request):
        if b"/v1/models" in request[:60]:
            return sock.sendall(plain(200, b'{"data":[{"id":"m"}]}'))
        messages = json.loads(request.partition(b"\r\n\r\n")[2]).get("messages", ())
        if len(messages) == 3 and answer.failed < 1:
            answer.failed += 1
            return sock.sendall(HEAD + framed({"error": {"message": "out of blocks"}}) + DONE + END)
        return vllm(sock, nth, request)

    answer.failed = 0
    with Server(answer) as server:
        load, exchanges = offer(server.url, CHAT)
    assert (load.sessions.begun, load.sessions.whole, load.sessions.failed) == (4, 3, 1)
    assert sorted(len(talk) for talk in by_session(exchanges).values()) == [2, 3, 3, 3]
    [failed] = [each for each in exchanges if each.failure]
    assert (failed.turn, failed.failure, failed.detail) == (2, "error_event", "out of blocks")


def test_a_session_ends_before_the_models_context_is_full():
    def answer(sock, nth, request):
        if b"GET /v1/models" in request[:60]:
            return sock.sendall(plain(200, b'{"data":[{"id":"m","max_model_len":110}]}'))
        return vllm(sock, nth, request)

    with Server(answer) as server:
        load, exchanges = offer(server.url, CHAT)
    assert (load.sessions.whole, load.sessions.full, load.failed) == (0, 4, 0)
    assert {each.turn for each in exchanges} == {1, 2}


def test_sessions_of_an_open_load_arrive_by_the_clock_whatever_their_turns_do():
    with Server(vllm) as server:
        load, exchanges = offer(
            server.url, {**CHAT, "load": "constant", "rate": 20.0, "concurrency": 16, "sessions": 6, "requests": 18}
        )
    firsts = sorted(each.due_ns for each in exchanges if each.turn == 1)
    assert [after - before for before, after in pairwise(firsts)] == [50_000_000] * 5
    assert (load.sessions.whole, load.open.queued, load.offered) == (6, 0, 18)


def test_stopped_in_the_middle_sessions_are_cut_and_nothing_is_left_under_way():
    with Server(vllm) as server:
        load, exchanges = offer(
            server.url, {**CHAT, "sessions": 40, "requests": 120}, stop=lambda: len(server.requests) > 8
        )
    assert load.interrupted
    assert load.sessions.begun == load.sessions.whole + load.sessions.cut
    assert len(exchanges) == load.offered


@pytest.mark.nixl
def test_a_chat_of_three_turns_on_our_own_stack_moves_the_kv_of_its_whole_history(embedded):
    cell = make_cell(
        **{**CHAT, "input_tokens": 64, "output_tokens": 8, "sessions": 3, "requests": 9, "warmup_requests": 1}
    )
    target, endpoint = embedded(make_test(), cell)
    exchanges = []
    with Driver(endpoint.url, endpoint.model, host="h") as driver:
        load = driver.run_cell(cell, run_id="r", seed=1, on_exchange=exchanges.append)
    measured = [each for each in exchanges if not each.warmup]
    assert [each.failure for each in measured] == [None] * 9
    assert load.sessions.whole == 3
    assert cell_troubles(cell, measured) + turn_troubles(measured) == []
    for talk in by_session(sorted(measured, key=lambda each: each.seq)).values():
        first, second, third = (each.tokens_in for each in talk)
        assert second - first == third - second == 64 + 8 + 4, "two roles and their colons with each turn"
    moved, until = {}, time.monotonic() + 5
    while len(moved) < len(exchanges) and time.monotonic() < until:
        moved |= {move.request_id: move for move in target.phases()}
        time.sleep(0.02)
    assert {moved[each.request_id].prompt_tokens for each in measured} == {each.tokens_in for each in measured}
    assert not any(move.pieces_wrong or move.failure for move in moved.values())


def test_from_flags_to_results_a_conversation_and_a_dataset_too_short_for_its_cells(tmp_path):
    talk = [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}, {"from": "human", "value": "d e f"}]
    (tmp_path / "d.json").write_text(json.dumps([{"conversations": talk}] * 5))
    with Server(vllm) as server:
        done = subprocess.run(
            [sys.executable, "-m", "kvgauge", "load", "--url", server.url, "--endpoint-type", "chat", "--dataset", "d.json",
             "--conversation-num", "3", "--conversation-history", "recorded", "--osl", "3", "--concurrency", "1,2",
             "--warmup-request-count", "0", "--quick-ack", "--out", "out"],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        sent = bodies(server)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    cells = {each["cell"]: each for each in results["tests"][0]["runs"] if each["cell"]}
    first, second = cells.values()
    assert first["metrics"]["prompts_repeated"]["point"] == 0
    assert second["metrics"]["prompts_repeated"]["point"] == 1
    assert first["remarks"] == []
    assert "prompts repeated: 1 of 3" in second["remarks"][0]
    assert "prompts repeated: 1 of 3" in done.stdout
    assert results["plan"]["quick_ack"] is True
    assert first["metrics"]["sessions"]["point"] == 3
    assert "sessions: 3 answered to the end" in done.stdout
    assert {body["messages"][1]["content"] for body in sent if len(body["messages"]) == 3} == {"c"}
    kept = load_exchanges(next((tmp_path / "out/runs").iterdir()))
    assert {(each.session, each.turn) for each in kept} == {(session, turn) for session in range(3) for turn in (1, 2)}
    assert all(each.first_byte_ns <= each.arrivals_ns[0] for each in kept)


HELD_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def nagle(sock, nth, request):
    """Many small writes, as a server makes them that never heard of TCP_NODELAY."""
    if nth == 0:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    time.sleep(0.01)
    sock.sendall(HELD_HEAD)
    for _ in range(24):
        sock.sendall(framed({"choices": [{"text": "a"}]}))
        time.sleep(0.004)
    sock.sendall(usage(24) + DONE + END)


def test_an_answer_on_a_kept_connection_waits_for_our_acknowledgement_unless_it_is_quick():
    """Whether a remark follows depends on how quiet the machine is: test_stats_held_back.py, and the engine tests."""
    medians_ms = {}
    for quick_ack in (False, True):
        with Server(nagle) as server:
            _, exchanges = offer(
                server.url, {"requests": 10, "output_tokens": 24, "warmup_requests": 1}, quick_ack=quick_ack
            )
        gaps_ms = [(each.arrivals_ns[0] - each.first_byte_ns) / 1e6 for each in exchanges if not each.warmup]
        medians_ms[quick_ack] = statistics.median(gaps_ms)
    print(f"\nfirst byte to first content, ms, by quick_ack: {medians_ms}")
    assert medians_ms[False] > 3 * medians_ms[True]
    assert held_back(exchanges) is None

"""What requests ask for, against a server on 127.0.0.1 that plays vLLM, and through the command line."""

import json
import os
import subprocess
import sys
import time

import pytest

from integration.test_load_driver import DONE, END, HEAD, Server, framed, offer, plain, text
from kvgauge.evidence.proof import cell_troubles
from kvgauge.plan.dataset import parse, summary
from kvgauge.plan.records import Cell
from scene import make_cell

KEY = "sk-0123456789-never-written-down"
TEMPLATE = 11


def vllm(sock, nth, request):
    """Counts one token a word, and TEMPLATE for a chat message; says what an OpenAI server says."""
    head, _, raw = request.partition(b"\r\n\r\n")
    path = head.split(b" ")[1]
    if path == b"/metrics":
        return sock.sendall(plain(404, b"{}"))
    if path == b"/v1/models":
        return sock.sendall(plain(200, b'{"data":[{"id":"m"}]}'))
    body = json.loads(raw)
    given = body["prompt"] if "prompt" in body else " ".join(message["content"] for message in body["messages"])
    count = len(given.split()) if isinstance(given, str) else len(given)
    count += TEMPLATE * len(body.get("messages", ()))
    if path == b"/tokenize":
        return sock.sendall(plain(200, json.dumps({"count": count, "max_model_len": 4096, "tokens": []}).encode()))
    if b"echo-key" in raw:
        return sock.sendall(plain(401, json.dumps({"error": {"message": f"bad key {head.decode()}"}}).encode()))
    time.sleep(0.05)  # long beside what a busy machine adds, which would make a cell invalid
    usage = {"prompt_tokens": count, "completion_tokens": body["max_tokens"]}
    if not body.get("stream"):
        choice = {"message": {"content": "hi"}} if "messages" in body else {"text": "hi"}
        return sock.sendall(plain(200, json.dumps({"choices": [choice], "usage": usage}).encode()))
    words = b"".join(text("a") for _ in range(body["max_tokens"]))
    if "messages" in body:
        words = b"".join(framed({"choices": [{"delta": {"content": "a"}}]}) for _ in range(body["max_tokens"]))
    return sock.sendall(HEAD + words + framed({"choices": [], "usage": usage}) + DONE + END)


def without_tokenize(sock, nth, request):
    if request.startswith(b"POST /tokenize"):
        return sock.sendall(plain(404, b'{"detail":"Not Found"}'))
    return vllm(sock, nth, request)


def bodies(server):
    return [json.loads(request.partition(b"\r\n\r\n")[2]) for request in server.requests if b"/v1/c" in request[:40]]


CHAT = {"api": "chat", "prompt_kind": "text", "prompt": None, "input_tokens": 100, "requests": 6}


@pytest.mark.parametrize("stream", [True, False])
def test_chat_prompts_have_the_length_asked_for_where_the_server_counts_for_us(stream):
    with Server(vllm) as server:
        _, exchanges = offer(server.url, {**CHAT, "stream": stream})
        assert {len(body["messages"][0]["content"].split()) for body in bodies(server)} == {100 - TEMPLATE}
    assert [(each.failure, each.tokens_in) for each in exchanges] == [(None, 100)] * 6
    assert len({body["messages"][0]["content"] for body in bodies(server)}) == 6


def test_without_tokenize_it_is_asked_once_and_usage_shows_what_the_template_added():
    with Server(without_tokenize) as server:
        _, exchanges = offer(server.url, CHAT)
        assert sum(request.startswith(b"POST /tokenize") for request in server.requests) == 1
    assert {each.tokens_in for each in exchanges} == {100 + TEMPLATE}
    which = make_cell(**{"output_tokens": 2, **CHAT})
    assert cell_troubles(which, exchanges) == []
    far = make_cell(**{"output_tokens": 2, **CHAT, "api": "completions"})
    assert "more than 2%" in cell_troubles(far, exchanges)[0]


def test_token_ids_and_literal_prompts_ask_nobody_how_long_they_are():
    with Server(vllm) as server:
        offer(server.url, {"prompt": None, "input_tokens": 9})
        offer(server.url)
        assert not any(request.startswith(b"POST /tokenize") for request in server.requests)


def test_a_dataset_is_sent_in_turn_with_its_answer_lengths():
    prompts = parse(b'{"prompt": "a b c", "output_tokens": 3}\n{"prompt": "d"}', "d")
    which = Cell(
        name="c", load="closed", concurrency=1, requests=4, output_tokens=2, warmup_requests=0,
        dataset=summary("d", "", prompts),
    )  # fmt: skip
    from kvgauge.load.drive import Driver

    exchanges = []
    with Server(vllm) as server, Driver(server.url, "m", host="h") as driver:
        driver.run_cell(which, run_id="r", seed=1, on_exchange=exchanges.append, requests=prompts)
    found = [(each.tokens_in, each.tokens_out) for each in sorted(exchanges, key=lambda each: each.seq)]
    assert found == [(3, 3), (1, 2), (3, 3), (1, 2)]
    assert cell_troubles(which, exchanges, prompts) == []


PLAN = """
name: url
repetitions: 1
primary: {metric: e2e_latency_ms_mean, cell: chat}
goodput: {e2e_latency_ms: 60000}
tests: [{name: A, backend: UCX, fabric: tcp, model: Qwen3-0.6B, build: 1.5.0}]
cells:
  - {name: chat, load: closed, concurrency: 2, requests: 4, input_tokens: 50, output_tokens: 3, api: chat, stream: false}
  - {name: prefix, load: closed, concurrency: 2, requests: 4, input_tokens: 50, output_tokens: 3, shared_prefix_tokens: 40}
  - {name: file, load: closed, concurrency: 1, requests: 2, output_tokens: 3, dataset: d.json}
  - {name: refused, load: closed, concurrency: 1, requests: 2, prompt: Hello, output_tokens: 3, extra_body: {echo-key: 1}}
"""


def run(folder, *arguments, **environment):
    (folder / "plan.yaml").write_text(PLAN)
    (folder / "d.json").write_text('[{"conversations": [{"from": "human", "value": "Hi"}]}]')
    return subprocess.run(
        [sys.executable, "-m", "kvgauge", "run", "plan.yaml", "--out", "out", *arguments], cwd=folder, capture_output=True,
        text=True, timeout=120, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_a_plan_of_many_kinds_of_requests_runs_and_its_key_is_on_the_wire_and_nowhere_else(tmp_path):
    with Server(vllm) as server:
        done = run(
            tmp_path, "--url", server.url, "--header", "X-Team: blue", "--api-key-env", "MY_KEY",
            MY_KEY=KEY, http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9", ALL_PROXY="http://127.0.0.1:9",
        )  # fmt: skip
        heads = [request.partition(b"\r\n\r\n")[0] for request in server.requests]
    heads = [head for head in heads if not head.startswith(b"GET /metrics")]  # asked without the key
    assert "Traceback" not in done.stderr
    assert done.returncode == 3, done.stderr  # the last cell is refused by the server
    assert heads
    assert all(f"Authorization: Bearer {KEY}".encode() in head and b"X-Team: blue" in head for head in heads)
    results = json.loads((tmp_path / "out/results.json").read_text())
    cells = {each["cell"]: each for each in results["tests"][0]["runs"]}
    assert {name: each["reasons"] for name, each in cells.items() if name and each["status"] != "valid"}.keys() == {
        "refused"
    }
    assert cells["refused"]["status"] == "failed"
    assert "HTTP 401: bad key" in cells["refused"]["reasons"][0]
    chat = cells["chat"]["metrics"]
    assert chat["input_tokens_mean"]["point"] == 50
    assert chat["goodput_share_pct"]["point"] == 100
    assert chat["ttft_ms_mean"]["point"] is None
    assert "not streamed" in chat["ttft_ms_mean"]["reason"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if KEY.encode() in path.read_bytes() or KEY[:20].encode() in path.read_bytes()] == []
    assert KEY[:20] not in done.stdout + done.stderr
    assert "MY_KEY" in (tmp_path / "out/conditions.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--url", "http://127.0.0.1:1", "--api-key-env", "NOWHERE_TO_BE_SEEN"], "is not set"),
        (["--url", "http://127.0.0.1:1", "--header", "Authorization: x"], "--header-env"),
        (["--api-key-env", "PATH"], "go with --url"),
    ],
)
def test_headers_that_cannot_be_sent_are_one_line_and_exit_code_2(tmp_path, arguments, word):
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert word in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

"""Servers that send no usage, and what is counted then."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from integration.test_load_driver import DONE, END, HEAD, Server, framed, offer, plain
from integration.test_load_requests import TEMPLATE, vllm
from kvgauge.load.how_many import HowMany
from kvgauge.load.team import Team
from kvgauge.load.texts import Said, Texts
from kvgauge.samples.read import load_exchanges
from kvgauge.tokens import choose, qwen
from kvgauge.tokens.choose import Chosen
from scene import make_cell
from unit.test_tokens import tokenizer_json

PIECES = ("Hello", " there, how", " are you today? naïve", " \U0001f600 1234")  # several tokens an event
TOKENS = qwen.tokenizer().count("".join(PIECES))
THOUGHT = "Let me think"


def without_usage(sock, nth, request):
    path = request.split(b" ")[1]
    if path == b"/v1/models":
        return sock.sendall(plain(200, b'{"data":[{"id":"served"}]}'))
    if not path.startswith(b"/v1/c"):
        return sock.sendall(plain(404, b"{}"))
    time.sleep(0.05)  # long beside what a busy machine adds, which would make a cell invalid
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    chat = "messages" in body
    if not body.get("stream"):
        said = {"message": {"content": "".join(PIECES)}} if chat else {"text": "".join(PIECES)}
        return sock.sendall(plain(200, json.dumps({"choices": [said]}).encode()))
    events = [framed({"choices": [{"delta": {"content": each}} if chat else {"text": each}]}) for each in PIECES]
    if chat:
        events.insert(0, framed({"choices": [{"delta": {"reasoning_content": THOUGHT}}]}))
    return sock.sendall(HEAD + b"".join(events) + DONE + END)


PLAN = """
name: no usage
repetitions: 1
primary: {metric: output_token_throughput_tok_s, cell: text}
goodput: {tpot_ms: 60000}
tests: [{name: A, backend: UCX, fabric: tcp, model: %s, build: 1.5.0, tokenizer: %s}]
defaults: {gpu: H100}
cells:
  - {name: text, load: closed, concurrency: 2, requests: 4, input_tokens: 50, output_tokens: 30}
  - {name: chat, load: closed, concurrency: 2, requests: 4, input_tokens: 50, output_tokens: 30, api: chat}
  - {name: whole, load: closed, concurrency: 1, requests: 2, input_tokens: 50, output_tokens: 30, stream: false}
"""


def run(folder, model, tokenizer="null"):
    (folder / "plan.yaml").write_text(PLAN % (model, tokenizer))
    with Server(without_usage) as server:
        done = subprocess.run(
            [sys.executable, "-m", "kvgauge", "run", "plan.yaml", "--out", "out", "--url", server.url,
             "--metrics-interval", "0"],
            cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "out/results.json").read_text())
    return done, {each["cell"]: each["metrics"] for each in results["tests"][0]["runs"]}


def test_answers_without_usage_are_counted_after_the_run_by_the_tokenizer_and_say_so(tmp_path):
    done, cells = run(tmp_path, "Qwen3-0.6B")
    thought = qwen.tokenizer().count(THOUGHT)
    for name, tokens in (("text", TOKENS), ("chat", TOKENS + thought), ("whole", TOKENS)):
        throughput = cells[name]["output_token_throughput_tok_s"]
        assert throughput["point"] / cells[name]["request_throughput_req_s"]["point"] == pytest.approx(tokens)
        assert "by Qwen3 (bundled)" in throughput["note"]
        assert "estimate" not in throughput["note"]
        assert cells[name]["output_tokens_mean"]["point"] == tokens
        assert cells[name]["input_tokens_mean"]["point"] == (None if name == "chat" else 50)
    assert cells["text"]["tpot_ms_mean"]["note"] is not None
    assert cells["text"]["goodput_share_pct"]["point"] == 100
    assert cells["text"]["ttft_ms_mean"]["note"] is None
    assert "counted from their text by Qwen3 (bundled)" in " ".join(done.stdout.split())
    [folder] = (tmp_path / "out/runs").iterdir()
    exchanges = [each for each in load_exchanges(folder) if each.cell == "text"]
    assert {each.tokens_in for each in exchanges} == {50}
    assert {(each.tokens_out, each.tokens_source, each.tokenizer, each.tokenizer_stands_in) for each in exchanges} == {
        (TOKENS, "tokenizer", qwen.NAME, False)
    }
    assert "Hello" not in "".join(path.name for path in folder.iterdir())
    assert not [path for path in folder.iterdir() if b"how are you" in path.read_bytes()]


def test_a_tokenizer_of_the_users_own_counts_answers_and_the_prompts_that_were_given(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/tokenizer.json").write_bytes(tokenizer_json())
    plan = PLAN.replace("input_tokens: 50", "prompt: the word")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "PLAN", plan)
        _, cells = run(tmp_path, "Llama-3.1-8B", "mine")
    mine = choose.given(tokenizer_json(), "x").tokenizer
    found = cells["text"]["output_tokens_mean"]
    assert found["point"] == mine.count("".join(PIECES)) != TOKENS
    assert found["note"].endswith("by mine/tokenizer.json")
    assert cells["text"]["input_tokens_mean"]["point"] == mine.count("the word") == 6


def short_words(text):
    return sum(1 if len(word) < 6 else 2 for word in text.split())


def test_prompts_are_made_of_words_that_the_given_tokenizer_knows_and_leave_room_for_its_start_token():
    """A server that adds a start token, offers no /tokenize, and knows no word of 6 letters or more."""
    fake = SimpleNamespace(count=short_words, size=3_000)
    chosen = Chosen(tokenizer=fake, name="fake", stands_in=False, around=1)
    made = {"prompt": None, "prompt_kind": "text", "input_tokens": 40, "shared_prefix_tokens": 10, "requests": 4}
    with Server(without_usage) as server:
        offer(server.url, made, tokenizer=chosen)
        offer(server.url, {"prompt": None, "input_tokens": 40}, tokenizer=chosen)
        bodies = [json.loads(each.partition(b"\r\n\r\n")[2]) for each in server.requests if b"/v1/c" in each[:40]]
    texts, ids = [body["prompt"] for body in bodies[:4]], bodies[4]["prompt"]
    assert [short_words(text) for text in texts] == [39] * 4
    assert len(set(texts)) == 4
    assert len({tuple(text.split()[:10]) for text in texts}) == 1
    assert (len(ids), max(ids) < 3_000) == (40, True)


def test_the_servers_own_word_comes_before_the_tokenizers():
    chosen = Chosen(tokenizer=SimpleNamespace(count=short_words, size=3_000), name="fake", stands_in=False, around=1)
    with Server(vllm) as server:
        offer(server.url, {"prompt": None, "prompt_kind": "text", "input_tokens": 40, "api": "chat"}, tokenizer=chosen)
        sent = [json.loads(each.partition(b"\r\n\r\n")[2]) for each in server.requests if b"/v1/c" in each[:40]]
    assert [len(body["messages"][0]["content"].split()) for body in sent] == [40 - TEMPLATE]


def test_nothing_is_tokenized_while_requests_are_under_way(monkeypatch):
    def fails(*_):
        raise AssertionError("the hot path tokenizes")

    monkeypatch.setattr(qwen, "tokenizer", fails)
    with Server(without_usage) as server:
        _, exchanges = offer(server.url, {"requests": 3})
    assert {(each.tokens_source, each.tokens_out) for each in exchanges} == {("events", len(PIECES))}


def test_a_name_that_is_no_file_is_refused_in_one_line_that_says_what_to_do(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "kvgauge", "load", "--url", "http://127.0.0.1:1", "--tokenizer", "Qwen/Qwen3-0.6B"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--tokenizer: cannot read Qwen/Qwen3-0.6B" in done.stderr
    assert "downloads nothing" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_kept_texts_come_back_in_order_and_beyond_the_bound_nothing_is_kept(tmp_path):
    said = [Said(cell="c", seq=seq, texts=("a\nb", "\u2028é" * seq)) for seq in range(5)]
    with Texts(tmp_path) as texts:
        for each in said:
            texts.add(each)
        assert list(texts) == said
    with Texts(tmp_path, bytes_max=90) as few:
        for each in said:
            few.add(each)
        assert (few.kept, list(few)) == (len(list(few)), said[: few.kept])
        assert 0 < few.kept < 5
    assert list(tmp_path.iterdir()) == []


def test_what_load_workers_heard_without_usage_comes_to_the_conductor_once_each(tmp_path):
    said, exchanges = [], []
    two = HowMany(workers=2, why="asked for")
    cell = make_cell(concurrency=3, requests=7, warmup_requests=2, input_tokens=8, output_tokens=30)
    with (
        Server(without_usage) as server,
        Team(server.url, "m", host="here", decide=lambda _cell: two, folder=tmp_path, request_timeout_s=5) as team,
    ):
        load = team.run_cell(cell, run_id="r", seed=7, on_exchange=exchanges.append, keep_text=said.append)
    assert (load.workers, load.completed) == (2, 7)
    assert sorted(one.seq for one in said) == sorted(each.seq for each in exchanges) == list(range(9))
    assert {one.texts for one in said} == {("", "".join(PIECES))}

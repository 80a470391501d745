"""`kvgauge prove` against a small server that counts, or does not count, what it says it moved."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kvgauge.cli.main import main
from kvgauge.prove import run as prove_run

EACH = 64 * 114_688


class Server:
    """Answers as vLLM's decode would. skip: requests, by number, whose KV it does not move; down: answers 500."""

    def __init__(self, model="Qwen/Qwen3-0.6B", skip=(), down=False, text="yes"):
        self.model, self.skip, self.down, self.text = model, skip, down, text
        self.prompts, self.moved, self.greedy, self.posts = [], 0, 0, 0
        self.lock = threading.Lock()

    def metrics(self):
        done = len(self.prompts)
        return (
            f"vllm:request_success_total {done}\nvllm:generation_tokens_total {8 * done}\n"
            f"vllm:nixl_bytes_transferred_sum {self.moved}\nvllm:nixl_xfer_time_seconds_count {self.moved // EACH}\n"
        )

    def complete(self, asked):
        with self.lock:
            self.posts += 1
            if isinstance(asked["prompt"], str):
                self.greedy += 1
            else:
                number = len(self.prompts)
                self.prompts.append(tuple(asked["prompt"]))
                self.moved += 0 if number in self.skip else EACH
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": 8}
        text = self.text + (asked["prompt"].split()[0] if isinstance(asked["prompt"], str) else "")
        return {"id": "x", "choices": [{"index": 0, "text": text}], "usage": usage}


@contextmanager
def serving(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def reply(self, status, body, kind="application/json"):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            if self.path == "/metrics":
                self.reply(200, server.metrics().encode(), "text/plain")
            else:
                self.reply(200, json.dumps({"data": [{"id": server.model}]}).encode())

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if server.down:
                self.reply(500, b'{"error": {"message": "no workers"}}')
                return
            whole = server.complete(asked)
            if asked.get("stream"):
                body = b"data: " + json.dumps(whole).encode() + b"\n\ndata: [DONE]\n\n"
                self.reply(200, body, "text/event-stream")
            else:
                self.reply(200, json.dumps(whole).encode())

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        http.server_close()


@pytest.fixture(autouse=True)
def no_long_settling(monkeypatch):
    monkeypatch.setattr(prove_run, "SETTLE_STEP_S", 0.02)


def prove(url, *flags):
    return main(["prove", url, "--isl", "64", "--requests", "20", "--seconds", "15", *flags])


def test_a_server_that_moves_everything_is_proved_and_its_prompts_are_unique(tmp_path, capsys):
    server = Server()
    out = tmp_path / "proof.json"
    with serving(server) as url, serving(Server()) as reference:
        assert prove(url, "--answers", "2", "--reference", reference, "--json", str(out)) == 0
    page = capsys.readouterr().out
    assert "expected 7 MiB a request, moved 7 MiB a request, all 20 requests over what is not known" in page
    assert "verdict: proved" in page
    assert len(set(server.prompts)) == 20
    assert {len(prompt) for prompt in server.prompts} == {64}
    assert server.greedy == 1 + 2 * 2  # one waits for the workers to find each other
    proof = json.loads(out.read_text())
    assert (proof["verdict"], proof["requests"], proof["model"]) == ("proved", 20, "Qwen/Qwen3-0.6B")


@pytest.mark.parametrize(("path", "model"), [("", None), ("/v1", None), ("", "Qwen/Qwen3-0.6B")])
def test_a_deployment_is_no_reference_of_its_own_answers(path, model, capsys):
    server = Server()
    with serving(server) as url:
        named = () if model is None else ("--model", model, "--reference-model", model)
        assert prove(url, "--reference", url.replace("127.0.0.1", "localhost") + path, *named) == 2
    assert "is the deployment itself, so equal answers would prove nothing" in capsys.readouterr().err
    assert server.posts == 0


def test_another_model_of_the_same_server_may_be_its_reference():
    with serving(Server()) as url:
        flags = ("--model", "Qwen/Qwen3-0.6B", "--reference-model", "whole", "--reference", url)
        assert prove(url, "--answers", "2", *flags) == 0


def test_what_cannot_be_written_or_read_is_said_before_a_minute_is_spent(tmp_path, capsys):
    server = Server()
    with serving(server) as url:
        assert prove(url, "--json", str(tmp_path / "none" / "proof.json")) == 2
        assert prove(url, "--json", str(tmp_path)) == 2
        assert prove(url, "--workers", "nonsense") == 2
        assert prove(url, "--reference-model", "whole") == 2
    said = capsys.readouterr().err
    assert "its folder is not there; name a file" in said
    assert "--workers: 'nonsense' is not an http URL" in said
    assert "give that too" in said
    assert server.posts == 0


def test_a_proof_is_printed_as_json_and_nothing_beside_it(capsys):
    with serving(Server()) as url:
        assert prove(url, "--answers", "0", "--json", "-") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["verdict"] == "proved"
    assert "sending up to 20 unique prompts" in err


def test_no_prompt_is_ever_sent_twice_not_even_by_two_proofs():
    server = Server()
    with serving(server) as url:
        assert prove(url, "--answers", "0") == prove(url, "--answers", "0") == 0
    assert len({prompt[:16] for prompt in server.prompts}) == 40


def test_one_skipped_request_is_contradicted_with_the_count(capsys):
    with serving(Server(skip={7})) as url:
        assert prove(url, "--answers", "0") == 1
    assert "1 of 20 requests moved no KV" in capsys.readouterr().out


class Slow(Server):
    """Its first request takes longer than anybody waits; then `each_s` a request."""

    def __init__(self, first_s, each_s=0.0):
        super().__init__()
        self.first_s, self.each_s, self.running, self.late = first_s, each_s, 0, 0

    def complete(self, asked):
        with self.lock:
            first, self.running = self.posts == 0, self.running + 1
        time.sleep(self.first_s if first else self.each_s)
        whole = super().complete(asked)
        with self.lock:
            self.running, self.late = self.running - 1, self.late + first
        return whole

    def metrics(self):
        done = len(self.prompts) + self.late
        return (
            f"vllm:num_requests_running {self.running}\nvllm:request_success_total {done}\n"
            f"vllm:generation_tokens_total {8 * done}\nvllm:nixl_bytes_transferred_sum {self.moved + self.late * EACH}\n"
            f"vllm:nixl_xfer_time_seconds_count {self.moved // EACH + self.late}\n"
        )


def test_a_first_request_that_ends_after_we_gave_it_up_is_waited_for_and_not_counted(monkeypatch, capsys):
    monkeypatch.setattr(prove_run, "WARM_SHARE", 0.05)
    server = Slow(first_s=2.0)
    with serving(server) as url:
        assert prove(url, "--answers", "0") == 0, capsys.readouterr().out
    assert server.late == 1


@pytest.mark.long
def test_a_server_too_slow_for_all_requests_is_proved_with_those_it_answered(capsys):
    with serving(Slow(first_s=0.0, each_s=0.3)) as url:
        code = main(["prove", url, "--isl", "64", "--requests", "1000", "--seconds", "12", "--answers", "0"])
    page = capsys.readouterr().out
    assert code == 0, page
    assert "failed" not in page


def test_answers_that_differ_from_the_references_are_contradicted(capsys):
    with serving(Server(text="gibberish")) as url, serving(Server(text="sense")) as reference:
        assert prove(url, "--answers", "12", "--reference", reference) == 1
    assert "12 of 12 differ from the reference's, which differs from itself in 0" in capsys.readouterr().out


def test_a_model_we_do_not_know_is_unproved_until_its_bytes_are_given(capsys):
    with serving(Server(model="ours")) as url:
        assert prove(url, "--answers", "0") == 4
        assert "ours is not in kvgauge's table" in capsys.readouterr().out
        assert prove(url, "--answers", "0", "--kv-bytes-per-token", "114688") == 0
        assert prove(url, "--answers", "0", "--kv-model", "Qwen3-0.6B") == 0
        assert prove(url, "--answers", "0", "--kv-model", "Qwen3-0.6B", "--kv-dtype", "fp8") == 1
    assert "exactly 2 times" in capsys.readouterr().out


def test_a_worker_that_says_nothing_and_a_log_that_says_little_are_told(tmp_path, capsys):
    log = tmp_path / "decode.log"
    log.write_text("2026-11-24 02:42:46 NIXL INFO    _api.py:405 Backend UCX was instantiated\n")
    with serving(Server()) as url:
        assert (
            prove(url, "--answers", "0", "--workers", "http://127.0.0.1:9", "--log", str(log), "--backend", "LIBFABRIC")
            == 1
        )
    page = capsys.readouterr().out
    assert "http://127.0.0.1:9/metrics gave no series" in page
    assert "LIBFABRIC was expected, UCX opened" in page


def test_what_cannot_be_measured_ends_with_3(capsys):
    with serving(Server(down=True)) as url:
        assert prove(url, "--answers", "0") == 3
    assert "none of 20 requests was answered" in capsys.readouterr().err
    assert main(["prove", "http://127.0.0.1:9"]) == 3


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--osl", "1"], "--osl must be 2 to"),
        (["--seconds", "1"], "--seconds must be 10 to"),
        (["--kv-dtype", "bf17"], "unknown KV dtype"),
        (["--kv-model", "Qwen3-0.6"], "unknown model"),
        (["--log", "/nowhere/x.log"], "there is no such file"),
        (["--workers", "ftp://x"], "not an http URL"),
        (["--tp", "0"], "--tp must be"),
    ],
)
def test_what_is_wrong_with_the_flags_is_said_before_anything_is_sent(flags, word, capsys):
    assert main(["prove", "http://127.0.0.1:9", *flags]) == 2
    assert word in capsys.readouterr().err

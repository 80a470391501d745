"""kill -9 at any moment loses a second at most, leaves no process, and the plan can be finished afterwards."""

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kvgauge.samples.read import load_exchanges

KILLS_URL = int(os.environ.get("KVGAUGE_KILLS", "12"))  # make test-long: 42
REPETITIONS = KILLS_URL
KILLS_EMBEDDED = 4
LOST_S_MAX = 1.3  # a second, and what a busy machine adds

PLAN = """
name: killed
repetitions: {repetitions}
primary: {{metric: ttft_ms_mean, cell: p}}
defaults: {{fabric: tcp, model: Qwen3-0.6B, tp: 1, patches: none, build: 1.5.0}}
tests:
  - {{name: A, backend: UCX}}
cells:
  - {{name: p, load: closed, concurrency: 2, input_tokens: 64, output_tokens: {tokens}, requests: {requests}, warmup_requests: 1}}
"""


class Server:
    """An OpenAI endpoint of 8 tokens in about 20 ms that writes down when each answer was sent."""

    def __init__(self):
        self.sent_ns = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        assert self._ready.wait(10)

    def _run(self):
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        self._loop.run_forever()

    async def _serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = re.search(rb"content-length: (\d+)", head.lower())
                await reader.readexactly(int(size[1]) if size else 0)
                if b"POST" in head:
                    await self._stream(writer)
                else:
                    body = b'{"data":[{"id":"Qwen3-0.6B"}]}'
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _stream(self, writer):
        def event(what):
            data = b"data: " + (what if isinstance(what, bytes) else json.dumps(what).encode()) + b"\n\n"
            return b"%x\r\n%b\r\n" % (len(data), data)

        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(8):
            await asyncio.sleep(0.002)
            writer.write(event({"choices": [{"index": 0, "text": " a"}]}))
        writer.write(
            event({"choices": [], "usage": {"prompt_tokens": 64, "completion_tokens": 8}})
            + event(b"[DONE]")
            + b"0\r\n\r\n"
        )
        await writer.drain()
        self.sent_ns.append(time.monotonic_ns())

    def stop(self):
        self._loop.call_soon_threadsafe(self._loop.stop)


@pytest.fixture
def server():
    made = Server()
    yield made
    made.stop()


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "kvgauge", "run", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip


def statuses(folder):
    results = json.loads((folder / "results.json").read_text())
    return [(run["run_id"], run["status"]) for test in results["tests"] for run in test["runs"] if run["cell"]]


def on_disk(out):
    begun = [
        run for run in (out / "runs").iterdir() if list(run.glob("exchanges.*"))
    ]  # the last file a run begins with
    return [exchange for run in begun for exchange in load_exchanges(run)]


def test_random_kills_lose_at_most_a_second_each_and_the_plan_is_finished(tmp_path, server):
    rng = random.Random(4)
    (tmp_path / "plan.yaml").write_text(PLAN.format(repetitions=REPETITIONS, tokens=8, requests=60))
    out = tmp_path / "out"
    begin = ["plan.yaml", "--out", "out", "--url", server.url]
    go_on = ["--resume", "out", "--url", server.url]
    kills = 0
    while kills < KILLS_URL:
        started_ns = time.monotonic_ns()
        running = start(tmp_path, *(go_on if (out / "conditions.json").exists() else begin))
        time.sleep(rng.uniform(0.05, 2.2))
        if running.poll() is not None:
            break
        killed_ns = time.monotonic_ns()
        running.kill()
        running.communicate()
        kills += 1
        if not (out / "conditions.json").exists():
            assert not out.exists() or not any(out.glob("runs/*"))  # killed before anything was begun
            begin = ["plan.yaml", "--out", "out", "--url", server.url]
            if out.exists():
                out.rename(tmp_path / f"empty-{kills}")
            continue
        kept = [e for e in on_disk(out) if e.sent_ns > started_ns] if (out / "runs").exists() else []
        owed = sum(started_ns < sent_ns < killed_ns - LOST_S_MAX * 1e9 for sent_ns in server.sent_ns)
        assert len(kept) >= owed
    last = start(tmp_path, *go_on)
    _, err = last.communicate(timeout=120)
    assert last.returncode == 0, err
    ended = statuses(out)
    assert len(ended) == REPETITIONS
    assert {status for _, status in ended} == {"valid"}
    finished = [run for run in (out / "runs").iterdir() if ".cut-" not in run.name]
    assert len(finished) == REPETITIONS
    assert all(len(load_exchanges(run)) == 61 for run in finished)
    assert kills >= KILLS_URL // 2


@pytest.mark.nixl
def test_kills_of_the_embedded_target_leave_no_process_and_done_runs_are_not_repeated(tmp_path):
    rng = random.Random(5)
    (tmp_path / "plan.yaml").write_text(PLAN.format(repetitions=4, tokens=30, requests=8))
    out = tmp_path / "out"
    before: dict[str, float] = {}
    for _ in range(KILLS_EMBEDDED):
        running = start(
            tmp_path, *(["--resume", "out"] if (out / "conditions.json").exists() else ["plan.yaml", "--out", "out"])
        )
        time.sleep(rng.uniform(0.4, 3.5))
        children = [int(p.name) for p in Path("/proc").glob("[0-9]*") if parent_of(p) == running.pid]
        running.kill()
        running.communicate()
        until = time.monotonic() + 5
        while time.monotonic() < until and any(Path(f"/proc/{pid}").exists() for pid in children):
            time.sleep(0.02)
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
        for run_id, status in statuses(out) if (out / "results.json").exists() else []:
            if status == "valid":
                written = (out / "runs" / run_id / "exchanges.parquet").stat().st_mtime
                assert before.setdefault(run_id, written) == written
    last = start(tmp_path, "--resume", "out")
    _, err = last.communicate(timeout=120)
    assert last.returncode == 0, err
    assert [status for _, status in statuses(out)] == ["valid"] * 4
    for run_id, written in before.items():
        assert (out / "runs" / run_id / "exchanges.parquet").stat().st_mtime == written


def parent_of(process):
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def interrupted_folder(folder, server):
    """A run of two repetitions of which the second was never begun."""
    (folder / "plan.yaml").write_text(PLAN.format(repetitions=2, tokens=8, requests=200))
    running = start(folder, "plan.yaml", "--out", "out", "--url", server.url)
    until = time.monotonic() + 30
    while not (folder / "out/runs").exists() and time.monotonic() < until:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=20)
    assert running.returncode == 130
    return err


def test_an_interrupted_run_says_how_to_go_on_and_does(tmp_path, server):
    assert "kvgauge run --resume out" in interrupted_folder(tmp_path, server)
    done = start(tmp_path, "--resume", "out", "--url", server.url)
    _, err = done.communicate(timeout=60)
    assert done.returncode == 0, err
    assert {status for _, status in statuses(tmp_path / "out")} == {"valid"}
    assert list((tmp_path / "out/runs").glob("*.cut-1"))


@pytest.mark.parametrize(
    ("change", "arguments", "word"),
    [
        ("plan", ["plan.yaml"], "the plan changed"),
        ("kernel", [], "kernel (was 1.2.3, is "),
        ("build", [], "ucx of build 1.5.0"),
        ("target", ["--other-url"], "the target (was http"),
    ],
)
def test_a_changed_plan_machine_build_or_target_is_refused_by_name(tmp_path, server, change, arguments, word):
    interrupted_folder(tmp_path, server)
    path = tmp_path / "out/conditions.json"
    conditions = json.loads(path.read_text())
    if change == "plan":
        (tmp_path / "plan.yaml").write_text(PLAN.format(repetitions=3, tokens=8, requests=200))
    elif change == "kernel":
        conditions["machine"]["kernel"] = "1.2.3"
    elif change == "build":
        conditions["builds"] = {"1.5.0": {"ucx": "00"}}
    path.write_text(json.dumps(conditions))
    url = server.url if change != "target" else "http://127.0.0.1:1"
    arguments = [argument for argument in arguments if argument != "--other-url"]
    done = start(tmp_path, *arguments, "--resume", "out", "--url", url)
    _, err = done.communicate(timeout=30)
    assert done.returncode == 2, err
    assert word in err
    assert len(err.strip().splitlines()) == 1


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    done = start(tmp_path, "--resume", ".")
    _, err = done.communicate(timeout=30)
    assert done.returncode == 2
    assert "cannot be resumed" in err


def test_two_at_work_in_one_folder_are_refused(tmp_path, server):
    interrupted_folder(tmp_path, server)
    first = start(tmp_path, "--resume", "out", "--url", server.url)
    time.sleep(0.6)
    second = start(tmp_path, "--resume", "out", "--url", server.url)
    _, err = second.communicate(timeout=30)
    os.kill(first.pid, signal.SIGINT)
    first.communicate(timeout=30)
    assert second.returncode == 2
    assert "another kvgauge is at work" in err

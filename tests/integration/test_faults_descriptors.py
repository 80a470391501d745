"""Out of file descriptors: refused before the start, raised where it may be, and survived by the frontend."""

import http.client
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvgauge.report.results import read
from scene import make_cell, make_test

PLAN = """
name: many
repetitions: 1
primary: {{metric: ttft_ms_mean, cell: p}}
defaults: {{fabric: tcp, model: Qwen3-0.6B, tp: 1, patches: none, build: 1.5.0}}
tests:
  - {{name: A, backend: UCX}}
cells:
  - {{name: p, load: closed, concurrency: {many}, input_tokens: 16, output_tokens: 2, requests: {many}, warmup_requests: 1}}
"""


def limited(soft, hard, *arguments):
    return [
        "sh",
        "-c",
        f'ulimit -Sn {soft}; ulimit -Hn {hard}; exec "$@"',
        "sh",
        sys.executable,
        "-m",
        "kvgauge",
        *arguments,
    ]


def run_limited(folder, *, soft, hard, many):
    (folder / "plan.yaml").write_text(PLAN.format(many=many))
    command = limited(soft, hard, "run", "plan.yaml", "--out", "out")
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_a_plan_that_needs_more_files_than_are_allowed_is_refused_before_anything_is_started(tmp_path):
    done = run_limited(tmp_path, soft=64, hard=64, many=200)
    assert done.returncode == 2
    assert "this plan needs 248 open files" in done.stderr
    assert "64 are allowed" in done.stderr
    assert "Raise the hard limit" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.nixl
def test_a_low_soft_limit_is_raised_for_every_process_of_the_run(tmp_path):
    done = run_limited(tmp_path, soft=64, hard=160, many=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {run.status for run in read(tmp_path / "out").tests[0].runs} == {"valid"}


def used_cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(endpoint):
    client = http.client.HTTPConnection(endpoint.url.removeprefix("http://"), timeout=5)
    try:
        client.request("POST", "/v1/completions", json.dumps({"prompt": "Hello", "max_tokens": 2}))
        answer = client.getresponse()
        return answer.status, answer.read().decode()
    except OSError as error:  # closed before we had sent all
        return None, str(error)
    finally:
        client.close()


def test_a_frontend_without_a_descriptor_sheds_clients_neither_spins_nor_hangs_and_goes_on_later(embedded):
    target, endpoint = embedded(make_test(), make_cell(concurrency=4), kv=False, compute=0)
    pid = target.pids()["frontend"]
    assert ask(endpoint)[0] == 200
    room = max(int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir()) + 1
    soft, hard = resource.prlimit(
        pid, resource.RLIMIT_NOFILE, (room + 2, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    address = endpoint.url.removeprefix("http://")
    held = [http.client.HTTPConnection(address, timeout=5) for _ in range(room + 2)]
    for client in held:  # more than it has descriptors for, whatever gaps there were
        client.connect()
    time.sleep(0.2)
    told = [ask(endpoint) for _ in range(5)]
    assert [status for status, _ in told] == [503] * 5
    assert all("no file descriptor left" in text for _, text in told)
    before_s, began = used_cpu_s(pid), time.monotonic()
    time.sleep(1.0)
    assert (used_cpu_s(pid) - before_s) / (time.monotonic() - began) < 0.3
    for client in held:
        client.close()
    until = time.monotonic() + 5
    while (status := ask(endpoint)[0]) != 200 and time.monotonic() < until:
        time.sleep(0.05)
    assert status == 200
    assert target.trouble() is None
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.nixl
def test_a_frontend_started_with_few_descriptors_tells_clients_that_are_too_many(tmp_path):
    running = subprocess.Popen(
        limited(64, 64, "serve", "--port", "0", "--no-kv", "--log-folder", str(tmp_path)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    url = next(word for word in running.stdout.readline().split() if word.startswith("http://"))
    held = [http.client.HTTPConnection(url.removeprefix("http://").removesuffix("/v1"), timeout=5) for _ in range(80)]
    for client in held:
        client.connect()
    time.sleep(0.3)
    served = 0
    for client in held:
        try:
            client.request("GET", "/health")
            served += client.getresponse().status == 200
        except OSError:
            continue
    assert 16 <= served < 64
    for client in held:
        client.close()
    running.send_signal(signal.SIGTERM)
    assert running.communicate(timeout=15)[1].strip() == "stopping"
    assert running.returncode == 0

"""`kvgauge run` and its neighbours as a user types them: real processes, exit codes, files that are left."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvgauge.cli.main import main
from kvgauge.failures import SamplesError
from kvgauge.samples.read import load_exchanges, load_transfers
from scene import children_of

pytestmark = pytest.mark.nixl

COLD = Path(__file__).parents[2] / "examples" / "cold-start.yaml"

PLAN = """
name: two backends
repetitions: {repetitions}
primary: {{metric: ttft_ms_mean, cell: p-2}}
baseline: UCX
defaults: {{fabric: tcp, model: Qwen3-0.6B, tp: 1, patches: none, build: 1.5.0}}
tests:
  - {{name: UCX, backend: UCX}}
  - {{name: LIBFABRIC, backend: LIBFABRIC{extra}}}
cells:
  - {{name: hello, load: single, concurrency: 1, prompt: Hello, output_tokens: 5, requests: 3, warmup_requests: 1}}
  - {{name: p, load: closed, concurrency: [1, 2], input_tokens: 64, output_tokens: {tokens}, requests: {requests}, warmup_requests: 1}}
"""


def kvgauge(*arguments, cwd, timeout=120, **more):
    return subprocess.run(
        [sys.executable, "-m", "kvgauge", *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False,
        **more,
    )  # fmt: skip


def write_plan(folder, *, repetitions=2, tokens=6, requests=4, extra=""):
    path = folder / "plan.yaml"
    path.write_text(PLAN.format(repetitions=repetitions, tokens=tokens, requests=requests, extra=extra))
    return path


def test_a_plan_gives_results_samples_evidence_tables_and_exit_code_0(tmp_path):
    done = kvgauge("run", str(write_plan(tmp_path)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "kvgauge-runs" / "latest"
    results = json.loads((folder / "results.json").read_text())
    assert results["schema"] == 1
    assert results["rehearsal"] is True
    for test in results["tests"]:
        cells = [run for run in test["runs"] if run["cell"]]
        assert [run["status"] for run in cells] == ["valid"] * 2 * 3
        for run in cells:
            metrics = run["metrics"]
            assert metrics["kv_bytes_expected"]["point"] == metrics["kv_bytes_moved"]["point"] > 0
            assert metrics["kv_pieces_wrong"]["point"] == 0
            assert metrics["failures"]["point"] == 0
            assert metrics["ttft_ms_p99"]["low"] is None
            assert "299" in metrics["ttft_ms_p99"]["reason"]
        for run in test["runs"]:
            if run["cell"] is None:
                assert run["metrics"]["connection_ms_max"]["point"] > 0
                assert run["proved"]["backend"].startswith(test["backend"])
    gains = [row for row in results["tests"][1]["gains"] if row["primary"]]
    assert [row["verdict"] for row in gains] == ["cannot tell"]
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert {row["test"] for row in rows} == {"UCX", "LIBFABRIC"}
    run_folder = folder / "runs" / "r1-ucx"
    exchanges, transfers = load_exchanges(run_folder), load_transfers(run_folder)
    assert len(exchanges) == 4 + 2 * 5
    assert {e.request_id for e in exchanges} == {t.request_id for t in transfers}
    assert not list(run_folder.glob("*.arrows"))
    assert json.loads((run_folder / "evidence.json").read_text())["backends"] == {"UCX": len(exchanges)}
    for word in ("two backends", "rehearsal: fabric tcp", "cannot tell", "proved: backend"):
        assert word in done.stdout
    again = kvgauge("report", cwd=tmp_path)
    assert again.returncode == 0
    assert "two backends" in again.stdout


def test_a_build_that_corrupts_kv_is_invalid_with_the_reason_and_the_others_go_on(tmp_path):
    plan = write_plan(tmp_path, repetitions=1, extra=", build: 0.9.0")
    done = kvgauge("run", str(plan), cwd=tmp_path)
    assert done.returncode == 3
    results = json.loads((tmp_path / "kvgauge-runs/latest/results.json").read_text())
    ucx, libfabric = results["tests"]
    assert {run["status"] for run in ucx["runs"]} == {"valid"}
    assert {run["status"] for run in libfabric["runs"]} == {"invalid"}
    assert any("wrong KV" in reason for run in libfabric["runs"] for reason in run["reasons"])
    assert "do not use this build with this backend" in " ".join(done.stdout.split())
    plan = write_plan(tmp_path, repetitions=1, extra=", build: 0.9.0, expect: invalid")
    assert kvgauge("run", str(plan), "--out", "expected", cwd=tmp_path).returncode == 0


def any_exchange(runs):
    """Whether a sample is on disk, which may be half written."""
    for run in runs.glob("latest/runs/*"):
        with contextlib.suppress(SamplesError):
            if load_exchanges(run):
                return True
    return False


def test_ctrl_c_keeps_what_there_is_and_leaves_no_process(tmp_path):
    plan = write_plan(tmp_path, repetitions=3, tokens=600, requests=40)
    running = subprocess.Popen(
        [sys.executable, "-m", "kvgauge", "run", str(plan)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    runs = tmp_path / "kvgauge-runs"
    until = time.monotonic() + 30
    while time.monotonic() < until and not (len(children_of(running.pid)) == 4 and any_exchange(runs)):
        time.sleep(0.05)
    children = children_of(running.pid)
    assert len(children) == 4  # frontend, prefill, decode, and who scrapes their metrics
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert running.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err + out
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    results = json.loads((runs / "latest/results.json").read_text())
    statuses = {run["status"] for test in results["tests"] for run in test["runs"]}
    assert {"interrupted", "pending"} <= statuses
    first = next((runs / "latest/runs").iterdir())
    assert load_exchanges(first)


def test_kill_minus_nine_leaves_no_process_and_readable_samples(tmp_path):
    plan = write_plan(tmp_path, repetitions=3, tokens=200, requests=200)
    running = subprocess.Popen(
        [sys.executable, "-m", "kvgauge", "run", str(plan)], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 30
    while time.monotonic() < until and len(children_of(running.pid)) < 4:
        time.sleep(0.05)
    children = children_of(running.pid)
    time.sleep(6)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    until = time.monotonic() + 5
    while time.monotonic() < until and any(Path(f"/proc/{pid}").exists() for pid in children):
        time.sleep(0.05)
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    first = next((tmp_path / "kvgauge-runs/latest/runs").iterdir())
    assert load_exchanges(first)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["run", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["run", "--test", "Baseline UCK", "--dry-run"], 2, "Baseline UCX"),
        (["run", "--out", "."], 2, "exists already"),
        (["run", "--transfer-timeout", "0"], 2, "time-outs"),
        (["run", str(COLD), "--request-timeout", "6", "--dry-run"], 2, "pass --request-timeout 67"),
        (["run", str(COLD), "--url", "http://127.0.0.1:1", "--test", "UCX"], 2, "modelled by the embedded target only"),
        (["report", "nothing-here"], 3, "nothing-here"),
        (["serve", "--model", "Qwen3-0.7B"], 2, "Qwen3-0.6B"),
        (["serve", "--tp", "3"], 2, "3 ranks"),
        (["builds", "install", "9.9.9"], 3, "9.9.9"),
        (["builds", "install"], 2, "name a version"),
    ],
)
def test_a_mistake_is_one_clear_line_and_a_documented_exit_code(tmp_path, arguments, code, word):
    done = kvgauge(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert word in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_a_dry_run_starts_nothing(tmp_path):
    done = kvgauge("run", "--dry-run", "--quick", cwd=tmp_path)
    assert done.returncode == 0
    assert "Baseline UCX" in done.stdout
    assert not (tmp_path / "kvgauge-runs").exists()


def test_builds_lists_every_published_version_with_what_is_known_of_it(tmp_path):
    done = kvgauge("builds", cwd=tmp_path)
    assert done.returncode == 0
    assert "1.5.0" in done.stdout
    assert "reports DONE for blocks that are wrong" in done.stdout


def test_serve_says_where_it_is_and_ends_on_sigterm(tmp_path):
    running = subprocess.Popen(
        [sys.executable, "-m", "kvgauge", "serve", "--port", "0", "--no-kv", "--log-folder", str(tmp_path / "logs")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    line = running.stdout.readline()
    assert "http://127.0.0.1:" in line
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=15)
    assert running.returncode == 0, err


def test_serve_on_a_port_in_use_says_so(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = kvgauge("serve", "--no-kv", "--port", str(port), cwd=tmp_path, timeout=30)
    assert done.returncode == 3
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture
def served(tmp_path):
    running = subprocess.Popen(
        [sys.executable, "-m", "kvgauge", "serve", "--port", "0", "--no-kv", "--log-folder", str(tmp_path / "logs")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    line = running.stdout.readline()
    yield next(word for word in line.split() if word.startswith("http://")).removesuffix("/v1")
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=15)


def test_a_url_is_measured_as_it_stands_and_its_transport_stays_unproved(tmp_path, served):
    plan = write_plan(tmp_path)
    done = kvgauge("run", str(plan), "--test", "UCX", "--url", served, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "kvgauge-runs/latest/results.json").read_text())
    runs = results["tests"][0]["runs"]
    assert {run["status"] for run in runs} == {"valid"}
    assert all("unproved" in run["proved"]["backend"] for run in runs if run["cell"] is None)
    assert all(run["metrics"]["kv_bytes_moved"]["point"] is None for run in runs if run["cell"])
    assert "unproved" in done.stdout


def test_a_url_takes_one_test_and_says_which_there_are(tmp_path, served):
    done = kvgauge("run", str(write_plan(tmp_path)), "--url", served, cwd=tmp_path)
    assert done.returncode == 2
    assert "--test NAME (UCX, LIBFABRIC)" in done.stderr


def test_a_url_where_nothing_listens_is_failed_runs_with_one_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kvgauge.target.url.READY_TIMEOUT_S", 2.0)
    monkeypatch.chdir(tmp_path)
    plan = write_plan(tmp_path, repetitions=1)
    assert main(["run", str(plan), "--test", "UCX", "--url", "http://127.0.0.1:9"]) == 3
    assert "127.0.0.1:9" in capsys.readouterr().out


def test_a_model_that_is_not_served_is_named_with_those_that_are(tmp_path, served):
    plan = write_plan(tmp_path, repetitions=1)
    done = kvgauge("run", str(plan), "--test", "UCX", "--url", served, "--model", "gpt-9", cwd=tmp_path)
    assert done.returncode == 3
    assert "serves Qwen3-0.6B, not gpt-9" in " ".join(done.stdout.split())

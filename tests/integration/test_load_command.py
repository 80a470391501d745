"""`kvgauge load` as its users meet it: a server of ours behind a URL, the command in a process of its own."""

import json
import subprocess
import sys

import pytest

from kvgauge.load.cores import allowed_cores
from kvgauge.samples.read import load_exchanges
from scene import make_test


def load(*args, timeout=60):
    return subprocess.run(
        [sys.executable, "-m", "kvgauge", "load", *args], capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture
def server(embedded):
    _, endpoint = embedded(make_test(), kv=False, compute=0.1)
    return endpoint.url


def test_a_server_is_loaded_and_its_requests_and_results_are_kept(server, tmp_path):
    out = tmp_path / "out"
    done = load("--url", server, "--concurrency", "1,4", "--num-prompts", "6,12", "--isl", "64", "--osl", "8",
                "--num-warmups", "2", "--out", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "time to first token" in done.stdout
    assert "not observed" in done.stdout
    assert "Traceback" not in done.stderr
    (test,) = json.loads((out / "results.json").read_text())["tests"]
    cells = {run["cell"]: run for run in test["runs"]}
    assert test["backend"] == "unobserved"
    assert cells["64x8-1"]["status"] == cells["64x8-4"]["status"] == "valid"
    for statistic in ("mean", "p50", "p90", "p95", "p99"):
        assert cells["64x8-4"]["metrics"][f"ttft_ms_{statistic}"]["point"] > 0
    (run,) = (out / "runs").iterdir()
    exchanges = load_exchanges(run)
    assert sum(not e.warmup for e in exchanges) == 18
    assert {(e.tokens_in, e.tokens_out) for e in exchanges} == {(64, 8)}
    again = subprocess.run(
        [sys.executable, "-m", "kvgauge", "report", str(out)], capture_output=True, text=True, timeout=60, check=False
    )
    assert again.returncode == 0
    assert "64x8-4" in again.stdout


def test_an_open_load_is_offered_at_its_rate_by_several_workers_where_there_are_cores(server, tmp_path):
    workers = min(2, allowed_cores())
    done = load("--url", server, "--request-rate", "20", "--arrival-pattern", "constant", "--request-count", "20",
                "--isl", "32", "--osl", "2", "--workers", str(workers), "--out", str(tmp_path / "out"))  # fmt: skip
    assert done.returncode in (0, 3), done.stderr  # 3: a machine too busy for its own rate says so
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    (cell,) = (run for run in results["tests"][0]["runs"] if run["cell"])
    assert cell["metrics"]["offered_rate_req_s"]["point"] == pytest.approx(20, rel=0.1)
    assert cell["load_workers"] == workers
    (run,) = (tmp_path / "out" / "runs").iterdir()
    measured = [each for each in load_exchanges(run) if not each.warmup]
    assert sorted(each.seq for each in measured) == list(range(10, 30))
    assert {each.worker for each in measured} == set(range(workers))
    assert not list(run.rglob("*.kept"))


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--isl", "0"), 2, "--isl: expected"),
        (("--model", "nope", "--num-prompts", "1"), 3, "not nope"),
        (("--request-rate", "inf"), 2, "closed loop"),
    ],
)
def test_mistakes_are_one_line_with_their_exit_code(server, tmp_path, args, code, said):
    done = load("--url", server, *args, "--out", str(tmp_path / "out"))
    assert done.returncode == code
    assert said in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_server_that_is_down_is_one_clear_line(tmp_path):
    done = load("--url", "http://127.0.0.1:9", "--out", str(tmp_path / "out"))
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "does not answer: Connection refused" in done.stderr
    assert not (tmp_path / "out").exists()

"""`kvgauge run --prove`: what a proof finds stands in the run, and a contradicted run is invalid."""

import json

import pytest

from kvgauge.cli.main import main
from unit.test_prove_command import EACH, Server, no_long_settling, serving  # noqa: F401 - a fixture of its own

PLAN = """
name: proved
repetitions: 1
primary: {metric: ttft_ms_mean, cell: c}
defaults: {fabric: tcp, model: Qwen3-0.6B, tp: 1, patches: none, build: 1.5.0, backend: UCX}
tests:
  - {name: t}
cells:
  - {name: c, load: closed, concurrency: 2, input_tokens: 64, output_tokens: 8, requests: 4}
"""
LOG = """2026-11-24 02:42:46 NIXL INFO    _api.py:405 Backend UCX was instantiated
[1795487514.022316] [vm:17750:0] ucp_worker.c:1997 UCX  INFO    init inter-node cfg#1 rma_am(tcp/eth0) am(tcp/eth0)
"""
PROVE = ("--prove", "--prove-requests", "20", "--prove-isl", "64", "--prove-seconds", "15", "--prove-answers", "0")


def run(tmp_path, url, *flags):
    (tmp_path / "plan.yaml").write_text(PLAN)
    code = main(["run", str(tmp_path / "plan.yaml"), "--url", url, "--out", str(tmp_path / "out"), *flags])
    test = json.loads((tmp_path / "out" / "results.json").read_text())["tests"][0]
    whole = next(each for each in test["runs"] if each["cell"] is None)
    return code, whole, tmp_path / "out" / "runs" / whole["run_id"]


def log_in(folder, text=LOG):
    path = folder / "decode.log"
    path.write_text(text)
    return str(path)


def test_a_proved_deployment_says_so_in_the_run_and_on_the_page(tmp_path, capsys):
    with serving(Server()) as url:
        code, whole, folder = run(tmp_path, url, *PROVE, "--prove-log", log_in(tmp_path))
    page = capsys.readouterr().out
    assert (code, whole["status"]) == (0, "valid"), page
    assert whole["proved"]["transport"] == (
        "proved (expected 7 MiB a request, moved 7 MiB a request, all 20 requests over UCX/tcp)"
    )
    assert "proved: transport proved (expected 7 MiB a request" in " ".join(page.split())
    proof = json.loads((folder / "proof.json").read_text())
    assert (proof["verdict"], proof["requests"]) == ("proved", 20)
    assert json.loads((folder / "evidence.json").read_text())["unobserved"] is None


def test_a_request_that_moved_no_kv_makes_the_run_invalid_with_the_reason(tmp_path, capsys):
    server = Server(skip=range(4 + 2, 100, 7))  # some that the proof sends, behind those of the cell
    with serving(server) as url:
        code, whole, _ = run(tmp_path, url, *PROVE, "--prove-log", log_in(tmp_path))
    assert (code, whole["status"]) == (3, "invalid")
    assert any(reason.startswith("bytes (vLLM): expected") and "moved no KV" in reason for reason in whole["reasons"])
    assert "moved no KV" in " ".join(capsys.readouterr().out.split())


def test_another_backend_than_the_plans_makes_the_run_invalid(tmp_path):
    other = LOG.replace("Backend UCX", "Backend LIBFABRIC")
    with serving(Server()) as url:
        _, whole, _ = run(tmp_path, url, *PROVE, "--prove-log", log_in(tmp_path, other))
    assert whole["status"] == "invalid"
    assert any(reason.startswith("backend: ") for reason in whole["reasons"])


def test_a_proof_that_finds_nothing_leaves_the_run_valid_and_unproved(tmp_path):
    with serving(Server()) as url:
        code, whole, _ = run(tmp_path, url, *PROVE)
    assert (code, whole["status"]) == (0, "valid")
    assert whole["proved"]["transport"].startswith("unproved (")


def test_without_a_proof_it_says_that_the_backend_is_unproved(tmp_path):
    with serving(Server()) as url:
        code, whole, folder = run(tmp_path, url)
    assert (code, whole["status"]) == (0, "valid")
    assert whole["proved"]["backend"].startswith("unproved (a url target sees")
    assert not (folder / "proof.json").exists()


def test_a_proof_counts_none_of_the_measured_requests(tmp_path):
    server = Server()
    with serving(server) as url:
        _, _, folder = run(tmp_path, url, *PROVE)
    assert json.loads((folder / "proof.json").read_text())["requests"] == 20
    assert server.moved == len(server.prompts) * EACH
    assert len(server.prompts) > 20


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--prove",), "--prove goes with --url"),
        (("--url", "http://127.0.0.1:9", "--prove-requests", "7"), "--prove-requests goes with --prove"),
        (("--url", "http://127.0.0.1:9", "--prove", "--prove-seconds", "1"), "--seconds must be 10 to 3600"),
        (("--url", "http://127.0.0.1:9", "--prove", "--prove-log", "/nowhere"), "there is no such file"),
    ],
)
def test_what_is_wrong_with_the_flags_is_said_before_anything_is_measured(flags, words, tmp_path, capsys):
    (tmp_path / "plan.yaml").write_text(PLAN)
    assert main(["run", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "out"), *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

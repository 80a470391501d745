"""kvgauge against vLLM, prefill and decode apart over real NIXL on the CPU: bytes, backend, skipped transfers, runs.

Long: two engines and their spinning progress threads share the cores; a start takes one or two minutes. KVGAUGE_SKIP
says at which request the router leaves out the KV (40; with 1000 a proof takes ten minutes or more on two cores).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines import vllm_stack
from engines.conftest import ROOT, skip
from engines.tiny_model import KV_BYTES_PER_TOKEN, TOKENS, make_tiny_model
from kvgauge.builds.install import install
from kvgauge.cli.main import main

PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
SKIP_EVERY = int(os.environ.get("KVGAUGE_SKIP", "40"))
SECONDS = str(max(240, 2 * SKIP_EVERY))
SMALL = ("--isl", "128", "--osl", "2", "--concurrency", "8")
FABRIC = {"UCX": "shm", "LIBFABRIC": "tcp"}
PLAN = """
name: vLLM
repetitions: 1
primary: {{metric: ttft_ms_mean, cell: closed}}
defaults: {{model: Qwen3-0.6B, tp: 1, patches: none, build: 1.5.0, fabric: {fabric}, backend: {backend}}}
tests:
  - {{name: vllm}}
cells:
  - {{name: closed, load: closed, concurrency: 2, input_tokens: 128, output_tokens: 32, requests: 8, warmup_requests: 2}}
"""


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """What NIXL's LIBFABRIC plugin links to, and nothing else."""
    folder, build = tmp_path_factory.mktemp("lib"), install("1.5.0")
    for path in (build.libcuda, *build.preload):
        (folder / Path(path).name).symlink_to(path)
    return folder


@pytest.fixture(scope="session")
def outward(own_network):
    try:
        vllm_stack.add_outward_interface()
    except (OSError, subprocess.CalledProcessError) as error:
        skip(f"no veth pair can be made here, and libfabric's tcp provider refuses loopback: {error}")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module", params=["UCX", "LIBFABRIC"])
def stack(request, outward, libraries, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    stack = vllm_stack.Vllm(PYTHON, tiny, folder, 18_100, request.param, libraries)
    try:
        stack.start()
        stack.whole = stack.route(18_200)
        stack.skipping = stack.route(18_201, SKIP_EVERY)
        yield stack
    finally:
        stack.stop()


def told(stack):
    workers, logs = ",".join(stack.urls.values()), ",".join(map(str, stack.logs))
    return ("workers", workers), ("log", logs), ("kv-bytes-per-token", str(KV_BYTES_PER_TOKEN))


def prove(stack, url, *flags):
    seen = [part for name, value in told(stack) for part in (f"--{name}", value)]
    return main(["prove", url, *seen, "--backend", stack.backend, "--fabric", FABRIC[stack.backend],
                 "--token-ids", f"0-{TOKENS - 1}", *flags])  # fmt: skip


def test_every_byte_is_proved_and_answers_are_those_of_decode_alone(stack, capsys):
    code = prove(stack, stack.whole, *SMALL, "--requests", "40", "--seconds", "480", "--answers", "4",
                 "--reference", stack.urls["decode"])  # fmt: skip
    page = capsys.readouterr().out
    print(page)
    assert code == 0, page
    assert f"all 40 requests over {stack.backend}/{FABRIC[stack.backend]}" in page
    assert "0 computed by decode itself" in page


def test_one_skipped_transfer_is_found_and_counted(stack, capsys):
    code = prove(stack, stack.skipping, *SMALL, "--requests", str(SKIP_EVERY), "--seconds", SECONDS, "--answers", "0")
    page = " ".join(capsys.readouterr().out.split())
    print(page)
    assert code == 1, page
    assert f"1 of {SKIP_EVERY} requests moved no KV" in page


@pytest.mark.parametrize("route", ["whole", "skipping"])
def test_a_run_is_proved_or_invalid_and_its_tokens_are_the_servers(stack, route, tmp_path):
    (tmp_path / "plan.yaml").write_text(PLAN.format(backend=stack.backend, fabric=FABRIC[stack.backend]))
    requests = "30" if route == "whole" else str(SKIP_EVERY)
    seen = [part for name, value in told(stack) for part in (f"--prove-{name}", value)]
    counted = stack.metric("decode", "vllm:generation_tokens_total")
    said = subprocess.run(
        [sys.executable, "-m", "kvgauge", "run", "plan.yaml", "--url", getattr(stack, route), "--out", "out",
         "--prove", *seen, "--prove-isl", "128", "--prove-osl", "2", "--prove-concurrency", "8", "--prove-answers", "0",
         "--prove-requests", requests, "--prove-seconds", SECONDS],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(said.stdout)
    runs = json.loads((tmp_path / "out" / "results.json").read_text())["tests"][0]["runs"]
    whole, cell = (next(run for run in runs if (run["cell"] is None) == of_run) for of_run in (True, False))
    if route == "whole":
        assert (said.returncode, whole["status"], cell["status"]) == (0, "valid", "valid"), said.stderr
        assert whole["proved"]["transport"].startswith("proved (expected")
        proof = json.loads((tmp_path / "out" / "runs" / whole["run_id"] / "proof.json").read_text())
        ours = 32 * (8 + 2) + 2 * proof["requests"]
        generated = stack.metric("decode", "vllm:generation_tokens_total") - counted
        assert ours < generated <= ours + 24, "more than the cell, the proof and its first request"
    else:
        assert (said.returncode, whole["status"]) == (3, "invalid")
        assert any("moved no KV" in reason for reason in whole["reasons"])

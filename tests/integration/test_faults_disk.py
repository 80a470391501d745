"""A disk that fills up under a real run: one clear line, exit code 3, nothing lost, and it goes on with room."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from kvgauge.report.results import read
from kvgauge.samples.read import load_exchanges

SCRIPT = Path(__file__).parents[1] / "full_disk.py"
PLAN = """
name: full
repetitions: 2
primary: {metric: ttft_ms_mean, cell: p}
defaults: {fabric: tcp, model: Qwen3-0.6B, tp: 1, patches: none, build: 1.5.0}
tests:
  - {name: A, backend: UCX}
cells:
  - {name: p, load: closed, concurrency: 2, input_tokens: 64, output_tokens: 8, requests: 20, warmup_requests: 1}
"""


def skip_loudly_unless_allowed():
    reason = None
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        reason = "it takes root and unshare (util-linux) to mount a small disk of one's own"
    else:
        tried = subprocess.run(
            ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True, check=False
        )
        if tried.returncode:
            reason = f"a mount namespace is not allowed here: {tried.stderr.strip()}"
    if reason is not None:
        warnings.warn(f"FULL DISK NOT TESTED: {reason}", stacklevel=2)
        pytest.skip(f"FULL DISK NOT TESTED: {reason}")


def on_a_full_disk(folder, when):
    skip_loudly_unless_allowed()
    (folder / "plan.yaml").write_text(PLAN)
    command = ["unshare", "-m", sys.executable, str(SCRIPT), str(folder), when, str(folder / "plan.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "told.json").read_text())


def statuses(folder):
    return [run.status for run in read(folder).tests[0].runs if run.cell]


def check_said(told, out):
    lines = [line for line in told["said"].splitlines() if line.startswith("kvgauge:")]
    assert len(lines) == 1, told["said"]
    for word in ("cannot be written to", str(out), "No space left on device", "ake room"):
        assert word in lines[0]
    assert "Traceback" not in told["said"]
    assert told["code"] == 3
    assert told["left"] == []
    return lines[0]


@pytest.mark.nixl
@pytest.mark.parametrize("when", ["runs/r1-a/exchanges.parquet", "runs/r2-a/logs/decode-0.log"])
def test_a_disk_that_fills_up_ends_the_plan_keeps_what_there_is_and_with_room_it_goes_on(tmp_path, when):
    told = on_a_full_disk(tmp_path, when)
    line = check_said(told, tmp_path / "disk/out")
    assert f"`kvgauge run --resume {tmp_path}/disk/out` goes on" in line
    kept = tmp_path / "copy"
    assert len(load_exchanges(kept / "runs/r1-a")) == 21
    assert statuses(kept)[1:] == ["pending"]  # none is failed: it was not the run's fault
    assert not [path for path in kept.rglob("*") if path.name.endswith(".partial") or path.name.startswith(".results")]
    for run in (kept / "runs").iterdir():
        load_exchanges(run)
    assert told["resumed"][1] == 0, told["resumed"]
    assert statuses(tmp_path / "resumed") == ["valid"] * 2


@pytest.mark.nixl
def test_a_disk_that_is_full_from_the_start_is_said_before_anything_is_started(tmp_path):
    told = on_a_full_disk(tmp_path, "start")
    line = check_said(told, tmp_path / "disk/out")
    assert "Nothing was begun" in line
    assert not (tmp_path / "copy/runs").exists()


@pytest.mark.parametrize("command", [["report", "--reference"], ["report", "--reference", "--json"], ["plan"]])
def test_a_page_sent_to_a_full_disk_is_one_line_and_exit_code_3(tmp_path, command):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kvgauge", *command], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 3
    assert (
        done.stderr.strip()
        == "kvgauge: output cannot be written: No space left on device; make room, or send it elsewhere"
    )

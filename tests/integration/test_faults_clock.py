"""A wall clock that jumps by hours during a run, in every process: no figure moves, and the evidence says so."""

import itertools
import json
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from kvgauge.builds.install import install
from kvgauge.conduct import Conductor
from kvgauge.plan import load_plan
from kvgauge.resume import conditions_now
from kvgauge.samples.read import load_exchanges, load_transfers
from kvgauge.target.embedded import EmbeddedTarget

pytestmark = pytest.mark.nixl

SHIM = Path(__file__).parents[1] / "clock_steps.c"
HOUR_NS = 3_600_000_000_000
PLAN = """
name: steps
repetitions: 1
primary: {{metric: ttft_ms_mean, cell: p}}
defaults: {{fabric: tcp, model: Qwen3-0.6B, tp: 1, patches: none, build: 1.5.0}}
tests:
{tests}
cells:
  - {{name: p, load: closed, concurrency: 2, input_tokens: 64, output_tokens: 20, requests: 20, warmup_requests: 2}}
"""


class Watcher:
    """Notes which processes of the run have the stepping clock in them."""

    def __init__(self):
        self.targets, self.stepped = [], set()

    def on_tick(self):
        for name, pid in self.targets[-1].pids().items():
            if SHIM.stem in Path(f"/proc/{pid}/maps").read_text():
                self.stepped.add(name)

    def on_run(self, *_):
        pass

    on_cell = on_exchange = on_run_over = on_run


def conduct(folder, *backends):
    tests = "\n".join(f"  - {{name: {backend}, backend: {backend}}}" for backend in backends)
    (folder / "plan.yaml").write_text(PLAN.format(tests=tests))
    plan, watcher = load_plan(folder / "plan.yaml", False, []), Watcher()

    def target_for(logs, _test):
        watcher.targets.append(EmbeddedTarget(logs, install))
        return watcher.targets[-1]

    conductor = Conductor(
        plan, folder / "out", target_for, watcher=watcher, stop=lambda: False, conditions=conditions_now({}, "embedded", {})
    )  # fmt: skip
    return conductor.conduct(), watcher


def with_steps(folder):
    """A python that runs with the stepping clock preloaded."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        warnings.warn("CLOCK STEPS OF WORKERS NOT TESTED: no C compiler (gcc)", stacklevel=2)
        pytest.skip("CLOCK STEPS OF WORKERS NOT TESTED: no C compiler (gcc)")
    library, wrapper = folder / f"{SHIM.stem}.so", folder / "python"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SHIM], check=True)
    wrapper.write_text(f'#!/bin/sh\nLD_PRELOAD={library} exec {sys.executable} "$@"\n')
    wrapper.chmod(0o700)
    look = "import time; seen = []\nwhile len(seen) < 40: seen.append(time.time()); time.sleep(0.01)\nprint(max(seen) - min(seen))"
    seen = subprocess.run([wrapper, "-c", look], capture_output=True, text=True, check=True).stdout
    assert float(seen) > 7000, "the preloaded clock does not step here"
    return wrapper


def step_ours(monkeypatch):
    """Every look at the wall clock of this process is hours away from every other."""
    count, true_ns = itertools.count(1), time.time_ns

    def stepped_ns():
        at = next(count)
        return true_ns() + (at if at % 2 else -at) * HOUR_NS

    monkeypatch.setattr(time, "time_ns", stepped_ns)
    monkeypatch.setattr(time, "time", lambda: stepped_ns() / 1e9)


def figures(results):
    """{(test, metric): point} of the cell."""
    return {
        (test.name, metric): value.point
        for test in results.tests
        for run in test.runs
        if run.cell
        for metric, value in run.metrics.items()
        if value.point is not None
    }


def check_moments(folder):
    exchanges, transfers = load_exchanges(folder), load_transfers(folder)
    assert len(exchanges) == len(transfers) == 22
    for exchange in exchanges:
        phases = exchange.phases
        moments = [
            exchange.sent_ns, phases.received_ns, phases.prefill_start_ns, phases.prefill_end_ns, phases.posted_ns,
            phases.transferred_ns, phases.first_token_ns, phases.written_ns, *exchange.arrivals_ns, exchange.done_ns,
        ]  # fmt: skip
        assert moments[1:] == sorted(moments[1:])
        assert moments[0] <= moments[-1]
    assert all(t.posted_ns < t.transferred_ns and t.post_ns >= 0 and t.checked_ns >= 0 for t in transfers)


def test_hours_of_steps_in_every_process_move_no_figure_and_are_told(tmp_path, monkeypatch):
    for name in ("calm", "stepped"):
        (tmp_path / name).mkdir()
    calm, _ = conduct(tmp_path / "calm", "UCX")
    monkeypatch.setattr(sys, "executable", str(with_steps(tmp_path)))
    step_ours(monkeypatch)
    stepped, watcher = conduct(tmp_path / "stepped", "UCX", "LIBFABRIC")
    monkeypatch.undo()
    assert watcher.stepped == {"prefill-0", "decode-0", "frontend"}
    assert {run.status for test in stepped.tests for run in test.runs} == {"valid"}
    before, after = figures(calm), figures(stepped)
    timed = [key for key in after if "_ms_" in key[1] and ("UCX", key[1]) in before]
    assert len(timed) > 20
    for backend, metric in timed:
        calm_one = max(before["UCX", metric], 1.0)
        assert 0 <= after[backend, metric] < 50 * calm_one, metric  # an hour would be thousands of times that
    for backend, metric in after:
        if metric.endswith("throughput_tok_s"):
            assert after[backend, metric] > before["UCX", metric] / 50
    for test in ("ucx", "libfabric"):
        check_moments(tmp_path / f"stepped/out/runs/r1-{test}")
        for which, told in (("calm", 0), ("stepped", 1)) if test == "ucx" else (("stepped", 1),):
            evidence = json.loads((tmp_path / which / f"out/runs/r1-{test}/evidence.json").read_text())
            facts = [fact["value"] for fact in evidence["facts"] if fact["name"] == "clock_step"]
            assert len(facts) == told
            assert all("nothing kvgauge measured uses it" in fact for fact in facts)

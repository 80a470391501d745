"""Workers and frontend killed and stopped in a run that a conductor conducts: what its results say, and what goes on."""

import os
import signal
import time

import pytest

from kvgauge import resume
from kvgauge.builds.install import install
from kvgauge.conduct import EXIT_UNEXPECTED, Conductor
from kvgauge.plan.records import Plan, Primary
from kvgauge.samples.read import load_exchanges
from kvgauge.target.embedded import EmbeddedTarget, Options
from scene import make_cell, make_test

pytestmark = pytest.mark.nixl

STRUCK = make_cell(name="struck", concurrency=4, requests=40, input_tokens=256, output_tokens=24, warmup_requests=4)
AFTER = make_cell(name="after", concurrency=2, requests=6, input_tokens=256, output_tokens=8, warmup_requests=2)
CONDITIONS = resume.Conditions(kvgauge="9.9", machine={"cores": 2}, builds={}, target="embedded")
SILENCE_S = 2.0


class Injury:
    """Strikes once in the first run, while its first cell is offered.

    when    before, during or after a transfer: before the first request was answered; while decode holds requests whose
            KV it waits for (the other side is stopped for a moment first, so that there are some); after the answers began
    """

    def __init__(self, name, number, when):
        self.name, self.number, self.when = name, number, when
        self.target, self.seen, self.struck, self.held_until = None, 0, False, None
        self.other = {"prefill-0": "decode-0", "decode-0": "prefill-0"}.get(name)

    def on_run(self, *_):
        pass

    on_cell = on_run_over = on_run

    def on_exchange(self, _exchange):
        self.seen += 1

    def on_tick(self):
        if self.struck or not self.target.serving():
            return
        if self.when == "during" and self.other is not None and self.seen >= 6:
            pid = self.target.pids()[self.other]
            if self.held_until is None:
                os.kill(pid, signal.SIGSTOP)  # its peer's transfers now hang between post and completion
                self.held_until = time.monotonic() + 0.3
            elif time.monotonic() > self.held_until:
                self._strike()
                os.kill(pid, signal.SIGCONT)
        elif self.when == "before" or self.seen >= 6:
            self._strike()

    def _strike(self):
        self.struck = True
        os.kill(self.target.pids()[self.name], self.number)


@pytest.fixture
def conduct_one(tmp_path):
    """Conduct two repetitions of one test; the injury falls into the first."""

    def walk(injury, **options):
        test = make_test(**options)
        plan = Plan(
            name="faults", source="here", tests=(test,), cells=(STRUCK, AFTER), repetitions=2,
            primary=Primary(metric="ttft_ms_mean", cell="after"),
        )  # fmt: skip

        def target_for(logs, _test):
            target = EmbeddedTarget(logs, install, Options(silence_s=SILENCE_S, compute=0.3))
            injury.target = target
            return target

        conductor = Conductor(
            plan, tmp_path / "out", target_for, watcher=injury, stop=lambda: False, conditions=CONDITIONS,
            request_timeout_s=30,
        )  # fmt: skip
        results = conductor.conduct()
        assert injury.struck
        assert conductor.exit_code() == EXIT_UNEXPECTED
        runs = {(run.repetition, run.cell): run for row in results.tests for run in row.runs}
        return runs, load_exchanges(tmp_path / "out" / "runs" / "r1-t")

    return walk


# Whose peers post to it once more after its end runs over UCX here: over LIBFABRIC such a post may never return, and
# the poster is found out only after its silence, perhaps in the next cell (test_faults_peer.py has that).
KILLED = [
    pytest.param("prefill-0", "before", {}, marks=pytest.mark.long),
    ("prefill-0", "during", {}),
    pytest.param("prefill-0", "after", {}, marks=pytest.mark.long),
    pytest.param("decode-0", "before", {"operation": "WRITE"}, marks=pytest.mark.long),
    pytest.param("decode-0", "during", {}, marks=pytest.mark.long),
    ("decode-0", "during", {"operation": "WRITE"}),
    ("decode-0", "after", {"backend": "LIBFABRIC"}),
]


@pytest.mark.parametrize(("name", "when", "options"), KILLED)
def test_a_killed_worker_fails_its_cell_by_name_and_the_next_cell_and_run_are_measured(
    conduct_one, name, when, options
):
    runs, exchanges = conduct_one(Injury(name, signal.SIGKILL, when), prefill_workers=2, decode_workers=2, **options)
    struck = runs[1, "struck"]
    assert struck.status == "failed"
    assert any(f"{name} was killed by signal 9" in why and "started again" in why for why in struck.reasons)
    assert runs[1, None].status == "failed"
    assert [runs[at].status for at in ((1, "after"), (2, "struck"), (2, "after"), (2, None))] == ["valid"] * 4
    of_struck = [e for e in exchanges if e.cell == "struck"]
    failed = [e for e in of_struck if e.failure is not None]
    assert len(of_struck) == 44  # the others went on to the end
    assert len(failed) <= 8
    assert all(e.failure in ("status", "error_event") and e.detail for e in failed)


def test_when_a_whole_side_is_killed_its_cell_ends_and_the_next_one_is_measured(conduct_one):
    runs, exchanges = conduct_one(Injury("decode-0", signal.SIGKILL, "after"))
    assert runs[1, "struck"].status == "failed"
    assert runs[1, "after"].status == "valid"
    assert len([e for e in exchanges if e.cell == "struck"]) < 44  # it did not ask on where nobody can answer


@pytest.mark.parametrize(
    ("name", "when", "options"),
    [
        ("prefill-0", "during", {}),
        pytest.param("decode-0", "after", {"backend": "LIBFABRIC"}, marks=pytest.mark.long),
    ],
)
def test_a_stopped_worker_is_found_out_ended_and_replaced(conduct_one, name, when, options):
    runs, exchanges = conduct_one(Injury(name, signal.SIGSTOP, when), prefill_workers=2, decode_workers=2, **options)
    said = " ".join(runs[1, "struck"].reasons)
    assert f"{name} did nothing for" in said
    assert "stopped by a signal" in said
    assert runs[1, "after"].status == runs[2, "after"].status == "valid"
    failed = [e for e in exchanges if e.cell == "struck" and e.failure is not None]
    assert failed
    assert all("HTTP 5" in e.detail or e.failure == "error_event" for e in failed)


@pytest.mark.parametrize(("number", "said"), [(signal.SIGKILL, "killed by signal 9"), (signal.SIGSTOP, "did nothing")])
def test_a_frontend_that_ends_takes_its_run_with_it_and_the_plan_goes_on(conduct_one, number, said):
    runs, exchanges = conduct_one(Injury("frontend", number, "after"))
    assert runs[1, "struck"].status == runs[1, "after"].status == "failed"
    assert "frontend" in " ".join(runs[1, "struck"].reasons)
    assert said in " ".join(runs[1, "struck"].reasons)
    assert runs[2, "struck"].status == runs[2, "after"].status == "valid"
    assert [e for e in exchanges if e.failure is None]  # what was measured until then is kept

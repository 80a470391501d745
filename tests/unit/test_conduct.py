"""A plan's runs from start to verdict, with a target and a driver that the test plays."""

import json
import shutil
from datetime import UTC, datetime
from types import SimpleNamespace

import msgspec
import pytest

from kvgauge import conduct, gather, judge, resume
from kvgauge.conduct import Conductor
from kvgauge.evidence.facts import Evidence, Missing
from kvgauge.failures import BuildError, SamplesError, TargetError
from kvgauge.load.how_many import HowMany
from kvgauge.load.tally import CellLoad
from kvgauge.plan.dataset import DatasetPrompt
from kvgauge.plan.expand import expand
from kvgauge.plan.records import DatasetFile, Plan, Primary
from kvgauge.report.results import read
from kvgauge.samples.disk import unwritten
from kvgauge.samples.files import SampleWriter
from kvgauge.samples.read import load_exchanges, load_transfers
from kvgauge.samples.records import Exchange, Transfer
from kvgauge.target.contract import Endpoint
from scene import make_cell, make_test

MS = 1_000_000
BYTES = 8 * 28 * 128 * 2 * 2 * 64  # 64 tokens of Qwen3-0.6B in bf16
CONDITIONS = resume.Conditions(kvgauge="9.9", machine={"cores": 2}, builds={}, target="embedded")


class World:
    """What the target and the driver do, and what was done to them.

    answer   (run id, cell name, seq) -> what goes wrong with that request, or None
    ttft_ms  run id -> what each request of that run takes to its first token
    """

    def __init__(self):
        self.calls, self.moves = [], []
        self.answer = lambda _run, _cell, _seq: None
        self.ttft_ms = lambda _run: 10.0
        self.change, self.transfer = {}, {}
        self.start_fails = self.prepare_fails = self.evidence_fails = self.trouble = None
        self.stopped, self.fresh = False, True
        self.stop_after = self.dies_after = self.worker_dies_after = None
        self.mended, self.serving, self.waits = [], True, 0
        self.offered = 0
        self.seeds, self.requests = [], []


class FakeTarget:
    def __init__(self, world, logs):
        self.world, self.logs = world, logs

    def prepare(self, test):
        self.world.calls.append(("prepare", test.name))
        if self.world.prepare_fails:
            raise self.world.prepare_fails

    def start(self, run):
        self.world.calls.append(("start", run.run_id))
        if self.world.start_fails and run.run_id in self.world.start_fails:
            raise TargetError("decode-0 did not start: no such model")
        self.world.moves, self.world.trouble = [], None
        return Endpoint(url="http://127.0.0.1:1", model="m", fresh=self.world.fresh, same_clock=True)

    def evidence(self):
        if self.world.evidence_fails:
            raise TargetError(self.world.evidence_fails)
        base = {
            "backends": {"UCX": 1}, "providers": ("tcp/lo",), "facts": (), "connections": (),
            "handshakes_nixl": Missing(reason="-"), "handshakes_efa": Missing(reason="-"), "wire_bytes": 1 << 40,
            "gpu_memory_bytes": Missing(reason="-"), "build_sha256": {}, "machine": Missing(reason="-"),
        }  # fmt: skip
        return Evidence(**(base | self.world.change))

    def phases(self):
        taken, self.world.moves = self.world.moves, []
        return taken

    def trouble(self):
        return self.world.trouble

    def mend(self):
        taken, self.world.mended = self.world.mended, []
        return taken

    def serving(self):
        return self.world.serving

    def wait_serving(self):
        self.world.waits += not self.world.serving
        self.world.serving = True

    def stop(self):
        self.world.calls.append(("stop",))

    def restore(self):
        self.world.calls.append(("restore",))


def driver_of(world):
    class FakeDriver:
        def __init__(self, url, model, *, host, request_timeout_s, headers, tls, quick_ack, **_):
            world.calls.append(("driver", url, model, request_timeout_s))
            world.quick_ack = quick_ack

        def __enter__(self):
            return self

        def __exit__(self, *_):
            world.calls.append(("driver closed",))

        def run_cell(self, cell, *, run_id, seed, on_exchange, tick, stop, requests, **_):
            world.seeds.append(seed)
            world.requests.append(requests)
            done, interrupted = [], False
            for seq in range(cell.warmup_requests + cell.requests):
                if stop():
                    interrupted = True
                    break
                self._one(cell, run_id, seq, on_exchange, done)
                world.offered += 1
                if world.offered == world.stop_after:
                    world.stopped = True
                if world.offered == world.worker_dies_after:
                    world.mended, world.serving = ["decode-0 was killed by signal 9; it was started again"], False
                if world.offered == world.dies_after:
                    world.trouble = "decode-0 was killed by signal 9"
                tick()
            measured = [e for e in done if not e.warmup]
            failed = sum(e.failure is not None for e in measured)
            return CellLoad(
                cell=cell.name, clock="monotonic", started_ns=0 if measured else None,
                ended_ns=max((e.done_ns for e in measured), default=None), offered=len(measured),
                completed=len(measured) - failed, failed=failed, warmups=len(done) - len(measured), cpu_s=0.1,
                late_ns_max=0, late_ns_mean=0.0, stagger_ns=0, interrupted=interrupted,
            )  # fmt: skip

        def _one(self, cell, run_id, seq, on_exchange, done):
            failure = world.answer(run_id, cell.name, seq)
            first_ns = seq * 100 * MS + int((world.ttft_ms(run_id) + seq % 3) * MS)
            arrivals = () if failure else tuple(first_ns + at * MS for at in range(cell.output_tokens))
            request_id = f"{run_id}-{cell.name}-{seq}"
            if not failure:
                world.moves.append(transfer_of(request_id, **world.transfer))
            exchange = Exchange(
                seq=seq, run_id=run_id, cell=cell.name, warmup=seq < cell.warmup_requests, slot=0, worker=0, host="h",
                clock="monotonic", stamp_source="user", due_ns=seq * 100 * MS, sent_ns=seq * 100 * MS,
                arrivals_ns=arrivals, done_ns=seq * 100 * MS + 90 * MS, tokens_in=cell.input_tokens,
                tokens_out=0 if failure else cell.output_tokens, tokens_source="usage", status=200, failure=failure,
                detail=failure and "what was seen", request_id=None if failure else request_id,
            )  # fmt: skip
            done.append(exchange)
            on_exchange(exchange)

    return FakeDriver


def transfer_of(request_id, **changes):
    base = {
        "request_id": request_id, "prefill_worker": 0, "decode_worker": 0, "operation": "READ", "backend": "UCX",
        "prompt_tokens": 64, "pairs": 1, "descriptors": 224, "bytes_expected": BYTES, "bytes_listed": BYTES,
        "bytes_moved": BYTES, "posted_ns": 1, "transferred_ns": 2 * MS, "post_ns": 1, "checked_ns": 1, "pieces": 224,
        "pieces_wrong": 0,
    }  # fmt: skip
    return Transfer(**(base | changes))


class Watching:
    def __init__(self):
        self.seen = []

    def on_run(self, run, runs):
        self.seen.append(("run", run.run_id, runs))

    def on_cell(self, run, cell, index):
        self.seen.append(("cell", cell.name, index))

    def on_exchange(self, exchange):
        self.seen.append(("exchange", exchange.seq))

    def on_tick(self):
        self.seen.append(("tick",))

    def on_run_over(self, run, given):
        self.seen.append(("over", run.run_id, [result.status for result in given]))


def make_plan(*tests, cells=None, repetitions=1):
    tests = tests or (make_test(name="A"),)
    cells = cells or (make_cell(name="p"), make_cell(name="q"))
    primary = Primary(metric="ttft_ms_mean", cell=cells[0].name)
    return Plan(
        name="a plan", source="plan.yaml", tests=tests, cells=cells, repetitions=repetitions, primary=primary,
        rehearsal=True,
    )  # fmt: skip


@pytest.fixture
def scene(tmp_path, monkeypatch):
    world = World()
    monkeypatch.setattr(conduct, "Driver", driver_of(world))
    monkeypatch.setattr(gather, "LATE_MOVES_S", 0.05)

    def walk(plan, **more):
        watching = Watching()
        conductor = Conductor(
            plan, tmp_path / "out", lambda logs, _test: FakeTarget(world, logs), watcher=watching,
            stop=lambda: world.stopped, conditions=CONDITIONS, **more,
        )  # fmt: skip
        results = conductor.conduct()
        runs = {(run.run_id, run.cell): run for test in results.tests for run in test.runs}
        return SimpleNamespace(
            results=results, runs=runs, code=conductor.exit_code(), folder=tmp_path / "out", seen=watching.seen
        )

    return SimpleNamespace(world=world, walk=walk)


def test_a_run_that_did_what_was_asked_is_valid_with_its_metrics_samples_and_evidence(scene):
    got = scene.walk(make_plan())
    assert {run.status for run in got.runs.values()} == {"valid"}
    assert got.code == 0
    cell = got.runs["r1-a", "p"]
    assert cell.metrics["ttft_ms_mean"].point == pytest.approx(11.0)  # warm-up left out
    assert cell.metrics["kv_bytes_moved"].point is not None
    assert got.runs["r1-a", None].proved["backend"].startswith("UCX")
    folder = got.folder / "runs" / "r1-a"
    assert len(load_exchanges(folder)) == len(load_transfers(folder)) == 2 * 5
    assert json.loads((folder / "evidence.json").read_text())["providers"] == ["tcp/lo"]
    assert json.loads((got.folder / "results.json").read_text())["plan"]["name"] == "a plan"
    assert json.loads((got.folder / "plan.json").read_text())["repetitions"] == 1


def test_when_a_run_was_made_is_on_record_also_of_one_that_failed(scene):
    scene.world.start_fails = ("r1-a",)
    begun = datetime.now(UTC)
    got = scene.walk(make_plan(repetitions=2))
    first, second = (got.runs[f"r{k}-a", "p"] for k in (1, 2))
    assert first.status == "failed"
    assert begun <= first.began <= first.ended <= second.began <= second.ended <= datetime.now(UTC)
    assert read(got.folder).tests[0].runs[0].began == first.began


def test_a_target_is_prepared_started_stopped_and_restored_for_each_run_in_order(scene):
    plan = make_plan(make_test(name="A"), make_test(name="B"), repetitions=2)
    scene.walk(plan, request_timeout_s=7.0)
    runs = [run.run_id for run in expand(plan)]
    assert [call[1] for call in scene.world.calls if call[0] == "start"] == runs
    each = [call[0] for call in scene.world.calls]
    assert each == ["prepare", "start", "driver", "driver closed", "stop", "restore"] * 4
    assert {call[3] for call in scene.world.calls if call[0] == "driver"} == {7.0}


def test_whoever_watches_is_told_of_runs_cells_and_requests_as_they_happen(scene):
    got = scene.walk(make_plan())
    steps = [what for what in got.seen if what[0] not in ("exchange", "tick")]
    assert steps == [("run", "r1-a", 1), ("cell", "p", 0), ("cell", "q", 1), ("over", "r1-a", ["valid"] * 3)]
    assert [what[0] for what in got.seen].count("exchange") == 10
    assert ("tick",) in got.seen


def test_results_are_written_anew_after_every_run(scene, tmp_path, monkeypatch):
    written = []
    write = conduct.results_files.write
    monkeypatch.setattr(
        conduct.results_files, "write", lambda results, folder: (written.append(results), write(results, folder))
    )
    scene.walk(make_plan(repetitions=2))
    pending = [sum(run.status == "pending" for test in results.tests for run in test.runs) for results in written]
    assert pending[0] > pending[1] > pending[2] == 0


def test_evidence_against_a_run_makes_all_of_it_invalid_with_the_reason(scene):
    scene.world.change = {"backends": {"LIBFABRIC": 10}}
    got = scene.walk(make_plan())
    assert {run.status for run in got.runs.values()} == {"invalid"}
    assert all("10 by LIBFABRIC" in " ".join(run.reasons) for run in got.runs.values())
    assert got.code == 3


def test_wrong_kv_makes_a_run_invalid_and_a_plan_may_expect_that(scene):
    scene.world.transfer = {"pieces_wrong": 2, "failure": "2 of 224 KV pieces wrong (2 zero)"}
    plan = make_plan(make_test(name="A", expect="invalid"))
    got = scene.walk(plan)
    assert {run.status for run in got.runs.values()} == {"invalid"}
    assert any("2 zero" in reason for reason in got.runs["r1-a", "p"].reasons)
    assert got.code == 0


def test_a_target_that_does_not_start_fails_that_run_and_the_next_one_starts(scene):
    scene.world.start_fails = ("r1-a",)
    got = scene.walk(make_plan(make_test(name="A"), make_test(name="B")))
    for (run_id, _), run in got.runs.items():
        assert run.status == ("failed" if run_id == "r1-a" else "valid")
    assert got.runs["r1-a", "q"].reasons == ("decode-0 did not start: no such model",)
    assert [call[0] for call in scene.world.calls].count("restore") == 2
    assert not (got.folder / "runs/r1-a/evidence.json").exists()
    assert got.code == 3


def test_a_build_that_cannot_be_installed_fails_its_runs_with_that_reason(scene):
    scene.world.prepare_fails = BuildError("cannot install nixl-1.5.0: no index")
    got = scene.walk(make_plan())
    assert got.runs["r1-a", None].reasons == ("cannot install nixl-1.5.0: no index",)
    assert {run.status for run in got.runs.values()} == {"failed"}


def test_a_target_that_dies_fails_its_cells_and_nobody_waits_for_the_others(scene):
    scene.world.dies_after = 3
    got = scene.walk(make_plan(make_test(name="A"), make_test(name="B")))
    first = expand(make_plan(make_test(name="A"), make_test(name="B")))[0].run_id
    for (run_id, _), run in got.runs.items():
        assert run.status == ("failed" if run_id == first else "valid")
        if run_id == first:
            assert run.reasons[0] == "decode-0 was killed by signal 9"
    assert len(load_exchanges(got.folder / "runs" / first)) == 3
    assert got.code == 3


def test_a_target_that_does_not_answer_for_its_evidence_proves_nothing(scene):
    scene.world.evidence_fails = "no answer from decode-0 within 10 s"
    got = scene.walk(make_plan())
    assert {run.status for run in got.runs.values()} == {"failed"}
    assert all(run.reasons[0] == "no answer from decode-0 within 10 s" for run in got.runs.values())
    assert got.runs["r1-a", None].metrics == {}


def test_an_interruption_keeps_what_there_is_and_marks_the_rest(scene):
    scene.world.stop_after = 3
    got = scene.walk(make_plan(repetitions=2))
    assert got.code == 130
    assert [got.runs["r1-a", cell].status for cell in (None, "p", "q")] == ["interrupted"] * 3
    assert {run.status for (run_id, _), run in got.runs.items() if run_id == "r2-a"} == {"pending"}
    assert len(load_exchanges(got.folder / "runs/r1-a")) == 3
    assert [call[0] for call in scene.world.calls].count("start") == 1


def test_nothing_is_started_when_it_was_stopped_before(scene):
    scene.world.stopped = True
    got = scene.walk(make_plan())
    assert scene.world.calls == []
    assert {run.status for run in got.runs.values()} == {"pending"}
    assert got.code == 130


def test_when_every_request_of_a_cell_fails_the_others_are_not_tried(scene):
    scene.world.answer = lambda _run, _cell, _seq: "timeout"
    got = scene.walk(make_plan())
    assert [what[1] for what in got.seen if what[0] == "cell"] == ["p"]
    assert got.runs["r1-a", "q"].status in ("failed", "invalid")
    assert "not tried: every request of cell p failed" in got.runs["r1-a", "q"].reasons
    assert any("4 of 4 requests failed (4 timeout)" in reason for reason in got.runs["r1-a", "p"].reasons)
    assert got.code == 3


def test_some_failed_requests_make_their_cell_invalid_and_leave_the_other_valid(scene):
    scene.world.answer = lambda _run, cell, seq: "stall" if cell == "p" and seq == 2 else None
    got = scene.walk(make_plan())
    assert [got.runs["r1-a", cell].status for cell in (None, "p", "q")] == ["valid", "invalid", "valid"]
    assert "1 of 4 requests failed (1 stall)" in got.runs["r1-a", "p"].reasons[0]
    assert got.runs["r1-a", "p"].metrics["failures"].point == 1


def test_a_move_whose_record_comes_after_the_answer_is_waited_for(scene, monkeypatch):
    cell = make_cell(name="p")
    ticks = cell.warmup_requests + cell.requests
    asked, phases = [], FakeTarget.phases

    def late(self):
        asked.append(1)
        return phases(self) if len(asked) > ticks + 2 else []

    monkeypatch.setattr(FakeTarget, "phases", late)
    monkeypatch.setattr(gather, "LATE_MOVES_S", 2.0)
    got = scene.walk(make_plan(cells=(cell,)))
    assert len(load_transfers(got.folder / "runs/r1-a")) == ticks
    assert got.runs["r1-a", "p"].status == "valid"


@pytest.mark.parametrize(("candidate_ms", "code"), [(50.0, 1), (10.0, 0), (2.0, 0)])
def test_a_primary_metric_worse_than_the_baselines_is_exit_code_1(scene, candidate_ms, code):
    scene.world.ttft_ms = lambda run: candidate_ms if run.endswith("-b") else 10.0 + 0.01 * int(run[1])
    plan = make_plan(make_test(name="A"), make_test(name="B", baseline=("A",)), repetitions=6)
    got = scene.walk(plan)
    assert got.code == code
    verdicts = {row.verdict for row in got.results.tests[1].gains if row.primary}
    assert ("worse" in verdicts) is (code == 1)


@pytest.mark.parametrize(("noise_ms", "repetitions"), [(0.01, 7), (3.0, 9)])
def test_a_plan_stops_two_repetitions_after_its_gains_were_narrow_and_not_before_the_fifth(
    scene, noise_ms, repetitions
):
    scene.world.ttft_ms = lambda run: (
        (8.0 if run.endswith("-b") else 10.0) + noise_ms * (int(run[1]) % 3) * (-1 if run.endswith("-b") else 1)
    )
    plan = make_plan(make_test(name="A"), make_test(name="B", baseline=("A",)), repetitions=9)
    got = scene.walk(msgspec.structs.replace(plan, gain_within_pct=2.0))
    assert sum(call[0] == "start" for call in scene.world.calls) == 2 * repetitions
    assert {run.status for run in got.runs.values()} == {"valid"}
    assert (got.results.ended is not None) is (repetitions < 9)
    assert max(run.repetition for run in got.runs.values()) == repetitions


def test_a_plan_that_has_stopped_is_not_gone_on_with_when_it_is_resumed(scene):
    scene.world.ttft_ms = lambda run: 8.0 if run.endswith("-b") else 10.0 + 0.01 * int(run[1])
    plan = make_plan(make_test(name="A"), make_test(name="B", baseline=("A",)), repetitions=9)
    plan = msgspec.structs.replace(plan, gain_within_pct=2.0)
    first = scene.walk(plan)
    done = {test.name: list(test.runs) for test in first.results.tests}
    shutil.rmtree(first.folder)
    scene.world.calls.clear()
    again = scene.walk(plan, done=done)
    assert not [call for call in scene.world.calls if call[0] == "start"]
    assert again.results.ended == first.results.ended


def test_runs_that_an_earlier_process_finished_are_not_repeated(scene):
    plan = make_plan(repetitions=2)
    first = scene.walk(plan)
    done = {"A": [run for (run_id, _), run in first.runs.items() if run_id == "r1-a"]}
    shutil.rmtree(first.folder)
    scene.world.calls.clear()
    again = scene.walk(plan, done=done)
    assert [call[1] for call in scene.world.calls if call[0] == "start"] == ["r2-a"]
    assert {run.status for run in again.runs.values()} == {"valid"}
    assert again.runs["r1-a", "p"] == first.runs["r1-a", "p"]


def test_runs_of_one_repetition_offer_the_same_prompts(scene):
    plan = make_plan(make_test(name="A"), make_test(name="B"), repetitions=2)
    scene.walk(plan)
    pairs = [scene.world.seeds[at : at + 4] for at in range(0, 8, 4)]
    assert [len(set(pair)) for pair in pairs] == [1, 1]
    assert pairs[0] != pairs[1]


def test_a_target_that_was_not_started_for_the_run_is_never_asked_the_same_prompts_twice(scene):
    scene.world.fresh = False
    got = scene.walk(make_plan(make_test(name="A"), make_test(name="B")))
    assert len(set(scene.world.seeds)) == 2  # one a run
    assert {run.seed for run in got.runs.values()} == set(scene.world.seeds)


PROMPTS = tuple(DatasetPrompt(text=str(number), output_tokens=None) for number in range(25))
OF_FILE = {
    "input_tokens": None,
    "dataset": DatasetFile(
        path="d", sha256="0", prompts=25, words_mean=1, words_max=1, output_tokens_mean=None, output_tokens_max=None
    ),
}


@pytest.mark.parametrize(("fresh", "starts", "repeated"), [(True, [0, 5, 0, 5], 0), (False, [0, 5, 10, 15], 0)])
def test_cells_send_different_parts_of_a_dataset_and_repetitions_too_where_the_target_stays(
    scene, fresh, starts, repeated
):
    scene.world.fresh = fresh
    cells = (make_cell(name="p", **OF_FILE), make_cell(name="q", **OF_FILE))
    got = scene.walk(make_plan(cells=cells, repetitions=2), files={"d": PROMPTS})
    assert [int(requests[0].text) for requests in scene.world.requests] == starts
    assert {run.metrics["prompts_repeated"].point for (_, cell), run in got.runs.items() if cell} == {repeated}


def test_prompts_that_had_to_be_repeated_are_counted_and_remarked_on(scene):
    scene.world.fresh = False
    cells = tuple(make_cell(name=name, requests=14, **OF_FILE) for name in "pq")
    got = scene.walk(make_plan(cells=cells), files={"d": PROMPTS})
    assert [got.runs["r1-a", name].metrics["prompts_repeated"].point for name in "pq"] == [0, 5]
    assert got.runs["r1-a", "p"].remarks == ()
    assert "prompts repeated: 5 of 15" in got.runs["r1-a", "q"].remarks[0]
    assert got.runs["r1-a", "q"].status == "valid"


@pytest.mark.parametrize("quick_ack", [False, True])
def test_a_plans_quick_acks_are_the_drivers_and_stand_in_its_results(scene, quick_ack):
    got = scene.walk(msgspec.structs.replace(make_plan(), quick_ack=quick_ack))
    assert scene.world.quick_ack is quick_ack
    assert got.results.plan["quick_ack"] is quick_ack


@pytest.mark.parametrize("where", ["prepare", "phases"])
def test_a_disk_that_is_full_ends_the_plan_and_fails_no_run(scene, monkeypatch, where):
    def full(_self, *_test):
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr(FakeTarget, where, full)
    with pytest.raises(SamplesError, match=r"written to /somewhere: No space left on device; .* Make room"):
        scene.walk(make_plan())
    assert [call[0] for call in scene.world.calls][-2:] == ["stop", "restore"]


def test_samples_that_cannot_be_written_end_the_plan_and_the_run_is_still_to_come(scene, monkeypatch, tmp_path):
    def full(self, _exchange):
        raise unwritten(OSError(28, "No space left on device"), self._folder)

    monkeypatch.setattr(SampleWriter, "add_exchange", full)
    with pytest.raises(SamplesError):
        scene.walk(make_plan())
    assert [call[0] for call in scene.world.calls][-2:] == ["stop", "restore"]
    (written,) = tmp_path.rglob("results.json")
    assert {run.status for run in read(written).tests[0].runs} == {"pending"}


def test_a_mistake_of_our_own_ends_the_target_before_it_is_raised(scene, monkeypatch):
    monkeypatch.setattr(FakeTarget, "evidence", lambda _self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scene.walk(make_plan())
    assert [call[0] for call in scene.world.calls][-2:] == ["stop", "restore"]


def test_what_a_run_was_made_under_is_written_before_the_first_run(scene):
    scene.world.stopped = True
    got = scene.walk(make_plan())
    saved = resume.load(got.folder)
    assert saved.plan == make_plan()
    assert saved.conditions == CONDITIONS
    assert msgspec.json.decode((got.folder / "results.json").read_bytes())["machine"] == {
        "kvgauge": "9.9",
        "cores": 2,
        "target": "embedded",
    }


def test_a_worker_that_was_started_again_fails_its_cell_and_the_next_one_counts(scene):
    scene.world.worker_dies_after = 3
    plan = make_plan(make_test(name="A"), cells=(make_cell(name="struck"), make_cell(name="after")))
    runs = {run.cell: run for run in scene.walk(plan).results.tests[0].runs}
    assert runs["struck"].status == "failed"
    assert runs["struck"].reasons[0] == "decode-0 was killed by signal 9; it was started again"
    assert runs["after"].status == "valid"
    assert (runs[None].status, runs[None].reasons[0][:12]) == ("failed", "cell struck:")
    assert scene.world.waits == 1


@pytest.mark.parametrize(("expect", "code"), [("unusable", 0), ("invalid", 3), ("failed", 0)])
def test_a_build_that_is_known_to_be_unusable_may_fail_or_be_invalid(scene, expect, code):
    scene.world.start_fails = {"r1-a"}
    assert scene.walk(make_plan(make_test(name="A", expect=expect))).code == code


def team_of(world, decided, lost=()):
    """A Team that plays the driver; the cells named in `lost` lose a worker."""

    class FakeTeam(driver_of(world)):
        def __init__(self, url, model, *, decide, folder, **options):
            super().__init__(url, model, **options)
            self._decide = decide
            world.calls.append(("team", folder.name))

        def run_cell(self, cell, **callbacks):
            chosen = self._decide(cell)
            decided.append((cell.name, chosen.workers))
            load = super().run_cell(cell, **callbacks)
            return msgspec.structs.replace(
                load,
                workers=chosen.workers,
                workers_why=chosen.why,
                interrupted=cell.name in lost,
                lost="load worker 1 was killed by signal 9: 1 of its 2 requests are recorded"
                if cell.name in lost
                else None,
            )

    return FakeTeam


def doubled(cell, too_few):
    return HowMany(workers=2 * too_few or 2, why=f"{too_few} were too few")


def test_how_many_workers_offered_a_cell_and_why_stands_in_its_results(scene, monkeypatch):
    decided = []
    monkeypatch.setattr(conduct, "Team", team_of(scene.world, decided))
    got = scene.walk(make_plan(), workers=doubled)
    assert decided == [("p", 2), ("q", 2)]
    assert ("team", "logs") in scene.world.calls
    cell = got.runs["r1-a", "q"]
    assert (cell.status, cell.load_workers, cell.load_workers_why) == ("valid", 2, "0 were too few")
    kept = [run for test in read(got.folder).tests for run in test.runs if run.cell == "q"]
    assert (kept[0].load_workers, kept[0].load_workers_why) == (2, "0 were too few")


def test_a_cell_that_lost_a_worker_has_failed_and_the_next_is_measured(scene, monkeypatch):
    monkeypatch.setattr(conduct, "Team", team_of(scene.world, [], lost=("p",)))
    got = scene.walk(make_plan(), workers=doubled)
    assert [got.runs["r1-a", name].status for name in ("p", "q")] == ["failed", "valid"]
    assert got.runs["r1-a", "p"].reasons[0].startswith("load worker 1 was killed by signal 9")
    assert "cell p: load worker 1 was killed" in got.runs["r1-a", None].reasons[0]
    assert got.code == 3
    assert len(load_exchanges(got.folder / "runs/r1-a")) == 10


def test_workers_that_were_a_cells_bottleneck_are_known_in_the_next_run(scene, monkeypatch):
    decided = []
    monkeypatch.setattr(conduct, "Team", team_of(scene.world, decided))
    for module in (conduct, judge):
        monkeypatch.setattr(
            module, "client_troubles", lambda cell, _: ["this client was the bottleneck"] if cell.name == "p" else []
        )
    got = scene.walk(make_plan(repetitions=3), workers=doubled)
    assert decided == [("p", 2), ("q", 2), ("p", 4), ("q", 2), ("p", 8), ("q", 2)]
    assert {run.status for (_, cell), run in got.runs.items() if cell == "p"} == {"invalid"}

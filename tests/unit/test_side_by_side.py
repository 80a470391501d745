"""A paired plan's repetitions from start to verdict, with targets and a driver that the test plays."""

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from kvgauge import gather, resume, side_by_side
from kvgauge.compare.sides import compare
from kvgauge.conduct import Conductor
from kvgauge.evidence.facts import Evidence, Missing
from kvgauge.failures import TargetError, UsageError
from kvgauge.judge import Measured
from kvgauge.load.pairs import Order
from kvgauge.load.tally import CellLoad
from kvgauge.plan.records import Plan, Planted, Primary
from kvgauge.report.against import side_of
from kvgauge.report.results import read
from kvgauge.report.text import render
from kvgauge.samples.read import load_exchanges
from kvgauge.samples.records import Exchange, Transfer
from kvgauge.side_by_side import _share_mishaps, _Side
from kvgauge.target.contract import Endpoint
from scene import make_cell, make_test

MS = 1_000_000
BYTES = 8 * 28 * 128 * 2 * 2 * 64
CONDITIONS = resume.Conditions(kvgauge="9.9", machine={"cores": 2}, builds={}, target="embedded")


class FakeTarget:
    def __init__(self, world, name):
        self.world, self.name = world, name

    def prepare(self, test):
        pass

    def start(self, run):
        self.world.calls.append(("start", self.name))
        if self.name in self.world.start_fails:
            raise TargetError("decode-0 did not start")
        self.world.moves[self.name] = []
        return Endpoint(url=f"http://{self.name}", model="m", fresh=True, same_clock=True)

    def evidence(self):
        return Evidence(
            backends={"UCX": 1}, providers=("tcp/lo",), facts=(), connections=(), handshakes_nixl=Missing(reason="-"),
            handshakes_efa=Missing(reason="-"), wire_bytes=self.world.wire_bytes, gpu_memory_bytes=Missing(reason="-"),
            build_sha256={}, machine=Missing(reason="-"),
        )  # fmt: skip

    def phases(self):
        taken, self.world.moves[self.name] = self.world.moves[self.name], []
        return taken

    def trouble(self):
        return self.world.trouble.get(self.name)

    def mend(self):
        return []

    def serving(self):
        return True

    def wait_serving(self):
        pass

    def stop(self):
        self.world.calls.append(("stop", self.name))

    def restore(self):
        pass


def driver_of(world):
    class FakeDriver:
        def __init__(self, arms, **_):
            world.arms = [arm.url for arm in arms]

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def run_cell(self, cell, *, run_ids, seed, on_exchange, tick, stop, enough, **_):
            order, interrupted, done = Order(seed, cell.name), False, ([], [])
            for seq in range(cell.warmup_requests + cell.requests):
                if enough():
                    break
                if stop():
                    interrupted = True
                    break
                arm = order.arm(seq)
                exchange = self._one(cell, run_ids[arm], seq, arm)
                done[arm].append(exchange)
                on_exchange(arm, exchange, None if exchange.warmup else (seq - cell.warmup_requests) // 2)
                if seq == world.stops_at:
                    world.stopped = True
                if seq == world.dies_at:
                    world.trouble["B"] = "decode-0 was killed by signal 9"
                tick()
            return tuple(self._load(cell, each, interrupted) for each in done)

        @staticmethod
        def _load(cell, done, interrupted):
            measured = [each for each in done if not each.warmup]
            return CellLoad(
                cell=cell.name, clock="monotonic", started_ns=0 if measured else None, ended_ns=10**9,
                offered=len(measured), completed=len(measured), failed=0, warmups=0, cpu_s=0.1, late_ns_max=0,
                late_ns_mean=0.0, stagger_ns=0, interrupted=interrupted,
            )  # fmt: skip

        @staticmethod
        def _one(cell, run_id, seq, arm):
            request_id = f"{run_id}-{cell.name}-{seq}"
            world.moves["AB"[arm]].append(
                Transfer(
                    request_id=request_id,
                    prefill_worker=0,
                    decode_worker=0,
                    operation="READ",
                    backend="UCX",
                    prompt_tokens=64,
                    pairs=1,
                    descriptors=224,
                    bytes_expected=BYTES,
                    bytes_listed=BYTES,
                    bytes_moved=BYTES,
                    posted_ns=1,
                    transferred_ns=2 * MS,
                    post_ns=1,
                    checked_ns=1,
                    pieces=224,
                    pieces_wrong=0,
                )
            )
            due_ns = seq * 100 * MS
            shared = 1 + 0.3 * ((seq // 2 * 7919) % 101) / 101  # what both requests of a pair meet
            first_ns = due_ns + round(10 * MS * shared * (1 + world.slower * arm) * (1 + (seq * 31 % 17) / 1700))
            return Exchange(
                seq=seq, run_id=run_id, cell=cell.name, warmup=seq < cell.warmup_requests, slot=0, worker=0, host="h",
                clock="monotonic", stamp_source="user", due_ns=due_ns, sent_ns=due_ns,
                arrivals_ns=tuple(first_ns + at * MS for at in range(cell.output_tokens)), done_ns=due_ns + 90 * MS,
                tokens_in=cell.input_tokens, tokens_out=cell.output_tokens, tokens_source="usage", status=200,
                failure=None, detail=None, request_id=request_id,
            )  # fmt: skip

    return FakeDriver


@pytest.fixture
def scene(tmp_path, monkeypatch):
    world = SimpleNamespace(
        calls=[], moves={}, start_fails=(), trouble={}, wire_bytes=1 << 40, stopped=False, stops_at=None, dies_at=None,
        slower=0.01, arms=None,
    )  # fmt: skip
    monkeypatch.setattr(side_by_side, "PairedDriver", driver_of(world))
    monkeypatch.setattr(gather, "LATE_MOVES_S", 0.05)
    watcher = SimpleNamespace(**dict.fromkeys(("on_run", "on_cell", "on_exchange", "on_tick", "on_run_over"), ignore))

    def walk(*, requests=1000, within=None, repetitions=1, done=None):
        cell = make_cell(
            name="p", load="single", concurrency=1, requests=requests, warmup_requests=4, input_tokens=64,
            output_tokens=2,
        )  # fmt: skip
        plan = Plan(
            name="pairs", source="p.yaml", mode="paired", repetitions=repetitions, gain_within_pct=within,
            rehearsal=True, cells=(cell,), primary=Primary(metric="ttft_ms_mean", cell="p"),
            tests=(make_test(name="A"), make_test(name="B", baseline=("A",), planted=Planted(prefill_pct=1.0))),
        )  # fmt: skip
        conductor = Conductor(
            plan, tmp_path / "out", lambda _logs, test: FakeTarget(world, test.name), watcher=watcher,
            stop=lambda: world.stopped, conditions=CONDITIONS, done=done,
        )  # fmt: skip
        results = conductor.conduct()
        runs = {run.run_id: run for test in results.tests for run in test.runs if run.cell}
        return SimpleNamespace(
            results=results, runs=runs, code=conductor.exit_code(), folder=tmp_path / "out", gain=primary(results)
        )

    return SimpleNamespace(world=world, walk=walk)


def ignore(*_):
    pass


def primary(results):
    return next(row for row in results.tests[1].gains if row.primary)


def test_one_repetition_finds_a_percent_among_pairs_and_says_what_n_counts(scene):
    got = scene.walk()
    assert {run.status for run in got.runs.values()} == {"valid"}
    assert all(run.began < run.ended for run in got.runs.values())
    assert got.gain.verdict == "worse"
    assert got.gain.gain.point == pytest.approx(-1, abs=0.1)
    assert got.gain.gain.low < -1 < got.gain.gain.high
    assert (got.gain.gain.n, got.gain.of) == (500, "pairs of requests, these deployments")
    assert "n counts pairs of requests, these deployments" in got.gain.reason
    assert got.code == 1
    assert scene.world.arms == ["http://A", "http://B"], "the baseline is arm 0, whichever starts first"
    assert [name for what, name in scene.world.calls if what == "stop"].count("A") >= 1


def test_both_arms_have_samples_and_evidence_of_their_own(scene):
    got = scene.walk(requests=40)
    numbers = []
    for name in ("a", "b"):
        folder = got.folder / "runs" / f"r1-{name}"
        numbers += [each.seq for each in load_exchanges(folder)]
        assert "taken off" in (folder / "evidence.json").read_text()
    assert sorted(numbers) == list(range(44))
    assert got.gain.verdict == "cannot tell"
    assert "20 pairs of requests: an interval needs at least 200" in got.gain.reason


def test_equal_arms_are_equivalent(scene):
    scene.world.slower = 0.0
    got = scene.walk()
    assert got.gain.verdict == "equivalent"
    assert got.code == 0


def test_the_cell_ends_at_the_look_that_finds_the_gain_narrow_enough(scene):
    got = scene.walk(requests=20_000, within=1.0)
    assert got.gain.gain.n == 400
    remarks = got.runs["r1-b"].remarks
    assert remarks == ("ended at 400 pairs of requests: the gain was known well enough",)
    assert got.runs["r1-b"].pairs["ttft_ms_mean"].looks == 6


def test_half_a_load_gives_no_throughput(scene):
    for run in scene.walk(requests=40).runs.values():
        assert run.metrics["request_throughput_req_s"].point is None
        assert "no capacity" in run.metrics["request_throughput_req_s"].reason


def test_the_other_arms_bytes_prove_nothing(scene):
    scene.world.wire_bytes = 44 * BYTES
    assert {run.status for run in scene.walk(requests=40).runs.values()} == {"valid"}


def test_bytes_that_would_do_for_one_arm_only_contradict_both(scene):
    scene.world.wire_bytes = 44 * BYTES - 1
    got = scene.walk(requests=40)
    assert {run.status for run in got.runs.values()} == {"invalid"}
    assert got.gain.verdict == "invalid"


@pytest.mark.parametrize("how", ["start", "middle"])
def test_an_arm_that_ends_takes_the_other_with_it(scene, how):
    if how == "start":
        scene.world.start_fails = ("B",)
    else:
        scene.world.dies_at = 10
    got = scene.walk(requests=40)
    assert {run.status for run in got.runs.values()} == {"failed"}
    assert all("decode-0" in " ".join(run.reasons) for run in got.runs.values())
    assert got.code == 3


def test_an_interrupted_repetition_is_made_again_and_a_whole_one_is_not(scene):
    scene.world.stops_at = 20
    got = scene.walk(requests=40, repetitions=2)
    assert got.code == 130
    assert got.runs["r1-a"].status == "interrupted"
    scene.world.stopped, scene.world.stops_at = False, None
    again = scene.walk(requests=40, repetitions=2, done=resume.load(got.folder).done)
    assert {run.status for run in again.runs.values()} == {"valid"}
    starts = len(scene.world.calls)
    scene.walk(requests=40, repetitions=2, done=resume.load(got.folder).done)
    assert len(scene.world.calls) == starts


def test_five_repetitions_are_runs(scene):
    got = scene.walk(requests=420, repetitions=5)
    assert (got.gain.gain.n, got.gain.of) == (5, "runs")
    assert got.gain.verdict == "worse"


def test_results_are_read_back_shown_and_compared_within_their_folder_only(scene, tmp_path):
    got = scene.walk()
    results = read(got.folder)
    assert [test.runs for test in results.tests] == [test.runs for test in got.results.tests]
    console = Console(width=160, record=True, file=io.StringIO())
    for part in render(results):
        console.print(part)
    shown = console.export_text()
    assert "mode paired" in shown
    assert "planted: modelled prefill +1 %" in shown
    sides = [side_of(results, "here", name) for name in ("A", "B")]
    compared = compare(*sides)
    row = next(each.row for each in compared.rows if each.row.primary)
    assert row.gain == got.gain.gain
    assert any("mode paired" in remark for remark in compared.remarks)
    assert any("planted in B: modelled prefill +1 %" in remark for remark in compared.remarks)
    turned = compare(sides[1], sides[0])
    assert next(each.row for each in turned.rows if each.row.primary).verdict == "better"
    with pytest.raises(UsageError, match="was measured in mode paired, beside B"):
        compare(sides[0], side_of(results, "elsewhere", "B"))
    assert json.loads((got.folder / "results.json").read_text())["plan"]["mode"] == "paired"


def test_what_happened_to_one_arm_ended_the_cell_of_both():
    sides = [
        _Side(run=None, folder=None, target=None, measured=Measured(exchanges=[], transfers=[], loads=[], seed=1))
        for _ in range(2)
    ]
    sides[0].measured.mishaps.append(("c", "decode-0 was killed"))
    sides[0].measured.mishaps.append(("before", "something else"))
    _share_mishaps(sides, "c")
    assert sides[1].measured.mishaps == [("c", "the test beside it: decode-0 was killed")]
    assert len(sides[0].measured.mishaps) == 2

"""results.json and results.csv: built after every run, written whole, read with care; and `kvgauge report`."""

import argparse
import csv
import io
import json

import msgspec
import pytest

from kvgauge.cli import report
from kvgauge.compare.gains import published_gain
from kvgauge.failures import SamplesError, UsageError
from kvgauge.plan.records import Cell, Plan, Primary, Run, Test
from kvgauge.report.published import published
from kvgauge.report.records import RunResult
from kvgauge.report.results import build, csv_text, decode, json_text, read, write
from kvgauge.stats.estimate import Estimate, bare, missing

CELLS = tuple(
    Cell(name=name, load="closed", concurrency=c, requests=8, output_tokens=8, warmup_requests=1, input_tokens=9)
    for name, c in (("light", 1), ("heavy", 10))
)


def row(name, **more):
    defaults = {
        "name": name, "backend": "UCX", "fabric": "tcp", "build": "1.2.0", "patches": "none", "stand_in": None,
        "model": "Qwen3-0.6B", "prefill_tp": 1, "decode_tp": 2,
    }  # fmt: skip
    return Test(**(defaults | more))


TESTS = (row("A"), row("B", baseline=("A",), stand_in="stand-in: NIXL 1.2.0, not the patches"))
PLAN = Plan(
    name="p", source="here", tests=TESTS, cells=CELLS, repetitions=5, primary=Primary(metric="ttft_ms_mean", cell="heavy"), rehearsal=True
)  # fmt: skip


def ran(test, repetition, cell, ttft, status="valid", reasons=(), **more):
    metrics = {"ttft_ms_mean": Estimate(point=ttft, low=ttft - 1, high=ttft + 1, n=8, unit="ms"), **more}
    return RunResult(
        run_id=f"r{repetition}-{test}", repetition=repetition, cell=cell, concurrency=None if cell is None else 10, seed=3,
        status=status, reasons=reasons, metrics=metrics,
    )  # fmt: skip


def all_runs(**more):
    return {
        name: [
            ran(name, k, cell, level + k / 8 + (k % 2) / 16, **more) for k in range(1, 6) for cell in ("light", "heavy")
        ]
        for name, level in (("A", 100), ("B", 80))
    }


def summary(results, test, cell="heavy", metric="ttft_ms_mean"):
    return next(r for r in results.tests[test].summary if (r.cell, r.metric) == (cell, metric))


def test_the_shape_is_the_documented_one():
    data = json.loads(json_text(build(PLAN, all_runs(), {"cores": 2})))
    assert list(data) == ["schema", "plan", "rehearsal", "machine", "tests", "published", "ended", "scope"]
    assert (data["schema"], data["rehearsal"], data["machine"]) == (1, True, {"cores": 2})
    test = data["tests"][1]
    assert list(test) == [
        "name",
        "backend",
        "fabric",
        "build",
        "stand_in",
        "patches",
        "model",
        "tp",
        "expect",
        "baseline",
        "runs",
        "summary",
        "gains",
        "cold_start",
        "planted",
    ]
    assert test["tp"] == {"prefill": 1, "decode": 2}
    run = test["runs"][0]
    assert list(run) == [
        "run_id",
        "repetition",
        "cell",
        "concurrency",
        "seed",
        "status",
        "reasons",
        "metrics",
        "proved",
        "server",
        "load_workers",
        "load_workers_why",
        "remarks",
        "warmup",
        "limits",
        "beside",
        "pairs",
        "deployment",
        "began",
        "ended",
    ]
    assert run["metrics"]["ttft_ms_mean"] == {
        "point": 80.1875,
        "low": 79.1875,
        "high": 81.1875,
        "n": 8,
        "unit": "ms",
        "reason": None,
        "note": None,
    }
    columns = ["cell", "concurrency", "metric", "point", "low", "high", "n", "unit", "reason", "note"]
    assert list(test["summary"][0]) == columns
    assert test["gains"][0]["verdict"] == "better"


def test_results_are_current_after_every_run_and_list_what_is_pending():
    given = {"A": [ran("A", 1, "light", 100.0), ran("A", 1, "heavy", 120.0)]}
    results = build(PLAN, given, {})
    states = [(run.repetition, run.cell, run.status) for run in results.tests[0].runs]
    assert states[:3] == [(1, "light", "valid"), (1, "heavy", "valid"), (2, "light", "pending")]
    assert len(states) == len(results.tests[1].runs) == 10
    assert summary(results, 0).point == 120
    assert summary(results, 0).low is None
    assert results.tests[1].gains[0].verdict == "cannot tell"


def test_pending_runs_carry_the_plans_run_id_and_seed():
    planned = [Run(run_id="r2-a", test=TESTS[0], repetition=2, order=0, seed=77, cells=CELLS)]
    pending = [run for run in build(PLAN, {}, {}, planned).tests[0].runs if run.repetition == 2]
    assert {(run.run_id, run.seed, run.status) for run in pending} == {("r2-a", 77, "pending")}


@pytest.mark.parametrize("status", ["invalid", "failed", "interrupted"])
def test_only_valid_runs_enter_summaries_and_gains(status):
    given = all_runs()
    given["B"][1] = ran("B", 1, "heavy", 9_999.0, status, ("because",))
    results = build(PLAN, given, {})
    assert summary(results, 1).n == 4
    assert summary(results, 1).high < 90
    assert results.tests[1].gains[0].gain.n == 4
    assert f"repetition 1 left out: {status} in B" in results.tests[1].gains[0].reason


def test_a_run_that_is_invalid_as_a_whole_takes_its_cells_with_it():
    given = all_runs()
    given["B"].append(ran("B", 2, None, 1.0, "invalid", ("asked for efa, got tcp: set FI_PROVIDER=efa",)))
    results = build(PLAN, given, {})
    cells = {(run.status, run.reasons) for run in results.tests[1].runs if run.repetition == 2}
    assert cells == {("invalid", ("asked for efa, got tcp: set FI_PROVIDER=efa",))}
    assert summary(results, 1).n == 4


def test_a_metric_without_any_valid_run_is_missing_and_not_absent():
    results = build(PLAN, {"A": [ran("A", k, "heavy", 1.0, "invalid") for k in range(1, 6)]}, {})
    assert (summary(results, 0).point, summary(results, 0).reason) == (None, "no valid run")


def test_what_runs_lack_keeps_their_reason_in_the_summary():
    given = {"A": [ran("A", 1, None, 1.0, handshake_count_efa=missing("handshakes", "no EFA here"))]}
    assert summary(build(PLAN, given, {}), 0, None, "handshake_count_efa").reason == "no EFA here"


def test_the_largest_of_few_requests_stays_marked_over_runs_and_gives_no_verdict():
    p99 = bare(50.0, "ms", 8, "max of n=8: a P99 interval needs 299 requests")
    results = build(PLAN, all_runs(ttft_ms_p99=p99), {})
    assert summary(results, 1, metric="ttft_ms_p99").reason.startswith("max of n=8")
    verdicts = {row.metric: row.verdict for row in results.tests[1].gains if row.cell == "heavy"}
    assert verdicts == {"ttft_ms_mean": "better", "ttft_ms_p99": "cannot tell"}


def test_what_was_written_is_read_back_the_same(tmp_path):
    results = build(PLAN, all_runs(), {"cores": 2})
    write(results, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.json"]
    again = read(tmp_path)
    assert json_text(again) == json_text(results)
    assert msgspec.convert(again.plan, Plan) == PLAN
    assert read(tmp_path / "results.json") == again


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    write(build(PLAN, {}, {}), tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(SamplesError, match="No space left on device"):
        write(build(PLAN, all_runs(), {}), tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_the_csv_has_a_row_for_each_metric_and_keeps_runs_without_any():
    given = all_runs()
    given["A"][0] = ran("A", 1, "light", 1.0, "failed", ("decode-0 died; restart", "second, with a comma"))
    given["A"][0] = msgspec.structs.replace(given["A"][0], metrics={})
    rows = list(csv.DictReader(io.StringIO(csv_text(build(PLAN, given, {})))))
    assert len(rows) == 20
    failed = next(r for r in rows if r["status"] == "failed")
    assert (failed["metric"], failed["reasons"]) == ("", "decode-0 died; restart; second, with a comma")
    assert rows[-1]["stand_in"] == "stand-in: NIXL 1.2.0, not the patches"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is not a results.json"),
        (b"{", "is not a results.json"),
        (b"\xff\xfe", "is not a results.json"),
        (b'{"schema": 2}', "has schema 2; this kvgauge reads schema 1"),
        (b'{"schema": 1, "plan": {}}', "missing required field"),
        (b"[]", "is not a results.json"),
    ],
)
def test_what_is_no_results_json_is_said_clearly(tmp_path, data, says):
    (tmp_path / "results.json").write_bytes(data)
    with pytest.raises(SamplesError, match=says):
        read(tmp_path)


def test_a_folder_without_results_says_what_to_do(tmp_path):
    with pytest.raises(SamplesError, match="`kvgauge run` writes them"):
        read(tmp_path / "nothing")


# (framework, metric) -> before, after, printed gain in percent
PRINTED = [
    ("TRT-LLM, patched + optimised", "e2e_latency_ms_mean", 403, 337, 16),
    ("TRT-LLM, patched + optimised", "e2e_latency_ms_p99", 632, 366, 42),
    ("vLLM, patched + optimised", "ttft_ms_mean", 3517, 2092, 40),
    ("vLLM, patched + optimised", "output_token_throughput_tok_s", 301, 487, 62),
]


@pytest.mark.parametrize(("name", "metric", "before", "after", "printed"), PRINTED)
def test_shipped_gains_agree_with_the_printed_ones_within_a_point(name, metric, before, after, printed):
    tests = {test.name: test for test in published().tests}
    after_test = tests[name]
    found = next(row for row in after_test.gains if row.metric == metric)
    values = [next(r.point for r in t.summary if r.metric == metric) for t in (tests[found.baseline], after_test)]
    assert values == [before, after]
    assert found.gain.point == pytest.approx(published_gain(before, after, metric)[0].point, abs=0.01)
    assert abs(found.gain.point - printed) <= 1
    assert f"printed there as {printed} %" in found.reason


def test_every_shipped_gain_follows_from_the_shipped_numbers_and_cannot_tell():
    tests = {test.name: test for test in published().tests}
    count = 0
    for test in tests.values():
        for row_ in test.gains:
            count += 1
            pair = [
                next(r.point for r in tests[n].summary if (r.cell, r.metric) == (row_.cell, row_.metric))
                for n in (row_.baseline, test.name)
            ]
            estimate, verdict, _ = published_gain(*pair, row_.metric)
            assert row_.gain.point == pytest.approx(estimate.point, abs=0.01)
            assert (row_.verdict, row_.gain.n, row_.gain.low) == (verdict, 0, None)
    assert count == 8


def test_the_follow_up_is_as_published():
    tests = {test.name: test for test in published().tests}
    assert [r.point for r in tests["Follow-up, UCX on TCP"].summary] == [252, 695, 1665, 3333]
    assert [r.point for r in tests["Follow-up, LIBFABRIC on EFA"].summary] == [76, 77, 90, 104]


def kvgauge_report(*words):
    parser = argparse.ArgumentParser()
    report.add_parser(parser.add_subparsers())
    args = parser.parse_args(["report", *map(str, words)])
    return args.run(args)


def test_report_prints_a_folder_and_the_earlier_results_after_it(tmp_path, capsys):
    write(build(PLAN, all_runs(), {}), tmp_path)
    assert kvgauge_report(tmp_path, "--reference") == 0
    out = capsys.readouterr().out
    assert out.index("across tests: cell heavy") < out.index("earlier results")
    assert "As published, no interval" in out


def test_report_takes_the_latest_run_when_no_folder_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SamplesError, match="kvgauge-runs/latest"):
        kvgauge_report()
    assert kvgauge_report("--reference") == 0
    (tmp_path / "kvgauge-runs/latest").mkdir(parents=True)
    write(build(PLAN, all_runs(), {}), tmp_path / "kvgauge-runs/latest")
    assert kvgauge_report() == 0
    assert "earlier results" not in capsys.readouterr().out.split("across tests")[-1]


def test_report_prints_json_and_csv_as_they_are_on_disk(tmp_path, capsys):
    write(build(PLAN, all_runs(), {}), tmp_path)
    for option, name in (("--json", "results.json"), ("--csv", "results.csv")):
        assert kvgauge_report(tmp_path, option) == 0
        assert capsys.readouterr().out == (tmp_path / name).read_text()
    assert kvgauge_report("--reference", "--json") == 0
    assert decode(capsys.readouterr().out.encode(), "reference") == published()
    assert kvgauge_report("--reference", "--csv") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 16
    with pytest.raises(UsageError, match="not both"):
        kvgauge_report(tmp_path, "--reference", "--csv")

"""How a cell was warmed up, in results.json and in the report."""

import io

import msgspec
from rich.console import Console

from kvgauge.plan.records import Plan, Primary, UntilSteady
from kvgauge.report.records import RunResult
from kvgauge.report.results import build, decode, json_text
from kvgauge.report.text import print_results
from kvgauge.stats.estimate import Estimate, bare, missing
from kvgauge.stats.warmth import WarmUp
from scene import make_cell, make_test

CELLS = (make_cell(name="one", steady=UntilSteady(limit_s=60), warmup_requests=0), make_cell(name="two"))
PLAN = Plan(
    name="p", source="s", tests=(make_test(),), cells=CELLS, repetitions=2,
    primary=Primary(metric="ttft_ms_mean", cell="one"),
)  # fmt: skip
WARM = WarmUp(
    rule="until steady: MSER", took_s=12.5, requests=80, surplus=3, state="steady", reason="TTFT: settled",
    drifts={
        "ttft_ms": Estimate(point=1.5, low=-2.0, high=5.0, n=12, unit="%"),
        "e2e_latency_ms": missing("%", "3 batches: too short"),
    },
    sizes_before="1-4", sizes_measured="2-4",
)  # fmt: skip


def result(repetition, cell, warmup=None, status="valid"):
    metrics = {"first_request_penalty_s": bare(9.5, "s", 1, "one")} if cell is None else {
        "ttft_ms_mean": Estimate(point=10.0, low=9.0, high=11.0, n=9, unit="ms")
    }  # fmt: skip
    return RunResult(
        run_id=f"r{repetition}", repetition=repetition, cell=cell, concurrency=2, seed=1, status=status, reasons=(),
        metrics=metrics, warmup=warmup,
    )  # fmt: skip


def page(given):
    console = Console(file=io.StringIO(), width=400, highlight=False)
    print_results(build(PLAN, {"t": given}, {}), console)
    return console.file.getvalue()


def test_results_json_keeps_it_and_gives_it_back():
    results = build(PLAN, {"t": [result(1, None), result(1, "one", WARM), result(1, "two")]}, {})
    found = decode(json_text(results).encode(), "f")
    warm = {run.cell: run.warmup for run in found.tests[0].runs if run.repetition == 1}
    assert (warm["one"], warm["two"]) == (WARM, None)
    older = json_text(results).replace('"warmup":', '"unknown_key":')
    assert all(run.warmup is None for run in decode(older.encode(), "f").tests[0].runs)


def test_the_report_says_how_long_how_many_and_what_was_seen_beside_the_first_requests_penalty():
    shown = page([result(1, None), result(1, "one", WARM), result(1, "two")])
    assert (
        "one: warm-up (until steady: MSER): 12.5 s, 80 requests, steady, the run's first request took 9.5 s more than a "
        "warm one" in shown
    )
    assert "one: change while measured: TTFT 1.5 ±3.5 %, latency – (3 batches: too short)" in shown  # noqa: RUF001
    assert "one: at a time in decode: 1-4 before, 2-4 while measured" in shown
    assert "two: warm-up" not in shown


def test_over_runs_it_says_from_to_and_in_how_many_it_was_steady():
    other = msgspec.structs.replace(WARM, took_s=60.0, requests=300, state="unsteady", sizes_measured="1-4")
    shown = page([result(1, "one", WARM), result(2, "one", other, status="invalid")])
    assert "12.5 to 60 s, 80 to 300 requests, steady in 1 of 2 runs" in shown
    assert "change while measured: run 1: TTFT 1.5" in shown
    assert "1-4 before, 2-4 while measured; 1-4 before, 1-4 while measured" in shown

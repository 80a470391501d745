"""`kvgauge compare`: what may be compared, which words and exit codes come out, gates and ranks."""

import json
import time
from math import exp

import msgspec
import pytest

from kvgauge.cli.main import main
from kvgauge.compare.gates import SHORT, judge, read_gate
from kvgauge.compare.ranks import rank, winner
from kvgauge.compare.sides import compare, compare_all
from kvgauge.failures import UsageError
from kvgauge.plan.records import Cell, Plan, Primary, Test
from kvgauge.report.against import all_values, side_of
from kvgauge.report.records import RunResult
from kvgauge.report.results import build, write
from kvgauge.stats.estimate import Estimate

KEY = ("heavy", "ttft_ms_mean")
CELLS = tuple(
    Cell(name=name, load="closed", concurrency=c, requests=800, output_tokens=8, warmup_requests=1, input_tokens=9)
    for name, c in (("light", 1), ("heavy", 10))
)
HERE = {"host": "here", "cores": 2, "kvgauge": "0.1.0"}


def row(name, **more):
    defaults = {
        "name": name, "backend": "UCX", "fabric": "tcp", "build": "1.2.0", "patches": "none", "stand_in": None,
        "model": "Qwen3-0.6B", "prefill_tp": 1, "decode_tp": 1,
    }  # fmt: skip
    return Test(**(defaults | more))


def results_of(levels, *, runs=6, machine=HERE, cells=CELLS, primary="ttft_ms_mean", rehearsal=False, **of_test):
    """A plan with a test for each level: TTFT near it, in a fixed pattern, and a request rate that goes with it."""
    tests = tuple(row(name, **of_test) for name in levels)
    plan = Plan(
        name="p", source="here", tests=tests, cells=cells, repetitions=runs, rehearsal=rehearsal,
        primary=Primary(metric=primary, cell="heavy"),
    )  # fmt: skip
    given = {name: [one for k in range(runs) for one in ran(name, k, level, cells)] for name, level in levels.items()}
    return build(plan, given, machine)


def ran(name, k, level, cells):
    noise = exp(0.01 * (0.3, -1.1, 0.9, -0.6, 0.5, -0.2)[k % 6] * (1 + len(name) / 9))
    for cell in cells:
        ttft = level * noise
        metrics = {
            "ttft_ms_mean": Estimate(point=ttft, low=ttft - 1, high=ttft + 1, n=800, unit="ms"),
            "request_throughput_req_s": Estimate(point=1000 / ttft, low=None, high=None, n=1, unit="req/s"),
            "phase_transfer_ms_mean": Estimate(point=ttft - 50, low=None, high=None, n=800, unit="ms"),
            "phase_prefill_ms_mean": Estimate(point=50, low=None, high=None, n=800, unit="ms"),
        }
        yield RunResult(
            run_id=f"r{k}-{name}", repetition=k + 1, cell=cell.name, concurrency=cell.concurrency, seed=3,
            status="valid", reasons=(), metrics=metrics,
        )  # fmt: skip


def sides(before, after, *, apart=True):
    return (
        side_of(before, "one", before.tests[0].name, label="before"),
        side_of(after, "two" if apart else "one", after.tests[-1].name, label="after"),
    )


def primary_row(comparison):
    return next(one.row for one in comparison.rows if one.row.primary)


def test_two_folders_are_compared_without_pairs_and_it_is_said():
    compared = compare(*sides(results_of({"A": 100}), results_of({"A": 80})))
    assert not compared.paired
    assert primary_row(compared).verdict == "better"
    assert primary_row(compared).gain.low < 20 < primary_row(compared).gain.high
    assert any("not interleaved" in remark for remark in compared.remarks)


def test_tests_of_one_folder_are_pairs():
    both = results_of({"A": 100, "B": 80})
    compared = compare(*sides(both, both, apart=False))
    assert compared.paired
    assert primary_row(compared).gain.n == 6


def test_where_the_difference_arose_is_named():
    compared = compare(*sides(results_of({"A": 100}), results_of({"A": 80})))
    heavy = {part.phase: part.change for part in compared.arose if part.cell == "heavy"}
    assert heavy["transfer"].high < 0
    assert (heavy["prefill"].low, heavy["prefill"].high) == (0, 0)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"of_test": {"model": "Llama-3.1-8B"}}, "model"),
        ({"of_test": {"fabric": "efa"}}, "fabric"),
        ({"machine": HERE | {"host": "there"}}, "host"),
        ({"machine": HERE | {"cores": 64}}, "cores"),
        ({"cells": (CELLS[0], msgspec.structs.replace(CELLS[1], input_tokens=512))}, "input_tokens"),
        ({"cells": (CELLS[0], msgspec.structs.replace(CELLS[1], concurrency=20))}, "concurrency"),
    ],
)
def test_a_difference_that_is_no_experiment_is_refused_by_its_name(change, field):
    other = results_of({"A": 80}, **change.pop("of_test", {}), **change)
    with pytest.raises(UsageError, match=rf"{field}.* --vary {field}"):
        compare(*sides(results_of({"A": 100}), other))
    compared = compare(*sides(results_of({"A": 100}), other), vary=[field])
    assert any(remark.startswith(f"varied: {field}") for remark in compared.remarks)


@pytest.mark.parametrize("field", ["target", "nodes", "nic", "zone"])
def test_another_node_pair_nic_or_zone_is_refused(field):
    one, other = (results_of({"A": 100}, machine=HERE | {field: value}) for value in ("a", "b"))
    with pytest.raises(UsageError, match=field):
        compare(*sides(one, other))


def test_a_client_that_acknowledged_at_once_is_refused_beside_one_that_did_not():
    quick = results_of({"A": 80})
    quick = msgspec.structs.replace(quick, plan={**quick.plan, "quick_ack": True})
    with pytest.raises(UsageError, match="quick_ack"):
        compare(*sides(results_of({"A": 100}), quick))
    compare(*sides(results_of({"A": 100}), quick), vary=["quick_ack"])


def test_what_only_one_side_knows_of_its_machine_is_no_difference():
    compare(*sides(results_of({"A": 100}), results_of({"A": 100}, machine={})))


def test_a_cell_that_differs_and_does_not_decide_is_left_out():
    other = results_of({"A": 80}, cells=(msgspec.structs.replace(CELLS[0], input_tokens=512), CELLS[1]))
    compared = compare(*sides(results_of({"A": 100}), other))
    assert {one.row.cell for one in compared.rows} == {"heavy"}
    assert any(remark.startswith("cell light is left out: input_tokens") for remark in compared.remarks)


def test_two_plans_that_decide_by_different_metrics_need_one_named():
    other = results_of({"A": 80}, primary="request_throughput_req_s")
    with pytest.raises(UsageError, match="--primary"):
        compare(*sides(results_of({"A": 100}), other))
    compared = compare(*sides(results_of({"A": 100}), other), primary=("heavy", "request_throughput_req_s"))
    assert primary_row(compared).metric == "request_throughput_req_s"
    assert any("chosen for this comparison" in remark for remark in compared.remarks)


def test_a_closed_loop_that_throttled_the_slower_side_is_said():
    compared = compare(*sides(results_of({"A": 100}), results_of({"A": 80})))
    assert any("cell heavy is a closed loop: before was also asked less" in remark for remark in compared.remarks)
    assert not any("cell light is a closed loop" in remark for remark in compared.remarks)  # one at a time


def test_an_unknown_field_to_vary_is_a_usage_error():
    with pytest.raises(UsageError, match="no such field"):
        compare(*sides(results_of({"A": 100}), results_of({"A": 80})), vary=["colour"])


def test_the_primary_metric_of_many_pairs_is_corrected_together():
    befores, afters = results_of({"A": 100}), [results_of({"A": 100 - gain}) for gain in (1.3, 0, 0, 0, 0, 0)]
    alone = primary_row(compare(*sides(befores, afters[0])))
    together = [primary_row(one) for one in compare_all([sides(befores, after) for after in afters])]
    assert alone.verdict == "better"
    assert together[0].p_value == pytest.approx(min(1, 6 * alone.p_value))
    assert (together[0].verdict == "better") == (together[0].p_value < 0.05)


@pytest.mark.parametrize(
    ("after", "text", "outcome"),
    [(80, "ttft:5%", "within"), (101, "ttft:5%", "within"), (120, "ttft:5", "beyond"), (105, "ttft:5 %", "undecided"),
     (120, "requests@light:5%", "beyond"), (80, "tpot:5%", "undecided")],
)  # fmt: skip
def test_a_gate_is_within_beyond_or_undecided(after, text, outcome):
    compared = compare(*sides(results_of({"A": 100}), results_of({"A": after})))
    assert [one.outcome for one in judge(compared, [read_gate(text, "heavy")])] == [outcome]


def test_a_gate_of_too_few_runs_is_undecided():
    compared = compare(*sides(results_of({"A": 100}, runs=4), results_of({"A": 200}, runs=4)))
    assert [one.outcome for one in judge(compared, [read_gate("ttft:5%", "heavy")])] == ["undecided"]


@pytest.mark.parametrize("text", ["ttft", "ttft:", "ttft:x", "ttft:-1", "ttft:100", "colour:5%", "", ":5", "queued:5"])
def test_a_gate_that_cannot_be_read_is_one_clear_error(text):
    with pytest.raises(UsageError):
        read_gate(text, "heavy")


def test_every_short_name_is_a_metric():
    assert all(read_gate(f"{name}:5%", None).metric == metric for name, metric in SHORT.items())


def test_ranks_name_a_winner_only_when_every_other_test_is_told_apart():
    ranked = rank(all_values(results_of({"A": 100, "B": 80, "C": 120}), "here"), KEY)
    assert [one.test for one in ranked] == ["B", "A", "C"]
    assert winner(ranked, rehearsal=False)[0] == "B"
    close = rank(all_values(results_of({"A": 100, "BBB": 100.05, "C": 120}), "here"), KEY)
    assert winner(close, rehearsal=False)[0] is None
    assert close[1].apart is False
    assert close[2].apart is True


def test_a_rehearsal_names_no_winner():
    ranked = rank(all_values(results_of({"A": 100, "B": 80}), "here"), KEY)
    named, sentence = winner(ranked, rehearsal=True)
    assert named is None
    assert "EFA" in sentence


def folder(tmp_path, name, results):
    path = tmp_path / name
    path.mkdir()
    write(results, path)
    return str(path)


@pytest.mark.parametrize(
    ("after", "more", "code"),
    [(80, [], 0), (120, [], 1), (80, ["--gate", "ttft:5%"], 0), (120, ["--gate", "ttft:5%"], 1),
     (105, ["--gate", "ttft:5%"], 4), (80, ["--json"], 0), (80, ["--vary", "colour"], 2),
     (80, ["--tests", "A", "Z"], 2), (80, ["--gate", "nothing"], 2)],
)  # fmt: skip
def test_the_exit_code_is_the_documented_one(tmp_path, capsys, after, more, code):
    one, other = (folder(tmp_path, *it) for it in (("one", results_of({"A": 100})), ("two", results_of({"A": after}))))
    assert main(["compare", one, other, *more]) == code
    captured = capsys.readouterr()
    if "--json" in more:
        assert json.loads(captured.out)[0]["comparison"]["primary"] == list(KEY)
    if code == 2:
        assert captured.err.count("\n") == 1


def test_too_few_runs_end_undecided_and_say_how_many_would_do(tmp_path, capsys):
    one, other = (
        folder(tmp_path, name, results_of({"A": level}, runs=3)) for name, level in (("one", 100), ("two", 80))
    )
    assert main(["compare", one, other]) == 4
    assert "a verdict needs n of at least 5 runs" in " ".join(capsys.readouterr().out.split())


def test_one_folder_alone_is_compared_by_its_baselines_or_ranked(tmp_path, capsys):
    path = folder(tmp_path, "one", results_of({"A": 100, "B": 80}))
    assert main(["compare", path]) == 2
    assert "no test with a baseline" in capsys.readouterr().err
    assert main(["compare", path, "--tests", "A", "B"]) == 0
    assert main(["compare", path, "--all"]) == 0
    assert "B is better than every other test" in capsys.readouterr().out
    assert main(["compare", path, "--all", "--gate", "ttft:5%"]) == 2


def test_the_published_gains_are_shown_and_nothing_is_told_from_them(capsys):
    assert main(["compare", "--reference"]) == 4
    out = capsys.readouterr().out
    for gain in ("+16.4 %", "+42.1 %", "+40.5 %", "+61.8 %"):
        assert gain in out
    assert "cannot tell" in out


def test_ten_runs_against_ten_take_a_fraction_of_the_two_seconds_they_may(tmp_path, capsys):
    one, other = (
        folder(tmp_path, name, results_of({"A": level}, runs=10)) for name, level in (("one", 100), ("two", 80))
    )
    began = time.process_time()
    assert main(["compare", one, other]) == 0
    assert time.process_time() - began < 2
    capsys.readouterr()


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [([], 0, "repetitions: 5 in this plan"), (["--gain", "0.1%", "--budget", "6"], 0, "6 repetitions show"),
     (["--gain", "nothing"], 2, "--gain"), (["--budget", "1"], 2, "--budget"), (["--json"], 0, '"spread_upper"')],
)  # fmt: skip
def test_a_pilot_says_how_many_repetitions_would_be_enough(tmp_path, capsys, more, code, said):
    pilot = folder(tmp_path, "pilot", results_of({"A": 100, "Bee": 80}, baseline=("A",)))
    assert main(["plan", "--quick", "--pilot", pilot, *more]) == code
    assert said in " ".join("".join(capsys.readouterr()).split())


def test_a_pilot_that_is_too_small_is_undecided(tmp_path, capsys):
    pilot = folder(tmp_path, "pilot", results_of({"A": 100, "Bee": 80}, runs=4, baseline=("A",)))
    assert main(["plan", "--quick", "--pilot", pilot]) == 4
    assert "a pilot needs 5" in capsys.readouterr().out
    assert main(["plan", "--quick", "--gain", "5%"]) == 2


def test_a_rank_varies_what_it_is_told_to_and_refuses_what_nobody_knows(tmp_path, capsys):
    path = folder(tmp_path, "one", results_of({"A": 100, "B": 80}))
    assert main(["compare", path, "--all", "--vary", "model"]) == 0
    assert main(["compare", path, "--all", "--vary", "modle"]) == 2
    assert "--vary modle: no such field" in capsys.readouterr().err


def test_a_rank_over_runs_of_one_deployment_says_whom_it_is_about(tmp_path, capsys):
    results = results_of({"A": 100, "B": 80})
    results = msgspec.structs.replace(results, scope="these deployments only: A: http://a (6 runs)")
    path = folder(tmp_path, "one", results)
    assert main(["compare", path, "--all"]) == 0
    assert "a verdict about these deployments only" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("more", [[], ["--gate", "ttft:5%"]])
def test_a_run_is_not_compared_with_itself_or_a_copy(tmp_path, capsys, more):
    results = results_of({"A": 100})
    one, copy = (folder(tmp_path, name, results) for name in ("one", "copy"))
    assert main(["compare", one, one, *more]) == 2
    assert "are the same runs" in capsys.readouterr().err
    assert main(["compare", one, copy, *more]) == 2
    assert "to the last digit" in capsys.readouterr().err


def test_a_folder_that_is_named_twice_is_no_second_deployment(tmp_path, capsys):
    paths = [
        folder(tmp_path, name, results_of({name: level}, runs=6)) for name, level in (("A", 100), ("B", 80), ("Cc", 79))
    ]
    copy = folder(tmp_path, "copy", results_of({"A": 100}, runs=6))
    assert main(["compare", "--before", paths[0], copy, "--after", *paths[1:2], "--tests", "A", "B"]) == 2
    assert "are the same runs" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--gate", "ttft@heavi:5%"], ["--primary", "ttft@heavi"]])
def test_a_cell_that_no_side_has_is_a_slip_and_no_undecided_gate(tmp_path, capsys, more):
    one, other = (folder(tmp_path, *it) for it in (("one", results_of({"A": 100})), ("two", results_of({"A": 99}))))
    assert main(["compare", one, other, *more]) == 2
    assert "there is no cell 'heavi'; there are heavy, light" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("of_plan", "said"),
    [
        ({"seed": 9}, "seed is 1 there and 9 here: noted, not refused"),
        ({"gain_within_pct": 3.0}, "intervals are at 96%"),
    ],
)
def test_what_a_plan_says_of_its_runs_stands_beside_the_verdict(tmp_path, capsys, of_plan, said):
    results = results_of({"A": 90})
    other = msgspec.structs.replace(results, plan={**results.plan, **of_plan})
    one, two = folder(tmp_path, "one", results_of({"A": 100})), folder(tmp_path, "two", other)
    assert main(["compare", one, two]) == 0
    assert said in " ".join(capsys.readouterr().out.split())


def test_results_of_two_tools_are_refused_and_of_two_versions_of_one_are_not(tmp_path, capsys):
    paths = [
        folder(tmp_path, str(place), results_of({"A": level}, machine=HERE | {"imported from": tool}))
        for place, (level, tool) in enumerate(((100, "AIPerf 0.13.0"), (90, "vllm bench serve"), (80, "AIPerf 0.14")))
    ]
    assert main(["compare", paths[0], paths[1]]) == 2
    assert "tool is AIPerf there and vllm bench serve here" in capsys.readouterr().err
    assert main(["compare", paths[0], paths[1], "--vary", "tool"]) == 0
    assert main(["compare", paths[0], paths[2]]) == 0


def test_pairs_of_a_plan_that_may_not_be_compared_are_named_and_the_others_shown(tmp_path, capsys):
    """The reference plan's larger models have the small one's baselines."""
    results = results_of({"A": 100, "Bee": 80, "Large": 300})
    tests = [{**test, "baseline": () if test["name"] == "A" else ("A",)} for test in results.plan["tests"]]
    tests[2]["model"] = "Llama-3.1-8B"
    shown = [
        msgspec.structs.replace(one, baseline=tuple(of["baseline"]))
        for one, of in zip(results.tests, tests, strict=True)
    ]
    path = folder(tmp_path, "one", msgspec.structs.replace(results, plan={**results.plan, "tests": tests}, tests=shown))
    assert main(["compare", path]) == 0
    printed = capsys.readouterr()
    assert "Bee beside A" in printed.out
    assert printed.err.count("A and Large cannot be compared: model is Qwen3-0.6B there and Llama-3.1-8B here") == 1
    assert main(["compare", path, "--tests", "A", "Large"]) == 2


def test_the_warm_up_of_the_deciding_cell_is_noted_where_it_differs(tmp_path, capsys):
    longer = tuple(msgspec.structs.replace(cell, warmup_requests=50) for cell in CELLS)
    one, two = (
        folder(tmp_path, "one", results_of({"A": 100})),
        folder(tmp_path, "two", results_of({"A": 90}, cells=longer)),
    )
    assert main(["compare", one, two]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert page.count("warmup_requests of cell heavy is 1 there and 50 here: noted, not refused") == 1
    assert "left out" not in page


def test_every_field_of_a_cell_that_is_refused_can_be_varied(tmp_path, capsys):
    bounded = tuple(msgspec.structs.replace(cell, ignore_eos=False) for cell in CELLS)
    one, two = (
        folder(tmp_path, "one", results_of({"A": 100})),
        folder(tmp_path, "two", results_of({"A": 90}, cells=bounded)),
    )
    assert main(["compare", one, two]) == 2
    assert "--vary ignore_eos" in capsys.readouterr().err
    assert main(["compare", one, two, "--vary", "ignore_eos"]) == 0


def test_a_folder_and_its_results_json_are_one_source_whose_tests_are_pairs(tmp_path, capsys):
    path = folder(tmp_path, "one", results_of({"A": 100, "Bee": 80}))
    assert main(["compare", path, f"{path}/results.json", "--tests", "A", "Bee", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["comparison"]["paired"] is True

"""Deployments above runs: whom a verdict is about, several folders as one side, and how many deployments to plan."""

from math import exp

import msgspec
import pytest

from kvgauge.cli.main import main
from kvgauge.compare.deployments import by_deployment, repetitions_of, scope
from kvgauge.compare.sides import compare, compare_all, joined
from kvgauge.compare.values import TestValues
from kvgauge.failures import UsageError
from kvgauge.plan.records import Cell, Plan, Primary, Test
from kvgauge.report.against import side_of
from kvgauge.report.records import RunResult
from kvgauge.report.results import build, write
from kvgauge.stats.estimate import Estimate

CELL = Cell(name="c", load="closed", concurrency=4, requests=80, output_tokens=8, warmup_requests=1, input_tokens=9)
KEY = ("c", "ttft_ms_mean")
NOISE = (0.3, -1.1, 0.9, -0.6)


def results_of(level, deployment, *, runs=3, spread=0.01, name="T", **of_test):
    """A folder whose runs were made on one deployment."""
    test = Test(
        name=name, backend="UCX", fabric="tcp", build="1", patches="none", stand_in=None, model="m", prefill_tp=1,
        decode_tp=1, **of_test,
    )  # fmt: skip
    plan = Plan(
        name="p", source="s", tests=(test,), cells=(CELL,), repetitions=runs,
        primary=Primary(metric="ttft_ms_mean", cell="c"),
    )  # fmt: skip
    given = [
        RunResult(
            run_id=f"r{k + 1}", repetition=k + 1, cell="c", concurrency=4, seed=1, status="valid", reasons=(),
            metrics={"ttft_ms_mean": Estimate(point=level * exp(spread * NOISE[k % 4]), low=None, high=None, n=80, unit="ms")},
            deployment=deployment,
        )
        for k in range(runs)
    ]  # fmt: skip
    return build(plan, {name: given}, {"host": "here"})


def side(level, deployment, **more):
    return side_of(results_of(level, deployment, **more), f"/runs/{deployment or level}", "T", label="T")


def primary_row(comparison):
    return next(one.row for one in comparison.rows if one.row.primary)


def several(level, names):
    return joined([side(level * (1 + 0.01 * place), name) for place, name in enumerate(names)])


def test_a_folder_of_one_deployment_says_whom_it_is_about():
    assert results_of(100, "blue").scope == ("these deployments only, which new ones may differ from: T: blue (3 runs)")
    assert results_of(100, None).scope is None


def test_runs_that_were_deployed_each_by_itself_have_no_such_limit():
    values = TestValues(test=side(1, "x").values.test, values={}, deployments={1: "r1@a", 2: "r2@a"})
    assert scope([("T", values)]) is None


def test_one_deployment_on_each_side_is_compared_by_runs_and_scoped():
    compared = compare(side(100, "blue", runs=6), side(80, "green", runs=6))
    assert primary_row(compared).verdict == "better"
    assert compared.unit == "run"
    assert "blue (6 runs)" in compared.scope
    assert "green (6 runs)" in compared.scope


def test_several_folders_are_replicated_by_their_deployments():
    compared = compare(several(100, "abcde"), several(80, "fghij"))
    row = primary_row(compared)
    assert (compared.unit, row.gain.n, row.verdict, compared.paired) == ("deployment", 5, "better", False)
    assert compared.scope is None
    assert any(
        "the deployment is the unit of replication (5 of 15 runs and 5 of 15 runs)" in r for r in compared.remarks
    )
    (again,) = compare_all([(several(100, "abcde"), several(80, "fghij"))])
    assert primary_row(again) == row


def test_too_few_deployments_give_no_verdict_however_many_runs_they_had():
    row = primary_row(compare(several(100, "abc"), several(80, "fgh")))
    assert row.verdict == "cannot tell"
    assert "3 deployments on a side: a verdict needs n of at least 5 deployments" in row.reason


def test_folders_that_name_one_deployment_twice_are_one_deployment():
    whole = joined([side(100, "a"), side(101, "a"), side(102, "b")])
    assert {name: len(runs) for name, runs in repetitions_of(whole.values).items()} == {"a": 6, "b": 3}
    values = by_deployment(whole.values)
    assert list(values.values[KEY]) == [1, 2]
    assert values.values[KEY][2] == pytest.approx(102 * exp(0.01 * (0.3 - 1.1 + 0.9) / 3))


def test_folders_that_measure_different_things_are_not_one_side():
    with pytest.raises(UsageError, match="are not one side: model is m there and other here"):
        joined([side(100, "a"), msgspec.structs.replace(
            side(100, "b"), values=msgspec.structs.replace(
                side(100, "b").values, test=msgspec.structs.replace(side(1, "b").values.test, model="other")))])  # fmt: skip


def test_folders_that_other_hosts_conducted_are_one_side_where_that_is_said():
    sides = [msgspec.structs.replace(side(100, name), machine={"host": name}) for name in ("pod-1", "pod-2")]
    with pytest.raises(UsageError, match="host is pod-1 there and pod-2 here; where it may, --vary host"):
        joined(sides)
    assert len(by_deployment(joined(sides, ["host"]).values).values[KEY]) == 2


def folders(tmp_path, level, names, **more):
    made = []
    for place, name in enumerate(names):
        folder = tmp_path / name
        folder.mkdir()
        write(results_of(level * (1 + 0.02 * place), name, **more), folder)
        made.append(str(folder))
    return made


def test_the_command_compares_folders_by_deployment_and_says_so(tmp_path, capsys):
    before, after = folders(tmp_path, 100, "abcde"), folders(tmp_path, 60, "fghij")
    assert main(["compare", "--before", *before, "--after", *after]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the deployment is the unit of replication" in said
    assert main(["compare", before[0], after[0]]) == 4
    assert "a verdict about these deployments only" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--before", "x"], "--before and --after go together"),
        (["x", "--before", "x", "--after", "y"], "--before and --after go together"),
        (["--before", "x", "--after", "y", "--all"], "--all ranks the tests of one run"),
    ],
)
def test_the_command_says_how_folders_are_named(arguments, said, capsys):
    assert main(["compare", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_pilot_on_several_deployments_proposes_deployments_and_runs(tmp_path, capsys):
    named = [word for one in folders(tmp_path, 100, "abc") for word in ("--pilot", one)]
    pilot = ["plan", "--quick", *named, "--gain", "10%", "--deploy-minutes", "30", "--gpus", "8"]
    assert main(pilot) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "deployments of each arm" in said
    assert "in the order ABBA" in said
    assert "GPU-hours" in said
    assert "(3 deployments of 9 runs)" in said
    assert main([*pilot, "--json"]) == 0
    (found,) = msgspec.json.decode(capsys.readouterr().out)
    assert found["levels"]["gpu_hours"] == pytest.approx(8 * found["levels"]["hours"])


@pytest.mark.parametrize(
    ("names", "more", "code", "said"),
    [
        ("ab", [], 2, "--deploy-minutes M"),
        ("a", ["--deploy-minutes", "5"], 4, "a pilot needs two deployments"),
        ("ab", ["--deploy-minutes", "5", "--budget", "9"], 2, "--budget counts repetitions"),
    ],
)
def test_a_pilot_of_deployments_that_cannot_tell_says_why(tmp_path, capsys, names, more, code, said):
    named = [word for one in folders(tmp_path, 100, names) for word in ("--pilot", one)]
    assert main(["plan", "--quick", *named, *more]) == code
    shown = capsys.readouterr()
    assert said in " ".join((shown.out + shown.err).split())


def left(one, cell, repetition):
    values = msgspec.structs.replace(one.values, left_out={(cell, repetition): "invalid"})
    return msgspec.structs.replace(one, values=values)


def test_a_run_whose_other_cell_is_invalid_still_counts_and_what_is_left_out_is_said():
    names = [f"d{k}" for k in range(5)]
    whole = joined([side(100, name) for name in names])
    other = joined([left(side(100, name), "another", 3) for name in names])
    assert by_deployment(other.values).values == by_deployment(whole.values).values
    of_cell = joined([left(side(100, name), "c", 3) for name in names])
    row = primary_row(compare(whole, msgspec.structs.replace(of_cell, label="U")))
    assert "left out: invalid" in row.reason


def test_what_would_be_enough_is_counted_in_deployments():
    sides = [joined([side(level * (1 + 0.3 * (k % 2)), f"{level}-{k}") for k in range(6)]) for level in (100, 101)]
    row = primary_row(compare(*sides))
    assert row.verdict == "no difference shown"
    assert "deployments" in row.reason
    assert row.of == "deployments"

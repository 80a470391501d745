"""Deployments in time: which are blocks of two, which are not and why, and what is planned and compared with them."""

from datetime import UTC, datetime, timedelta
from math import exp

import msgspec
import pytest

from kvgauge.cli.main import main
from kvgauge.compare.sides import compare, compare_all, joined
from kvgauge.failures import UsageError
from kvgauge.plan.records import Cell, Plan, Primary, Test
from kvgauge.report.against import side_of
from kvgauge.report.records import RunResult
from kvgauge.report.results import build, write
from kvgauge.stats.estimate import Estimate

CELL = Cell(name="c", load="closed", concurrency=4, requests=80, output_tokens=8, warmup_requests=1, input_tokens=9)
NOISE = (0.3, -1.1, 0.9, -0.6, 0.4, -0.2, 1.0, -0.5, 0.1, -0.3)
DAY = datetime(2026, 11, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
BLOCKS = "ABBAABBAAB"


def results_of(name, deployment, level, began, *, runs=3, took=timedelta(minutes=15), **more):
    """A folder of one deployment, measured from `began` (hours) on; began None: when is not on record."""
    test = Test(
        name=name, backend="UCX", fabric="tcp", build="1", patches="none", stand_in=None, model="m", prefill_tp=1,
        decode_tp=1, baseline=more.get("baseline", ()),
    )  # fmt: skip
    plan = Plan(
        name="p", source="s", tests=(test,), cells=(CELL,), repetitions=runs,
        primary=Primary(metric="ttft_ms_mean", cell="c"),
    )  # fmt: skip
    given = []
    for k in range(runs):
        at = None if began is None else DAY + began * HOUR + k * took
        point = level * exp(0.01 * NOISE[k % 4])
        given.append(
            RunResult(
                run_id=f"r{k + 1}", repetition=k + 1, cell="c", concurrency=4, seed=1, reasons=(),
                status=more.get("status", "valid"), deployment=deployment, began=at,
                ended=None if at is None else at + took,
                metrics={"ttft_ms_mean": Estimate(point=point, low=None, high=None, n=80, unit="ms")},
            )
        )  # fmt: skip
    return build(plan, {name: given}, {"host": more.get("host", "here")})


def folders_of(order, *, drift=0.05, gain=0.2, names=("old", "new"), **more):
    """(letter, results) by place in time; every deployment is slower than the last by `drift`."""
    found = []
    for place, letter in enumerate(order):
        level = 100 * exp(drift * place + 0.01 * NOISE[place % 10]) * (1 - gain if letter == "B" else 1)
        found.append((letter, results_of(names[letter == "B"], f"{letter}{place}", level, 2 * place, **more)))
    return found


def sides_of(folders):
    return tuple(
        joined([side_of(one, f"/{place}", one.tests[0].name) for place, (letter, one) in enumerate(folders)
                if letter == which])
        for which in "AB"
    )  # fmt: skip


def primary_row(comparison):
    return next(one.row for one in comparison.rows if one.row.primary)


@pytest.mark.parametrize("order", ["ABBAABBAAB", "BAABBAABBA", "ABABABABAB"])
def test_deployments_of_each_side_two_by_two_are_blocks(order):
    compared = compare(*sides_of(folders_of(order)))
    row = primary_row(compared)
    assert (compared.unit, compared.paired, row.of, row.gain.n) == ("block", True, "blocks", 5)
    assert compared.blocks.order == order
    assert compared.blocks.pairs[1] == (f"A{order.index('A', 2)}", f"B{order.index('B', 2)}")
    assert row.verdict == "better"
    assert any(f"in blocks of two, by time: {order} (A: old, B: new)" in remark for remark in compared.remarks)


def test_what_drifts_over_all_blocks_cancels_and_would_not_between_sides():
    compared = compare(*sides_of(folders_of("ABBAABBAABBA", drift=0.1)))
    apart = compare(*sides_of(folders_of("ABBAABBAABBA", drift=0.1)), wanted="no")
    row, other = primary_row(compared), primary_row(apart)
    assert row.gain.point == pytest.approx(20, abs=1.5)
    assert other.gain.point == pytest.approx(row.gain.point)
    assert other.gain.high - other.gain.low > 2 * (row.gain.high - row.gain.low)
    assert (apart.unit, apart.paired, other.gain.n) == ("deployment", False, 6)
    assert any(
        "not in blocks, as --blocks no was given, though times show them (ABBAABBAABBA)" in one for one in apart.remarks
    )


def test_an_order_that_never_turns_is_warned_of():
    assert any("A came first in 5 of 5 blocks" in one for one in compare(*sides_of(folders_of("ABABABABAB"))).remarks)
    assert not any("came first" in one for one in compare(*sides_of(folders_of(BLOCKS))).remarks)


@pytest.mark.parametrize(
    ("order", "why"),
    [
        ("AAAAABBBBB", "all of old ran before all of new"),
        ("BBBAAA", "all of new ran before all of old"),
        ("AABBAABB", "deployments 1 and 2 in time are both of old (order AABBAABB)"),
        ("ABBAA", "3 deployments of old and 2 of new do not pair off"),
        ("ABABBBAA", "deployments 5 and 6 in time are both of new"),
    ],
)
def test_deployments_that_are_no_blocks_are_compared_without_and_it_is_said_why(order, why):
    compared = compare(*sides_of(folders_of(order)))
    assert (compared.unit, compared.paired, primary_row(compared).gain.n) == (
        "deployment", False, min(order.count("A"), order.count("B")),
    )  # fmt: skip
    (said,) = [remark for remark in compared.remarks if remark.startswith("not in blocks: ")]
    assert why in said
    assert "in the order ABBA" in said
    with pytest.raises(UsageError, match=r"--blocks yes: .*Leave --blocks away"):
        compare(*sides_of(folders_of(order)), wanted="yes")


def test_deployments_that_overlap_in_time_are_no_blocks():
    folders = folders_of(BLOCKS, took=timedelta(minutes=50))
    assert "A0 (old) and B1 (new) overlap in time" in compare(*sides_of(folders)).blocks.why_not


def test_deployments_whose_times_are_not_on_record_are_no_blocks():
    folders = folders_of(BLOCKS)
    folders[3] = ("A", results_of("old", "A3", 100, None))
    assert "when the runs of A3 were made is not on record" in compare(*sides_of(folders)).blocks.why_not


def test_times_of_two_hosts_are_put_into_no_order():
    there = [one if one[0] == "A" else ("B", msgspec.structs.replace(one[1], machine={"host": "there"}))
             for one in folders_of(BLOCKS)]  # fmt: skip
    compared = compare(*sides_of(there), vary=["host"])
    assert compared.blocks.why_not == "conducted from here and there, whose clocks may differ"
    unknown = [(letter, msgspec.structs.replace(one, machine={})) for letter, one in folders_of(BLOCKS)]
    assert "is not on record, so that its clock is not known" in compare(*sides_of(unknown)).blocks.why_not


def test_a_clock_that_was_set_back_orders_nothing():
    folders = folders_of(BLOCKS, took=timedelta(minutes=-5))
    assert "the clock of here was set back" in compare(*sides_of(folders)).blocks.why_not


def test_a_deployment_without_a_valid_run_takes_its_block_along():
    folders = folders_of("ABBAABBAABBA")
    folders[4] = ("A", results_of("old", "A4", 100, 8, status="failed"))
    compared = compare(*sides_of(folders))
    row = primary_row(compared)
    assert (compared.unit, row.gain.n) == ("block", 5)
    assert len(compared.blocks.pairs) == 6
    assert "left out: failed in old" in row.reason


def test_a_run_that_failed_before_it_knew_its_deployment_is_of_its_folders():
    folders = folders_of(BLOCKS)
    one = folders[0][1]
    broken = msgspec.structs.replace(one.tests[0].runs[0], status="failed", deployment=None, metrics={})
    runs = (broken, *one.tests[0].runs[1:])
    folders[0] = "A", msgspec.structs.replace(one, tests=(msgspec.structs.replace(one.tests[0], runs=runs),))
    nameless = results_of("new", None, 80, 2, status="failed")
    folders[1] = "B", nameless
    compared = compare(*sides_of(folders))
    assert compared.blocks.pairs[0] == ("A0", "/1")
    assert primary_row(compared).gain.n == 4


def test_deployments_of_one_run_each_are_blocks_too():
    compared = compare(*sides_of(folders_of(BLOCKS, runs=1)))
    assert (compared.unit, primary_row(compared).gain.n, compared.scope) == ("block", 5, None)
    without = compare(*sides_of(folders_of("AAAAABBBBB", runs=1)))
    assert (without.unit, without.paired) == ("run", False)
    assert any("not interleaved: all of old ran before all of new" in remark for remark in without.remarks)


def test_only_times_choose_not_values():
    tidy, wild = (compare(*sides_of(folders_of(BLOCKS, drift=drift, gain=0))) for drift in (0, 0.5))
    assert tidy.blocks == wild.blocks


def test_too_few_blocks_give_no_verdict():
    row = primary_row(compare(*sides_of(folders_of("ABBAABBA"))))
    assert row.verdict == "cannot tell"
    assert "4 blocks: a verdict needs n of at least 5 blocks" in row.reason


def test_several_questions_at_once_are_asked_in_blocks_too():
    sides = sides_of(folders_of(BLOCKS))
    found = compare_all([sides, sides])
    assert [one.unit for one in found] == ["block", "block"]
    assert primary_row(found[0]).p_value > primary_row(compare(*sides)).p_value


def written(tmp_path, folders):
    """Folders on disk: the words for --before and for --after."""
    paths = {"A": [], "B": []}
    for place, (letter, one) in enumerate(folders):
        folder = tmp_path / f"{letter}{place}"
        folder.mkdir(parents=True)
        write(one, folder)
        paths[letter].append(str(folder))
    return paths


def compare_words(paths):
    return ["compare", "--before", *paths["A"], "--after", *paths["B"]]


def test_the_command_finds_blocks_in_folders_and_says_so(tmp_path, capsys):
    words = compare_words(written(tmp_path, folders_of(BLOCKS)))
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "in blocks of two, by time: ABBAABBAAB (A: old, B: new)" in said
    assert "5 blocks" in said
    assert main([*words, "--json"]) == 0
    (found,) = msgspec.json.decode(capsys.readouterr().out)
    assert found["comparison"]["unit"] == "block"
    assert found["comparison"]["blocks"]["order"] == BLOCKS
    assert main([*words, "--blocks", "yes"]) == 0
    assert main([*words, "--blocks", "no"]) in (0, 4)
    assert "--blocks no was given" in " ".join(capsys.readouterr().out.split())


def test_the_command_refuses_blocks_that_times_contradict(tmp_path, capsys):
    words = compare_words(written(tmp_path, folders_of("AAAAABBBBB")))
    assert main([*words, "--blocks", "yes"]) == 2
    said = capsys.readouterr().err
    assert "--blocks yes: all of old ran before all of new" in said
    assert "in the order ABBA" in said
    assert main(words) in (0, 1)
    assert "not in blocks: all of old ran before all of new" in " ".join(capsys.readouterr().out.split())


def test_blocks_are_refused_where_there_are_no_deployments_to_order(tmp_path, capsys):
    paths = written(tmp_path, folders_of("AB"))
    assert main(["compare", paths["A"][0], paths["B"][0], "--blocks", "yes"]) == 2
    assert "old has fewer than two deployments" in capsys.readouterr().err
    before, after = sides_of(folders_of("AB"))
    with pytest.raises(UsageError, match="their runs are pairs already"):
        compare(before, msgspec.structs.replace(after, source=before.source), wanted="no")
    assert main(["compare", "--reference", "--blocks", "yes"]) == 2
    assert main(["compare", paths["A"][0], "--all", "--blocks", "yes"]) == 2


def pilot_words(paths):
    named = [word for one in [*paths["A"], *paths["B"]] for word in ("--pilot", one)]
    return ["plan", "--quick", *named, "--gain", "10%", "--deploy-minutes", "30", "--gpus", "8"]


def test_a_pilot_in_blocks_is_planned_with_the_spread_of_its_blocks(tmp_path, capsys):
    in_blocks = pilot_words(written(tmp_path / "blocks", folders_of("ABBAABBA", drift=0.2)))
    apart = pilot_words(written(tmp_path / "apart", folders_of("AAAABBBB", drift=0.2)))
    assert main(in_blocks) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "new beside old: " in said
    assert "in the pilot's 4 blocks, planned with up to" in said
    assert "(A old, B new)" in said
    assert "GPU-hours" in said
    assert main(apart) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "both arms' variances added up (the pilot is not in blocks: all of old ran before all of new" in said
    levels = []
    for words in (in_blocks, apart):
        assert main([*words, "--json"]) == 0
        (found,) = msgspec.json.decode(capsys.readouterr().out)
        levels.append(found["levels"])
    assert [one["source"] for one in levels] == ["blocks", "both arms"]
    assert levels[0]["spread"] < levels[1]["spread"]


def test_two_arms_of_one_test_are_told_apart_by_how_they_are_named(tmp_path, capsys):
    paths = written(tmp_path, folders_of("ABBAABBA", drift=0.2, names=("t", "t")))
    named = [word for one in paths["A"] for word in ("--pilot", one)]
    others = [word for one in paths["B"] for word in ("--pilot-after", one)]
    words = ["plan", "--quick", *named, "--gain", "10%", "--deploy-minutes", "30"]
    assert main([*words, *others]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "t (after) beside t (before): " in said
    assert "in the pilot's 4 blocks" in said


def test_pilots_of_two_arms_that_are_not_two_are_refused(tmp_path, capsys):
    three = written(tmp_path, [*folders_of("AB"), ("A", results_of("third", "x", 100, 9))])
    words = ["plan", "--quick", "--deploy-minutes", "30", "--pilot", three["A"][0], "--pilot", three["A"][1]]
    assert main([*words, "--pilot-after", three["B"][0]]) == 2
    assert "these folders hold old, third, new: one test each" in capsys.readouterr().err
    assert main(["plan", "--quick", "--pilot-after", three["B"][0]]) == 2
    assert "name its folder with --pilot" in capsys.readouterr().err


def test_a_pilot_of_one_arm_is_planned_with_twice_its_variance(tmp_path, capsys):
    assert main(pilot_words({**written(tmp_path, folders_of("AAA")), "B": []})) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "twice the variance of old's deployments, as if the other arm's were the same" in said

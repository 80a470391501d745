"""`make calibrate` in small: the way from exchanges to verdicts, and what it counts, with fixed seeds."""

import msgspec
import pytest

from calibrate import family, page
from calibrate.noise import KINDS, plan_of, run_levels
from calibrate.parts import MAKERS, Counted, Part, parts_of
from calibrate.planted import plant
from calibrate.rates import rate
from calibrate.records import Synthetic
from calibrate.synthetic import joined


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.long) if kind in ("bimodal", "heavy") else kind for kind in KINDS]
)
def test_two_equal_tests_raise_few_alarms_from_exchanges_to_verdicts(kind):
    (counted,) = family.tally(kind, 25, 1, [("paired", 5)]).values()
    alarms = rate(counted.alarms, counted.comparisons)
    assert alarms.low_pct <= 5
    assert counted.intervals == 25 * 44
    assert 0.88 < counted.covered / counted.intervals < 0.99


@pytest.mark.long
def test_two_folders_that_a_drift_lies_between_raise_many_and_are_warned_of():
    (counted,) = family.tally("drifting", 25, 1, [("two folders", 10)]).values()
    assert rate(counted.alarms, 25).low_pct > 5
    assert counted.warned == 25


def test_a_planted_tenth_is_found_at_the_size_its_pilot_proposed():
    found = plant("lognormal", 12, 3)
    assert found.found >= 10
    assert all(runs is not None and runs >= 5 for runs in found.proposed)


def test_the_exact_interval_of_a_rate():
    seen = rate(5, 100)
    assert (round(seen.low_pct, 2), round(seen.high_pct, 2)) == (1.64, 11.28)
    assert (rate(0, 10).low_pct, rate(10, 10).high_pct) == (0, 100)


def test_rates_are_judged_by_what_was_asked():
    assert [page.most(rate(n, 1000)) for n in (50, 55, 90)] == ["met", "chance", "MISSED"]
    assert [page.least(rate(n, 1000)) for n in (900, 890, 850)] == ["met", "chance", "MISSED"]
    assert [page.near(rate(n, 1000)) for n in (950, 930, 900, 990)] == ["met", "chance", "MISSED", "MISSED"]


def test_parts_have_seeds_of_their_own_and_join_to_what_was_asked_for():
    parts = parts_of(600, 100)
    assert len({part.seed for part in parts}) == len(parts)
    assert {part.what for part in parts} == MAKERS.keys()
    assert sum(part.count for part in parts if (part.what, part.kind) == ("family", "heavy")) == 600
    halves = [Counted(kind="heavy", tallies=list(family.tally("heavy", 2, s, [("paired", 5)]).items())) for s in (1, 2)]
    (row,) = joined(halves, 4, 0).family
    assert (row.alarms.n, row.kind, row.runs) == (4, "heavy", 5)
    assert Part(what="family", kind="heavy", count=2, seed=1).command[1:3] == ["-m", "calibrate.parts"]


def test_a_part_of_drifts_reaches_the_page_and_old_results_have_no_such_table():
    part = Part(what="drifts", kind="walk", count=4, seed=1)
    counted = msgspec.json.decode(msgspec.json.encode(MAKERS["drifts"](part)), type=Counted)
    kept = msgspec.json.decode(page.SYNTHETIC.read_bytes(), type=Synthetic)
    without = page.synthetic_lines(msgspec.structs.replace(kept, drifts=[]))
    lines = page.synthetic_lines(msgspec.structs.replace(kept, drifts=joined([counted], 4, 0).drifts))
    assert lines[: len(without)] == without
    table = [line for line in lines[len(without) :] if line.startswith("| random walk")]
    assert len(table) == 6
    assert sum("in blocks (paired)" in line for line in table) == 2
    assert sum("AABB" in line and "not judged: drift" in line for line in table) == 2


def test_runs_that_resemble_the_last_do_so_and_a_drift_drifts():
    import numpy as np

    levels = run_levels("autocorrelated", 4000, np.random.default_rng(1))
    assert np.corrcoef(levels[1:], levels[:-1])[0, 1] == pytest.approx(0.5, abs=0.05)
    assert levels.std() == pytest.approx(0.03, rel=0.1)
    drifting = run_levels("drifting", 1000, np.random.default_rng(1))
    assert np.polyfit(range(1000), drifting, 1)[0] == pytest.approx(0.004, rel=0.02)
    assert [test.baseline for test in plan_of(("A", "B"), 5).tests] == [(), ("A",)]

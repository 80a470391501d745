"""`make calibrate-real`: what it makes of a folder of pairs."""

import numpy as np
import pytest

from calibrate.family import interleaved
from calibrate.noise import plan_of
from calibrate.page import real_lines
from calibrate.real import PLAN, conduct, judged, picked, sides_of
from kvgauge.plan import load_plan
from kvgauge.report.results import build, write


def folder(tmp_path, pairs):
    given = interleaved("lognormal", pairs, np.random.default_rng(1), 1)
    write(build(plan_of(("A", "B"), pairs), given, {"host": "here", "cores": 2}), tmp_path)
    return tmp_path


def test_pairs_are_grouped_without_overlap_and_at_random(tmp_path):
    found = judged(folder(tmp_path, 22), groups=15)
    assert [(group.pairs, group.alarms.n) for group in found.groups] == [(5, 4), (10, 2)]
    assert (found.pairs, found.left_out, found.metrics) == (22, 0, 36)
    assert all(low <= rate <= high for rate, low, high in (group.drawn_alarms_pct for group in found.groups))
    assert "host" not in found.machine
    assert "| 5 | 4 |" in "\n".join(real_lines(found))


def test_a_folder_of_too_few_pairs_is_not_judged(tmp_path):
    with pytest.raises(SystemExit, match="has 6 valid pairs: 10 are needed"):
        judged(folder(tmp_path, 6))


def test_sides_of_a_pair_are_swapped_whole(tmp_path):
    before, after, _ = sides_of(folder(tmp_path, 5))
    one, other = picked(before, after, [1, 4], [True, False])
    for key in before.values.values:
        assert one.values.values[key] == {1: after.values.values[key][1], 4: before.values.values[key][4]}
        assert other.values.values[key] == {1: before.values.values[key][1], 4: after.values.values[key][4]}


def test_the_plan_holds_two_tests_that_differ_in_nothing():
    plan = load_plan(PLAN, quick=False, tests=[])
    a, b = plan.tests
    assert {name for name in a.__struct_fields__ if getattr(a, name) != getattr(b, name)} == {"name", "baseline"}
    assert plan.repetitions == 200
    assert callable(conduct)

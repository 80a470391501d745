"""Open cells whose rate is a share of what the slower arm answers."""

import msgspec
import pytest

from kvgauge import capacity
from kvgauge.capacity import Pilot, pilot_of, pilots, rate_of, with_rates
from kvgauge.failures import PlanError
from kvgauge.plan.expand import estimate_s, expand, run_s
from kvgauge.plan.open import said
from kvgauge.plan.read import read
from kvgauge.plan.reference import quick, reference
from kvgauge.report.records import RunResult
from kvgauge.stats.estimate import bare

PLAN = reference(("1.2.0", "1.4.1", "1.5.0"))
OPEN = next(cell for cell in PLAN.cells if cell.capacity is not None)
OF = OPEN.capacity.of


def found(**req_s):
    return [
        Pilot(test=name.replace("_", " "), cell=OF, req_s=value, reason=None if value else "it failed")
        for name, value in req_s.items()
    ]


def test_the_reference_plan_asks_every_arm_for_seven_tenths_of_what_the_slowest_can():
    assert (OPEN.load, OPEN.capacity.share, OPEN.input_tokens, OPEN.output_tokens) == ("poisson", 0.7, 512, 128)
    assert said(OPEN) == "poisson at 70% of 512x128-10"
    assert [run.test.name for run in pilots(PLAN)] == [test.name for test in PLAN.tests]
    assert {cell.name for run in pilots(PLAN) for cell in run.cells} == {OF}
    assert len({run.run_id for run in [*pilots(PLAN), *expand(PLAN)]}) == len(PLAN.tests) * (PLAN.repetitions + 1)


def test_tests_that_may_be_compared_get_the_same_rate_and_others_their_own():
    known = found(Baseline_UCX=4.0, Baseline_LIBFABRIC=8.0, Patched_LIBFABRIC=9.0, Multi_GPU=1.0)
    known = [msgspec.structs.replace(each, test="Multi-GPU") if each.test == "Multi GPU" else each for each in known]
    rates = {test.name: rate_of(test, OPEN, PLAN.tests, known)[0] for test in PLAN.tests}
    assert rates["Baseline UCX"] == rates["Baseline LIBFABRIC"] == rates["Optimized LIBFABRIC"] == 2.8
    assert rates["Multi-GPU"] == 0.7
    assert rates["Production"] is None


def test_the_remark_says_whose_capacity_it_was_and_a_cell_without_a_rate_says_why():
    run = expand(PLAN)[0]
    rated, remarks, without = with_rates(run, PLAN.tests, found(Baseline_UCX=4.0, Baseline_LIBFABRIC=8.0))
    if run.test.model == "Qwen3-0.6B":
        (cell,) = [cell for cell in rated.cells if cell.name == OPEN.name]
        assert cell.rate == 2.8
        assert "70% of the 4 req/s that Baseline UCX, the slowest of 2" in remarks[OPEN.name]
    rated, remarks, without = with_rates(run, [run.test], found(**{run.test.name.replace(" ", "_"): None}))
    assert OPEN.name not in [cell.name for cell in rated.cells]
    assert "not known: it failed" in without[OPEN.name]


@pytest.mark.parametrize(("status", "req_s"), [("valid", 5.0), ("invalid", None), ("failed", None)])
def test_only_a_valid_pilot_sets_a_rate(status, req_s):
    result = RunResult(
        run_id="pilot-1", repetition=1, cell=OF, concurrency=10, seed=1, status=status, reasons=("why",),
        metrics={capacity.METRIC: bare(5.0, "req/s", 1, "one")},
    )  # fmt: skip
    assert pilot_of(PLAN.tests[0], result).req_s == req_s


def test_a_pilot_that_gave_nothing_is_named_beside_those_that_did():
    known = found(Baseline_UCX=None, Baseline_LIBFABRIC=8.0)
    rate, said = rate_of(PLAN.tests[0], OPEN, PLAN.tests, known)
    assert rate == 5.6
    assert "Baseline LIBFABRIC, the slowest of 1" in said
    assert "Baseline UCX gave none (it failed)" in said


def test_a_plan_that_is_decided_by_a_cell_with_pilots_is_not_quick():
    decided = msgspec.structs.replace(PLAN, primary=msgspec.structs.replace(PLAN.primary, cell=OPEN.name))
    with pytest.raises(PlanError, match="leave --quick away"):
        quick(decided)


def test_a_quick_plan_has_no_pilots():
    assert [cell.name for cell in quick(PLAN).cells if cell.capacity] == []
    assert pilots(quick(PLAN)) == []
    without = msgspec.structs.replace(PLAN, cells=tuple(cell for cell in PLAN.cells if cell.capacity is None))
    assert estimate_s(PLAN) > estimate_s(without) + sum(run_s(test, pilots(PLAN)[0].cells) for test in PLAN.tests)


TEXT = """\
name: p
repetitions: 1
primary: {{metric: ttft_ms_mean, cell: c}}
tests: [{{name: t, backend: UCX, fabric: tcp, build: 1.5.0, patches: none, model: Qwen3-0.6B, tp: 1}}]
cells:
  - {{name: c, load: closed, concurrency: 2, requests: 4, input_tokens: 8, output_tokens: 2}}
  - {{name: s, load: single, concurrency: 1, requests: 4, input_tokens: 8, output_tokens: 2}}
  - {{name: o, load: constant, rate: {rate}, requests: 4, input_tokens: 8, output_tokens: 2}}
"""


@pytest.mark.parametrize(
    ("rate", "words"),
    [("{share: 70%, of: d}", "no cell is called 'd'"), ("{share: 70%, of: s}", "no closed loop"),
     ("{share: 70%}", "of"), ("{share: 300%, of: c}", "200%"), ("{share: 0.7, of: c}", "from 1% to 200%"), ("{share: 70%, of: c, more: 1}", "more")],
)  # fmt: skip
def test_a_share_of_what_has_no_capacity_is_refused(rate, words):
    with pytest.raises(PlanError, match=words):
        read(TEXT.format(rate=rate).encode(), source="p", known_builds=("1.5.0",))


def test_sessions_are_not_begun_at_a_share_of_a_capacity_of_requests():
    text = TEXT.format(rate="{share: 70%, of: c}, conversation: {turns: 2}")
    with pytest.raises(PlanError, match="starts sessions at its rate"):
        read(text.replace("of: c}, conversation: {turns: 2}, requests: 4", "of: c}, conversation: {turns: 2}, sessions: 4").encode(),
             source="p", known_builds=("1.5.0",))  # fmt: skip

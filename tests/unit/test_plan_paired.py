import pytest

from kvgauge.failures import PlanError
from kvgauge.plan.expand import estimate_s, expand, select
from kvgauge.plan.read import read
from kvgauge.plan.reference import quick

PLAN = """
name: pairs
mode: paired
repetitions: 2
primary: {{metric: {metric}, cell: p}}
{more}
defaults: {{fabric: tcp, backend: UCX, model: Qwen3-0.6B, patches: none, build: 1.5.0}}
tests: [{tests}]
cells:
  - {{name: p, load: {load}, input_tokens: 64, output_tokens: 2, {cell}}}
"""
TWO = "{name: A}, {name: B, planted: {prefill_pct: 1}}"


def plan_of(tests=TWO, metric="ttft_ms_mean", more="", load="closed", cell="concurrency: 2, requests: 21"):
    text = PLAN.format(tests=tests, metric=metric, more=more, load=load, cell=cell)
    return read(text, source="p.yaml", known_builds=["1.5.0"])


def test_a_paired_plan_names_its_arms_and_sends_whole_pairs_and_warm_up_to_both():
    plan = plan_of()
    assert plan.mode == "paired"
    assert [test.baseline for test in plan.tests] == [(), ("A",)]
    assert plan.tests[1].planted.line == "modelled prefill +1 %"
    assert (plan.tests[1].planted.factor("prefill"), plan.tests[1].planted.factor("decode")) == (1.01, 1.0)
    assert (plan.cells[0].requests, plan.cells[0].warmup_requests) == (20, 4)
    assert [run.run_id[:2] for run in expand(plan)] == ["r1", "r1", "r2", "r2"]
    assert estimate_s(plan) < 2 * 10


def test_the_baseline_may_be_either():
    plan = plan_of(more="baseline: B")
    assert [test.baseline for test in plan.tests] == [("B",), ()]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tests": "{name: A}"}, "this plan has 1: keep two"),
        ({"tests": "{name: A}, {name: B}, {name: C}"}, "this plan has 3: keep two"),
        ({"tests": "{name: A}, {name: B, model: Qwen2.5-7B}"}, "their model differ: Qwen3-0.6B, Qwen2.5-7B"),
        ({"metric": "ttft_ms_p99"}, "ttft_ms_p99 is no value of a request"),
        ({"metric": "output_token_throughput_tok_s"}, "is no value of a request"),
        ({"more": "load_workers: 2"}, "remove `load_workers`"),
        ({"cell": "concurrency: 1, requests: 1"}, "a pair is two requests"),
        ({"cell": "concurrency: 1, requests: 8, warmup_requests: 0"}, "warms up both arms"),
        ({"cell": "concurrency: 1, until: {half_width: 1%, at_most_s: 9}"}, "remove `until`"),
        ({"cell": "concurrency: 1, requests: 8, shared_prefix_tokens: 32, prefixes: 2"}, "an odd number of prefixes"),
        ({"cell": "concurrency: 1, requests: 8, warmup: steady"}, "remove `warmup: steady`"),
        ({"cell": "concurrency: 1, sessions: 8, conversation: {turns: 2}"}, "not the turns of a conversation"),
    ],
)
def test_what_cannot_be_paired_is_refused_with_its_line(changes, said):
    with pytest.raises(PlanError, match=r"p\.yaml:3") as caught:
        plan_of(**changes)
    assert said in str(caught.value)


def test_one_arm_alone_is_refused():
    with pytest.raises(PlanError, match="leave --test away"):
        select(plan_of(), ["A"])
    assert len(select(plan_of(), ["A", "B"]).tests) == 2


def test_an_unknown_mode_and_an_empty_planted_are_refused():
    with pytest.raises(PlanError, match="planted"):
        plan_of(tests="{name: A}, {name: B, planted: {}}")
    with pytest.raises(PlanError, match="mode"):
        read(
            PLAN.format(tests=TWO, metric="ttft_ms_mean", more="", load="closed", cell="concurrency: 1, requests: 8")
            .replace("mode: paired", "mode: pair"),
            source="p.yaml",
            known_builds=["1.5.0"],
        )  # fmt: skip


def test_a_paired_plan_is_not_quick_a_few_pairs_say_nothing():
    with pytest.raises(PlanError, match="leave --quick away"):
        quick(plan_of())

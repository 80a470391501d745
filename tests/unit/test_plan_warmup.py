import pytest

from kvgauge.failures import PlanError
from kvgauge.load.how_many import Cores, how_many
from kvgauge.plan.expand import cell_s
from kvgauge.plan.parts import first_prompts
from kvgauge.plan.read import read
from kvgauge.plan.records import DatasetFile, UntilSteady
from kvgauge.plan.reference import quick
from scene import make_cell, make_test

HEAD = """
name: n
primary: {metric: ttft_ms_mean, cell: c}
tests: [{name: t, backend: UCX, fabric: tcp, build: 1.5.0, model: Qwen3-0.6B}]
"""


def plan(cell, more="", load="load: closed, concurrency: 2, requests: 4", lengths="input_tokens: 8, output_tokens: 8"):
    text = f"{HEAD}{more}\ncells:\n  - {{name: c, {load}, {lengths}{cell}}}\n"
    return read(text, source="p", known_builds=["1.5.0"])


@pytest.mark.parametrize(
    ("written", "steady"),
    [
        ("steady", UntilSteady(limit_s=120)),
        ("{until: steady}", UntilSteady(limit_s=120)),
        ("{until: steady, limit_s: 300, at_least_s: 60}", UntilSteady(limit_s=300, at_least_s=60)),
    ],
)
def test_a_cell_warms_up_until_it_is_steady(written, steady):
    (cell,) = plan(f", warmup: {written}").cells
    assert (cell.steady, cell.warmup_requests) == (steady, 0)


def test_a_plan_says_it_for_cells_that_say_nothing():
    assert plan("", more="warmup: steady").cells[0].steady == UntilSteady(limit_s=120)
    own = plan(", warmup_requests: 3", more="warmup: steady").cells[0]
    assert (own.steady, own.warmup_requests) == (None, 3)
    other = plan(", warmup: {until: steady, limit_s: 9}", more="warmup: steady").cells[0]
    assert other.steady == UntilSteady(limit_s=9)


@pytest.mark.parametrize(
    ("cell", "more", "said"),
    [
        (", warmup: stedy", "", "unknown warm-up 'stedy'; did you mean 'steady'"),
        (", warmup: {limit_s: 5}", "", "has no `until: steady`"),
        (", warmup: {until: warm}", "", "unknown end of a warm-up 'warm'"),
        (", warmup: {until: steady, limit_s: 0}", "", "limit_s: expected a number from 1"),
        (", warmup: {until: steady, limit_s: 5, at_least_s: 9}", "", "9 s of warm-up are never reached with limit_s 5"),
        (", warmup: steady, warmup_requests: 2", "", "given beside `warmup_requests`"),
        (", warmup: steady", "load_workers: 2", "offered by one load worker (c)"),
    ],
)
def test_a_mistake_is_one_error_with_its_line(cell, more, said):
    with pytest.raises(PlanError) as caught:
        plan(cell, more)
    assert said in str(caught.value)
    assert str(caught.value).startswith("p:")


@pytest.mark.parametrize(
    ("load", "why"),
    [
        ("load: ramp, ramp: {from: 1, to: 2, over_s: 3}", "its rate changes all the time"),
        ("load: burst, burst: {size: 2, every_s: 3}, requests: 4", "it comes in bursts"),
        ("load: steps, steps: [{rate: 1, for_s: 3}]", "from step to step"),
        ("load: closed, concurrency: 2, sessions: 4, api: chat, conversation: {turns: 2}", "turns of a conversation"),
    ],
)
@pytest.mark.parametrize("where", ["cell", "plan"])
def test_a_load_that_has_no_steady_state_is_refused(load, why, where):
    with pytest.raises(PlanError) as caught:
        plan(", warmup: steady" if where == "cell" else "", more="warmup: steady" * (where == "plan"), load=load)
    assert why in str(caught.value)
    assert "cell c" in str(caught.value)
    assert "warmup_requests" in str(caught.value)


@pytest.mark.parametrize(
    "load",
    [
        "load: single, concurrency: 1, requests: 4",
        "load: wave, concurrency: 2, requests: 4",
        "load: constant, rate: 2, duration_s: 5",
        "load: poisson, rate: 2, requests: 5",
        "load: gamma, rate: 2, burstiness: 2, until: {half_width: 5%, at_most_s: 9}",
    ],
)
def test_the_other_loads_have_one(load):
    assert plan(", warmup: steady", load=load).cells[0].steady is not None


def test_auto_takes_one_worker_and_says_why():
    cell = make_cell(concurrency=64, output_tokens=4000, steady=UntilSteady(limit_s=9))
    chosen = how_many(cell, "auto", Cores(allowed=32, free=32))
    assert chosen.workers == 1
    assert "one load worker" in chosen.why


def test_its_estimated_time_holds_ten_batches_and_its_limit():
    cell = make_cell(warmup_requests=0)
    short, long = (make_cell(warmup_requests=0, steady=UntilSteady(limit_s=limit)) for limit in (2, 500))
    test = make_test()
    assert 2 <= cell_s(test, short) - cell_s(test, cell) < 5
    assert 10 <= cell_s(test, long) - cell_s(test, cell) < 60


def test_quick_takes_a_number_of_requests_instead():
    (cell,) = quick(plan(", warmup: steady")).cells
    assert (cell.steady, cell.warmup_requests) == (None, 1)


def test_nobody_knows_how_many_prompts_of_a_dataset_it_sends():
    dataset = DatasetFile(
        path="d", sha256="s", prompts=100, words_mean=1.0, words_max=1, output_tokens_mean=None, output_tokens_max=None
    )
    counted = make_cell(name="a", dataset=dataset, input_tokens=None, requests=10, warmup_requests=0)
    steady = make_cell(name="b", dataset=dataset, input_tokens=None, steady=UntilSteady(limit_s=9))
    last = make_cell(name="c", dataset=dataset, input_tokens=None, requests=10, warmup_requests=0)
    assert first_prompts([counted, steady, last]) == {"a": 0, "b": 10, "c": 90}

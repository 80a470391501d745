"""The flags of `kvgauge load` as a plan: the cells they stand for, and mistakes told by the flag's name."""

import pytest

from kvgauge.failures import UsageError
from kvgauge.plan.asked import Asked, plan_of
from kvgauge.plan.cells import no_files
from kvgauge.plan.records import UNOBSERVED, UntilSteady


def cells(**asked):
    return plan_of(Asked(**asked), "a-model", no_files).cells


def test_without_a_flag_one_slot_sends_ten_unique_prompts_of_512_tokens():
    (cell,) = cells()
    assert (cell.name, cell.load, cell.concurrency, cell.requests) == ("512x128", "closed", 1, 10)
    assert (cell.input_tokens, cell.output_tokens, cell.prompt) == (512, 128, None)


def test_each_concurrency_is_a_cell_with_its_own_count():
    found = cells(concurrency=(1, 5, 10), requests=(10, 50, 100), input_tokens=64, output_tokens=8)
    assert [(c.name, c.concurrency, c.requests) for c in found] == [
        ("64x8-1", 1, 10), ("64x8-5", 5, 50), ("64x8-10", 10, 100),
    ]  # fmt: skip


def test_rates_are_poisson_unless_something_else_is_said():
    found = cells(rates=(2.0, 8.5), duration_s=30.0)
    assert [(c.load, c.rate, c.duration_s) for c in found] == [("poisson", 2.0, 30.0), ("poisson", 8.5, 30.0)]
    (gamma,) = cells(rates=(4.0,), burstiness=0.5)
    assert (gamma.load, gamma.burstiness, gamma.requests) == ("gamma", 0.5, 100)
    (constant,) = cells(rates=(4.0,), pattern="constant", concurrency=(32,))
    assert (constant.load, constant.concurrency) == ("constant", 32)


def test_a_load_may_end_when_its_mean_is_known_well_enough():
    (cell,) = cells(until=("ttft_ms_mean", "2.5%"), requests=(1000,), concurrency=(4,))
    assert (cell.until.metric, cell.until.half_width, cell.requests) == ("ttft_ms_mean", 0.025, 1000)


def test_a_literal_prompt_may_be_anything_that_can_be_sent():
    text = 'Say "100%": {yes, no} # not a comment\n- item\n& anchor'
    assert cells(prompt=text, output_tokens=5)[0].prompt == text


def test_what_is_measured_from_outside_claims_no_backend():
    plan = plan_of(Asked(repetitions=3, seed=7), "a-model", no_files)
    test = plan.tests[0]
    assert (test.backend, test.fabric, test.build, test.name) == (UNOBSERVED, UNOBSERVED, UNOBSERVED, "a-model")
    assert (plan.repetitions, plan.seed, plan.rehearsal) == (3, 7, False)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"input_tokens": 0}, "--isl: expected a whole number from 1"),
        ({"output_tokens": 10**9}, "--osl: expected a whole number from 1"),
        ({"prompt": "hi", "input_tokens": 4}, "--isl: given beside `prompt`"),
        ({"concurrency": (0,)}, "--concurrency: expected a whole number from 1"),
        ({"concurrency": (2, 2)}, "--concurrency: 2 is listed twice"),
        ({"requests": (5, 6)}, "--request-count: 2 numbers for 1"),
        ({"requests": (5,), "duration_s": 3.0}, "--benchmark-duration: given beside `requests`"),
        ({"rates": (0.0,)}, "--request-rate: expected a number from"),
        ({"rates": (1.0,), "pattern": "gamma"}, "burstiness"),
        ({"burstiness": 0.5}, "--arrival-pattern and --burstiness go with --request-rate"),
        ({"trace": "t.jsonl", "rates": (1.0,)}, "--trace has its own times"),
        ({"trace": "t.jsonl"}, "--trace: cannot read t.jsonl"),
        ({"until": ("ttft_ms_mean", "2%")}, "--until may never be reached"),
        ({"until": ("ttft_ms_mean", "2"), "requests": (10,)}, "--until: expected from"),
        ({"until": ("p99", "2%"), "requests": (10,)}, "--until: 'p99' has no interval"),
        ({"warmup_requests": -1}, "--warmup-request-count: expected a whole number"),
    ],
)
def test_a_mistake_names_its_flag(asked, said):
    with pytest.raises(UsageError) as caught:
        cells(**asked)
    assert said in str(caught.value)
    assert "command line" not in str(caught.value)


def test_what_requests_ask_for_can_be_said_by_flags_too():
    asked = Asked(
        api="chat", stream=False, shared_prefix_tokens=100, ignore_eos=False, goodput=("ttft:200", "e2el:1500.5")
    )
    made = plan_of(asked, "m", no_files)
    [cell] = made.cells
    assert (cell.api, cell.prompt_kind, cell.stream, cell.shared_prefix_tokens) == ("chat", "text", False, 100)
    assert not cell.ignore_eos
    assert made.primary.metric == "e2e_latency_ms_mean"
    assert (made.goodput.ttft_ms, made.goodput.tpot_ms, made.goodput.e2e_latency_ms) == (200, None, 1500.5)
    [cell] = plan_of(Asked(dataset="d"), "m", lambda _: b'{"prompt": "a b"}').cells
    assert (cell.name, cell.dataset.prompts, cell.input_tokens) == ("dataset-x128", 1, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"goodput": ("itl:3",)}, "--goodput: expected ttft, tpot, e2el"),
        ({"goodput": ("ttft:nan",)}, "got 'ttft:nan'"),
        ({"shared_prefix_tokens": 512}, "--shared-prefix: expected a whole number from 1 to 510"),
        ({"dataset": "d"}, "--dataset: cannot read d"),
    ],
)
def test_a_flag_about_requests_that_cannot_be_is_named(changes, message):
    with pytest.raises(UsageError) as caught:
        plan_of(Asked(**changes), "m", no_files)
    assert message in str(caught.value)


def test_a_warm_up_until_steady_is_a_flag():
    assert cells(warmup="steady")[0].steady == UntilSteady(limit_s=120)
    assert cells(warmup="steady:30.5")[0].steady == UntilSteady(limit_s=30.5)
    for wrong in ("warm", "steady:", "steady:x", "steady:1e3", "30"):
        with pytest.raises(UsageError, match=r"^--warmup: "):
            cells(warmup=wrong)
    with pytest.raises(UsageError, match=r"^--warmup: given beside"):
        cells(warmup="steady", warmup_requests=2)

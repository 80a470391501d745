import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.failures import PlanError
from kvgauge.plan.expand import cell_s, estimate_s, expand, prompt_tokens, refuse_long_cold_starts, run_s, select
from kvgauge.plan.records import ColdStart, Plan
from kvgauge.plan.reference import reference

WHOLE = reference(("1.2.0", "1.4.1", "1.5.0"))
PLAN = msgspec.structs.replace(WHOLE, cells=tuple(cell for cell in WHOLE.cells if not cell.is_open))  # no pilots


def with_tests(count: int, repetitions: int, seed: int) -> Plan:
    tests = tuple(msgspec.structs.replace(PLAN.tests[0], name=f"test {n}") for n in range(count))
    return msgspec.structs.replace(PLAN, tests=tests, repetitions=repetitions, seed=seed)


plans = st.builds(with_tests, st.integers(1, 12), st.integers(1, 9), st.integers(0, 2**31 - 1))


@given(plans)
def test_each_test_runs_once_in_each_repetition_and_repetitions_follow_each_other(plan):
    runs = expand(plan)
    assert [run.order for run in runs] == list(range(len(plan.tests) * plan.repetitions))
    assert [run.repetition for run in runs] == sorted(run.repetition for run in runs)
    for repetition in range(1, plan.repetitions + 1):
        names = [run.test.name for run in runs if run.repetition == repetition]
        assert sorted(names) == sorted(test.name for test in plan.tests)
    assert len({run.run_id for run in runs}) == len(runs)


@given(plans)
def test_a_steady_drift_favours_no_test_of_an_even_number_of_repetitions(plan):
    places: dict[str, int] = {}
    per_repetition = len(plan.tests)
    for run in expand(plan):
        places[run.test.name] = places.get(run.test.name, 0) + run.order % per_repetition
    if plan.repetitions % 2 == 0:
        assert len(set(places.values())) <= 1


def test_neighbouring_repetitions_are_turned_round_as_often_as_chance_has_it():
    """Were they always, what one run leaves to the next would make their differences resemble each other."""
    turned, neighbours = 0, 0
    for seed in range(400):
        first = [run.test.name for run in expand(with_tests(2, 10, seed)) if run.order % 2 == 0]
        turned += sum(one != other for one, other in itertools.pairwise(first))
        neighbours += len(first) - 1
    # five of ten are one way round: two of them differ 5/9 of the time
    assert abs(turned / neighbours - 5 / 9) < 0.03


@given(plans)
def test_tests_of_one_repetition_share_a_seed_and_repetitions_do_not(plan):
    seeds = {(run.repetition, run.seed) for run in expand(plan)}
    assert len(seeds) == len({seed for _, seed in seeds}) == plan.repetitions
    assert all(0 <= seed < 2**31 for _, seed in seeds)


def test_the_order_is_a_function_of_the_seed():
    orders = [[run.run_id for run in expand(msgspec.structs.replace(PLAN, seed=seed))] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_run_ids_name_repetition_and_test():
    assert "r2-optimized-libfabric" in {run.run_id for run in expand(PLAN)}


def test_selecting_keeps_the_order_of_the_plan_and_trims_baselines():
    chosen = select(PLAN, ["Production", "Baseline LIBFABRIC", "Production"])
    assert [(test.name, test.baseline) for test in chosen.tests] == [
        ("Baseline LIBFABRIC", ()),
        ("Production", ("Baseline LIBFABRIC",)),
    ]


def test_selecting_nothing_is_the_whole_plan():
    assert select(PLAN, []) is PLAN


def test_selecting_an_unknown_test_names_the_nearest():
    with pytest.raises(PlanError, match=r"no test is called 'production'; did you mean 'Production'\?"):
        select(PLAN, ["production"])


def test_a_selection_of_rehearsals_is_a_rehearsal():
    efa = msgspec.structs.replace(PLAN.tests[0], name="E", fabric="efa")
    plan = msgspec.structs.replace(PLAN, tests=(*PLAN.tests, efa), rehearsal=False)
    assert select(plan, ["Production"]).rehearsal
    assert not select(plan, ["Production", "E"]).rehearsal


def test_the_estimate_adds_up_over_runs():
    assert estimate_s(PLAN) == pytest.approx(sum(run_s(run.test, run.cells) for run in expand(PLAN)))


@settings(max_examples=40)
@given(st.integers(1, 64), st.integers(1, 8))
def test_more_requests_never_take_less_time(concurrency, rounds):
    cell = msgspec.structs.replace(PLAN.cells[-1], concurrency=concurrency, requests=concurrency * rounds)
    more = msgspec.structs.replace(cell, requests=concurrency * (rounds + 1))
    assert 0 < cell_s(PLAN.tests[0], cell) < cell_s(PLAN.tests[0], more)


def test_heavier_kv_takes_longer():
    cell = PLAN.cells[-1]
    small, _, _, _, medium, large = (cell_s(test, cell) for test in PLAN.tests)
    assert small < medium < large


def test_prompt_tokens_of_a_literal_prompt_are_a_guess_of_at_least_one():
    assert [prompt_tokens(cell) for cell in (PLAN.cells[0], PLAN.cells[1], PLAN.cells[-1])] == [2, 3, 512]


# -- cold starts

COLD = ColdStart(compile_s=20, graph_capture_s=0.5, graph_batch_max=16, connect_s=1.5)


def cold(start: ColdStart | None = COLD, **changes) -> Plan:
    tests = tuple(msgspec.structs.replace(test, cold_start=start, **changes) for test in PLAN.tests[:1])
    return msgspec.structs.replace(PLAN, tests=tests, repetitions=2)


def test_the_estimate_holds_the_cold_start_once_a_run():
    assert estimate_s(cold()) - estimate_s(cold(None)) == pytest.approx(2 * (2 * 20 + 16 * 0.5 + 1.5))
    batches_of_five = tuple(cell for cell in PLAN.cells if cell.concurrency <= 5)
    few = msgspec.structs.replace(cold(), cells=batches_of_five)
    none = msgspec.structs.replace(cold(None), cells=batches_of_five)
    assert estimate_s(few) - estimate_s(none) == pytest.approx(2 * (2 * 20 + 5 * 0.5 + 1.5))


def test_workers_that_meet_their_first_request_one_after_the_other_are_cold_one_after_the_other():
    two = {"prefill_workers": 2, "decode_workers": 2}
    single_first, wide_first = PLAN.cells, PLAN.cells[::-1]
    assert (single_first[0].concurrency, wide_first[0].concurrency) == (1, 20)
    for cells, compiles, connections in ((single_first, 4, 4), (wide_first, 2, 1)):
        warm, slow = (
            msgspec.structs.replace(cold(start, **two), cells=cells) for start in (None, ColdStart(compile_s=7, connect_s=3))
        )  # fmt: skip
        assert estimate_s(slow) - estimate_s(warm) == pytest.approx(2 * (7 * compiles + 3 * connections))


def test_a_request_that_a_cold_start_would_outlast_is_refused_before_anything_starts():
    wait_s = 2 * 20 + 16 * 0.5 + 1.5
    refuse_long_cold_starts(cold(), wait_s + 1)
    refuse_long_cold_starts(cold(None), 0.1)
    refuse_long_cold_starts(cold(expect="failed"), 1)
    with pytest.raises(PlanError) as caught:
        refuse_long_cold_starts(cold(), wait_s)
    message = str(caught.value)
    assert "can wait 49.5 s for its cold start" in message
    assert "given up after 49.5 s: pass --request-timeout 110" in message
    refuse_long_cold_starts(cold(), 110)

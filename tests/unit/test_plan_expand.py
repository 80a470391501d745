import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.failures import PlanError
from kvgauge.plan.expand import cell_s, estimate_s, expand, prompt_tokens, run_s, select
from kvgauge.plan.records import Plan
from kvgauge.plan.reference import reference

PLAN = reference(("1.2.0", "1.4.1", "1.5.0"))


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
def test_a_steady_drift_favours_no_test_of_a_pair_of_repetitions(plan):
    places: dict[str, int] = {}
    paired = plan.repetitions // 2 * 2
    for run in expand(plan):
        if run.repetition <= paired:
            places[run.test.name] = places.get(run.test.name, 0) + run.order
    assert len(set(places.values())) <= 1


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

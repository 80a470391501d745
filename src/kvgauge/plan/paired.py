"""`mode: paired` and `planted`: what a plan may say of them. Pure."""

import msgspec

from kvgauge.failures import PlanError
from kvgauge.plan.metrics import UNTIL_METRICS
from kvgauge.plan.nodes import Value, nearest
from kvgauge.plan.records import Cell, Plan, Planted, Test

ARMS = 2
PLANTED_PCT_MIN, PLANTED_PCT_MAX = -50.0, 1000.0
ALIKE = ("model", "prefill_tp", "decode_tp", "kv_dtype", "gpu", "fabric")  # one load must ask the same of both


def read_planted(value: Value) -> Planted | None:
    """A mapping; null: nothing, where `defaults` says otherwise."""
    if value.is_null:
        return None
    fields = value.fields(Planted.__struct_fields__)
    if not fields:
        raise value.error(f"says nothing; give one of {', '.join(Planted.__struct_fields__)}, or remove it")
    found = Planted(**{key: field.number(PLANTED_PCT_MIN, PLANTED_PCT_MAX) for key, field in fields.items()})
    return found if found.line else None


def paired(value: Value, plan: Plan) -> Plan:
    """The plan with both arms side by side: one test the other's baseline, and warm-up for both.

    value   `mode: paired`, whose line errors name
    raises  PlanError for what cannot be paired
    """
    if len(plan.tests) != ARMS:
        raise value.error(
            f"paired sets two tests side by side, and this plan has {len(plan.tests)}: keep two, or write one plan for "
            "each pair"
        )
    if plan.load_workers != 1:
        raise value.error("paired sends every request from one process, which draws its arm: remove `load_workers`")
    if plan.primary.metric not in UNTIL_METRICS:
        raise value.error(
            f"paired compares requests one by one, and {plan.primary.metric} is no value of a request; "
            f"{nearest(plan.primary.metric, UNTIL_METRICS)}"
        )
    for field in ALIKE:
        values = [getattr(test, field) for test in plan.tests]
        if values[0] != values[1]:
            raise value.error(f"paired offers both tests one load, and their {field} differ: {values[0]}, {values[1]}")
    return msgspec.structs.replace(
        plan,
        mode="paired",
        tests=_with_baseline(plan.tests),
        cells=tuple(_both(value, cell) for cell in plan.cells),
    )


def _with_baseline(tests: tuple[Test, ...]) -> tuple[Test, ...]:
    """Where no baseline is named it is the first."""
    if any(test.baseline for test in tests):
        return tests
    return tests[0], msgspec.structs.replace(tests[1], baseline=(tests[0].name,))


def _both(value: Value, cell: Cell) -> Cell:
    """A cell whose requests go to both arms: as many pairs as it has whole ones, and warm-up for each arm."""
    if cell.conversation is not None:
        raise value.error(f"cell {cell.name}: paired sends single requests, not the turns of a conversation")
    if cell.capacity is not None:
        raise value.error(
            f"cell {cell.name}: paired measures no capacity to take a share of; give a rate, of both arms"
        )
    if cell.steady is not None:
        raise value.error(f"cell {cell.name}: paired warms up by requests: remove `warmup: steady`")
    if cell.until is not None:
        raise value.error(
            f"cell {cell.name}: paired ends a cell by what is known of the gain: remove `until`, and give the plan "
            "`gain_within`"
        )
    if cell.requests < ARMS:
        raise value.error(f"cell {cell.name}: a pair is two requests; give it 2 or more")
    if cell.warmup_requests == 0:
        raise value.error(f"cell {cell.name}: paired warms up both arms first: remove warmup_requests")
    if cell.prefixes % ARMS == 0 and cell.shared_prefix_tokens:
        raise value.error(
            f"cell {cell.name}: requests take {cell.prefixes} prefixes in turn and arms in pairs, so a pair would not "
            f"be alike; give it an odd number of prefixes"
        )
    return msgspec.structs.replace(
        cell, requests=cell.requests - cell.requests % ARMS, warmup_requests=ARMS * cell.warmup_requests
    )


def refuse_one_arm(plan: Plan) -> None:
    """PlanError when a test of a paired plan was left out."""
    if plan.mode == "paired" and len(plan.tests) != ARMS:
        raise PlanError("paired sets two tests side by side: leave --test away, or name both", source=plan.source)

"""What a plan says of warm-up: a number of requests, or until the load is steady. Pure.

warmup_requests: 10
warmup: steady
warmup: {until: steady, limit_s: 120, at_least_s: 0}      of a cell, or of the plan for cells that say nothing
"""

import msgspec

from kvgauge.plan.nodes import Value
from kvgauge.plan.records import Cell, UntilSteady

LIMIT_S_MAX = 86_400
LIMIT_S = 120.0
STEADY_WORKERS = "a warm-up until steady state is offered by one load worker"
CHANGES = {  # loads that are never steady, and what they do
    "ramp": "its rate changes all the time",
    "burst": "it comes in bursts, with pauses between them",
    "steps": "its rate changes from step to step",
    "trace": "its requests differ in length and rate, as they were recorded",
}


def read_warmup(value: Value) -> UntilSteady:
    """raises PlanError"""
    if not value.is_mapping:
        value.word(("steady",), "warm-up")
        return UntilSteady(limit_s=LIMIT_S)
    fields = value.fields(("until", "limit_s", "at_least_s"))
    if "until" not in fields:
        raise value.missing("until: steady", "warmup")
    fields["until"].word(("steady",), "end of a warm-up")
    limit_s = fields["limit_s"].number(1, LIMIT_S_MAX) if "limit_s" in fields else LIMIT_S
    at_least_s = fields["at_least_s"].seconds(LIMIT_S_MAX) if "at_least_s" in fields else 0.0
    if at_least_s > limit_s:
        raise fields["at_least_s"].error(f"{at_least_s:g} s of warm-up are never reached with limit_s {limit_s:g}")
    return UntilSteady(limit_s=limit_s, at_least_s=at_least_s)


def warmed_up(cell: Cell, fields: dict[str, Value], default: Value | None) -> Cell:
    """The cell with the warm-up it names, or the plan's where it names none.

    raises  PlanError where there is no steady state to wait for
    """
    if "warmup" in fields and "warmup_requests" in fields:
        raise fields["warmup"].error("given beside `warmup_requests`; a warm-up has one end, so remove one")
    value = fields.get("warmup", None if "warmup_requests" in fields else default)
    if value is None:
        return cell
    steady = read_warmup(value)
    if cell.load in CHANGES:
        why = CHANGES[cell.load]
    elif cell.conversation is not None:
        why = "turns of a conversation differ, and the mix of them changes until many sessions have ended"
    else:
        return msgspec.structs.replace(cell, warmup_requests=0, steady=steady)
    raise value.error(f"cell {cell.name}: a {cell.load} load has no steady state: {why}. Give it `warmup_requests`")

"""Open loads: what a plan may say of them, and what their numbers amount to. Pure."""

from collections.abc import Callable, Sequence
from math import ceil, sqrt
from typing import Any

import msgspec

from kvgauge.plan.conversation import turns_mean
from kvgauge.plan.nodes import Value, nearest
from kvgauge.plan.records import Burst, Capacity, Cell, LoadShape, Ramp, Step, Steps
from kvgauge.plan.trace import parse, summary

RATE_MIN, RATE_MAX = 0.001, 100_000.0  # requests per second
CAPACITY_GUESSED = 4.0  # for how long a cell will take, before a pilot says what its rate is
SPAN_S_MAX = 7 * 86_400
SIZE_MAX = 4096
RATES_MAX = 200
STEPS_MAX = 20

SHAPE_KEYS: dict[str, tuple[LoadShape, ...]] = {  # key -> the loads it belongs to
    "rate": ("constant", "poisson", "gamma"),
    "burstiness": ("gamma",),
    "ramp": ("ramp",),
    "burst": ("burst",),
    "steps": ("steps",),
    "arrivals": ("steps",),
    "trace": ("trace",),
    "speed_up": ("trace",),
}
OPTIONAL_KEYS = ("speed_up", "arrivals")
NOT_FOR_A_TRACE = ("prompt", "input_tokens", "output_tokens", "dataset", "conversation")


def read_shape(
    value: Value, fields: dict[str, Value], load: LoadShape, read_file: Callable[[str], bytes]
) -> dict[str, Any]:
    """What a cell's load alone decides, by the names of Cell, and `rates` where there may be several.

    raises  PlanError for a key that belongs to another load, one that is missing, and a trace that cannot be used
    """
    for key, loads in SHAPE_KEYS.items():
        if key in fields and load not in loads:
            raise fields[key].error(f"a {load} load has none; it is for {' and '.join(loads)}")
        if load in loads and key not in fields and key not in OPTIONAL_KEYS:
            raise value.missing(key, f"a {load} load")
    found: dict[str, Any] = {}
    if "rate" in fields and fields["rate"].is_mapping:
        found["capacity"] = _capacity(fields["rate"])
    elif "rate" in fields:
        found["rates"] = _rates(fields["rate"])
    if "burstiness" in fields:
        found["burstiness"] = fields["burstiness"].number(0.01, 1000)
    if "ramp" in fields:
        found["ramp"] = _ramp(fields["ramp"])
    if "burst" in fields:
        found["burst"] = _burst(fields["burst"])
    if "steps" in fields:
        found["steps"] = _steps(fields["steps"], fields.get("arrivals"))
    if "trace" in fields:
        for key in NOT_FOR_A_TRACE:
            if key in fields:
                why = (
                    "whose lines stand for requests that are not of one session"
                    if key == "conversation"
                    else ("whose lines say it for each request")
                )
                raise fields[key].error(f"given beside `trace`, {why}; remove it")
        found["trace"] = _trace(fields["trace"], read_file)
        found["output_tokens"] = found["trace"].output_tokens_max
    if "speed_up" in fields:
        found["speed_up"] = fields["speed_up"].number(0.001, 1_000_000)
    return found


def _rates(value: Value) -> list[float]:
    items = value.items(RATES_MAX) if value.is_list else [value]
    if not items:
        raise value.error("expected at least one number")
    found: list[float] = []
    for item in items:
        rate = item.number(RATE_MIN, RATE_MAX)
        if f"{rate:g}" in {f"{other:g}" for other in found}:
            raise item.error(f"{rate:g} is listed twice; remove one")
        found.append(rate)
    return found


def _capacity(value: Value) -> Capacity:
    fields = _all_of(value, ("share", "of"))
    return Capacity(share=fields["share"].number(0.01, 2, percent=True), of=fields["of"].scalar("a cell's name"))


def refuse_other_capacities(value: Value, cells: Sequence[Cell]) -> None:
    """raises PlanError where a rate's share is of a cell that is not there, or that has no capacity of its own"""
    by_name = {cell.name: cell for cell in cells}
    for cell in cells:
        if cell.capacity is None:
            continue
        if cell.conversation is not None:
            why = "starts sessions at its rate, and a capacity is of single requests"
            raise value.error(f"rate of {cell.name!r}: it {why}; give a number")
        of = by_name.get(cell.capacity.of)
        if of is None:
            near = nearest(cell.capacity.of, by_name)
            raise value.error(f"rate of {cell.name!r}: no cell is called {cell.capacity.of!r}; {near}")
        if of.load != "closed" or of.conversation is not None:
            why = "is no closed loop of single requests, which alone shows a capacity"
            raise value.error(f"rate of {cell.name!r}: {of.name!r} {why}")


def _all_of(value: Value, keys: tuple[str, ...]) -> dict[str, Value]:
    fields = value.fields(keys)
    for key in keys:
        if key not in fields:
            raise value.missing(key, value.label)
    return fields


def _ramp(value: Value) -> Ramp:
    fields = _all_of(value, ("from", "to", "over_s"))
    start, end = fields["from"].number(0, RATE_MAX), fields["to"].number(0, RATE_MAX)
    if max(start, end) < RATE_MIN:
        raise value.error(f"one of its rates must be at least {RATE_MIN:g} requests per second")
    return Ramp(from_rate=start, to_rate=end, over_s=fields["over_s"].number(0.001, SPAN_S_MAX))


def _burst(value: Value) -> Burst:
    fields = _all_of(value, ("size", "every_s"))
    return Burst(size=fields["size"].integer(1, SIZE_MAX), every_s=fields["every_s"].number(0.001, SPAN_S_MAX))


def _steps(value: Value, arrivals: Value | None) -> Steps:
    items = value.items(STEPS_MAX)
    found = []
    for item in items:
        fields = _all_of(item, ("rate", "for_s"))
        rate = fields["rate"].number(0, RATE_MAX)
        if 0 < rate < RATE_MIN:
            raise fields["rate"].error(f"{rate:g} is below {RATE_MIN:g} requests per second; 0 is a pause")
        found.append(Step(rate=rate, for_s=fields["for_s"].number(0.001, SPAN_S_MAX)))
    if not any(step.rate for step in found):
        raise value.error("at least one step needs a rate above 0")
    if arrivals is None:
        return Steps(steps=tuple(found))
    pattern = arrivals.word(("constant", "poisson"), "arrival pattern")
    return Steps(steps=tuple(found), arrivals="poisson" if pattern == "poisson" else "constant")


def _trace(value: Value, read_file: Callable[[str], bytes]) -> Any:
    path = value.path()
    try:
        data = read_file(path)
    except OSError as error:
        raise value.error(f"cannot read {path}: {error.strerror}; name a JSONL file") from None
    return summary(path, data, parse(data, path))


def span_s(cell: Cell) -> float:
    """From the first request due to the last, roughly: what the clock alone decides of an open cell. Bounded by its
    `duration_s`."""
    if cell.trace is not None:
        whole = cell.trace.span_s / cell.speed_up * cell.requests / cell.trace.requests
    elif cell.ramp is not None:
        whole = _ramp_span_s(cell.ramp, starts(cell))
    elif cell.burst is not None:
        whole = (ceil(starts(cell) / cell.burst.size) - 1) * cell.burst.every_s
    elif cell.steps is not None:
        whole = _steps_span_s(cell.steps, starts(cell))
    else:
        whole = starts(cell) / rate(cell)
    return whole if cell.duration_s is None else min(whole, cell.duration_s)


def starts(cell: Cell) -> int:
    """What the clock makes due at most: sessions where there are conversations, else requests."""
    return cell.requests if cell.sessions is None else cell.sessions


def _steps_span_s(steps: Steps, requests: int) -> float:
    begun_s = held = 0.0
    for step in steps.steps:
        if step.rate and requests <= held + step.rate * step.for_s:
            return begun_s + (requests - held) / step.rate
        held += step.rate * step.for_s
        begun_s += step.for_s
    return begun_s


def _in_steps(steps: Steps, within_s: float) -> float:
    """How many are due within that time."""
    count = 0.0
    for step in steps.steps:
        part_s = min(step.for_s, max(0.0, within_s))
        count += step.rate * part_s
        within_s -= step.for_s
    return count


def _ramp_span_s(ramp: Ramp, requests: int) -> float:
    in_ramp = (ramp.from_rate + ramp.to_rate) / 2 * ramp.over_s
    if requests > in_ramp:
        return ramp.over_s + ((requests - in_ramp) / ramp.to_rate if ramp.to_rate else 0)
    slope = (ramp.to_rate - ramp.from_rate) / ramp.over_s
    return 2 * requests / (ramp.from_rate + sqrt(max(0.0, ramp.from_rate**2 + 2 * slope * requests)))


def rate(cell: Cell) -> float:
    """Requests per second of an open cell while it is at its most; of a trace the mean."""
    if cell.rate is not None:
        return cell.rate
    if cell.capacity is not None:
        return CAPACITY_GUESSED
    if cell.ramp is not None:
        return max(cell.ramp.from_rate, cell.ramp.to_rate)
    if cell.burst is not None:
        return cell.burst.size / cell.burst.every_s
    if cell.steps is not None:
        return max(step.rate for step in cell.steps.steps)
    if cell.trace is not None:
        return cell.trace.requests * cell.speed_up / max(cell.trace.span_s, 1.0)
    raise ValueError(f"{cell.name} is not an open load")


def offered(cell: Cell) -> int:
    """About how many requests a cell measures; of closed loops with a duration the most."""
    if not cell.is_open or cell.duration_s is None:
        return cell.requests
    return min(cell.requests, ceil(_started(cell, cell.duration_s) * turns_mean(cell)))


def _started(cell: Cell, within_s: float) -> int:
    """Requests, or sessions, that the clock makes due within that time."""
    if cell.burst is not None:
        return min(starts(cell), cell.burst.size * ceil(within_s / cell.burst.every_s))
    if cell.ramp is not None:
        in_ramp_s = min(within_s, cell.ramp.over_s)
        slope = (cell.ramp.to_rate - cell.ramp.from_rate) / cell.ramp.over_s
        count = cell.ramp.from_rate * in_ramp_s + slope * in_ramp_s**2 / 2
        count += cell.ramp.to_rate * max(0.0, within_s - cell.ramp.over_s)
        return min(starts(cell), ceil(count))
    if cell.steps is not None:
        return min(starts(cell), ceil(_in_steps(cell.steps, within_s)))
    if cell.trace is not None:
        share = within_s * cell.speed_up / max(cell.trace.span_s, 1e-9)
        return min(starts(cell), ceil(cell.trace.requests * share))
    return min(starts(cell), ceil(within_s * rate(cell)))


def said(cell: Cell) -> str:
    """The load of a cell in words, for tables."""
    if cell.ramp is not None:
        return f"ramp {cell.ramp.from_rate:g} to {cell.ramp.to_rate:g} req/s in {cell.ramp.over_s:g} s"
    if cell.burst is not None:
        return f"burst of {cell.burst.size} every {cell.burst.every_s:g} s"
    if cell.steps is not None:
        told = ", ".join(f"{step.rate:g} for {step.for_s:g} s" for step in cell.steps.steps)
        return f"steps of {told} (req/s, {cell.steps.arrivals})"
    if cell.trace is not None:
        return f"trace x{cell.speed_up:g}"
    if cell.rate is None and cell.capacity is not None:
        return f"{cell.load} at {cell.capacity.share:.0%} of {cell.capacity.of}"
    if cell.rate is not None:
        shape = f" burstiness {cell.burstiness:g}" if cell.burstiness is not None else ""
        return f"{cell.load} {cell.rate:g} req/s{shape}"
    return cell.load


def without_end(cell: Cell, *, requests: int, duration_s: float) -> Cell:
    """The cell with an end at the latest there, and none that its values decide."""
    if cell.duration_s is not None:
        duration_s = min(duration_s, cell.duration_s)
    return msgspec.structs.replace(
        cell,
        requests=min(cell.requests, requests),
        sessions=None if cell.sessions is None else min(cell.sessions, requests),
        duration_s=duration_s,
        until=None,
    )

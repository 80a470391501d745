"""Open loads: what a plan may say of them, and what their numbers amount to. Pure."""

from collections.abc import Callable
from math import ceil, sqrt
from typing import Any

import msgspec

from kvgauge.plan.nodes import Value
from kvgauge.plan.records import Burst, Cell, LoadShape, Ramp
from kvgauge.plan.trace import parse, summary

RATE_MIN, RATE_MAX = 0.001, 100_000.0  # requests per second
SPAN_S_MAX = 7 * 86_400
SIZE_MAX = 4096
RATES_MAX = 200

SHAPE_KEYS: dict[str, tuple[LoadShape, ...]] = {  # key -> the loads it belongs to
    "rate": ("constant", "poisson", "gamma"),
    "burstiness": ("gamma",),
    "ramp": ("ramp",),
    "burst": ("burst",),
    "trace": ("trace",),
    "speed_up": ("trace",),
}
OPTIONAL_KEYS = ("speed_up",)
NOT_FOR_A_TRACE = ("prompt", "input_tokens", "output_tokens", "dataset")


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
    if "rate" in fields:
        found["rates"] = _rates(fields["rate"])
    if "burstiness" in fields:
        found["burstiness"] = fields["burstiness"].number(0.01, 1000)
    if "ramp" in fields:
        found["ramp"] = _ramp(fields["ramp"])
    if "burst" in fields:
        found["burst"] = _burst(fields["burst"])
    if "trace" in fields:
        for key in NOT_FOR_A_TRACE:
            if key in fields:
                raise fields[key].error("given beside `trace`, whose lines say it for each request; remove it")
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
        whole = _ramp_span_s(cell.ramp, cell.requests)
    elif cell.burst is not None:
        whole = (ceil(cell.requests / cell.burst.size) - 1) * cell.burst.every_s
    else:
        whole = cell.requests / rate(cell)
    return whole if cell.duration_s is None else min(whole, cell.duration_s)


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
    if cell.ramp is not None:
        return max(cell.ramp.from_rate, cell.ramp.to_rate)
    if cell.burst is not None:
        return cell.burst.size / cell.burst.every_s
    if cell.trace is not None:
        return cell.trace.requests * cell.speed_up / max(cell.trace.span_s, 1.0)
    raise ValueError(f"{cell.name} is not an open load")


def offered(cell: Cell) -> int:
    """About how many requests a cell measures; of closed loops with a duration the most."""
    if not cell.is_open or cell.duration_s is None:
        return cell.requests
    if cell.burst is not None:
        return min(cell.requests, cell.burst.size * ceil(cell.duration_s / cell.burst.every_s))
    if cell.ramp is not None:
        within_s = min(cell.duration_s, cell.ramp.over_s)
        slope = (cell.ramp.to_rate - cell.ramp.from_rate) / cell.ramp.over_s
        count = cell.ramp.from_rate * within_s + slope * within_s**2 / 2
        count += cell.ramp.to_rate * max(0.0, cell.duration_s - cell.ramp.over_s)
        return min(cell.requests, ceil(count))
    if cell.trace is not None:
        share = cell.duration_s * cell.speed_up / max(cell.trace.span_s, 1e-9)
        return min(cell.requests, ceil(cell.trace.requests * share))
    return min(cell.requests, ceil(cell.duration_s * rate(cell)))


def said(cell: Cell) -> str:
    """The load of a cell in words, for tables."""
    if cell.ramp is not None:
        return f"ramp {cell.ramp.from_rate:g} to {cell.ramp.to_rate:g} req/s in {cell.ramp.over_s:g} s"
    if cell.burst is not None:
        return f"burst of {cell.burst.size} every {cell.burst.every_s:g} s"
    if cell.trace is not None:
        return f"trace x{cell.speed_up:g}"
    if cell.rate is not None:
        shape = f" burstiness {cell.burstiness:g}" if cell.burstiness is not None else ""
        return f"{cell.load} {cell.rate:g} req/s{shape}"
    return cell.load


def without_end(cell: Cell, *, requests: int, duration_s: float) -> Cell:
    """The cell with an end at the latest there, and none that its values decide."""
    if cell.duration_s is not None:
        duration_s = min(duration_s, cell.duration_s)
    return msgspec.structs.replace(cell, requests=min(cell.requests, requests), duration_s=duration_s, until=None)

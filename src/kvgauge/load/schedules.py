"""When the requests of an open load are due, as nanoseconds after its start. Pure and lazy: nothing is listed ahead.

Each time is computed from the start or summed in floating point far below a nanosecond's weight, never from when the
last request was sent: a late request makes no other one late.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import count, islice, takewhile
from math import log, sqrt
from random import Random

from kvgauge.plan.open import starts
from kvgauge.plan.records import Burst, Cell, Ramp, Steps
from kvgauge.plan.trace import TraceRequest

NS = 1_000_000_000


def schedule(cell: Cell, *, seed: int, trace: Sequence[TraceRequest] = ()) -> Iterator[int]:
    """The due times of an open cell, never falling; as many as it has requests (with conversations: sessions), none
    at or beyond its duration.

    seed   of the run: the same seed and cell name give the same times
    trace  the requests of the trace it replays
    raises ValueError for a load that is not open
    """
    times = islice(_endless(cell, _random(seed, cell.name), trace), starts(cell))
    if cell.duration_s is None:
        return times
    end_ns = round(cell.duration_s * NS)
    return takewhile(lambda due_ns: due_ns < end_ns, times)


def _random(seed: int, cell: str) -> Random:
    return Random(hashlib.sha256(f"{seed}\0{cell}\0arrivals".encode()).digest())  # noqa: S311 - arrivals, not secrets


def _endless(cell: Cell, random: Random, trace: Sequence[TraceRequest]) -> Iterator[int]:
    if cell.rate is not None and cell.load == "constant":
        return constant(cell.rate)
    if cell.rate is not None and cell.load == "poisson":
        return poisson(cell.rate, random)
    if cell.rate is not None and cell.burstiness is not None:
        return gamma(cell.rate, cell.burstiness, random)
    if cell.ramp is not None:
        return ramp(cell.ramp)
    if cell.burst is not None:
        return bursts(cell.burst)
    if cell.steps is not None:
        return steps(cell.steps, random)
    if cell.trace is not None:
        return replay(trace, cell.speed_up)
    raise ValueError(f"cell {cell.name}: load {cell.load} has no schedule of its own")


def constant(rate: float) -> Iterator[int]:
    """One every 1/rate s, from 0 on."""
    return (round(number * NS / rate) for number in count())


def poisson(rate: float, random: Random) -> Iterator[int]:
    """Independent exponential gaps with mean 1/rate s, the first before the first request."""
    due_s = 0.0
    while True:
        due_s -= log(1.0 - random.random()) / rate
        yield round(due_s * NS)


def gamma(rate: float, burstiness: float, random: Random) -> Iterator[int]:
    """Independent gamma gaps with mean 1/rate s and shape `burstiness`: their coefficient of variation is
    1/sqrt(burstiness). The definition of vLLM's --burstiness and AIPerf's --arrival-smoothness."""
    due_s = 0.0
    while True:
        due_s += random.gammavariate(burstiness, 1.0 / (rate * burstiness))
        yield round(due_s * NS)


def ramp(shape: Ramp) -> Iterator[int]:
    """Request k is due when the integral of the rate reaches k: the k-th after a rate that changes evenly, and stays
    once it is there. Ends when it stays at 0."""
    slope = (shape.to_rate - shape.from_rate) / shape.over_s
    in_ramp = (shape.from_rate + shape.to_rate) / 2 * shape.over_s
    for number in count():
        if number < in_ramp:
            root = sqrt(max(0.0, shape.from_rate**2 + 2 * slope * number))
            yield round(2 * number / (shape.from_rate + root) * NS) if number else 0
        elif shape.to_rate > 0:
            yield round((shape.over_s + (number - in_ramp) / shape.to_rate) * NS)
        else:
            return


def bursts(shape: Burst) -> Iterator[int]:
    """`size` at once, from 0 on, then again every `every_s`."""
    return (round(number // shape.size * shape.every_s * NS) for number in count())


def steps(shape: Steps, random: Random) -> Iterator[int]:
    """Request k is due when the integral of the rates reaches k, from 0 on; at random, when it reaches the k-th moment
    of independent exponential gaps with mean 1. Ends with the last step."""
    wanted = _at_random(random) if shape.arrivals == "poisson" else map(float, count())
    reached, begun_s, held = next(wanted), 0.0, 0.0
    for step in shape.steps:
        in_step = step.rate * step.for_s
        while step.rate and reached - held < in_step:
            yield round((begun_s + max(0.0, reached - held) / step.rate) * NS)
            reached = next(wanted)
        begun_s, held = begun_s + step.for_s, held + in_step


def _at_random(random: Random) -> Iterator[float]:
    moment = 0.0
    while True:
        moment -= log(1.0 - random.random())
        yield moment


def replay(trace: Sequence[TraceRequest], speed_up: float) -> Iterator[int]:
    """When the trace says, `speed_up` times as fast."""
    return (round(request.at_ns / speed_up) for request in trace)

"""How many load workers a cell needs. Pure: cores are counted elsewhere.

One driver on a core of its own takes in some 200,000 events a second (docs/overhead.md), when they come many to a read.
A worker is asked for a tenth of that, so that an event that comes alone is still read at once.
"""

from typing import Literal

import msgspec

from kvgauge.load.shares import workers_max
from kvgauge.plan.records import Cell
from kvgauge.plan.warmup import STEADY_WORKERS

WORKER_CHUNKS_S = 20_000
STREAM_CHUNKS_S = 200  # of one stream where nobody knows: a token every 5 ms is fast
WORKERS_MAX = 64

Wanted = int | Literal["auto"]


class Cores(msgspec.Struct, frozen=True, kw_only=True):
    """allowed: cores this process may use; free: how many of them nobody else kept busy when it was looked at."""

    allowed: int
    free: int


class HowMany(msgspec.Struct, frozen=True, kw_only=True):
    """The workers of one cell, and why so many."""

    workers: int
    why: str


def how_many(cell: Cell, wanted: Wanted, cores: Cores, *, too_few: int = 0) -> HowMany:
    """Workers for this cell.

    too_few  so many were the bottleneck of this cell in an earlier run; 0: not known
    """
    most = workers_max(cell)
    if cell.conversation is not None:
        return HowMany(workers=1, why="conversations are offered by one worker")
    if cell.steady is not None:
        return HowMany(workers=1, why=STEADY_WORKERS)
    if wanted != "auto":
        if wanted > most:
            return HowMany(workers=most, why=f"{wanted} asked for; a worker needs a slot, and there are {most}")
        return HowMany(workers=wanted, why="asked for")
    chunks_s, said = _expected(cell)
    needed, why = max(1, -(-round(chunks_s) // WORKER_CHUNKS_S)), f"auto: {said}, {WORKER_CHUNKS_S:,} a worker"
    if too_few and needed <= too_few:
        needed, why = 2 * too_few, f"{why}; {too_few} were the bottleneck in an earlier run"
    bound = min(most, max(1, cores.free), cores.allowed, WORKERS_MAX)
    if needed > bound:
        limit = f"{most} slots" if bound == most else f"{cores.free} of {cores.allowed} cores free"
        why = f"{why}; {needed} would be needed, and there are {limit}"
    return HowMany(workers=min(needed, bound), why=why)


def _expected(cell: Cell) -> tuple[float, str]:
    """(chunks a second, how that was estimated). One JSON answer is one chunk."""
    each = cell.output_tokens if cell.stream else 1
    rate = _rate(cell)
    streams = cell.concurrency * (STREAM_CHUNKS_S if cell.stream else 1 / 0.1)
    if rate is None:
        return streams, f"about {streams:,.0f} chunks/s from {cell.concurrency} streams of at most {STREAM_CHUNKS_S}/s"
    chunks_s = min(rate * each, streams)
    return chunks_s, f"about {chunks_s:,.0f} chunks/s from {rate:,.4g} requests/s of {each} chunks"


def _rate(cell: Cell) -> float | None:
    """Requests a second of an open load, where it is highest; None of a closed one."""
    if cell.rate is not None:
        return cell.rate
    if cell.ramp is not None:
        return max(cell.ramp.from_rate, cell.ramp.to_rate)
    if cell.burst is not None:
        return cell.burst.size / cell.burst.every_s
    if cell.trace is not None and cell.trace.span_s > 0:
        return cell.trace.requests / cell.trace.span_s * cell.speed_up
    return None

"""The timed loop: post, look until DONE, stamp. As little Python between two looks as there can be.

NIXL's own xferDuration runs until the caller polls, so it says no more than these stamps do. A transfer completed
somewhere between the look before its last one and its last: that gap is the stamp's error, and it is kept with it.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvgauge.failures import TransferError
from kvgauge.xfer.workload import Int32

COLUMNS = (
    "lane", "slot", "begun_ns", "prepare_ns", "posted_ns", "post_ns", "done_ns", "gap_ns",
    "moved_ns", "gather_ns", "scatter_ns", "signal_ns",
)  # fmt: skip
Row = tuple[int, int, int, int, int, int, int, int, int, int, int, int]
UNGATHERED = (0, 0, 0)  # blocks as they lie: nothing was gathered, scattered or asked for
Table = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Leg:
    """One pair of agents of a transfer: whose agent posts it, and the prepared lists with the rows of each slot."""

    wheel: Any
    ours: Any
    our_rows: tuple[Int32, ...]
    theirs: Any
    their_rows: tuple[Int32, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """count transfers, one a slot; `depth` of them under way at a time."""

    operation: str
    turn: int
    note: bytes
    count: int
    depth: int
    timeout_ns: int
    yielding: bool = False


@dataclass(slots=True)
class _Flight:
    slot: int
    begun_ns: int
    prepare_ns: int
    posted_ns: int
    post_ns: int
    handles: list[tuple[Any, Any]]  # still under way: wheel, handle
    seen_ns: int
    over: list[tuple[Any, Any]]


def run(
    lane: int,
    legs: list[Leg],
    batch: Batch,
    look: Callable[[list[tuple[Any, Any]]], None],
    clock_ns: Callable[[], int] = time.monotonic_ns,
) -> list[Row]:
    """Carry one thread's transfers to their end; a row of COLUMNS for each, in the order they were posted.

    look    is called with the (wheel, handle) pairs of the last transfer before they are released
    raises  TransferError: an ERR, or a transfer past its time limit
    """
    if batch.depth == 1 and len(legs) == 1:
        return _one_by_one(lane, legs[0], batch, look, clock_ns)
    return _several(lane, legs, batch, look, clock_ns)


def _one_by_one(
    lane: int, leg: Leg, batch: Batch, look: Callable[[list[tuple[Any, Any]]], None], clock_ns: Callable[[], int]
) -> list[Row]:
    """One leg, one at a time: nothing is looked up or allocated between two looks."""
    make, post = leg.wheel.make_prepped_xfer, leg.wheel.transfer
    state_of, release = leg.wheel.check_xfer_state, leg.wheel.release_xfer_handle
    operation, note, timeout_ns, yielding = batch.operation, batch.note, batch.timeout_ns, batch.yielding
    rows: list[Row] = []
    for slot in range(batch.count):
        ours, theirs = leg.our_rows[slot], leg.their_rows[slot]
        begun = clock_ns()
        handle = make(operation, leg.ours, ours, leg.theirs, theirs, note)
        posted = clock_ns()
        state = post(handle)
        seen = clock_ns()
        deadline, before, returned = seen + timeout_ns, posted, seen
        while state == "PROC":
            state = state_of(handle)
            before, seen = seen, clock_ns()
            if seen > deadline:
                raise TransferError(_late(batch, 1, 1))
            if yielding:
                os.sched_yield()
        if state != "DONE":
            raise TransferError(f"NIXL reports {state} for a {operation}")
        rows.append(
            (lane, slot, begun, posted - begun, posted, returned - posted, seen, seen - before, seen, *UNGATHERED)
        )
        if slot == batch.count - 1:
            look([(leg.wheel, handle)])
        release(handle)
    return rows


def _several(
    lane: int, legs: list[Leg], batch: Batch, look: Callable[[list[tuple[Any, Any]]], None], clock_ns: Callable[[], int]
) -> list[Row]:
    rows: list[Row] = []
    under_way: list[_Flight] = []
    begun = 0
    while begun < batch.count or under_way:
        while begun < batch.count and len(under_way) < batch.depth:
            under_way.append(_post(legs, begun, batch, clock_ns))
            begun += 1
        still = []
        for flight in under_way:
            gap = _see(flight, batch, clock_ns)
            if gap is None:
                still.append(flight)
                continue
            rows.append(
                (
                    lane,
                    flight.slot,
                    flight.begun_ns,
                    flight.prepare_ns,
                    flight.posted_ns,
                    flight.post_ns,
                    flight.seen_ns,
                    gap,
                    flight.seen_ns,
                    *UNGATHERED,
                )
            )
            if flight.slot == batch.count - 1:
                look(flight.over)
            for wheel, handle in flight.over:
                wheel.release_xfer_handle(handle)
        under_way = still
        if batch.yielding:
            os.sched_yield()
    return sorted(rows, key=lambda row: row[1])


def _post(legs: list[Leg], slot: int, batch: Batch, clock_ns: Callable[[], int]) -> _Flight:
    begun = clock_ns()
    posted, prepare_ns, post_ns = 0, 0, 0
    handles, over = [], []
    before = begun
    for leg in legs:
        handle = leg.wheel.make_prepped_xfer(
            batch.operation, leg.ours, leg.our_rows[slot], leg.theirs, leg.their_rows[slot], batch.note
        )
        made = clock_ns()
        posted = posted or made
        state = leg.wheel.transfer(handle)
        returned = clock_ns()
        prepare_ns += made - before
        post_ns += returned - made
        before = returned
        if state == "PROC":
            handles.append((leg.wheel, handle))
        elif state == "DONE":
            over.append((leg.wheel, handle))
        else:
            raise TransferError(f"NIXL reports {state} for a {batch.operation} that was just posted")
    return _Flight(slot, begun, prepare_ns, posted, post_ns, handles, before, over)


def _see(flight: _Flight, batch: Batch, clock_ns: Callable[[], int]) -> int | None:
    """Look at every leg; the ns since the look before when all are done, else None."""
    waiting = []
    for wheel, handle in flight.handles:
        state = wheel.check_xfer_state(handle)
        if state == "PROC":
            waiting.append((wheel, handle))
        elif state == "DONE":
            flight.over.append((wheel, handle))
        else:
            raise TransferError(f"NIXL reports {state} for a {batch.operation}")
    before, now = flight.seen_ns, clock_ns()
    flight.handles, flight.seen_ns = waiting, now
    if not waiting:
        return now - before
    if now - flight.posted_ns > batch.timeout_ns:
        raise TransferError(_late(batch, len(waiting), len(waiting) + len(flight.over)))
    return None


def _late(batch: Batch, waiting: int, legs: int) -> str:
    return (
        f"a {batch.operation} past its time limit of {batch.timeout_ns / 1e9:g} s: {waiting} of {legs} "
        "pairs of agents unfinished"
    )


def seen(handles: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Of one transfer that is DONE: backends, and what telemetry counted over all its pairs of agents."""
    backends: set[str] = set()
    merged: int | None = 0
    size: int | None = 0
    for wheel, handle in handles:
        try:
            backends.add(str(wheel.query_xfer_backend(handle)))
        except Exception as error:
            backends.add(f"unknown ({error})")
        try:
            told = wheel.get_xfer_telemetry(handle)
            merged, size = (merged or 0) + int(told.descCount), (size or 0) + int(told.totalBytes)
        except Exception:  # a build without telemetry
            merged = size = None
            break
    return {"backends": sorted(backends), "merged": merged, "bytes": size}

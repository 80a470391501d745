"""The timed loop of gathered transfers at the initiator.

WRITE: gather, post, look until DONE, and until every target has said that it has put the blocks into their places.
READ: ask every target to gather, post when it has, look until DONE, scatter. A transfer is made ready meanwhile (NIXL's
make_prepped_xfer): while the GPU gathers, or while the answer is awaited.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kvgauge.failures import TransferError
from kvgauge.xfer.loop import Batch, Leg, Row
from kvgauge.xfer.signals import ASK, MOVED, PLACED, READY, Signal, decode, encode
from kvgauge.xfer.staging import Stage

Look = Callable[[list[tuple[Any, Any]]], None]


@dataclass(frozen=True, slots=True)
class GatheredLeg:
    """leg: prepared lists of the staging buffers, a row for each area; peer: the target's agent

    same_clock  the target's stamps are of our clock; else an answer counts from when it was heard
    """

    leg: Leg
    stage: Stage
    peer: str
    same_clock: bool


@dataclass(slots=True, kw_only=True)
class _Flight:
    slot: int
    area: int
    begun_ns: int
    prepare_ns: int = 0
    gather_ns: int = 0
    posted_ns: int = 0
    post_ns: int = 0
    moved_ns: int = 0
    scatter_ns: int = 0
    done_ns: int = 0
    gap_ns: int = 0
    handles: list[Any] = field(default_factory=list)
    awaited: set[int] = field(default_factory=set)  # legs whose answer has not come
    moving: set[int] = field(default_factory=set)


def run(
    lane: int,
    legs: list[GatheredLeg],
    batch: Batch,
    look: Look,
    clock_ns: Callable[[], int] = time.monotonic_ns,
) -> list[Row]:
    """As `loop.run`. raises TransferError"""
    return _Loop(lane, legs, batch, look, clock_ns).run()


class _Loop:
    def __init__(
        self, lane: int, legs: list[GatheredLeg], batch: Batch, look: Look, clock_ns: Callable[[], int]
    ) -> None:
        self._lane, self._legs, self._batch, self._look, self._clock_ns = lane, legs, batch, look, clock_ns
        self._reads = batch.operation == "READ"
        self._wheels = list({id(one.leg.wheel): one.leg.wheel for one in legs}.values())
        self._flights: dict[int, _Flight] = {}
        self._looked_ns = clock_ns()
        self._rows: list[Row] = []

    def run(self) -> list[Row]:
        batch, free = self._batch, list(range(min(self._batch.depth, self._batch.count)))[::-1]
        begun = 0
        while begun < batch.count or self._flights:
            while begun < batch.count and free:
                flight = _Flight(slot=begun, area=free.pop(), begun_ns=self._clock_ns())
                self._flights[begun] = flight
                (self._ask if self._reads else self._write)(flight)
                begun += 1
            for flight in list(self._flights.values()):
                if flight.moving:
                    self._see(flight)
            if any(flight.awaited for flight in self._flights.values()):
                self._hear()
            now = self._clock_ns()
            for flight in list(self._flights.values()):
                if not flight.awaited and not flight.moving:
                    self._end(flight)
                    free.append(flight.area)
                elif now - flight.begun_ns > batch.timeout_ns:
                    raise TransferError(self._late(flight))
            if batch.yielding:
                os.sched_yield()
        return sorted(self._rows, key=lambda row: row[1])

    # -- beginning

    def _write(self, flight: _Flight) -> None:
        for one in self._legs:
            one.stage.gather(flight.slot, flight.area)
        self._make(flight)
        self._legs[0].stage.finish()  # all legs of a thread share their stream
        flight.gather_ns = self._clock_ns() - flight.begun_ns - flight.prepare_ns
        flight.awaited = set(range(len(self._legs)))
        for number in range(len(self._legs)):
            self._post(flight, number)

    def _ask(self, flight: _Flight) -> None:
        flight.awaited = set(range(len(self._legs)))
        for number, one in enumerate(self._legs):
            try:
                one.leg.wheel.send_notif(one.peer, self._signal(ASK, flight, number))
            except Exception as error:
                raise TransferError(f"cannot notify {one.peer}: {error or type(error).__name__}") from error
        self._make(flight)

    def _make(self, flight: _Flight) -> None:
        before = self._clock_ns()
        for number, one in enumerate(self._legs):
            leg, area = one.leg, flight.area
            note = self._batch.note if self._reads else self._signal(MOVED, flight, number)
            flight.handles.append(
                leg.wheel.make_prepped_xfer(
                    self._batch.operation, leg.ours, leg.our_rows[area], leg.theirs, leg.their_rows[area], note
                )
            )
        flight.prepare_ns = self._clock_ns() - before

    def _signal(self, kind: bytes, flight: _Flight, leg: int) -> bytes:
        return encode(
            Signal(
                kind=kind, turn=self._batch.turn, lane=self._lane, leg=leg, slot=flight.slot, area=flight.area
            )
        )  # fmt: skip

    def _post(self, flight: _Flight, number: int) -> None:
        before = self._clock_ns()
        state = self._legs[number].leg.wheel.transfer(flight.handles[number])
        after = self._clock_ns()
        flight.posted_ns = flight.posted_ns or before
        flight.post_ns += after - before
        self._judge(flight, number, state, after)

    # -- going on

    def _see(self, flight: _Flight) -> None:
        for number in sorted(flight.moving):
            state = self._legs[number].leg.wheel.check_xfer_state(flight.handles[number])
            self._judge(flight, number, state, self._clock_ns())

    def _judge(self, flight: _Flight, number: int, state: str, at_ns: int) -> None:
        if state == "PROC":
            flight.moving.add(number)
        elif state == "DONE":
            flight.moving.discard(number)
            flight.moved_ns = at_ns
        else:
            raise TransferError(f"NIXL reports {state} for a {self._batch.operation}")

    def _hear(self) -> None:
        before = self._looked_ns
        for wheel in self._wheels:
            try:
                arrived = wheel.get_new_notifs()
            except Exception as error:
                raise TransferError(f"an answer cannot be polled for: {error or type(error).__name__}") from error
            now = self._clock_ns()
            for notes in arrived.values() if arrived else ():
                for note in notes:
                    self._take(decode(note), now, now - before)
            self._looked_ns = now

    def _take(self, signal: Signal, now: int, gap_ns: int) -> None:
        flight = self._flights.get(signal.slot)
        wanted = READY if self._reads else PLACED
        if (signal.kind, signal.turn) != (wanted, self._batch.turn) or not flight or signal.leg not in flight.awaited:
            raise TransferError(f"a target answered what it was not asked: {signal}")
        flight.awaited.discard(signal.leg)
        if self._reads:
            flight.gather_ns = max(flight.gather_ns, signal.work_ns)
            self._post(flight, signal.leg)
            return
        flight.scatter_ns = max(flight.scatter_ns, signal.work_ns)
        at_ns, gap = (signal.at_ns, signal.gap_ns) if self._legs[signal.leg].same_clock else (now, gap_ns)
        if at_ns > flight.done_ns:
            flight.done_ns, flight.gap_ns = at_ns, gap

    def _end(self, flight: _Flight) -> None:
        if self._reads:
            for one in self._legs:
                one.stage.scatter(flight.slot, flight.area)
            flight.done_ns, flight.gap_ns = self._legs[0].stage.finish()
            flight.scatter_ns = flight.done_ns - flight.moved_ns
            signal_ns = flight.posted_ns - flight.begun_ns - flight.gather_ns
        else:
            signal_ns = flight.done_ns - flight.moved_ns - flight.scatter_ns
        self._rows.append(
            (
                self._lane,
                flight.slot,
                flight.begun_ns,
                flight.prepare_ns,
                flight.posted_ns,
                flight.post_ns,
                flight.done_ns,
                flight.gap_ns,
                flight.moved_ns,
                flight.gather_ns,
                flight.scatter_ns,
                signal_ns,
            )
        )
        over = [(one.leg.wheel, handle) for one, handle in zip(self._legs, flight.handles, strict=True)]
        if flight.slot == self._batch.count - 1:
            self._look(over)
        for wheel, handle in over:
            wheel.release_xfer_handle(handle)
        del self._flights[flight.slot]

    def _late(self, flight: _Flight) -> str:
        return (
            f"a gathered {self._batch.operation} past its time limit of {self._batch.timeout_ns / 1e9:g} s: of "
            f"{len(self._legs)} pairs of agents {len(flight.moving)} are unfinished, and from {len(flight.awaited)} "
            f"the target has not said that it has {'gathered' if self._reads else 'put the blocks into their places'}"
        )

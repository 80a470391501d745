"""One offer without a pause: requests are warm-up until the load is steady, then so many are measured, and the load
goes on until the last of these has ended. Pure: times come in, times go out.

A request is measured when it was due in the measured stretch, which begins at the moment that `steady` names: what was
due before and ended after (it straddles the edge) stays warm-up. What was due after the stretch is surplus: it only
keeps up the load under which the last measured requests end.
"""

from collections.abc import Callable

import msgspec

from kvgauge.load.arrivals import Arrivals, Due, arrivals_of
from kvgauge.load.open import OpenLoad, drain_ns_of
from kvgauge.load.schedules import schedule
from kvgauge.load.work import Begin, Steady
from kvgauge.plan.records import Cell

ENDLESS = 1 << 40  # requests: no load gets there


class Edges(msgspec.Struct, frozen=True, kw_only=True):
    """The stretches of a continuous offer, on the driver's clock.

    offered_ns  the first due time
    begin_ns    what was due from then on was measured; None: it never came so far
    closed_ns   the first due time that was not measured any more; None: there was none
    unsent      measured requests that were given up before they were sent
    """

    offered_ns: int
    begin_ns: int | None
    closed_ns: int | None
    unsent: int = 0


class Continuous:
    """The arrivals of such an offer (see `Arrivals`).

    arrivals     those of a load without an end
    start_ns     its first due time
    requests     how many are measured at most
    duration_ns  how long the measured stretch lasts at most; None: until the requests are sent
    enough       True ends the measured stretch
    spread       once, slots of a closed loop that began together are parted: slot i sends its second request so much
                 later, given how long its first one took; None: they need not be
    """

    def __init__(
        self,
        arrivals: Arrivals,
        steady: Steady,
        *,
        start_ns: int,
        requests: int,
        duration_ns: int | None,
        enough: Callable[[], bool] = lambda: False,
        spread: Callable[[int, int], int] | None = None,
    ) -> None:
        self._arrivals, self._steady, self._start_ns = arrivals, steady, start_ns
        self._left, self._duration_ns, self._enough, self._spread = requests, duration_ns, enough, spread
        self._begin_ns: int | None = None
        self._end_ns: int | None = None  # due from then on: not measured
        self._closed_ns: int | None = None
        self._due: dict[int, int] = {}  # slot -> due time of the request it sends next
        self._began: dict[int, int] = {}  # slot -> since when its first request is under way
        self._seen: set[int] = set()  # slots whose second request was given
        self._measured: set[int] = set()  # slots with a measured request under way
        self._over = False
        self._unsent = 0
        self._lost_ns: tuple[int, int] | None = None  # the first and the last due time of these

    @property
    def edges(self) -> Edges:
        return Edges(offered_ns=self._start_ns, begin_ns=self._begin_ns, closed_ns=self._closed_ns, unsent=self._unsent)

    @property
    def over(self) -> bool:
        """Whether all that is measured has ended."""
        return self._over

    def measured(self, slot: int, due_ns: int, sent: bool) -> bool:
        """Whether the request that ends in this slot is measured; sent: it had a slot. Before `ended` is told of it."""
        if sent:
            return slot in self._measured
        return self._lost_ns is not None and self._lost_ns[0] <= due_ns <= self._lost_ns[1]

    def first(self) -> list[Due]:
        return self._given(self._arrivals.first())

    def begun(self, slot: int, now_ns: int) -> list[Due]:
        due_ns = self._due.pop(slot)
        self._began.setdefault(slot, due_ns)
        if self._within(due_ns):
            self._left -= 1
            self._measured.add(slot)
        else:
            self._close(due_ns)
        return self._given(self._arrivals.begun(slot, now_ns))

    def ended(self, slot: int, at_ns: int) -> list[Due]:
        self._measured.discard(slot)
        dues = self._arrivals.ended(slot, at_ns)
        if self._spread is not None and slot not in self._seen:
            self._seen.add(slot)
            later_ns = self._spread(slot, at_ns - self._began[slot])
            dues = [Due(due.due_ns + later_ns, due.slot) for due in dues]
        given = self._given(dues)
        self._look()
        return [] if self._over else given

    def stop(self, now_ns: int) -> list[Due]:
        self._due = {slot: due_ns for slot, due_ns in self._due.items() if due_ns <= now_ns}
        return self._given(self._arrivals.stop(now_ns))

    def overflow(self, now_ns: int) -> list[int]:
        """As of `Arrivals`; asked every 50 ms, and so the moment to ask whether to measure, or whether it is enough."""
        if self._begin_ns is None:
            if (begin_ns := self._steady.measure_from(now_ns)) is not None:
                self._measure(begin_ns)
        elif self._closed_ns is None and self._enough():
            self._end_ns = now_ns if self._end_ns is None else min(self._end_ns, now_ns)
            for due_ns in self._due.values():
                self._close(due_ns)
        lost = self._arrivals.overflow(now_ns)
        if lost and self._begin_ns is None:
            self._measure(min(lost))  # nothing else will come: what is lost was asked for
        wanted = sorted(due_ns for due_ns in lost if self._within(due_ns))[: self._left]
        if wanted:
            self._unsent, self._lost_ns = len(wanted), (wanted[0], wanted[-1])
            self._left -= len(wanted)
        for due_ns in lost:
            self._close(due_ns)
        self._look()
        return lost

    def _measure(self, begin_ns: int) -> None:
        self._begin_ns = begin_ns
        if self._duration_ns is not None:
            self._end_ns = begin_ns + self._duration_ns
            if isinstance(self._arrivals, OpenLoad):
                self._arrivals.end(self._end_ns)

    def _within(self, due_ns: int) -> bool:
        if self._begin_ns is None or due_ns < self._begin_ns or self._left == 0:
            return False
        return self._end_ns is None or due_ns < self._end_ns

    def _given(self, dues: list[Due]) -> list[Due]:
        for due in dues:
            self._due[due.slot] = due.due_ns
            self._close(due.due_ns)
        return dues

    def _close(self, due_ns: int) -> None:
        """What is due then is the first that is not measured any more, if that is so."""
        if self._begin_ns is None or due_ns < self._begin_ns:
            return
        if self._left == 0 or (self._end_ns is not None and due_ns >= self._end_ns):
            self._closed_ns = due_ns if self._closed_ns is None else min(self._closed_ns, due_ns)

    def _look(self) -> None:
        if self._closed_ns is None or self._measured or self._over:
            return
        closed_ns, begin_ns = self._closed_ns, self._begin_ns or 0
        self._over = self._left == 0 or not any(begin_ns <= due_ns < closed_ns for due_ns in self._due.values())


def going_on(
    cell: Cell,
    steady: Steady,
    *,
    slots: int,
    seed: int,
    begin: Begin,
    spread_ns_max: int | None,
    enough: Callable[[], bool],
) -> tuple[Continuous, OpenLoad | None]:
    """The continuous offer of a cell, and the open load in it, if it is one.

    begin          when it begins; over which time the slots of a closed loop do
    spread_ns_max  where these begin at once: over at most which time their second requests do; None: they need not
    """
    open_load: OpenLoad | None = None
    if cell.is_open:
        endless = msgspec.structs.replace(cell, requests=ENDLESS, duration_s=None)
        duration_ns = None if cell.duration_s is None else round(cell.duration_s * 1e9)
        open_load = OpenLoad(
            schedule(endless, seed=seed), slots=slots, start_ns=begin.start_ns, drain_ns=drain_ns_of(duration_ns)
        )
    arrivals: Arrivals = open_load or arrivals_of(
        cell.load, slots=slots, requests=ENDLESS, start_ns=begin.start_ns, stagger_ns=begin.stagger_ns
    )
    parted = cell.load == "closed" and slots > 1 and spread_ns_max is not None and begin.stagger_ns == 0
    offer = Continuous(
        arrivals,
        steady,
        start_ns=begin.start_ns,
        requests=cell.requests,
        duration_ns=None if cell.duration_s is None else round(cell.duration_s * 1e9),
        enough=enough,
        spread=(lambda slot, took_ns: min(spread_ns_max or 0, took_ns) * slot // slots) if parted else None,
    )
    return offer, open_load

"""An open load's requests and the slots that send them. Pure: times come in, times go out.

The clock alone makes requests due. One that finds no free slot waits, first come first sent, and its latency counts
from when it was due. What waits is bounded: beyond the bound the offered rate is not being kept, nothing more becomes
due, and what still waits is given up and reported. So is what still waits some time after the load's end, by the clock
or by `stop`: a server that could not keep up would otherwise be loaded for hours more.
"""

import heapq
from collections import deque
from collections.abc import Iterator
from itertools import takewhile

from kvgauge.load.arrivals import Due

WAITING_MAX = 10_000
DRAIN_NS_MIN, DRAIN_SHARE = 10_000_000_000, 0.1


def drain_ns_of(duration_ns: int | None) -> int:
    """How long what waits at the end of a load may still be sent: 10 s, or a tenth of the load where that is longer."""
    return max(DRAIN_NS_MIN, round(DRAIN_SHARE * (duration_ns or 0)))


class OpenLoad:
    """The arrivals of an open load (see `Arrivals`).

    times_ns     due times after the start, never falling
    slots        how many requests may be under way, >= 1; low slots are used first, so that their connections stay
    waiting_max  how many may be due and not sent
    sharers      so many workers share the load, and that bound
    end_ns       nothing is due from then on, as `times_ns` has it; None: no such end
    drain_ns     how long after its end what waits may still be sent
    """

    def __init__(
        self,
        times_ns: Iterator[int],
        *,
        slots: int,
        start_ns: int,
        waiting_max: int = WAITING_MAX,
        sharers: int = 1,
        end_ns: int | None = None,
        drain_ns: int = DRAIN_NS_MIN,
    ) -> None:
        self._drain_ns = drain_ns
        self._give_up_ns = None if end_ns is None else end_ns + drain_ns
        self._times_ns, self.start_ns, self._waiting_max = times_ns, start_ns, -(-waiting_max // sharers)
        self._slots = slots
        self._free = list(range(slots))  # a heap
        self._freed_ns = deque([start_ns] * slots)  # since when slots are free, whichever they are; as many as are
        self._read: deque[int] = deque()  # due times that were looked at and have no slot yet, in order
        self._last_ns: int | None = None  # nothing due later than this is sent
        self._reserved: Due | None = None  # the next to begin
        self._free_since_ns = start_ns  # the slot of the reserved one
        self.requests = self.queued = self.given_up = 0
        self.under_way_max = 0
        self.own_late_ns_max = self.own_late_ns_sum = 0

    def first(self) -> list[Due]:
        return self._reserve()

    def begun(self, slot: int, now_ns: int) -> list[Due]:
        """The reserved request begins in its slot: the next takes the next free one."""
        due, self._reserved = self._reserved, None
        assert due is not None
        assert due.slot == slot
        self.requests += 1
        self.under_way_max = max(self.under_way_max, self._slots - len(self._free))
        self.queued += self._free_since_ns > due.due_ns
        own_ns = now_ns - max(due.due_ns, self._free_since_ns)  # a slot was free and the request was due
        self.own_late_ns_sum += own_ns
        self.own_late_ns_max = max(self.own_late_ns_max, own_ns)
        return self._reserve()

    def ended(self, slot: int, at_ns: int) -> list[Due]:
        heapq.heappush(self._free, slot)
        self._freed_ns.append(at_ns)
        return self._reserve()

    def stop(self, now_ns: int) -> list[Due]:
        """Nothing that is due after `now_ns` is sent any more, the reserved request neither."""
        self._last_ns = now_ns
        give_up_ns = now_ns + self._drain_ns
        self._give_up_ns = give_up_ns if self._give_up_ns is None else min(self._give_up_ns, give_up_ns)
        due = self._reserved
        if due is not None and due.due_ns > now_ns:
            self._reserved = None
            heapq.heappush(self._free, due.slot)
            self._freed_ns.appendleft(self._free_since_ns)
        return []

    def end(self, at_ns: int) -> None:
        """What waits so long after this moment is given up, as after an end that was known before."""
        self._give_up_ns = at_ns + self._drain_ns

    def overflow(self, now_ns: int) -> list[int]:
        """The due times of all that waits, when that is more than may, or too long after the end; then nothing else
        becomes due."""
        if self._give_up_ns is not None and now_ns >= self._give_up_ns:
            last_ns = now_ns if self._last_ns is None else self._last_ns
            self._read.extend(takewhile(lambda due_ns: self.start_ns + due_ns <= last_ns, self._times_ns))
            return self._give_up([self.start_ns + due_ns for due_ns in self._read if self.start_ns + due_ns <= last_ns])
        while len(self._read) <= self._waiting_max:
            due_ns = next(self._times_ns, None)
            if due_ns is None:
                return []
            self._read.append(due_ns)
            if self.start_ns + due_ns > now_ns:
                return []
        lost = [self.start_ns + due_ns for due_ns in self._read if self.start_ns + due_ns <= now_ns]
        if len(lost) <= self._waiting_max:
            return []
        return self._give_up(lost)

    def _give_up(self, lost: list[int]) -> list[int]:
        self._read.clear()
        self._times_ns = iter(())
        self.given_up += len(lost)
        return lost

    def _reserve(self) -> list[Due]:
        """The next request with a slot for it, when there are both."""
        if self._reserved is not None or not self._free:
            return []
        offset_ns = self._read.popleft() if self._read else next(self._times_ns, None)
        if offset_ns is None:
            return []
        due_ns = self.start_ns + offset_ns
        if self._last_ns is not None and due_ns > self._last_ns:
            self._read.clear()
            self._times_ns = iter(())
            return []
        self._reserved = Due(due_ns, heapq.heappop(self._free))
        self._free_since_ns = self._freed_ns.popleft()
        return [self._reserved]

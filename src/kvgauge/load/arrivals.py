"""When each request is due. Pure arithmetic: absolute times in, absolute times out; nobody sleeps here.

`first` gives what is due from the start; `begun` and `ended` are told that a slot's request begins, or is over, and
give what that makes due. Open loads: open.py.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from kvgauge.plan.records import LoadShape


class Due(NamedTuple):
    """A request that a slot shall send at `due_ns` (the driver's clock). Sorts by time."""

    due_ns: int
    slot: int


class Arrivals(Protocol):
    def first(self) -> list[Due]:
        """What is due without anything having ended."""

    def begun(self, slot: int, now_ns: int) -> list[Due]:
        """What the beginning of this slot's request, at `now_ns`, makes due."""

    def ended(self, slot: int, at_ns: int) -> list[Due]:
        """What the end of this slot's request, at `at_ns`, makes due."""

    def stop(self, now_ns: int) -> list[Due]:
        """Make nothing due after `now_ns`. The loop withdraws what was given and is due later.

        returns  what is due in the place of something withdrawn
        """

    def overflow(self, now_ns: int) -> list[int]:
        """Due times of requests that wait for a slot and are given up, because too many do."""


class _Rounds(Protocol):
    """A load whose requests become due when others have ended."""

    def first(self) -> list[Due]: ...
    def ended(self, slot: int, at_ns: int) -> list[Due]: ...


class Closed:
    """The arrivals of closed rounds, up to an end by the clock.

    end_ns  what would be due from then on is not; None: no such end
    """

    def __init__(self, rounds: _Rounds, *, end_ns: int | None = None) -> None:
        self._rounds, self._end_ns = rounds, end_ns

    def first(self) -> list[Due]:
        return self._within(self._rounds.first())

    def begun(self, slot: int, now_ns: int) -> list[Due]:  # noqa: ARG002  (only an end makes something due)
        return []

    def ended(self, slot: int, at_ns: int) -> list[Due]:
        return self._within(self._rounds.ended(slot, at_ns))

    def stop(self, now_ns: int) -> list[Due]:
        self._end_ns = now_ns if self._end_ns is None else min(self._end_ns, now_ns)
        return []

    def overflow(self, now_ns: int) -> list[int]:  # noqa: ARG002  (nothing waits: a slot is free when it asks)
        return []

    def _within(self, dues: list[Due]) -> list[Due]:
        return dues if self._end_ns is None else [due for due in dues if due.due_ns < self._end_ns]


class ClosedLoop:
    """Each slot sends its next request the moment its last one has ended. One slot: requests one after another.

    slots       how many may be under way at once, >= 1
    requests    how many in all
    start_ns    when slot 0 begins
    stagger_ns  slot i begins at start + i/slots of this, so that the slots do not march in step
    among       (all slots, number of a slot of ours among them) where others have the rest; None: there are no others
    """

    def __init__(
        self,
        *,
        slots: int,
        requests: int,
        start_ns: int,
        stagger_ns: int = 0,
        among: tuple[int, Callable[[int], int]] | None = None,
    ) -> None:
        self._slots, self._left = slots, requests
        self._start_ns, self._stagger_ns = start_ns, stagger_ns
        self._all, self._number = among or (slots, lambda slot: slot)

    def first(self) -> list[Due]:
        starting = min(self._slots, self._left)
        self._left -= starting
        stagger_ns, number = self._stagger_ns, self._number
        return [Due(self._start_ns + stagger_ns * number(slot) // self._all, slot) for slot in range(starting)]

    def ended(self, slot: int, at_ns: int) -> list[Due]:
        if self._left == 0:
            return []
        self._left -= 1
        return [Due(at_ns, slot)]


class Waves:
    """All slots at once; the next wave is due when the last request of this one has ended."""

    def __init__(self, *, slots: int, requests: int, start_ns: int) -> None:
        self._slots, self._left, self._start_ns = slots, requests, start_ns
        self._under_way = 0
        self.last_end_ns = start_ns

    def first(self) -> list[Due]:
        return self._wave(self._start_ns)

    def ended(self, slot: int, at_ns: int) -> list[Due]:  # noqa: ARG002  (a wave does not ask whose)
        self._under_way -= 1
        self.last_end_ns = max(self.last_end_ns, at_ns)
        return self._wave(self.last_end_ns) if self._under_way == 0 else []

    def _wave(self, due_ns: int) -> list[Due]:
        self._under_way = min(self._slots, self._left)
        self._left -= self._under_way
        return [Due(due_ns, slot) for slot in range(self._under_way)]


class Turns(Protocol):
    """What `InSessions` asks of the sessions in slots."""

    def delay_ns(self, slot: int) -> int | None:
        """From the end of this slot's turn to the next; None: its session is over."""

    def cut(self, slot: int) -> None:
        """This slot's session has no other turn."""


class InSessions:
    """Arrivals of sessions: `starts` says when one begins in a slot, the end of a turn when the next is due.

    end_ns  no turn is due from then on; None: no such end
    holds   a session that waits for a turn after that keeps its slot to the end: in a closed load another one would
            begin in its place, for its first turn only
    """

    def __init__(self, starts: Arrivals, turns: Turns, *, end_ns: int | None = None, holds: bool = True) -> None:
        self._starts, self._turns, self._end_ns, self._holds = starts, turns, end_ns, holds
        self._going: set[int] = set()  # slots with a session
        self._waiting: dict[int, int] = {}  # slot -> when its next turn is due

    def first(self) -> list[Due]:
        return self._starts.first()

    def begun(self, slot: int, now_ns: int) -> list[Due]:
        self._waiting.pop(slot, None)
        if slot in self._going:
            return []
        self._going.add(slot)
        return self._starts.begun(slot, now_ns)

    def ended(self, slot: int, at_ns: int) -> list[Due]:
        delay_ns = self._turns.delay_ns(slot)
        if delay_ns is None:
            return self._free(slot, at_ns)
        due_ns = at_ns + delay_ns
        if self._end_ns is not None and due_ns >= self._end_ns:
            self._turns.cut(slot)
            return [] if self._holds else self._free(slot, at_ns)
        self._waiting[slot] = due_ns
        return [Due(due_ns, slot)]

    def stop(self, now_ns: int) -> list[Due]:
        self._end_ns = now_ns if self._end_ns is None else min(self._end_ns, now_ns)
        freed = self._starts.stop(now_ns)
        for slot in [slot for slot, due_ns in self._waiting.items() if due_ns > now_ns]:
            self._turns.cut(slot)
            del self._waiting[slot]
            freed += self._free(slot, now_ns)
        return freed

    def overflow(self, now_ns: int) -> list[int]:
        return self._starts.overflow(now_ns)

    def _free(self, slot: int, at_ns: int) -> list[Due]:
        self._going.discard(slot)
        return self._starts.ended(slot, at_ns)


def arrivals_of(
    load: LoadShape,
    *,
    slots: int,
    requests: int,
    start_ns: int,
    stagger_ns: int = 0,
    duration_ns: int | None = None,
    among: tuple[int, Callable[[int], int]] | None = None,
) -> Closed:
    """The arrivals of a closed cell's shape. `single` has one slot whatever `slots` says."""
    rounds: _Rounds
    if load == "wave":
        rounds = Waves(slots=slots, requests=requests, start_ns=start_ns)
    elif load == "single":
        rounds = ClosedLoop(slots=1, requests=requests, start_ns=start_ns)
    else:
        rounds = ClosedLoop(slots=slots, requests=requests, start_ns=start_ns, stagger_ns=stagger_ns, among=among)
    return Closed(rounds, end_ns=None if duration_ns is None else start_ns + duration_ns)

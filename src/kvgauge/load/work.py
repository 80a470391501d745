"""What the loop is told, what it asks for, and what it gives back."""

from typing import NamedTuple, Protocol

import msgspec

from kvgauge.load.answers import Cut
from kvgauge.load.stream import Incoming


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long anything may take. first_token_ns: to the first byte of the body; stall_ns: from one read to the next;
    request_ns: from the moment we begin to send to the end."""

    connect_ns: int
    first_token_ns: int
    stall_ns: int
    request_ns: int


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """A request that is over, well or not. sent_ns: None when it never left. fresh: its connection was made for it."""

    slot: int
    seq: int
    due_ns: int
    begun_ns: int
    sent_ns: int | None
    ended_ns: int
    incoming: Incoming | None
    cut: Cut | None
    detail: str | None
    fresh: bool = False


def unsent(seq: int, due_ns: int, now_ns: int) -> Ended:
    """A request that is given up before it had a slot."""
    return Ended(
        slot=0,
        seq=seq,
        due_ns=due_ns,
        begun_ns=now_ns,
        sent_ns=None,
        ended_ns=now_ns,
        incoming=None,
        cut="unsent",
        detail="it waited, behind too many others or too long after the end of the load, and was never sent",
    )


class Work(Protocol):
    """What the loop asks of its owner."""

    def next_request(self, slot: int) -> tuple[int, bytes]:
        """The number and the bytes of the next request, in the order they are sent, and which slot sends it."""

    def skip(self) -> int:
        """The number of the next request, which will not be sent."""

    def over(self, ended: Ended) -> None:
        """Keep this; it must not take time."""

    def idle(self, now_ns: int, *, ready: bool) -> bool:
        """Do one small piece of background work; ready: sockets do not rest, so only what must not pile up.

        returns  whether more waits
        """

    def stop(self) -> bool:
        """True ends the load."""

    def enough(self) -> bool:
        """True lets nothing more become due; what is due and what is under way goes on to its end."""


class Steady(Protocol):
    """Whoever judges a load that goes on without a pause, from what has ended of it."""

    def measure_from(self, now_ns: int) -> int | None:
        """From which moment on requests are measured; None: not yet. Asked every 50 ms until it says one."""


class Begin(NamedTuple):
    """When what is measured begins, and over which time the slots of a closed loop do."""

    start_ns: int
    stagger_ns: int


class Pace(Protocol):
    """Whoever several drivers of one cell ask when to begin, so that they do it together."""

    def begin(self, typical_ns: int | None) -> Begin | None:
        """Wait until all are ready. None: stop. typical_ns: of a request, as far as this driver knows"""

    def wave(self, ended_ns: int) -> int | None:
        """Wait until the wave is over everywhere: when the next is due; None: there is none.

        ended_ns  the last end here, 0 when nothing of this wave was sent here
        """

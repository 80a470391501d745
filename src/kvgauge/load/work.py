"""What the loop is told, what it asks for, and what it gives back."""

from typing import Protocol

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

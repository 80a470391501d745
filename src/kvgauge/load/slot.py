"""A place for one request at a time, and what takes too long in it. Pure."""

from ssl import SSLContext

from kvgauge.load.answers import Cut
from kvgauge.load.site import Site
from kvgauge.load.stream import Connection
from kvgauge.load.work import Limits


class Place:
    """Where a slot's requests go. address_at: the one of its addresses that worked last."""

    __slots__ = ("address_at", "site", "tls")

    def __init__(self, site: Site, tls: SSLContext | None) -> None:
        self.site, self.tls, self.address_at = site, tls, 0


class Slot:
    """Sends one request at a time. `fresh`: its connection was made for this request."""

    __slots__ = (
        "begun_ns",
        "connect_ns",
        "connection",
        "detail",
        "due_ns",
        "fresh",
        "index",
        "place",
        "request",
        "seq",
    )

    def __init__(self, index: int, place: Place) -> None:
        self.index, self.place = index, place
        self.connection: Connection | None = None
        self.connect_ns = 0  # when the attempt under way, or the last one, began
        self.request: bytes | None = None
        self.seq = self.due_ns = self.begun_ns = 0
        self.fresh = False
        self.detail: str | None = None


def overdue(slot: Slot, limits: Limits, now_ns: int) -> tuple[Cut, str] | None:
    """What has taken too long, and what was seen; `connect` and `tls` end the attempt, all else the request."""
    connection = slot.connection
    if connection is None:
        return None
    if connection.connecting:
        if now_ns - slot.connect_ns <= limits.connect_ns:
            return None
        made = "TLS session" if connection.shaking else "connection"
        return "tls" if connection.shaking else "connect", f"no {made} within {limits.connect_ns / 1e9:g} s"
    incoming = connection.incoming
    if slot.request is None or incoming is None:
        return None
    waited_ns, silent_ns = now_ns - slot.begun_ns, now_ns - incoming.last_ns
    if not incoming.pieces and waited_ns > limits.first_token_ns:
        return "no_first_token", f"nothing within {waited_ns / 1e9:.1f} s"
    if incoming.pieces and silent_ns > limits.stall_ns:
        return "stall", f"silent for {silent_ns / 1e9:.1f} s inside the answer"
    if waited_ns > limits.request_ns:
        return "timeout", f"no end within {waited_ns / 1e9:.1f} s"
    return None

"""One thread, one epoll, many requests under way. Everything here is ordered by what must not wait:

a ready socket, then what is due, then (when no socket is ready, or sockets have not rested for a while) the work that
`Work.idle` does in small pieces.
"""

import heapq
import select
import time
from collections.abc import Callable

from kvgauge.load.answers import Cut
from kvgauge.load.arrivals import Arrivals, Due
from kvgauge.load.open_files import why
from kvgauge.load.proxy import ProxyRefused
from kvgauge.load.receive import OpenReceiver, open_receiver
from kvgauge.load.site import Site
from kvgauge.load.slot import Place, Slot, overdue
from kvgauge.load.stream import Connection, End, Incoming
from kvgauge.load.tls import Session, TlsFailed, context_of
from kvgauge.load.work import Ended, Limits, Work, unsent

CHECK_NS = 50_000_000  # how often deadlines and `stop` are looked at
PASSES_MAX = 16  # so often in a row sockets may be ready before they count as restless
PAUSE_NS = 200_000
SPIN_NS = 1_000_000  # epoll waits in whole milliseconds: what is due sooner is waited for by asking again at once
CUT_OF: dict[End, Cut | None] = {
    "complete": None,
    "closed": "truncated",
    "reset": "truncated",
    "malformed": "malformed",
    "tls": "tls",
}


class Loop:
    """Sends requests through its slots and gathers what comes back. Not reentrant, not thread-safe."""

    def __init__(
        self,
        *sites: Site,
        limits: Limits,
        clock_ns: Callable[[], int],
        open_receiver: OpenReceiver = open_receiver,
    ) -> None:
        """sites: one, or several that slots belong to in turn. raises LoadError when a CA file cannot be used"""
        self._limits, self._clock_ns, self._open_receiver = limits, clock_ns, open_receiver
        self._places = [Place(site, context_of(site.tls) if site.tls is not None else None) for site in sites]
        self._epoll = select.epoll()
        self._slots: list[Slot] = []
        self._by_fd: dict[int, Slot] = {}
        self._closed_fds: set[int] = set()  # closed in this pass: what epoll said of them no longer holds
        self._stamped = False  # by the kernel, as far as the last connection goes
        self._due: list[Due] = []
        self._busy = 0
        self._arrivals: Arrivals | None = None
        self._work: Work | None = None
        self._spare = 0

    def connect(self, slots: int, *, ahead: int | None = None) -> None:
        """Have `slots` slots, and a connection in each of the first `ahead` (None: in all), so that none is made at
        the first request.

        One that cannot be made is left to its first request, which then fails and says why.
        """
        while len(self._slots) < slots:
            self._slots.append(Slot(len(self._slots), self._places[len(self._slots) % len(self._places)]))
        self._pass(0)  # hear of what the server closed in the meantime
        for slot in self._slots[: slots if ahead is None else ahead]:
            if slot.connection is None:
                self._connect(slot, slot.place.address_at)
        while any(slot.connection is not None and slot.connection.connecting for slot in self._slots):
            self._pass(CHECK_NS)
            self._check_deadlines(self._clock_ns())

    def offer(self, arrivals: Arrivals, work: Work, *, spare: int = 0) -> bool:
        """Send all that `arrivals` gives and wait for its end. False when `work.stop` ended it early.

        spare  when a request begins, the slot so many places after its own is given a connection, if it has none
        """
        self._arrivals, self._work, self._spare = arrivals, work, spare
        going_on = True
        self._due = arrivals.first()
        heapq.heapify(self._due)
        check_ns, more, restless = 0, True, False
        try:
            while self._busy or self._due:
                now_ns = self._clock_ns()
                if now_ns >= check_ns:
                    if work.stop():
                        self._interrupt()
                        return False
                    self._check_deadlines(now_ns)
                    if going_on and work.enough():
                        going_on = False
                        self._nothing_after(now_ns)
                    self._give_up_waiting(now_ns)
                    check_ns = now_ns + CHECK_NS
                if self._due:
                    self._start_due()
                ready, passes = self._pass(0 if more else self._wait_ns(check_ns)), 1
                while ready and passes < (2 if restless else PASSES_MAX):
                    ready, passes = self._pass(0), passes + 1
                restless = ready
                more = work.idle(self._clock_ns(), ready=ready)
                if restless:
                    self._pause()
        finally:
            self._abandon()
        return True

    @property
    def connections(self) -> int:
        """How many are open, or being made."""
        return len(self._by_fd)

    def close(self) -> None:
        """Close every connection. What is under way is dropped without a word."""
        for slot in self._slots:
            self._drop(slot)
        self._epoll.close()

    def _pause(self) -> None:
        """Sockets do not rest: let some more come, so that a read brings more for what it costs.

        Not where arrivals would be stamped late by it, and not past what is due.
        """
        if self._stamped and (not self._due or self._due[0].due_ns - self._clock_ns() > 2 * PAUSE_NS):
            time.sleep(PAUSE_NS / 1e9)

    def _wait_ns(self, check_ns: int) -> int:
        until_ns = min(check_ns, self._due[0].due_ns - SPIN_NS) if self._due else check_ns
        return until_ns - self._clock_ns()

    def _pass(self, wait_ns: int) -> bool:
        """Wait for sockets to be ready and serve them. True when any was."""
        ready = self._epoll.poll(wait_ns / 1e9 if wait_ns > 0 else 0)
        self._closed_fds.clear()
        closed_fds = self._closed_fds
        for fd, mask in ready:
            if closed_fds and fd in closed_fds:
                continue
            slot = self._by_fd[fd]
            connection = slot.connection
            assert connection is not None, "an fd in _by_fd belongs to its slot's connection"
            if connection.connecting:
                self._advance(slot, connection)
            elif connection.unsent is not None and mask & select.EPOLLOUT:
                self._offer(slot, connection)
            else:
                end = connection.read()
                if end is not None:
                    self._ended(slot, connection, end)
            if self._due:
                self._start_due()  # a slot that became free sends at once, before the next socket is looked at
        return bool(ready)

    def _start_due(self) -> None:
        while self._due and self._due[0].due_ns <= self._clock_ns():
            due = heapq.heappop(self._due)
            self._begin(self._slots[due.slot], due.due_ns)

    def _nothing_after(self, now_ns: int) -> None:
        assert self._arrivals is not None
        instead = self._arrivals.stop(now_ns)
        self._due = [due for due in self._due if due.due_ns <= now_ns] + instead
        heapq.heapify(self._due)

    def _give_up_waiting(self, now_ns: int) -> None:
        assert self._arrivals is not None
        assert self._work is not None
        for due_ns in self._arrivals.overflow(now_ns):
            self._work.over(unsent(self._work.skip(), due_ns, now_ns))

    def _begin(self, slot: Slot, due_ns: int) -> None:
        assert self._work is not None
        assert self._arrivals is not None
        assert slot.request is None, "a slot sends one request at a time"
        slot.seq, slot.request = self._work.next_request(slot.index)
        slot.due_ns, slot.begun_ns = due_ns, self._clock_ns()
        slot.fresh, slot.detail = False, None
        self._busy += 1
        for due in self._arrivals.begun(slot.index, slot.begun_ns):
            heapq.heappush(self._due, due)
        if self._spare and slot.index + self._spare < len(self._slots):
            spare = self._slots[slot.index + self._spare]
            if spare.connection is None and spare.request is None:
                self._connect(spare, spare.place.address_at)
        if slot.connection is None:
            self._connect(slot, slot.place.address_at)
        elif not slot.connection.connecting:
            self._ask(slot, slot.connection)

    def _connect(self, slot: Slot, address_at: int) -> None:
        """Begin to connect to the first address that does not refuse at once, from this one on."""
        slot.fresh = slot.request is not None
        slot.connect_ns = self._clock_ns()
        site, tls = slot.place.site, slot.place.tls
        for at in range(address_at, len(site.addresses)):
            family, address = site.addresses[at]
            try:
                connection = Connection(
                    family,
                    address,
                    address_at=at,
                    clock_ns=self._clock_ns,
                    open_receiver=self._open_receiver,
                    session=Session(tls, site.host) if tls is not None else None,
                    tunnel=site.tunnel(),
                )
            except OSError as error:
                seen = error
                continue
            slot.connection = connection
            self._by_fd[connection.fd] = slot
            self._epoll.register(connection.fd, select.EPOLLOUT)
            return
        self._no_connection(slot, why(seen))

    def _not_connected(self, slot: Slot, seen: str) -> None:
        """One address did not answer: on to the next, if there is one."""
        connection = slot.connection
        assert connection is not None
        self._drop(slot)
        if connection.address_at + 1 < len(slot.place.site.addresses):
            self._connect(slot, connection.address_at + 1)
        else:
            self._no_connection(slot, seen)

    def _no_connection(self, slot: Slot, seen: str, cut: Cut = "connect") -> None:
        slot.place.address_at = 0
        if slot.request is not None:
            self._over(slot, cut=cut, detail=f"{slot.place.site.way}: {seen}")

    def _no_session(self, slot: Slot, seen: str) -> None:
        """Another address of the same name would show the same certificate: none is tried."""
        self._drop(slot)
        self._no_connection(slot, seen, "tls")

    def _advance(self, slot: Slot, connection: Connection) -> None:
        """A connection on its way is ready to go on."""
        try:
            usable = connection.advance()
        except TlsFailed as error:
            self._no_session(slot, str(error))
            return
        except ProxyRefused as error:  # at another of its addresses it would say the same
            self._drop(slot)
            self._no_connection(slot, str(error))
            return
        except OSError as error:
            seen = error.strerror or str(error)
            if connection.shaking:
                self._no_session(slot, f"the connection broke inside the TLS handshake: {seen}")
            else:
                self._not_connected(slot, seen)
            return
        if not usable:
            self._epoll.modify(connection.fd, select.EPOLLIN if connection.unsent is None else select.EPOLLOUT)
            return
        slot.place.address_at, self._stamped = connection.address_at, connection.stamped
        self._epoll.modify(connection.fd, select.EPOLLIN)
        if slot.request is not None:
            self._ask(slot, connection)

    def _ask(self, slot: Slot, connection: Connection) -> None:
        assert slot.request is not None
        try:
            connection.ask(slot.request)
        except (OSError, TlsFailed) as error:
            said = error.strerror if isinstance(error, OSError) else None
            self._lost(slot, connection, f"the connection broke: {said or error}")
            return
        if connection.unsent is not None:
            self._epoll.modify(connection.fd, select.EPOLLIN | select.EPOLLOUT)

    def _offer(self, slot: Slot, connection: Connection) -> None:
        try:
            connection.offer()
        except OSError as error:
            self._lost(slot, connection, f"the connection broke: {error.strerror or error}")
            return
        if connection.unsent is None:
            self._epoll.modify(connection.fd, select.EPOLLIN)

    def _lost(self, slot: Slot, connection: Connection, problem: str) -> None:
        """The request could not be sent; what the server said before it hung up may still be there to read."""
        incoming = connection.incoming
        end = connection.read()
        if end is None or incoming is None:
            end = "reset"
        if incoming is not None and end in ("closed", "reset"):
            incoming.problem = problem
        connection.unsent = connection.unsent or memoryview(b"")  # not reusable, whatever came
        self._ended(slot, connection, end)

    def _ended(self, slot: Slot, connection: Connection, end: End) -> None:
        """An answer, or the connection below it, has ended."""
        incoming = connection.incoming
        if slot.request is None or incoming is None:
            self._drop(slot)  # an idle connection: the server closed it
            return
        ended_ns = (incoming.last_ns if end == "complete" else 0) or self._clock_ns()
        unanswered = incoming.received_bytes == 0 and end in ("closed", "reset")
        if unanswered and not slot.fresh:
            self._drop(slot)
            slot.detail = "sent again on a new connection: the server had closed the one that was kept open"
            self._connect(slot, slot.place.address_at)
            return
        detail = "; ".join(filter(None, (incoming.problem if end != "complete" else None, slot.detail))) or None
        sent_ns = connection.sent_ns if connection.unsent is None else None
        if end == "complete" and incoming.keep_alive and connection.unsent is None:
            connection.done()
        else:
            self._drop(slot)
        self._over(slot, cut=CUT_OF[end], detail=detail, incoming=incoming, sent_ns=sent_ns, ended_ns=ended_ns)

    def _over(
        self,
        slot: Slot,
        *,
        cut: Cut | None,
        detail: str | None,
        incoming: Incoming | None = None,
        sent_ns: int | None = None,
        ended_ns: int | None = None,
    ) -> None:
        """The slot's request is over; what that makes due is sent by the caller's next `_start_due`."""
        assert self._work is not None
        assert self._arrivals is not None
        at_ns = ended_ns if ended_ns is not None else self._clock_ns()
        slot.request = None
        self._busy -= 1
        ended = Ended(
            slot=slot.index,
            seq=slot.seq,
            due_ns=slot.due_ns,
            begun_ns=slot.begun_ns,
            sent_ns=sent_ns,
            ended_ns=at_ns,
            incoming=incoming,
            cut=cut,
            detail=detail,
            fresh=slot.fresh,
        )
        self._work.over(ended)
        for due in self._arrivals.ended(slot.index, at_ns):
            heapq.heappush(self._due, due)

    def _check_deadlines(self, now_ns: int) -> None:
        for slot in self._slots:
            if (late := overdue(slot, self._limits, now_ns)) is None:
                continue
            cut, seen = late
            if cut == "tls":
                self._no_session(slot, seen)
            elif cut == "connect":
                self._not_connected(slot, seen)
            else:
                self._give_up(slot, cut, seen)

    def _interrupt(self) -> None:
        """End what is under way; nothing new becomes due."""
        for slot in self._slots:
            if slot.request is not None:
                self._give_up(slot, "interrupted", "the cell was stopped before it had ended")
        self._due.clear()

    def _abandon(self) -> None:
        """Leave nothing under way, also when `work` raised."""
        for slot in self._slots:
            if slot.request is not None:
                self._drop(slot)
                slot.request = None
        self._busy = 0
        self._due.clear()

    def _give_up(self, slot: Slot, cut: Cut, detail: str) -> None:
        connection = slot.connection
        incoming = connection.incoming if connection is not None else None
        sent_ns = connection.sent_ns if connection is not None and connection.unsent is None else None
        self._drop(slot)
        self._over(slot, cut=cut, detail=detail, incoming=incoming, sent_ns=sent_ns or None)

    def _drop(self, slot: Slot) -> None:
        """Close the slot's connection, if it has one."""
        connection, slot.connection = slot.connection, None
        if connection is None:
            return
        del self._by_fd[connection.fd]
        self._closed_fds.add(connection.fd)
        connection.close()  # which takes it out of epoll too

"""What became of the load of one cell: sums over its exchanges."""

from collections.abc import Sequence

import msgspec

from kvgauge.load.continuous import Edges
from kvgauge.load.open import OpenLoad
from kvgauge.load.sessions import SessionCounts
from kvgauge.samples.records import Clock, Exchange


class OpenOffer(msgspec.Struct, frozen=True, kw_only=True):
    """How an open load went.

    slots         how many requests could be under way: the cell's limit, or what file descriptors allow
    queued        requests that were due while that many were under way, and waited
    given_up      requests never sent: more waited than may
    start_ns      from when due times count
    due_span_ns   from the first due time to the last
    sent_span_ns  from the first sent to the last; None when none was
    own_late_ns_* from when a request was due and a slot free to when we began to send it: this client's own part
    """

    slots: int
    under_way_max: int
    queued: int
    given_up: int
    start_ns: int
    due_span_ns: int
    sent_span_ns: int | None
    own_late_ns_mean: float
    own_late_ns_max: int


class CellLoad(msgspec.Struct, frozen=True, kw_only=True):
    """How one cell was offered. Measured requests only; times are of `clock` on the sending host.

    started_ns   the first due time; None when nothing was offered
    ended_ns     the last arrival of content; the last end when none brought content
    offered      requests begun; completed and failed add up to it
    cpu_s        processor seconds of the sending process, decoding included, from first due to the last Exchange handed
                 over; of several workers the busiest one's
    late_ns_max  sent - due, over the requests that were sent: how late we were; None when none was
    stagger_ns   over which the slots of a closed loop began
    clock_steps  how often CLOCK_REALTIME was set meanwhile: reads on both sides of a step have our own stamp
    interrupted  `stop` ended it early
    enough       `enough` ended it
    new_connections  requests whose connection was made for them, so that their latency holds its set-up
    open         of an open load only
    workers      processes that offered it; 1: the conducting one
    workers_why  how that number came about
    lost         what became of a worker that did not reach the end; None: all did
    sessions     of a cell with conversations
    edges        of a cell whose warm-up lasts until it is steady
    """

    cell: str
    clock: Clock
    started_ns: int | None
    ended_ns: int | None
    offered: int
    completed: int
    failed: int
    warmups: int
    cpu_s: float
    late_ns_max: int | None
    late_ns_mean: float | None
    stagger_ns: int
    interrupted: bool
    enough: bool = False
    new_connections: int = 0
    open: OpenOffer | None = None
    clock_steps: int = 0
    workers: int = 1
    workers_why: str | None = None
    lost: str | None = None
    sessions: SessionCounts | None = None
    edges: Edges | None = None

    @property
    def measured_ns(self) -> int:
        """How long what is measured lasted: to its last answer; where the load went on, to the first request that is
        not measured any more, since what was under way at the two edges is about the same."""
        if self.started_ns is None:
            return 0
        closed_ns = self.edges.closed_ns if self.edges is not None else None
        return (closed_ns if closed_ns is not None else self.ended_ns or self.started_ns) - self.started_ns


class Tally:
    """Sums over the exchanges of one cell."""

    def __init__(self) -> None:
        self.warmup_e2e_ns: list[int] = []
        self.e2e_ns: list[int] = []
        self.warmups = 0
        self._due_ns: list[int] = []
        self._arrived_ns: int | None = None
        self._done_ns: int | None = None
        self._failed = 0
        self._late_ns: list[int] = []
        self._sent_ns: tuple[int, int] | None = None  # the first and the last
        self._fresh = 0

    def add(self, exchange: Exchange, *, sent: bool, fresh: bool) -> None:
        """sent: the request left, so that its lateness means something. fresh: on a connection made for it."""
        if exchange.warmup:
            self.warmups += 1
            if exchange.failure is None and exchange.e2e_ns is not None:
                self.warmup_e2e_ns.append(exchange.e2e_ns)
            return
        self._due_ns.append(exchange.due_ns)
        self._fresh += fresh
        if exchange.failure is None and exchange.e2e_ns is not None:
            self.e2e_ns.append(exchange.e2e_ns)
        self._failed += exchange.failure is not None
        if exchange.arrivals_ns:
            self._arrived_ns = max(self._arrived_ns or exchange.arrivals_ns[-1], exchange.arrivals_ns[-1])
        if exchange.done_ns is not None:
            self._done_ns = max(self._done_ns or exchange.done_ns, exchange.done_ns)
        if sent:
            self._late_ns.append(exchange.sent_ns - exchange.due_ns)
            first, last = self._sent_ns or (exchange.sent_ns, exchange.sent_ns)
            self._sent_ns = min(first, exchange.sent_ns), max(last, exchange.sent_ns)

    def open_offer(self, load: OpenLoad, slots: int) -> OpenOffer:
        """How an open load went; at least one of its requests was measured."""
        return OpenOffer(
            slots=slots,
            under_way_max=load.under_way_max,
            queued=load.queued,
            given_up=load.given_up,
            start_ns=load.start_ns,
            due_span_ns=max(self._due_ns) - min(self._due_ns),
            sent_span_ns=self._sent_span_ns,
            own_late_ns_mean=load.own_late_ns_sum / max(1, load.requests),
            own_late_ns_max=load.own_late_ns_max,
        )

    def joint_offer(self, offers: Sequence[OpenOffer]) -> OpenOffer:
        """How an open load went that several workers shared: sums, and of lateness the worst worker's.

        under_way_max is the most that can have been: their own maxima need not have been at one time.
        """
        return OpenOffer(
            slots=sum(each.slots for each in offers),
            under_way_max=sum(each.under_way_max for each in offers),
            queued=sum(each.queued for each in offers),
            given_up=sum(each.given_up for each in offers),
            start_ns=min(each.start_ns for each in offers),
            due_span_ns=max(self._due_ns) - min(self._due_ns),
            sent_span_ns=self._sent_span_ns,
            own_late_ns_mean=max(each.own_late_ns_mean for each in offers),
            own_late_ns_max=max(each.own_late_ns_max for each in offers),
        )

    @property
    def _sent_span_ns(self) -> int | None:
        return None if self._sent_ns is None else self._sent_ns[1] - self._sent_ns[0]

    def cell_load(self, cell: str, clock: Clock, *, cpu_ns: int, stagger_ns: int, interrupted: bool) -> CellLoad:
        offered = len(self._due_ns)
        late = self._late_ns
        return CellLoad(
            cell=cell,
            clock=clock,
            started_ns=min(self._due_ns, default=None),
            ended_ns=self._arrived_ns if self._arrived_ns is not None else self._done_ns,
            offered=offered,
            completed=offered - self._failed,
            failed=self._failed,
            warmups=self.warmups,
            cpu_s=cpu_ns / 1e9,
            late_ns_max=max(late, default=None),
            late_ns_mean=sum(late) / len(late) if late else None,
            stagger_ns=stagger_ns,
            interrupted=interrupted,
            new_connections=self._fresh,
        )

"""The load driver: offers one cell's load to a server and hands over an Exchange for each request.

    with Driver(url, model, host=platform.node()) as driver:
        cell_load = driver.run_cell(cell, run_id="...", seed=1, on_exchange=writer.add_exchange, tick=writer.flush_due)

Nothing the server does raises: a request that goes wrong is an Exchange with a failure. What the callbacks raise
comes through, after the requests under way were dropped.
"""

import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from kvgauge.failures import LoadError
from kvgauge.load.arrivals import Arrivals, Closed, InSessions, Waves, arrivals_of
from kvgauge.load.asking import CLOCK, PATHS, Asking, limits_of
from kvgauge.load.cell_work import CellWork
from kvgauge.load.continuous import ENDLESS, Edges, going_on
from kvgauge.load.headers import NO_HEADERS, Headers
from kvgauge.load.loop import Loop
from kvgauge.load.offset import RealtimeOffset
from kvgauge.load.open import OpenLoad, drain_ns_of
from kvgauge.load.open_files import raise_limit
from kvgauge.load.process import CpuFrom, collector_off
from kvgauge.load.prompts import TOKEN_ID_HIGH, TOKEN_ID_LOW, Bodies
from kvgauge.load.proxy import Proxy
from kvgauge.load.receive import OpenReceiver, acknowledging, open_receiver
from kvgauge.load.schedules import schedule
from kvgauge.load.sessions import Sessions
from kvgauge.load.shares import WHOLE, Part, Share
from kvgauge.load.site import Site, site_of
from kvgauge.load.tally import CellLoad
from kvgauge.load.texts import Said
from kvgauge.load.tls import Tls
from kvgauge.load.work import Begin, Pace, Steady
from kvgauge.plan.open import starts
from kvgauge.plan.records import Cell
from kvgauge.plan.trace import FileRequest, TraceRequest
from kvgauge.plan.warmup import STEADY_WORKERS
from kvgauge.samples.records import Exchange
from kvgauge.tokens.choose import Chosen

LEAD_NS = 2_000_000  # from "start" to the first due time, so that the first send is not late already
STAGGER_NS_MAX = 2_000_000_000
CONNECT_S, STALL_S = 5.0, 30.0
OPEN_AHEAD = 64  # connections and requests an open load has ready before it starts
OPEN_SPARE = 16  # connections it keeps ready beyond those in use
OPEN_WARMUP_SLOTS = 16
DESCRIPTORS_LEFT = 64  # for files and whatever else this process opens


class Driver:
    """Sends requests from this process, over connections that it keeps from cell to cell.

    url                  http://HOST:PORT or https://, with or without a path; its host is looked up here, once
    tls                  how an https server's certificate is checked; None: against the system's authorities
    realtime_ns          the clock of the kernel's stamps, which become moments of clock_ns: every moment of a record
                         is of that one
    host                 name of this host, for the records
    headers              what else stands in the head of each request
    quick_ack            have the kernel acknowledge every read at once (Linux)
    request_timeout_s    bound of one request, from the moment we begin to send it
    first_token_timeout_s, stall_timeout_s   to the first byte of the body, and between reads; never above the bound
    proxy                that every request goes through; None: none, whatever the environment says
    tokenizer            the model's own, where the user gave it: text prompts get their length by it
    stagger_s            window over which closed-loop slots begin; None: a request's latency as far as it is known
                         (from the warm-up, else from an earlier cell of the same shape), at most 2 s, and less when
                         a slot has few requests: the first must not be done before the last begins
    raises               LoadError for a URL or a CA file that cannot be used
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        host: str,
        tls: Tls | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        realtime_ns: Callable[[], int] = time.time_ns,
        request_timeout_s: float = 120,
        first_token_timeout_s: float | None = None,
        stall_timeout_s: float = STALL_S,
        connect_timeout_s: float = CONNECT_S,
        stagger_s: float | None = None,
        headers: Headers = NO_HEADERS,
        quick_ack: bool = False,
        token_ids: tuple[int, int] = (TOKEN_ID_LOW, TOKEN_ID_HIGH),
        worker: int = 0,
        open_receiver: OpenReceiver = open_receiver,
        tokenizer: Chosen | None = None,
        proxy: Proxy | None = None,
    ) -> None:
        limits = limits_of(
            request_s=request_timeout_s,
            connect_s=connect_timeout_s,
            stall_s=stall_timeout_s,
            first_token_s=first_token_timeout_s,
        )
        self._site: Site = site_of(url, tls, headers=headers, proxy=proxy)
        self._asking = Asking(self._site, model, host=host, worker=worker, token_ids=token_ids, tokenizer=tokenizer)
        self._clock_ns, self._offset = clock_ns, RealtimeOffset(clock_ns, realtime_ns)
        self._stagger_s = stagger_s
        self._latencies_ns: dict[tuple[object, ...], list[int]] = {}  # of the last cell of each shape
        if quick_ack:
            open_receiver = acknowledging(open_receiver)
        self._loop = Loop(self._site, limits=limits, clock_ns=clock_ns, open_receiver=open_receiver)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._loop.close()

    def run_cell(
        self,
        cell: Cell,
        *,
        run_id: str,
        seed: int,
        on_exchange: Callable[[Exchange], None],
        tick: Callable[[], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
        enough: Callable[[], bool] = lambda: False,
        requests: tuple[FileRequest, ...] = (),
        steady: Steady | None = None,
        share: Share = WHOLE,
        pace: Pace | None = None,
        account: Callable[[Exchange, bool, bool], None] | None = None,
        keep_text: Callable[[Said], None] | None = None,
    ) -> CellLoad:
        """Offer one cell, or a share of it: its warm-up, then what is measured.

        on_exchange  gets each request once its answer is read, warm-up included; not in the order of their ends
        tick         called about every 100 ms when no socket is ready, and at least about once a second
        stop         asked every 50 ms; True ends what is under way as `interrupted` and sends nothing more
        enough       asked every 50 ms while requests are measured; True: nothing more becomes due, what is due is sent
        requests     those of the trace or the dataset that the cell sends
        steady       of a cell that warms up until it is steady: who says so, from the exchanges he was given
        share, pace  where other drivers offer the rest of it: which part is ours, and whom to ask when to begin
        account      gets each exchange too, with whether it was sent, and on a connection made for it
        keep_text    gets what an answer said when the server sent no usage with it, before its exchange is handed over
        raises       LoadError when the cell cannot be asked for, and what the callbacks raise
        """
        if cell.conversation is not None and share != WHOLE:
            raise LoadError(f"cell {cell.name}: conversations are offered by one load worker")
        bodies = self._asking.bodies(cell, seed, requests)
        if cell.steady is not None and (share != WHOLE or steady is None):
            raise LoadError(f"cell {cell.name}: {STEADY_WORKERS}, and by somebody who says when it is steady")
        part = share.part(cell)
        slots = self._slots(cell, share)
        ahead = min(slots, max(OPEN_AHEAD, cell.burst.size if cell.burst else 0)) if cell.is_open else slots
        template = self._asking.asked(cell, run_id)
        work = CellWork(
            self._site,
            PATHS[cell.api],
            bodies,
            template,
            on_exchange=on_exchange,
            tick=tick,
            stop=stop,
            slots=ahead,
            offset=self._offset,
            share=share,
            warmups=cell.warmup_requests,
            keep_text=keep_text,
        )
        work.account = account
        steps = self._offset.steps
        open_load: OpenLoad | None = None
        edges: Edges | None = None
        with collector_off():
            self._loop.connect(slots, ahead=ahead)
            finished = True
            if cell.warmup_requests:
                finished = self._warm_up(cell, work, slots, part, bodies)
            typical_ns = self._typical_ns(cell, work)
            stagger_ns = stagger_of(cell, typical_ns, self._stagger_s)
            cpu_ns = time.process_time_ns()
            if steady is not None and cell.steady is not None:
                stagger_ns = stagger_of(msgspec.structs.replace(cell, requests=ENDLESS), typical_ns, self._stagger_s)
                timed = CpuFrom(steady)
                offer, open_load = going_on(
                    cell,
                    timed,
                    slots=slots,
                    seed=seed,
                    begin=Begin(self._clock_ns() + LEAD_NS, stagger_ns),
                    spread_ns_max=STAGGER_NS_MAX if self._stagger_s is None else None,
                    enough=enough,
                )
                work.begin(requests=ENDLESS, warmup=False)
                work.measured, work.enough = offer.measured, lambda: offer.over
                finished = self._loop.offer(offer, work, spare=OPEN_SPARE if cell.is_open else 0)
                cpu_ns, edges = timed.cpu_ns, offer.edges
                work.drain()
            elif finished and cell.requests:
                work.begin(requests=part.count(starts(cell)), warmup=False, part=part)
                work.enough = enough
                if pace is None:
                    begin: Begin | None = Begin(self._clock_ns() + LEAD_NS, stagger_ns)
                else:
                    begin = pace.begin(typical_ns)
                if begin is None:
                    finished = False
                elif cell.is_open:
                    trace = tuple(each for each in requests if isinstance(each, TraceRequest))
                    times_ns = islice(schedule(cell, seed=seed, trace=trace), share.index, None, share.of)
                    duration_ns = duration_ns_of(cell)
                    open_load = OpenLoad(
                        times_ns,
                        slots=slots,
                        start_ns=begin.start_ns,
                        sharers=share.of,
                        end_ns=None if duration_ns is None else begin.start_ns + duration_ns,
                        drain_ns=drain_ns_of(duration_ns),
                    )
                    finished = self._loop.offer(self._turning(open_load, bodies, cell, begin), work, spare=OPEN_SPARE)
                elif cell.load == "wave" and pace is not None:
                    finished = self._waves(cell, work, begin.start_ns, share, pace)
                else:
                    stagger_ns = begin.stagger_ns
                    rounds = self._closed(cell, slots, begin, part, share)
                    finished = self._loop.offer(self._turning(rounds, bodies, cell, begin), work)
                work.drain()
            cpu_ns = time.process_time_ns() - cpu_ns
            if work.tally.e2e_ns:
                self._latencies_ns[shape_of(cell)] = work.tally.e2e_ns
        load = work.tally.cell_load(cell.name, CLOCK, cpu_ns=cpu_ns, stagger_ns=stagger_ns, interrupted=not finished)
        opened = work.tally.open_offer(open_load, slots) if open_load is not None and load.offered else None
        if opened is not None and edges is not None:  # of the surplus, what was never sent does not matter
            opened = msgspec.structs.replace(opened, given_up=edges.unsent)
        return msgspec.structs.replace(
            load,
            open=opened,
            edges=edges,
            enough=enough(),
            clock_steps=self._offset.steps - steps,
            sessions=bodies.end() if isinstance(bodies, Sessions) else None,
        )

    @staticmethod
    def _turning(arrivals: Arrivals, bodies: Bodies | Sessions, cell: Cell, begin: Begin) -> Arrivals:
        """Arrivals of sessions, where there are any: their later turns are due by their ends."""
        if not isinstance(bodies, Sessions):
            return arrivals
        duration_ns = duration_ns_of(cell)
        end_ns = None if duration_ns is None else begin.start_ns + duration_ns
        return InSessions(arrivals, bodies, end_ns=end_ns, holds=not cell.is_open)

    def _slots(self, cell: Cell, share: Share) -> int:
        """How many requests may be under way. raises LoadError when no file descriptor is left for an open load"""
        if not cell.is_open:
            return 1 if cell.load == "single" else share.slots(cell.concurrency)
        most = raise_limit()
        others = len(list(Path("/proc/self/fd").iterdir())) - self._loop.connections
        left = most - others - DESCRIPTORS_LEFT
        if left < 1:
            raise LoadError(f"no file descriptor is left for connections (limit {most}); raise it with ulimit -n")
        return min(share.slots(cell.concurrency), left)

    def _warm_up(self, cell: Cell, work: CellWork, slots: int, part: Part, bodies: Bodies | Sessions) -> bool:
        """A closed cell warms up in its own shape, an open one with few at a time."""
        requests = part.count(cell.warmup_requests)
        work.begin(requests=requests, warmup=True, part=part)
        start_ns = self._clock_ns() + LEAD_NS
        slots = min(slots, OPEN_WARMUP_SLOTS) if cell.is_open else slots
        load = "closed" if cell.is_open else cell.load
        arrivals: Arrivals = arrivals_of(load, slots=slots, requests=requests, start_ns=start_ns)
        if isinstance(bodies, Sessions):
            arrivals = InSessions(arrivals, bodies)
        finished = self._loop.offer(arrivals, work)
        work.drain()
        return finished

    def _closed(self, cell: Cell, slots: int, begin: Begin, part: Part, share: Share) -> Arrivals:
        return arrivals_of(
            cell.load,
            slots=slots,
            requests=part.count(starts(cell)),
            start_ns=begin.start_ns,
            stagger_ns=begin.stagger_ns,
            duration_ns=duration_ns_of(cell),
            among=(cell.concurrency, share.slot),
        )

    def _waves(self, cell: Cell, work: CellWork, start_ns: int, share: Share, pace: Pace) -> bool:
        """Our part of each wave, the next one when everybody's is over."""
        due_ns: int | None = start_ns
        duration_ns = duration_ns_of(cell)
        for sent in range(0, cell.requests, cell.concurrency):
            if due_ns is None or (duration_ns is not None and due_ns >= start_ns + duration_ns):
                break
            ours = share.slots(min(cell.concurrency, cell.requests - sent))
            wave = Waves(slots=max(1, ours), requests=ours, start_ns=due_ns)
            if not self._loop.offer(Closed(wave), work):
                return False
            due_ns = pace.wave(wave.last_end_ns if ours else 0)
        return not work.stop()

    def _typical_ns(self, cell: Cell, work: CellWork) -> int | None:
        known = work.tally.warmup_e2e_ns or self._latencies_ns.get(shape_of(cell), [])
        return statistics.median_low(known) if known else None


def stagger_of(cell: Cell, typical_ns: int | None, stagger_s: float | None) -> int:
    """Over how many nanoseconds the slots of a cell begin. stagger_s: as it was asked for; None: by what is known"""
    if cell.load != "closed" or cell.concurrency == 1:
        return 0
    if stagger_s is not None:
        return int(stagger_s * 1e9)
    rounds = starts(cell) / cell.concurrency
    if typical_ns is None or rounds <= 1:
        return 0
    return int(min(STAGGER_NS_MAX, typical_ns) * (1 - 1 / rounds))


def duration_ns_of(cell: Cell) -> int | None:
    return None if cell.duration_s is None else round(cell.duration_s * 1e9)


def shape_of(cell: Cell) -> tuple[object, ...]:
    """Cells whose requests take about as long, but for how many there are at a time."""
    return (
        cell.prompt,
        cell.input_tokens,
        cell.output_tokens,
        cell.dataset and cell.dataset.path,
        cell.stream,
        cell.conversation,
    )

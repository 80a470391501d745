"""The load driver: offers one cell's load to a server and hands over an Exchange for each request.

    with Driver(url, model, host=platform.node()) as driver:
        cell_load = driver.run_cell(cell, run_id="...", seed=1, on_exchange=writer.add_exchange, tick=writer.flush_due)

Nothing the server does raises: a request that goes wrong is an Exchange with a failure. What the callbacks raise
comes through, after the requests under way were dropped.
"""

import gc
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from kvgauge.failures import LoadError
from kvgauge.load.answers import Asked, answer_texts, read_answer
from kvgauge.load.arrivals import Arrivals, arrivals_of
from kvgauge.load.headers import NO_HEADERS, Headers
from kvgauge.load.lengths import TextLengths
from kvgauge.load.loop import Loop
from kvgauge.load.offset import RealtimeOffset
from kvgauge.load.open import OpenLoad
from kvgauge.load.open_files import raise_limit
from kvgauge.load.prompts import TOKEN_ID_HIGH, TOKEN_ID_LOW, Bodies
from kvgauge.load.proxy import Proxy
from kvgauge.load.receive import OpenReceiver, open_receiver
from kvgauge.load.schedules import schedule
from kvgauge.load.site import Site, site_of
from kvgauge.load.stream import Incoming
from kvgauge.load.tally import CellLoad, Tally
from kvgauge.load.texts import Said
from kvgauge.load.tls import Tls
from kvgauge.load.work import Ended, Limits
from kvgauge.plan.records import Api, Cell
from kvgauge.plan.trace import FileRequest, TraceRequest
from kvgauge.samples.records import Clock, Exchange
from kvgauge.tokens.choose import Chosen

MEASURE_NS = 10_000_000  # a step of the clock takes the kernel's stamps from no more reads than come in this time
TICK_NS = 100_000_000
OVERDUE_NS = 900_000_000  # ticks and answers that waited this long for an idle moment are not put off again
LEAD_NS = 2_000_000  # from "start" to the first due time, so that the first send is not late already
STAGGER_NS_MAX = 2_000_000_000
CONNECT_S, STALL_S = 5.0, 30.0
OPEN_AHEAD = 64  # connections and requests an open load has ready before it starts
OPEN_SPARE = 16  # connections it keeps ready beyond those in use
OPEN_WARMUP_SLOTS = 16
DESCRIPTORS_LEFT = 64  # for files and whatever else this process opens
PATHS: dict[Api, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


class Driver:
    """Sends requests from this process, over connections that it keeps from cell to cell.

    url                  http://HOST:PORT or https://, with or without a path; its host is looked up here, once
    tls                  how an https server's certificate is checked; None: against the system's authorities
    realtime_ns          the clock of the kernel's stamps, which become moments of clock_ns: every moment of a record
                         is of that one
    host                 name of this host, for the records
    headers              what else stands in the head of each request
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
        token_ids: tuple[int, int] = (TOKEN_ID_LOW, TOKEN_ID_HIGH),
        worker: int = 0,
        open_receiver: OpenReceiver = open_receiver,
        tokenizer: Chosen | None = None,
        proxy: Proxy | None = None,
    ) -> None:
        if min(request_timeout_s, stall_timeout_s, connect_timeout_s) <= 0:
            raise LoadError("every timeout must be above 0 s")
        self._site: Site = site_of(url, tls, headers=headers, proxy=proxy)
        self._model, self._host, self._worker = model, host, worker
        self._clock_ns, self._offset = clock_ns, RealtimeOffset(clock_ns, realtime_ns)
        self._clock: Clock = "monotonic"
        size = tokenizer.tokenizer.size if tokenizer is not None else token_ids[1] + 1
        self._token_ids = token_ids[0], min(token_ids[1], size - 1)
        self._texts = TextLengths(self._site, model, tokenizer)
        self._stagger_s = stagger_s
        self._latencies_ns: dict[tuple[object, ...], list[int]] = {}  # of the last cell of each shape
        first_token_s = request_timeout_s if first_token_timeout_s is None else first_token_timeout_s
        limits = Limits(
            connect_ns=int(min(connect_timeout_s, request_timeout_s) * 1e9),
            first_token_ns=int(min(first_token_s, request_timeout_s) * 1e9),
            stall_ns=int(min(stall_timeout_s, request_timeout_s) * 1e9),
            request_ns=int(request_timeout_s * 1e9),
        )
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
        keep_text: Callable[[Said], None] | None = None,
    ) -> CellLoad:
        """Offer one cell: its warm-up, then what is measured.

        on_exchange  gets each request once its answer is read, warm-up included; not in the order of their ends
        tick         called about every 100 ms when no socket is ready, and at least about once a second
        stop         asked every 50 ms; True ends what is under way as `interrupted` and sends nothing more
        enough       asked every 50 ms while requests are measured; True: nothing more becomes due, what is due is sent
        requests     those of the trace or the dataset that the cell sends
        keep_text    gets what an answer said when the server sent no usage with it, before its exchange is handed over
        raises       LoadError when the cell cannot be asked for, and what the callbacks raise
        """
        known, added = self._texts.made(cell)
        bodies = Bodies(
            cell,
            model=self._model,
            seed=seed,
            token_ids=self._token_ids,
            requests=requests,
            added=added,
            known=known,
        )
        slots = self._slots(cell)
        ahead = min(slots, max(OPEN_AHEAD, cell.burst.size if cell.burst else 0)) if cell.is_open else slots
        template = self._asked(cell, run_id)
        work = _CellWork(
            self._site,
            PATHS[cell.api],
            bodies,
            template,
            on_exchange=on_exchange,
            tick=tick,
            stop=stop,
            slots=ahead,
            offset=self._offset,
            keep_text=keep_text,
        )
        steps = self._offset.steps
        open_load: OpenLoad | None = None
        with _collector_off():
            self._loop.connect(slots, ahead=ahead)
            finished = True
            if cell.warmup_requests:
                finished = self._warm_up(cell, work, slots)
            stagger_ns = self._stagger_ns(cell, work) if cell.load == "closed" and slots > 1 else 0
            cpu_ns = time.process_time_ns()
            if finished and cell.requests:
                work.begin(requests=cell.requests, warmup=False)
                work.enough = enough
                start_ns = self._clock_ns() + LEAD_NS
                arrivals: Arrivals
                if cell.is_open:
                    times_ns = schedule(
                        cell, seed=seed, trace=tuple(each for each in requests if isinstance(each, TraceRequest))
                    )
                    arrivals = open_load = OpenLoad(times_ns, slots=slots, start_ns=start_ns)
                else:
                    arrivals = self._closed(cell, slots, start_ns=start_ns, stagger_ns=stagger_ns)
                finished = self._loop.offer(arrivals, work, spare=OPEN_SPARE if cell.is_open else 0)
                work.drain()
            cpu_ns = time.process_time_ns() - cpu_ns
            if work.tally.e2e_ns:
                self._latencies_ns[_shape(cell)] = work.tally.e2e_ns
        load = work.tally.cell_load(
            cell.name, self._clock, cpu_ns=cpu_ns, stagger_ns=stagger_ns, interrupted=not finished
        )
        offer = work.tally.open_offer(open_load, slots) if open_load is not None and load.offered else None
        return msgspec.structs.replace(load, open=offer, enough=enough(), clock_steps=self._offset.steps - steps)

    def _slots(self, cell: Cell) -> int:
        """How many requests may be under way. raises LoadError when no file descriptor is left for an open load"""
        if not cell.is_open:
            return 1 if cell.load == "single" else cell.concurrency
        most = raise_limit()
        others = len(list(Path("/proc/self/fd").iterdir())) - self._loop.connections
        left = most - others - DESCRIPTORS_LEFT
        if left < 1:
            raise LoadError(f"no file descriptor is left for connections (limit {most}); raise it with ulimit -n")
        return min(cell.concurrency, left)

    def _warm_up(self, cell: Cell, work: "_CellWork", slots: int) -> bool:
        """A closed cell warms up in its own shape, an open one with few at a time."""
        work.begin(requests=cell.warmup_requests, warmup=True)
        start_ns = self._clock_ns() + LEAD_NS
        slots = min(slots, OPEN_WARMUP_SLOTS) if cell.is_open else slots
        load = "closed" if cell.is_open else cell.load
        finished = self._loop.offer(
            arrivals_of(load, slots=slots, requests=cell.warmup_requests, start_ns=start_ns), work
        )
        work.drain()
        return finished

    def _closed(self, cell: Cell, slots: int, *, start_ns: int, stagger_ns: int) -> Arrivals:
        return arrivals_of(
            cell.load,
            slots=slots,
            requests=cell.requests,
            start_ns=start_ns,
            stagger_ns=stagger_ns,
            duration_ns=None if cell.duration_s is None else round(cell.duration_s * 1e9),
        )

    def _stagger_ns(self, cell: Cell, work: "_CellWork") -> int:
        if self._stagger_s is not None:
            return int(self._stagger_s * 1e9)
        known = work.tally.warmup_e2e_ns or self._latencies_ns.get(_shape(cell), [])
        rounds = cell.requests / cell.concurrency
        if not known or rounds <= 1:
            return 0
        return int(min(STAGGER_NS_MAX, statistics.median_low(known)) * (1 - 1 / rounds))

    def _asked(self, cell: Cell, run_id: str) -> Asked:
        tls = self._site.tls
        return Asked(
            run_id=run_id,
            cell=cell.name,
            seq=0,
            warmup=False,
            slot=0,
            worker=self._worker,
            host=self._host,
            clock=self._clock,
            tls=None if tls is None else "unverified" if tls.insecure else "verified",
            due_ns=0,
            sent_ns=0,
        )


def _shape(cell: Cell) -> tuple[object, ...]:
    """Cells whose requests take about as long, but for how many there are at a time."""
    return cell.prompt, cell.input_tokens, cell.output_tokens, cell.dataset and cell.dataset.path, cell.stream


class _CellWork:
    """What the loop asks for and gives while one cell is offered."""

    def __init__(
        self,
        site: Site,
        api_path: str,
        bodies: Bodies,
        template: Asked,
        *,
        on_exchange: Callable[[Exchange], None],
        tick: Callable[[], None] | None,
        stop: Callable[[], bool],
        slots: int,
        offset: RealtimeOffset,
        keep_text: Callable[[Said], None] | None = None,
    ) -> None:
        self._keep_text = keep_text
        self._offset = offset
        self._site, self._api_path, self._bodies, self._template = site, api_path, bodies, template
        self._on_exchange, self._tick, self.stop = on_exchange, tick, stop
        self.enough: Callable[[], bool] = lambda: False
        self._slots = slots
        self._warmup = False
        self._seq_built = self._seq_end = 0
        self._built: deque[tuple[int, bytes]] = deque()  # requests ready to be sent
        self._unread: deque[Ended] = deque()  # answers nobody has looked at
        self._unread_new = 0  # of those, since the last idle()
        self._tick_ns = self._measured_ns = 0
        self.tally = Tally()

    def begin(self, *, requests: int, warmup: bool) -> None:
        """Expect this many requests; their numbers go on from the last ones."""
        self._warmup = warmup
        self._built.clear()
        self._seq_built = self._seq_end
        self._seq_end += requests
        while len(self._built) < self._slots and self._build():
            pass

    def next_request(self) -> tuple[int, bytes]:
        if not self._built:
            self._build()
        return self._built.popleft()

    def skip(self) -> int:
        if self._built:
            return self._built.popleft()[0]
        self._seq_built += 1
        return self._seq_built - 1

    def over(self, ended: Ended) -> None:
        self._unread.append(ended)
        self._unread_new += 1

    def idle(self, now_ns: int, *, ready: bool) -> bool:
        if now_ns - self._measured_ns >= MEASURE_NS:
            self._measured_ns = now_ns
            self._offset.measure()
        if ready:
            self._catch_up(now_ns)
        elif self._tick is not None and now_ns - self._tick_ns >= TICK_NS:
            self._tick_ns = now_ns
            self._tick()
        elif self._unread:
            self._read_one()
        else:
            return len(self._built) < 2 * self._slots and self._build()
        return True

    def drain(self) -> None:
        """Read all that is left: nothing is under way any more."""
        while self._unread:
            self._read_one()
        if self._tick is not None:
            self._tick()

    def _catch_up(self, now_ns: int) -> None:
        """Sockets do not rest: read one answer, which delays the next read by no more than it takes; as many as have
        ended since, once the oldest has waited too long."""
        if self._unread:
            overdue = now_ns - self._unread[0].ended_ns > OVERDUE_NS
            for _ in range(min(max(1, self._unread_new if overdue else 1), len(self._unread))):
                self._read_one()
        self._unread_new = 0
        if self._tick is not None and now_ns - self._tick_ns > OVERDUE_NS:
            self._tick_ns = now_ns
            self._tick()

    def _build(self) -> bool:
        if self._seq_built >= self._seq_end:
            return False
        body = self._bodies.body(self._seq_built)
        self._built.append((self._seq_built, self._site.request("POST", self._api_path, body)))
        self._seq_built += 1
        return True

    def _read_one(self) -> None:
        ended = self._unread.popleft()
        sent_ns = ended.sent_ns if ended.sent_ns is not None else ended.begun_ns
        asked = msgspec.structs.replace(
            self._template,
            seq=ended.seq,
            warmup=self._warmup,
            slot=ended.slot,
            due_ns=ended.due_ns,
            sent_ns=sent_ns,
        )
        incoming = ended.incoming if ended.incoming is not None else Incoming()
        self._offset.measure()
        answer = incoming.answer(self._offset, ended_ns=ended.ended_ns, cut=ended.cut, detail=ended.detail)
        answer = msgspec.structs.replace(answer, body=self._site.hidden(answer.body))
        incoming.finish(incoming.end)
        exchange = read_answer(asked, answer)
        if self._site.proxy is not None:
            exchange = self._site.proxy.judged(exchange, tunnelled=self._site.tls is not None)
        if self._keep_text is not None and exchange.failure is None and exchange.tokens_source == "events":
            self._keep_text(Said(cell=exchange.cell, seq=exchange.seq, texts=answer_texts(answer)))
        self.tally.add(exchange, sent=ended.sent_ns is not None, fresh=ended.fresh)
        self._on_exchange(exchange)


@contextmanager
def _collector_off() -> Iterator[None]:
    """No garbage collection while stamps are taken: nothing here makes cycles that outlive a request."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

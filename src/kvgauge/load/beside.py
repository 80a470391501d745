"""The load driver of two deployments that stand side by side: one loop, one load, each request to one of them.

with PairedDriver((one, other), host=platform.node()) as driver:
    loads = driver.run_cell(cell, run_ids=("...", "..."), seed=1, on_exchange=take)
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
from kvgauge.load.arrivals import Arrivals, arrivals_of
from kvgauge.load.asking import CLOCK, PATHS, Asking, limits_of
from kvgauge.load.cell_work import CellWork
from kvgauge.load.drive import (
    CONNECT_S,
    DESCRIPTORS_LEFT,
    LEAD_NS,
    OPEN_AHEAD,
    OPEN_SPARE,
    OPEN_WARMUP_SLOTS,
    STALL_S,
    duration_ns_of,
    stagger_of,
)
from kvgauge.load.headers import NO_HEADERS, Headers
from kvgauge.load.loop import Loop
from kvgauge.load.offset import RealtimeOffset
from kvgauge.load.open import OpenLoad, drain_ns_of
from kvgauge.load.open_files import raise_limit
from kvgauge.load.paired_work import PairedWork
from kvgauge.load.pairs import ARMS, InPairs, Order
from kvgauge.load.process import collector_off
from kvgauge.load.proxy import Proxy
from kvgauge.load.receive import OpenReceiver, acknowledging, open_receiver
from kvgauge.load.schedules import schedule
from kvgauge.load.site import site_of
from kvgauge.load.tally import CellLoad
from kvgauge.load.texts import Said
from kvgauge.load.tls import Tls
from kvgauge.plan.open import starts
from kvgauge.plan.records import Cell
from kvgauge.plan.trace import FileRequest, TraceRequest
from kvgauge.samples.records import Exchange
from kvgauge.tokens.choose import Chosen


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two: where it is, and what is known of how to ask it."""

    url: str
    model: str
    proxy: Proxy | None = None
    tokenizer: Chosen | None = None


class PairedDriver:
    """Sends from this process to both arms, over connections that it keeps from cell to cell. Options as in Driver.

    raises  LoadError for a URL or a CA file that cannot be used
    """

    def __init__(
        self,
        arms: tuple[Arm, Arm],
        *,
        host: str,
        tls: Tls | None = None,
        headers: Headers = NO_HEADERS,
        quick_ack: bool = False,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        realtime_ns: Callable[[], int] = time.time_ns,
        request_timeout_s: float = 120,
        open_receiver: OpenReceiver = open_receiver,
    ) -> None:
        limits = limits_of(request_s=request_timeout_s, connect_s=CONNECT_S, stall_s=STALL_S)
        sites = [site_of(arm.url, tls, headers=headers, proxy=arm.proxy) for arm in arms]
        self._asking = [
            Asking(site, arm.model, host=host, tokenizer=arm.tokenizer) for site, arm in zip(sites, arms, strict=True)
        ]
        self._clock_ns, self._offset = clock_ns, RealtimeOffset(clock_ns, realtime_ns)
        receiver = acknowledging(open_receiver) if quick_ack else open_receiver
        self._loop = Loop(*sites, limits=limits, clock_ns=clock_ns, open_receiver=receiver)

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
        run_ids: tuple[str, str],
        seed: int,
        on_exchange: Callable[[int, Exchange, int | None], None],
        tick: Callable[[], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
        enough: Callable[[], bool] = lambda: False,
        requests: tuple[FileRequest, ...] = (),
        keep_text: tuple[Callable[[Said], None] | None, Callable[[Said], None] | None] = (None, None),
    ) -> tuple[CellLoad, CellLoad]:
        """Offer one cell, its requests and its warm-up, to both arms together, half of it to each.

        on_exchange  gets (arm, exchange, pair) once an answer is read; pair None: of the warm-up
        tick, stop, enough, requests, keep_text   as in Driver.run_cell
        returns      what became of each arm's part; its processor time is that of both
        raises       LoadError when the cell cannot be asked for, and what the callbacks raise
        """
        if cell.conversation is not None:
            raise LoadError(f"cell {cell.name}: the turns of a conversation belong to one server; no pairs are made")
        slots = self._slots(cell)
        ahead = min(slots, max(OPEN_AHEAD, cell.burst.size if cell.burst else 0)) if cell.is_open else slots
        order = Order(seed, cell.name)

        def taken(arm: int) -> Callable[[Exchange], None]:
            return lambda each: on_exchange(arm, each, None if each.warmup else work.pair_of(each))

        parts = [
            CellWork(
                asking.site,
                PATHS[cell.api],
                asking.bodies(cell, seed, requests),
                asking.asked(cell, run_ids[arm]),
                on_exchange=taken(arm),
                tick=tick if arm == 0 else None,
                stop=stop,
                slots=ahead,
                offset=self._offset,
                warmups=cell.warmup_requests,
                keep_text=keep_text[arm],
            )
            for arm, asking in enumerate(self._asking)
        ]
        work = PairedWork((parts[0], parts[1]), order, stop=stop, warmups=cell.warmup_requests)
        steps = self._offset.steps
        open_load: OpenLoad | None = None
        with collector_off():
            self._loop.connect(ARMS * slots, ahead=ARMS * ahead)
            finished = self._warm_up(cell, work, order, slots) if cell.warmup_requests else True
            known = [e2e_ns for part in parts for e2e_ns in part.tally.warmup_e2e_ns]
            stagger_ns = stagger_of(cell, statistics.median_low(known) if known else None, None)
            cpu_ns = time.process_time_ns()
            if finished and cell.requests:
                begin_ns = self._clock_ns() + LEAD_NS
                load, open_load = self._load(cell, seed, slots, begin_ns, stagger_ns, requests)
                pairs = InPairs(load, order, begin=cell.warmup_requests // ARMS, by_slot=not cell.is_open)
                work.begin(pairs, requests=_most(cell, slots), warmup=False)
                work.enough = enough
                finished = self._loop.offer(pairs, work, spare=ARMS * OPEN_SPARE if cell.is_open else 0)
                work.drain()
            cpu_ns = time.process_time_ns() - cpu_ns
        loads = []
        for arm, part in enumerate(parts):
            one = part.tally.cell_load(cell.name, CLOCK, cpu_ns=cpu_ns, stagger_ns=stagger_ns, interrupted=not finished)
            offer = part.tally.open_offer(open_load, slots) if open_load is not None and one.offered else None
            if offer is not None:
                offer = msgspec.structs.replace(offer, given_up=work.given_up[arm])
            loads.append(
                msgspec.structs.replace(one, open=offer, enough=enough(), clock_steps=self._offset.steps - steps)
            )
        return loads[0], loads[1]

    def _warm_up(self, cell: Cell, work: PairedWork, order: Order, slots: int) -> bool:
        """Both arms, a pair after a pair in each slot; an open load's with few at a time."""
        slots = min(slots, OPEN_WARMUP_SLOTS) if cell.is_open else slots
        load = arrivals_of(
            "closed" if cell.is_open else cell.load,
            slots=slots,
            requests=cell.warmup_requests,
            start_ns=self._clock_ns() + LEAD_NS,
        )
        pairs = InPairs(load, order, begin=0, by_slot=False)
        work.begin(pairs, requests=cell.warmup_requests // ARMS, warmup=True)
        finished = self._loop.offer(pairs, work)
        work.drain()
        return finished

    def _load(
        self, cell: Cell, seed: int, slots: int, begin_ns: int, stagger_ns: int, requests: tuple[FileRequest, ...]
    ) -> tuple[Arrivals, OpenLoad | None]:
        """What makes the requests of both arms due."""
        duration_ns = duration_ns_of(cell)
        if cell.is_open:
            trace = tuple(each for each in requests if isinstance(each, TraceRequest))
            load = OpenLoad(
                islice(schedule(cell, seed=seed, trace=trace), cell.requests - cell.requests % ARMS),
                slots=slots,
                start_ns=begin_ns,
                end_ns=None if duration_ns is None else begin_ns + duration_ns,
                drain_ns=drain_ns_of(duration_ns),
            )
            return load, load
        closed = arrivals_of(
            cell.load,
            slots=slots,
            requests=starts(cell),
            start_ns=begin_ns,
            stagger_ns=stagger_ns,
            duration_ns=duration_ns,
        )
        return closed, None

    def _slots(self, cell: Cell) -> int:
        """How many requests may be under way. raises LoadError when file descriptors are short"""
        if cell.load == "single":
            return 1
        others = len(list(Path("/proc/self/fd").iterdir())) - self._loop.connections
        left = (raise_limit() - others - DESCRIPTORS_LEFT) // ARMS
        if left < (1 if cell.is_open else cell.concurrency):
            raise LoadError(
                f"cell {cell.name}: {ARMS * cell.concurrency} connections to two servers need more file descriptors; "
                "raise the limit with ulimit -n, or lower the concurrency"
            )
        return min(cell.concurrency, left)


def _most(cell: Cell, slots: int) -> int:
    """Most requests that one arm gets: half of an open load, of a closed one a slot's half pair more for each slot."""
    return cell.requests // ARMS + (0 if cell.is_open else slots)

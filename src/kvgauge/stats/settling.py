"""While a load goes on: when it may be measured. The online form of steady.py's `judge`. Pure.

Each answer that has been read is given to `add`; values are kept as sums over short bins of send time, so that a look
costs the same however many requests there were. Looks come when the batches have become a fifth more: each one more is
one more chance to say "steady" by luck. What a look saw is not measured: a stretch that was chosen because it looks
flat is flatter than what it was taken from, so only what is sent after the decision counts.
"""

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from math import ceil
from statistics import median
from typing import Literal

import msgspec

from kvgauge.plan.records import UntilSteady
from kvgauge.samples.records import Exchange
from kvgauge.stats.cells import NS_PER_MS
from kvgauge.stats.steady import BATCHES_MIN, REQUESTS_A_BATCH, Batch, judge

BIN_NS = 250_000_000
WIDTH_NS_MIN = 1_000_000_000
LOOK_GROWTH = 1.2
DURATIONS = 501  # the last so many say how long a request is
FAILED_MIN = 20  # all that came so far failed: nothing will settle
ASK_NS = 250_000_000
BINS_MAX = 1_000_000

VALUES = {"ttft_ms": "TTFT", "e2e_latency_ms": "latency"}


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """How a warm-up ended.

    state     steady; unsteady: its limit was reached, and what follows is measured all the same; interrupted
    took_ns   from the start of the load to the moment from which it is measured
    batches, width_ns   of the last look; looks: how many there were
    """

    state: Literal["steady", "unsteady", "interrupted"]
    reason: str
    took_ns: int
    batches: int
    width_ns: int
    looks: int


def ready() -> None:
    """Have what a look needs loaded: the first one would otherwise hold up the load for as long as that takes."""
    judge([Batch(begin_ns=at, end_ns=at + 1, n=1, mean=100 + at % 3) for at in range(BATCHES_MIN)])


class _Bin:
    __slots__ = ("n", "sums")

    def __init__(self) -> None:
        self.n, self.sums = 0, [0.0, 0.0]


class Settling:
    """Watches one cell from its start on.

    streamed  False: nothing is known of first tokens, so only latency is looked at
    """

    def __init__(self, steady: UntilSteady, *, streamed: bool = True) -> None:
        self._steady, self._names = steady, tuple(VALUES) if streamed else ("e2e_latency_ms",)
        self._bins: dict[int, _Bin] = {}
        self._zero_ns: int | None = None  # the first request was sent then
        self._next_seq = 0  # all requests before it have ended
        self._until_ns = 0  # all that was sent before has ended
        self._early: dict[int, int] = {}  # ended before one that was begun earlier: when they were sent
        self._durations_ns: deque[int] = deque(maxlen=DURATIONS)
        self._answered = self._failed = 0
        self._start_ns: int | None = None
        self._asked_ns = self._looks = self._batches = 0
        self._look_at = BATCHES_MIN
        self._said = "no batch of requests had ended"
        self._begin_ns: int | None = None
        self._state: Literal["steady", "unsteady", "interrupted"] = "interrupted"
        ready()

    def add(self, exchange: Exchange) -> None:
        """A request has ended, in whatever order."""
        if self._begin_ns is not None:
            return
        unsent = exchange.failure == "unsent"
        self._early[exchange.seq] = 0 if unsent else exchange.sent_ns
        while self._next_seq in self._early:
            self._until_ns = max(self._until_ns, self._early.pop(self._next_seq))
            self._next_seq += 1
        e2e_ns, ttft_ns = exchange.e2e_ns, exchange.ttft_ns
        if exchange.failure is not None or e2e_ns is None or ttft_ns is None:
            self._failed += exchange.failure is not None
            return
        self._answered += 1
        self._durations_ns.append(e2e_ns)
        if self._zero_ns is None:
            self._zero_ns = exchange.sent_ns
        number = (exchange.sent_ns - self._zero_ns) // BIN_NS
        if number not in self._bins and len(self._bins) >= BINS_MAX:
            return
        place = self._bins.setdefault(number, _Bin())
        place.n += 1
        place.sums[0] += ttft_ns / NS_PER_MS
        place.sums[1] += e2e_ns / NS_PER_MS

    def measure_from(self, now_ns: int) -> int | None:
        """From which moment on requests are measured; None: not yet. now_ns: of the clock of the exchanges."""
        if self._start_ns is None:
            self._start_ns = now_ns
        if self._begin_ns is not None or now_ns - self._asked_ns < ASK_NS:
            return self._begin_ns
        self._asked_ns = now_ns
        past_s = (now_ns - self._start_ns) / 1e9
        if not self._answered and self._failed >= FAILED_MIN:
            self._said = f"the first {self._failed} requests failed"
            return self._begin("unsteady", now_ns)
        last = past_s >= self._steady.limit_s
        if self._look(last=last) and past_s >= self._steady.at_least_s:
            return self._begin("steady", now_ns)
        return self._begin("unsteady", now_ns) if last else None

    @property
    def outcome(self) -> Settled:
        begin_ns, start_ns = self._begin_ns, self._start_ns
        return Settled(
            state=self._state,
            reason=self._said,
            took_ns=0 if begin_ns is None or start_ns is None else begin_ns - start_ns,
            batches=self._batches,
            width_ns=self._width_ns,
            looks=self._looks,
        )

    def _begin(self, state: Literal["steady", "unsteady"], now_ns: int) -> int:
        self._state, self._begin_ns = state, now_ns
        self._early.clear()
        return now_ns

    @property
    def _width_ns(self) -> int:
        """Of a batch, in whole bins: three of the last requests, a second at least."""
        wanted = REQUESTS_A_BATCH * median(self._durations_ns) if self._durations_ns else 0
        return max(WIDTH_NS_MIN, ceil(wanted / BIN_NS) * BIN_NS)

    def _look(self, *, last: bool) -> bool:
        """Whether the batches so far are steady, if it is time to look at them. last: it is, however few."""
        width_ns = self._width_ns
        count = 0 if self._zero_ns is None else max(0, self._until_ns - self._zero_ns) // width_ns
        if not last and count < self._look_at:
            self._batches = count
            return False
        self._looks += 1
        self._look_at = max(count + 1, ceil(count * LOOK_GROWTH))
        said = [(name, judge(self._whole(count, width_ns, at))) for name, at in self._places()]
        self._batches = count
        worst = next(((name, seen) for name, seen in said if seen.state != "steady"), said[0])
        self._said = f"{VALUES[worst[0]]}: {worst[1].reason}"
        if count < BATCHES_MIN:
            needed_s = (BATCHES_MIN + 2) * width_ns / 1e9
            self._said += f", of {width_ns / 1e9:g} s each: raise limit_s to {ceil(needed_s)} or more"
        return worst[1].state == "steady"

    def _places(self) -> Sequence[tuple[str, int]]:
        return [(name, list(VALUES).index(name)) for name in self._names]

    def _whole(self, count: int, width_ns: int, at: int) -> list[Batch]:
        """Batches of this width in which anything was answered."""
        assert self._zero_ns is not None or count == 0
        bins = width_ns // BIN_NS
        edges = [(self._zero_ns or 0) + number * width_ns for number in range(count + 1)]
        found = []
        for number, (begin_ns, end_ns) in enumerate(pairwise(edges)):
            inside = [self._bins[k] for k in range(number * bins, (number + 1) * bins) if k in self._bins]
            n = sum(each.n for each in inside)
            if n:
                mean = sum(each.sums[at] for each in inside) / n
                found.append(Batch(begin_ns=begin_ns, end_ns=end_ns, n=n, mean=mean))
        return found

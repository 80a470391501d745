"""The mean of values that follow one another in time, and when it is known well enough to stop.

Requests under load share queues and batches, so neighbours resemble each other and Student's t over requests is too
narrow. Means of long enough batches of neighbours hardly resemble each other, and t over those is honest.
A. M. Law, W. D. Kelton, *Simulation Modeling and Analysis*, 3rd ed., 9.5.3; the sequential form is Law and Carson's,
Operations Research 27 (1979) 1011-1025.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, sqrt

from kvgauge.plan.records import Until
from kvgauge.samples.records import Exchange
from kvgauge.stats.cells import NS_PER_MS, tpot_ms
from kvgauge.stats.estimate import Estimate, bare, missing
from kvgauge.stats.means import mean_and_spread, t_quantile

BATCHES = 20
CORRELATION_MAX = 0.2  # of neighbouring batch means; above, the batches are too short
LOOK_FIRST = 100  # requests
LOOK_GROWTH = 1.5  # few looks: each one more is one more chance to stop on luck


def batch_mean(values: Sequence[float], unit: str) -> Estimate:
    """The mean of values in their order, with a t interval over BATCHES batches; n = batches.

    The oldest values that fill no batch are left out. Too few values, or batches that still resemble their
    neighbours, give a point without an interval, and the reason.
    """
    if not values:
        return missing(unit, "no value")
    size = len(values) // BATCHES
    if size == 0:
        return bare(sum(values) / len(values), unit, len(values), f"fewer than {BATCHES} values: no batches")
    start = len(values) - size * BATCHES
    means = [sum(values[at : at + size]) / size for at in range(start, len(values), size)]
    mean, spread = mean_and_spread(means)
    correlation = _correlation(means, mean)
    if correlation > CORRELATION_MAX:
        reason = f"batches of {size} requests resemble their neighbours (correlation {correlation:.2f}): run longer"
        return bare(mean, unit, BATCHES, reason)
    half = t_quantile(0.975, BATCHES - 1) * spread / sqrt(BATCHES)
    return Estimate(point=mean, low=mean - half, high=mean + half, n=BATCHES, unit=unit)


def _correlation(means: Sequence[float], mean: float) -> float:
    """Of each batch mean with the next, about `mean`; 0 where all are equal."""
    off = [value - mean for value in means]
    spread = sum(value * value for value in off)
    return sum(a * b for a, b in pairwise(off)) / spread if spread > 0 else 0.0


class Narrow:
    """Looks at the measured requests of a cell as they end, and says when the mean is known well enough.

    Looks come at 100 requests and then each time at half as many again. A look sees the first n requests in the order
    they were sent, once all of them have ended: otherwise quick answers would be seen before slow ones.

    first_seq  number of the first measured request, or of one before it
    """

    def __init__(self, until: Until, *, first_seq: int) -> None:
        self._until, self._next_seq = until, first_seq
        self._early: dict[int, float | None] = {}  # ended before one that was sent earlier
        self._values: list[float] = []
        self._look_at, self._looked_at = LOOK_FIRST, 0
        self._seen = missing("ms", f"fewer than {LOOK_FIRST} requests")
        self.met = False

    def add(self, exchange: Exchange) -> None:
        """A request has ended, in whatever order. Warm-up does not count, nor does one that failed."""
        if exchange.seq < self._next_seq:
            return
        self._early[exchange.seq] = None if exchange.warmup else _value(exchange, self._until.metric)
        while self._next_seq in self._early:
            value = self._early.pop(self._next_seq)
            self._next_seq += 1
            if value is None:
                continue
            self._values.append(value)
            if len(self._values) == self._look_at and not self.met:
                self._look()

    def outcome(self) -> Estimate:
        """Half the interval's width at the last look, in percent of the mean; the reason says how it ended."""
        share = _half_width(self._seen)
        wanted = f"{self._until.metric} within {self._until.half_width:.2%}"
        if share is None:
            return missing("%", f"{wanted} was not reached: {self._seen.reason}")
        how = "reached" if self.met else "not reached"
        return bare(100 * share, "%", BATCHES, f"{wanted}: {how} at {self._looked_at} requests")

    def _look(self) -> None:
        self._seen, self._looked_at = batch_mean(self._values, "ms"), self._look_at
        share = _half_width(self._seen)
        self.met = share is not None and share <= self._until.half_width
        if not self.met:
            self._look_at = ceil(self._look_at * LOOK_GROWTH)


def _half_width(estimate: Estimate) -> float | None:
    if estimate.point is None or estimate.high is None or estimate.point <= 0:
        return None
    return (estimate.high - estimate.point) / estimate.point


def _value(exchange: Exchange, metric: str) -> float | None:
    if exchange.failure is not None:
        return None
    if metric == "tpot_ms_mean":
        return tpot_ms(exchange)
    time_ns = exchange.ttft_ns if metric == "ttft_ms_mean" else exchange.e2e_ns
    return None if time_ns is None else time_ns / NS_PER_MS

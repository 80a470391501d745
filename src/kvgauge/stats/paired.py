"""Pairs of requests that stood side by side: how one arm's latency differs from the other's, and when to stop. Pure.

A pair is one request of each arm, neighbours in time, which of them first drawn at random. What both share (a drift,
a busy machine) cancels in the logarithm of their ratio. What does not cancel may still make neighbouring pairs alike,
so the interval is Student's t over means of batches of consecutive pairs, and what these batches still have in common
widens it: their lag-1 correlation r leaves B (1 - r) / (1 + r) independent ones. No pair is ever left out for being
far away.

A. M. Law, W. D. Kelton, *Simulation Modeling and Analysis*, 3rd ed., 9.5.3 (batch means); B. D. Santer et al.,
J. Geophys. Res. 105 (2000) 7337-7356, section 2 (the correction); O. J. Dunn, J. Am. Stat. Assoc. 56 (1961) 52-64
(the level of several looks).
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import ceil, fsum, log, sqrt
from typing import Any

import msgspec

from kvgauge.samples.records import Exchange
from kvgauge.stats.cells import NS_PER_MS, tpot_ms
from kvgauge.stats.means import mean_and_spread, t_quantile, t_tails

UNIT = "pairs of requests, these deployments"
BATCHES = 20
PAIRS_MIN = 200  # fewer give no verdict: ten to a batch
CORRELATION_MAX = 0.45  # of neighbouring batch means; above, batches say too little of one another's distance
FREEDOM_MIN = 2.0  # degrees of freedom that are left, however alike the batches
LOOK_FIRST, LOOK_GROWTH, LOOKS_MAX = 400, 2, 8  # at 400, 800, ... 25,600 pairs, and at the end
LEVEL = 0.05
SHOWN_PCT = 1.0  # what pairs are for: nobody is told how many would show less
POWER = 0.8


class LogRatio(msgspec.Struct, frozen=True, kw_only=True):
    """log(after / before) of a metric over the pairs of one cell and repetition.

    mean     over the pairs that fill batches; None: no pair has the metric on both sides
    error    standard error of it; None: not known, and `reason` says why
    freedom  degrees of freedom of that error
    pairs    that are in it; batches: into which they were cut
    lost     pairs without this metric on a side: a request failed, or brought too few tokens
    looks    how many looks were planned at these pairs: the level is shared by them
    """

    mean: float | None
    error: float | None
    freedom: float
    pairs: int
    batches: int
    lost: int
    looks: int = 1
    reason: str | None = None

    def half_width(self, level: float = LEVEL) -> float | None:
        """Of the interval at 1 - level / looks, so that all looks' intervals hold together at 1 - level."""
        if self.error is None:
            return None
        return t_quantile(1 - level / self.looks / 2, self.freedom) * self.error

    @property
    def p_value(self) -> float | None:
        """Two-sided, that the mean is 0, times the looks."""
        if self.error is None or self.mean is None:
            return None
        if self.error == 0:
            return float(self.mean == 0)
        return min(1.0, self.looks * t_tails(self.mean / self.error, self.freedom))


VALUES: dict[str, Callable[[Exchange], float | None]] = {
    "ttft_ms_mean": lambda each: _ms(each.ttft_ns),
    "e2e_latency_ms_mean": lambda each: _ms(each.e2e_ns),
    "tpot_ms_mean": tpot_ms,
}


def _ms(time_ns: int | None) -> float | None:
    return None if time_ns is None else time_ns / NS_PER_MS


def value_of(exchange: Exchange, metric: str) -> float | None:
    """A request's own value of a paired metric; None where it failed or has none."""
    return None if exchange.failure is not None else VALUES[metric](exchange)


def log_of(pair: tuple[Exchange, Exchange], metric: str) -> float | None:
    """log(after / before) of a pair; None where a side has no value above 0."""
    before, after = (value_of(each, metric) for each in pair)
    if before is None or after is None or min(before, after) <= 0:
        return None
    return log(after / before)


def log_ratio(logs: Sequence[float | None], *, looks: int = 1) -> LogRatio:
    """What the pairs' logarithms, in the order the pairs began, say together. None: a pair that lost its value.

    The oldest pairs that fill no batch are left out of the mean; they are fewer than BATCHES.
    """
    known = [value for value in logs if value is not None]
    lost = len(logs) - len(known)
    size = len(known) // BATCHES
    if len(known) < PAIRS_MIN:
        mean = fsum(known) / len(known) if known else None
        count = f"{len(known)} pair{'' if len(known) == 1 else 's'} of requests"
        reason = f"{count}: an interval needs at least {PAIRS_MIN}" if known else "no pair has this value on both sides"
        return LogRatio(
            mean=mean, error=None, freedom=0, pairs=len(known), batches=0, lost=lost, looks=looks, reason=reason
        )
    start = len(known) - size * BATCHES
    means = [fsum(known[at : at + size]) / size for at in range(start, len(known), size)]
    mean, spread = mean_and_spread(means)
    alike = max(0.0, _correlation(means, mean))
    counts: dict[str, Any] = {"pairs": size * BATCHES, "batches": BATCHES, "lost": lost, "looks": looks}
    if alike > CORRELATION_MAX:
        reason = f"batches of {size} pairs resemble their neighbours (correlation {alike:.2f}): run longer"
        return LogRatio(mean=mean, error=None, freedom=0, reason=reason, **counts)
    widened = (1 + alike) / (1 - alike)
    freedom = max(FREEDOM_MIN, BATCHES / widened - 1)
    return LogRatio(mean=mean, error=spread * sqrt(widened / BATCHES), freedom=freedom, **counts)


def _correlation(means: Sequence[float], mean: float) -> float:
    """Of each batch mean with the next, less the bias that so few have (about -1/B); 0 where all are equal."""
    off = [value - mean for value in means]
    spread = fsum(value * value for value in off)
    return fsum(a * b for a, b in pairwise(off)) / spread + 1 / len(means) if spread > 0 else 0.0


def looks_of(pairs_most: int) -> tuple[int, ...]:
    """At how many pairs a cell of at most so many is looked at; its end is one look more."""
    fixed = (LOOK_FIRST * LOOK_GROWTH**place for place in range(LOOKS_MAX - 1))
    return tuple(pairs for pairs in fixed if pairs < pairs_most)


class Pairs:
    """The pairs of one cell as they end, and whether the gain in one metric is known well enough to stop.

    looks   pairs at which to look; (): never
    metric  that is looked at
    within  half the width of the interval that is narrow enough, as a logarithm; None: only the end ends it

    A look sees the first n pairs in the order they began, once all of them have ended, so that quick answers are not
    seen before slow ones. Looks are fixed before anything runs and each is at the level of all divided by their number.
    """

    def __init__(self, *, metric: str, looks: Sequence[int] = (), within: float | None = None) -> None:
        self._metric, self._within = metric, within
        self._looks = list(looks) if within is not None else []
        self.looks_planned = len(self._looks) + 1
        self._half: dict[int, tuple[int, Exchange]] = {}  # pair -> (arm, its request that has ended)
        self._whole: dict[int, tuple[Exchange, Exchange]] = {}
        self._logs: list[float | None] = []  # of the first pairs that have all ended
        self._known = 0
        self.met_at: int | None = None
        if self._looks:
            t_quantile(0.5, 1.0)  # loads scipy now, not between two requests

    def add(self, number: int, arm: int, exchange: Exchange) -> None:
        """One request of pair `number` has ended; arm 0 is before, 1 is after."""
        other = self._half.pop(number, None)
        if other is None:
            self._half[number] = (arm, exchange)
            return
        self._whole[number] = (other[1], exchange) if arm == 1 else (exchange, other[1])
        while (pair := self._whole.get(len(self._logs))) is not None:
            self._logs.append(log_of(pair, self._metric))
            self._known += self._logs[-1] is not None
            self._look()

    def _look(self) -> None:
        if self.met_at is not None or not self._looks or self._known < self._looks[0]:
            return
        self._looks.pop(0)
        half = log_ratio(self._logs, looks=self.looks_planned).half_width()
        if half is not None and self._within is not None and half <= self._within:
            self.met_at = self._known

    @property
    def met(self) -> bool:
        return self.met_at is not None

    @property
    def unfinished(self) -> int:
        """Requests whose partner was never sent: the load ended between them."""
        return len(self._half)

    def ratios(self) -> dict[str, LogRatio]:
        """Every paired metric, over all pairs of both sides."""
        ordered = [self._whole[number] for number in sorted(self._whole)]
        return {
            metric: log_ratio([log_of(pair, metric) for pair in ordered], looks=self.looks_planned) for metric in VALUES
        }


def together(ratios: Mapping[int, LogRatio]) -> LogRatio | None:
    """Repetitions as strata: the mean of their means, for these deployments only; None without one that has a mean.

    Satterthwaite's degrees of freedom. The level is that of the repetition with most looks.
    """
    means = [ratio.mean for ratio in ratios.values() if ratio.mean is not None]
    used = [ratio for ratio in ratios.values() if ratio.mean is not None]
    if not used:
        return None
    errors = [ratio.error for ratio in used]
    counts: dict[str, Any] = {
        "pairs": sum(ratio.pairs for ratio in used),
        "batches": sum(ratio.batches for ratio in used),
        "lost": sum(ratio.lost for ratio in used),
        "looks": max(ratio.looks for ratio in used),
    }
    mean = fsum(means) / len(means)
    known = [error for error in errors if error is not None]
    if len(known) < len(used):
        reason = next(ratio.reason for ratio in used if ratio.error is None)
        return LogRatio(mean=mean, error=None, freedom=0, reason=reason, **counts)
    parts = [(error / len(used)) ** 2 for error in known]
    below = sum(part**2 / ratio.freedom for part, ratio in zip(parts, used, strict=True))
    freedom = sum(parts) ** 2 / below if below else min(ratio.freedom for ratio in used)
    return LogRatio(mean=mean, error=sqrt(sum(parts)), freedom=freedom, **counts)


def pairs_needed(ratio: LogRatio, level: float = LEVEL) -> int | None:
    """How many pairs in all would show this difference, or SHOWN_PCT if that is more, 8 times in 10, if the spread
    stays as it is; None where no spread is known. level: two-sided, that its p-value has to stay below"""
    if ratio.mean is None or not ratio.error:
        return None
    effect = max(abs(ratio.mean), log(1 + SHOWN_PCT / 100))
    reach = t_quantile(1 - level / ratio.looks / 2, ratio.freedom) + t_quantile(POWER, ratio.freedom)
    return ceil(ratio.pairs * (reach * ratio.error / effect) ** 2)

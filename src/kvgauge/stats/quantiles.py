"""Quantiles of latencies: nearest rank, with a distribution-free interval where n allows one."""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, exp, lgamma, log, log1p, sqrt
from typing import TypeVar

from kvgauge.failures import TooFewSamples
from kvgauge.stats.estimate import Estimate, bare, missing

WORTH = "that resemble their neighbours are worth"
Number = TypeVar("Number", int, float)


def nearest_rank(ordered: Sequence[Number], q: float) -> Number:
    """The smallest observed value that at least a share q of the values do not exceed.

    ordered  n >= 1 values, ascending; 0 < q <= 1
    raises   TooFewSamples when there is none
    """
    if not ordered:
        raise TooFewSamples(f"p{q * 100:g} of no samples: at least one is needed")
    rank = ceil(q * len(ordered) - 1e-9)  # 0.9 x 10 is 9, not 9.000000000000002
    return ordered[min(max(rank, 1), len(ordered)) - 1]


def quantile_interval(ordered: Sequence[Number], q: float, confidence: float = 0.95) -> tuple[Number, Number]:
    """Distribution-free interval for the q-quantile.

    ordered  n values (latencies in ns or ms), ascending, independent
    q        0 < q < 1
    returns  (low, high), both observed values
    raises   TooFewSamples when n cannot reach `confidence`

    Exact binomial ranks with equal tails; where one tail has no rank, its extreme value stands in and the other
    tail gets all that is left: David & Nagaraja, Order Statistics, 3rd ed., 7.1.
    """
    ranks = interval_ranks(len(ordered), q, confidence)
    if ranks is None:
        raise TooFewSamples(
            f"p{q * 100:g} at {confidence:.0%} needs {samples_needed(q, confidence)} samples and there are "
            f"{len(ordered)}; run longer or lower q"
        )
    return ordered[ranks[0] - 1], ordered[ranks[1] - 1]


def samples_needed(q: float, confidence: float = 0.95) -> int:
    """The fewest samples whose smallest and largest hold the q-quantile between them often enough: 299 for P99."""
    n = max(2, int(log(1 - confidence) / log(max(q, 1 - q))))
    while q**n + (1 - q) ** n > 1 - confidence:
        n += 1
    return n


@lru_cache(maxsize=4096)
def interval_ranks(n: int, q: float, confidence: float) -> tuple[int, int] | None:
    """1-based ranks of the two ends, None where n is too small. About 24 sqrt(n q (1-q)) steps.

    With B ~ Binomial(n, q) counting the values below the quantile, coverage is P(low <= B < high).
    """
    if not 0 < q < 1 or not 0 < confidence < 1:
        raise ValueError(f"q and confidence lie between 0 and 1, got q={q} and confidence={confidence}")
    alpha = 1 - confidence
    if n < samples_needed(q, confidence):
        return None
    low, high = _rank_below(n, q, alpha / 2), n + 1 - _rank_below(n, 1 - q, alpha / 2)
    if low == 0:
        low, high = 1, n + 1 - _rank_below(n, 1 - q, alpha - (1 - q) ** n)
    elif high == n + 1:
        low, high = _rank_below(n, q, alpha - q**n), n
    return max(low, 1), min(high, n)


def _rank_below(n: int, q: float, tail: float) -> int:
    """The largest rank r with P(B < r) <= tail for B ~ Binomial(n, q); 0 where there is none."""
    reach = 12 * sqrt(n * q * (1 - q)) + 20  # what lies further out weighs less than 1e-30
    successes = max(0, int(n * q - reach))
    mass = exp(
        lgamma(n + 1)
        - lgamma(successes + 1)
        - lgamma(n - successes + 1)
        + successes * log(q)
        + (n - successes) * log1p(-q)
    )
    below, odds = mass, q / (1 - q)
    while below <= tail * (1 + 1e-12) and successes < n:
        mass *= (n - successes) / (successes + 1) * odds
        successes += 1
        below += mass
    return successes


def quantile_estimate(
    ordered: Sequence[Number], q: float, unit: str, *, independent: bool = True, effective_n: int | None = None
) -> Estimate:
    """Nearest rank with its interval, or the reason why there is none.

    A P99 of fewer than 299 values is the largest of them and says so: "max of n".
    independent  False leaves the interval out (values that follow one another in a request, for example)
    effective_n  how many independent values these are worth (stats/tails.py); None: all of them are
    """
    n = len(ordered)
    name = f"P{q * 100:g}"
    if n == 0:
        return missing(unit, "no values")
    needed = samples_needed(q)
    if q >= 0.99 and n < needed:
        return bare(float(ordered[-1]), unit, n, f"max of n={n}: a {name} interval needs {needed} requests")
    point = nearest_rank(ordered, q)
    if not independent:
        return bare(float(point), unit, n, "not independent of one another: no interval")
    worth = n if effective_n is None else min(effective_n, n)
    ranks = interval_ranks(worth, q, 0.95)
    if ranks is None and worth < n and n >= needed:
        return bare(float(point), unit, worth, f"{n} requests {WORTH} {worth}: a {name} interval needs {needed}")
    if ranks is None:
        largest = "max of " if point == ordered[-1] and q > 0.5 else ""
        return bare(float(point), unit, n, f"{largest}n={n}: a {name} interval needs {needed} requests")
    low = (ranks[0] - 1) * n // worth  # the same shares of n as of what it is worth
    high = -(-ranks[1] * n // worth) - 1
    return Estimate(point=float(point), low=float(ordered[low]), high=float(ordered[high]), n=worth, unit=unit)

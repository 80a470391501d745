"""The mean of independent values, with Student's t interval."""

from collections.abc import Sequence
from functools import lru_cache
from math import fsum, sqrt

from kvgauge.stats.estimate import Estimate, bare, missing


@lru_cache(maxsize=1024)
def t_quantile(p: float, freedom: float) -> float:
    """The p-quantile of Student's t with `freedom` degrees of freedom (at least 1, whole or not)."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, p))


def t_tails(t: float, freedom: float) -> float:
    """P(|T| >= |t|): the two-sided p-value of a t statistic."""
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(t)))


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1) of at least two values, in their unit."""
    n = len(values)
    mean = fsum(values) / n
    return mean, sqrt(fsum((value - mean) * (value - mean) for value in values) / (n - 1))


def mean_estimate(values: Sequence[float], unit: str, *, confidence: float = 0.95, of: str = "value") -> Estimate:
    """Mean with a t interval; one value gives a point, none gives nothing, each with the reason.

    of  what a value is called in the reason: "run", "request"

    Student's t: exact for normal values, close for means of many; tests count its coverage.
    """
    n = len(values)
    if n == 0:
        return missing(unit, f"no {of} has this value")
    if n == 1:
        return bare(float(values[0]), unit, 1, f"one {of}: an interval needs at least 2")
    mean, spread = mean_and_spread(values)
    half = t_quantile((1 + confidence) / 2, n - 1) * spread / sqrt(n)
    return Estimate(point=mean, low=mean - half, high=mean + half, n=n, unit=unit)

"""How many independent observations a quantile rests on, of values that follow one another in time. Pure.

Requests under load share queues and batches: the slow ones come in clusters, and ten slow ones of one cluster say
hardly more of the P99 than one. What decides is the series "above the quantile or not": the variance of the share
above it is that of independent values times tau = 1 + 2 x the sum of its autocorrelations (P. Heidelberger, P. A. W.
Lewis, *Quantile estimation in dependent sequences*, Operations Research 32 (1984) 185-209). The sum ends before the
first correlation that noise alone would give (below 2 / sqrt(n)), so that independent values keep their n.
"""

from math import floor, sqrt

import numpy as np
import numpy.typing as npt

from kvgauge.stats.estimate import Estimate
from kvgauge.stats.quantiles import WORTH

P99_REQUESTS_MIN = 1000  # of a run: ten are slower than its P99
NOISE = 2.0  # standard errors of an autocorrelation of independent values


def independent(values: npt.NDArray[np.float64], q: float) -> int:
    """The effective n of the q-quantile of values in the order of their requests; len(values) where none is wasted."""
    n = len(values)
    if n < 3:
        return n
    return max(1, min(n, floor(n / tau(values > np.quantile(values, q, method="inverted_cdf")) + 1e-9)))


def tau(above: npt.NDArray[np.bool_]) -> float:
    """1 + 2 x the sum of the first autocorrelations that are more than noise; at least 1."""
    n = len(above)
    off = above - above.mean()
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(off, size)
    covariance = np.fft.irfft(spectrum * np.conj(spectrum), size)[:n]
    if covariance[0] <= 0:
        return 1.0
    correlation = covariance[1:] / covariance[0]
    noise = np.flatnonzero(correlation < NOISE / sqrt(n))
    last = int(noise[0]) if len(noise) else n - 1
    return max(1.0, 1.0 + 2.0 * float(correlation[:last].sum()))


def no_tail(metric: str, estimate: Estimate, requests: Estimate | None) -> str | None:
    """Why a P99 gives no verdict: too few requests, or too few that are independent; None: it does, or is no P99."""
    if is_largest(estimate):
        return estimate.reason or ""
    if not metric.endswith("_p99") or requests is None or requests.point is None:
        return None
    if requests.point < P99_REQUESTS_MIN:
        wanted = f"a verdict needs {P99_REQUESTS_MIN:,} in each run, so that ten are slower"
        return f"P99 of {requests.point:.0f} requests: {wanted}"
    return estimate.reason if WORTH in (estimate.reason or "") else None


def is_largest(estimate: Estimate) -> bool:
    """Whether a quantile had too few requests and is their maximum instead (stats/quantiles.py says so)."""
    return (estimate.reason or "").startswith("max of n=")

"""Whether a load has settled: from which moment on, or not at all, and how much it still drifts. Pure.

What is looked at are means of one value (TTFT, say) over batches of wall-clock time, by when each request was sent. A
batch lasts at least three requests, so that a batch is more than the tail of the one before.
"""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from kvgauge.stats.estimate import Estimate, missing
from kvgauge.stats.means import t_quantile

Values = npt.NDArray[np.float64]
State = Literal["steady", "drifting", "unsettled"]

REQUESTS_A_BATCH = 3  # durations of a request that a batch lasts at least
BATCHES_MIN = 10  # below, nothing can be said of an end to the transient
KEPT_MIN = 6  # batches that a verdict needs after the transient
LAG_MAX = 0.5  # correlation of neighbouring batches above which a mean may be that of a walk
MARGIN_PCT = 3.0  # a drift over what is measured that matters: the margin within which a gain is none


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Requests sent in [begin_ns, end_ns): how many, and the mean of their values."""

    begin_ns: int
    end_ns: int
    n: int
    mean: float


class Steady(msgspec.Struct, frozen=True, kw_only=True):
    """What a series of batches shows.

    state    steady; drifting: the transient is over, and a trend above the margin is left; unsettled: no end of it yet
    from_ns  the moment from which on it may be measured; None while unsettled
    drift    change over the batches from then on, in percent of their mean, with its interval; n = batches
    """

    state: State
    from_ns: int | None
    drift: Estimate
    reason: str


def width_ns(durations_ns: Sequence[int], *, least_ns: int = 1_000_000_000) -> int:
    """How long a batch has to be: three times the median request, a second at least."""
    if not durations_ns:
        return least_ns
    return max(least_ns, REQUESTS_A_BATCH * int(np.median(np.asarray(durations_ns))))


def batches(sent_ns: Sequence[int], values: Sequence[float], *, width_ns: int, until_ns: int) -> list[Batch]:
    """Whole batches from the first request on, in order; one in which nothing was sent is left out.

    until_ns  everything sent before it has ended and is among the values: later batches are not whole
    """
    if not sent_ns:
        return []
    order = np.argsort(np.asarray(sent_ns, dtype=np.int64), kind="stable")
    sent, found = np.asarray(sent_ns, dtype=np.int64)[order], np.asarray(values, dtype=np.float64)[order]
    begin = int(sent[0])
    count = max(0, (until_ns - begin) // width_ns)
    edges = np.searchsorted(sent, begin + width_ns * np.arange(count + 1, dtype=np.int64))
    return [
        Batch(
            begin_ns=begin + at * width_ns,
            end_ns=begin + (at + 1) * width_ns,
            n=int(edges[at + 1] - edges[at]),
            mean=float(found[edges[at] : edges[at + 1]].mean()),
        )
        for at in range(count)
        if edges[at + 1] > edges[at]
    ]


def judge(found: Sequence[Batch], *, margin_pct: float = MARGIN_PCT) -> Steady:
    """Look at all batches so far: where the transient ended (MSER), and what trend is left after it.

    MSER also names cuts in the second half by chance. Such a one counts only where what it cuts off differs by more
    than the margin from what it leaves.
    """
    none = missing("%", "the transient has not ended")
    if len(found) < BATCHES_MIN:
        reason = f"{len(found)} batches of requests: at least {BATCHES_MIN} are needed"
        return Steady(state="unsettled", from_ns=None, drift=none, reason=reason)
    means = np.array([batch.mean for batch in found])
    scores = _scores(means)
    cut, late = int(np.argmin(scores[: len(means) // 2 + 1])), int(np.argmin(scores))
    if late > len(means) // 2 and abs(means[cut:late].mean() / means[late:].mean() - 1) > margin_pct / 100:
        reason = f"no end of the transient in {len(found)} batches"
        return Steady(state="unsettled", from_ns=None, drift=none, reason=reason)
    left = drift(means[cut:])
    assert left.point is not None
    assert left.low is not None
    assert left.high is not None
    begin = found[cut].begin_ns
    if (lag := _lag(means[cut:] - means[cut:].mean())) > LAG_MAX:
        reach = _reach_pct(means[cut:], lag)
        if reach > margin_pct:
            reason = f"it wanders: its mean over {left.n} batches is not known better than by {reach:.0f} %"
            return Steady(state="unsettled", from_ns=None, drift=none, reason=reason)
    if (left.low > 0 or left.high < 0) and abs(left.point) > margin_pct:
        reason = f"still drifting: {left.point:+.1f} % over {left.n} batches"
        return Steady(state="drifting", from_ns=begin, drift=left, reason=reason)
    return Steady(state="steady", from_ns=begin, drift=left, reason=f"settled after {cut} of {len(found)} batches")


def drift(means: Values, *, confidence: float = 0.95) -> Estimate:
    """Change from the first of these batches to the last along a straight line, in percent of their mean.

    The interval is t over the residuals with their lag-1 correlation r taken into account: n (1 - r) / (1 + r)
    effective batches. B. D. Santer et al., J. Geophys. Res. 105 (2000) 7337-7356, section 2.
    """
    n = len(means)
    at = np.arange(n, dtype=np.float64)
    at -= at.mean()
    mean = float(means.mean())
    slope = float(at @ means / (at @ at))
    residuals = means - mean - slope * at
    spread = float(residuals @ residuals)
    lag = _lag(residuals)
    effective = max(3.0, n * (1 - max(lag, 0.0)) / (1 + max(lag, 0.0)))
    error = sqrt(spread / (effective - 2) / float(at @ at)) if effective > 2 else 0.0
    half = t_quantile((1 + confidence) / 2, effective - 2) * error
    scale = 100 * (n - 1) / mean if mean else 0.0
    point, reach = slope * scale, abs(half * scale)
    return Estimate(point=point, low=point - reach, high=point + reach, n=n, unit="%")


def shift(means: Values, *, confidence: float = 0.95) -> Estimate:
    """How far the first quarter of these batches lies from the last half, in percent of their mean: where the end of
    a transient was measured too, a line fits it badly and this sees it.

    t over the deviations from both parts' means, pooled, with as many batches as their lag-1 correlation leaves.
    J. Geweke, Evaluating the accuracy of sampling-based approaches to the calculation of posterior moments, Bayesian
    Statistics 4 (1992): early against late; he takes a tenth, of much longer series.
    """
    n = len(means)
    early, late = means[: max(2, n // 4)], means[n - n // 2 :]
    off = np.concatenate([early - early.mean(), late - late.mean()])
    lag = max(0.0, min(0.99, _lag(off)))
    left = (1 - lag) / (1 + lag)
    freedom = max(1.0, (len(early) + len(late)) * left - 2)
    spread = float(off @ off) / (len(off) - 2) if len(off) > 2 else 0.0
    error = sqrt(spread * (1 / len(early) + 1 / len(late)) / left)
    scale = 100 / float(means.mean()) if means.any() else 0.0
    point = float(late.mean() - early.mean()) * scale
    reach = abs(t_quantile((1 + confidence) / 2, freedom) * error * scale)
    return Estimate(point=point, low=point - reach, high=point + reach, n=n, unit="%")


def _lag(off: Values) -> float:
    """Lag-1 correlation of deviations."""
    spread = float(off @ off)
    return float(off[1:] @ off[:-1]) / spread if spread > 0 else 0.0


def _reach_pct(means: Values, lag: float) -> float:
    """Half of the mean's 95 % interval, in percent of it."""
    return abs(100 * _half(means, lag) / float(means.mean())) if means.any() else 0.0


def _half(means: Values, lag: float) -> float:
    """Half of the mean's 95 % interval, over as many batches as the correlation leaves."""
    effective = max(2.0, len(means) * (1 - lag) / (1 + lag))
    return t_quantile(0.975, effective - 1) * float(means.std(ddof=1)) / sqrt(effective)


def half_width(means: Values) -> float:
    """Half of the 95 % interval of the mean of batches that may resemble their neighbours: t over n (1 - r) / (1 + r)
    of them, r their lag-1 correlation where that is above 0. At least two batches."""
    return _half(means, max(0.0, min(0.99, _lag(means - means.mean()))))


def mser(means: Values) -> int | None:
    """How many batches the transient took: the cut that makes the rest's mean best known; None: no end yet.

    The cut d minimises sum (x - mean)^2 / (n - d)^2 over what follows it. One in the second half means that there is
    no steady part yet. K. P. White, An effective truncation heuristic for bias reduction in simulation output,
    Simulation 69 (1997) 323-334; the rule for the second half: K. Hoad, S. Robinson, R. Davies, J. Simulation 4 (2010).
    """
    cut = int(np.argmin(_scores(means)))
    return cut if cut <= len(means) // 2 else None


def _scores(means: Values) -> Values:
    """MSER of every cut that leaves KEPT_MIN batches; of no cut at all where there are fewer."""
    n = len(means)
    left = np.arange(n, 0, -1, dtype=np.float64)  # how many follow a cut
    off = means - means.mean()  # what is summed stays small
    sums, squares = (np.cumsum(part[::-1])[::-1] for part in (off, off**2))
    scores: Values = (squares - sums**2 / left) / left**2
    return scores[: max(1, n - KEPT_MIN + 1)]


def window(means: Values, *, batches: int = 5, spread_max: float = 0.02) -> int | None:
    """The other rule in use: the first place from which `batches` in a row vary by less than 2 % (their deviation).

    A. Georges, D. Buytaert, L. Eeckhout, Statistically rigorous Java performance evaluation, OOPSLA 2007, section 3.
    """
    for at in range(len(means) - batches + 1):
        part = means[at : at + batches]
        if part.std(ddof=1) <= spread_max * abs(part.mean()):
            return at
    return None


def most_effective(means: Values) -> int | None:
    """The cut after which most independent values are left, by the statistical inefficiency of what follows.

    J. D. Chodera, A simple method for automated equilibration detection in molecular simulations, J. Chem. Theory
    Comput. 12 (2016) 1799-1805. It always names a cut; one in the second half is no end, as for `mser`.
    """
    n = len(means)
    best, cut = 0.0, 0
    for at in range(n - KEPT_MIN + 1):
        left = n - at
        effective = left / _inefficiency(means[at:])
        if effective > best:
            best, cut = effective, at
    return cut if cut <= n // 2 else None


def _inefficiency(part: Values) -> float:
    off = part - part.mean()
    spread = float(off @ off)
    if spread == 0:
        return 1.0
    total, n = 1.0, len(part)
    for lag in range(1, n - 1):
        correlation = float(off[lag:] @ off[:-lag]) / spread
        if correlation <= 0:
            break
        total += 2 * correlation * (1 - lag / n)
    return total


RULES: dict[str, Callable[[Values], int | None]] = {"mser": mser, "window": window, "most effective": most_effective}

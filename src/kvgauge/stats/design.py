"""How many runs a gain of a given size needs, or which gain a given number of runs would show. Pure.

From a pilot: the spread of a few runs is itself uncertain, so the upper end of what it may be is planned with.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import expm1, fsum, inf, log, sqrt
from typing import TYPE_CHECKING, Literal

import msgspec

from kvgauge.failures import TooFewSamples
from kvgauge.stats.means import mean_and_spread, t_quantile
from kvgauge.stats.runs import LEVEL, PRIMARY_SHARE, RUNS_MIN, Better

PILOT_MIN = 5
POWER = 0.9  # how often the runs that are proposed show the gain that was asked for
SPREAD_CONFIDENCE = 0.8  # the true spread lies below the bound so often
RUNS_MOST = 1000

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Design(msgspec.Struct, frozen=True, kw_only=True):
    """What a pilot says of the runs to come.

    spread        standard deviation of the log ratio of a pair of runs, as seen
    spread_upper  its one-sided 80 % bound: what is planned with
    runs          pairs that show `gain_pct` 9 times in 10; None: more than RUNS_MOST
    detectable    the gain in percent that `budget` pairs show 9 times in 10; None without a budget
    """

    pilot: int
    spread: float
    spread_upper: float
    gain_pct: float
    runs: int | None
    budget: int | None = None
    detectable_pct: float | None = None


def design(
    log_ratios: Sequence[float], gain_pct: float, better: Better, *, budget: int | None = None, power: float = POWER
) -> Design:
    """Plan with a pilot's log ratios, one for each pair of runs.

    gain_pct  the gain that would matter, 0 < gain_pct (< 100 where lower is better)

    raises  TooFewSamples with fewer than PILOT_MIN pairs
    """
    n = len(log_ratios)
    if n < PILOT_MIN:
        raise TooFewSamples(f"{n} pairs of runs: a pilot needs {PILOT_MIN} to know a spread")
    _, spread = mean_and_spread(log_ratios)
    upper = spread_bound(spread, n)
    effect = log_effect(gain_pct, better)
    return Design(
        pilot=n,
        spread=spread,
        spread_upper=upper,
        gain_pct=gain_pct,
        runs=runs_for(effect, upper, power=power),
        budget=budget,
        detectable_pct=None if budget is None else detectable_pct(budget, upper, better, power=power),
    )


def log_effect(gain_pct: float, better: Better) -> float:
    """A gain in percent as the size of a log ratio."""
    share = gain_pct / 100
    return abs(log(1 + share if better == "higher" else 1 - share))


def spread_bound(spread: float, n: float, confidence: float = SPREAD_CONFIDENCE) -> float:
    """One-sided upper bound of a standard deviation seen in n normal values: s sqrt((n - 1) / chi2(1 - c, n - 1))."""
    from scipy.special import gammaincinv

    chi_square = 2 * float(gammaincinv((n - 1) / 2, 1 - confidence))
    return spread * sqrt((n - 1) / chi_square)


def power_of(n: int, effect: float, spread: float, level: float = LEVEL * PRIMARY_SHARE) -> float:
    """How often n pairs show a log ratio of this size at a two-sided level: the primary metric's.

    The noncentral t's tails, as a mean over what the spread of n pairs may turn out to be (to 0.001).
    """
    if spread == 0:
        return 1.0
    from scipy.special import ndtr

    critical, off = t_quantile(1 - level / 2, n - 1), effect * sqrt(n) / spread
    seen = critical * _spreads(n - 1)
    return float((ndtr(off - seen) + ndtr(-off - seen)).mean())


@lru_cache(maxsize=2048)
def _spreads(freedom: int) -> "npt.NDArray[np.float64]":
    """400 equally likely values of s / sigma."""
    import numpy as np
    from scipy.special import gammaincinv

    shares = (np.arange(400) + 0.5) / 400
    return np.asarray(np.sqrt(2 * gammaincinv(freedom / 2, shares) / freedom), dtype=np.float64)


def runs_for(effect: float, spread: float, *, power: float = POWER) -> int | None:
    """The fewest pairs that show this log ratio with this power; None when RUNS_MOST do not."""
    low, high = RUNS_MIN, RUNS_MOST
    if power_of(high, effect, spread) < power:
        return None
    while low < high:
        middle = (low + high) // 2
        if power_of(middle, effect, spread) >= power:
            high = middle
        else:
            low = middle + 1
    return low


def detectable_pct(n: int, spread: float, better: Better, *, power: float = POWER) -> float:
    """The gain that n pairs show with this power, in percent; 100 where no latency could gain enough."""
    if n < 2:
        return inf
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        if power_of(n, middle, spread) >= power:
            high = middle
        else:
            low = middle
    return 100 * (expm1(high) if better == "higher" else -expm1(-high))


Source = Literal["blocks", "both arms", "one arm"]


class Spreads(msgspec.Struct, frozen=True, kw_only=True):
    """What a pilot says of one block to come, a deployment of each arm: of the difference of their means.

    s2_deploy, s2_run  variances of the log value between deployments and between runs of one, of an arm on average;
                       of blocks: what is left between the two deployments of one, their common part taken out
    freedom            degrees of freedom of the spread
    source             blocks: differences within the pilot's blocks; both arms: the sum of their variances; one arm:
                       twice its variance, as if the other's were the same
    """

    s2_deploy: float
    s2_run: float
    freedom: float
    source: Source

    def of_block(self, runs: int) -> float:
        """Standard deviation of a block's difference, at so many runs on each deployment."""
        return sqrt(2 * (self.s2_deploy + self.s2_run / runs))


def spreads_of_arm(pilot: Sequence[Sequence[float]]) -> Spreads:
    """pilot: log values of the runs of each deployment of one arm.

    raises  TooFewSamples unless two deployments or more have two runs or more

    Variances by the method of moments (one-way, unbalanced): W. G. Cochran, Sampling Techniques, 3rd ed., 10.6.
    """
    usable = [list(runs) for runs in pilot if len(runs) > 1]
    if len(usable) < 2:
        raise TooFewSamples("a pilot needs two deployments of two runs at least to tell their spreads apart")
    total, count = sum(len(runs) for runs in usable), len(usable)
    means = [fsum(runs) / len(runs) for runs in usable]
    grand = sum(sum(runs) for runs in usable) / total
    s2_run = _within(usable)
    between = sum(len(runs) * (mean - grand) ** 2 for runs, mean in zip(usable, means, strict=True)) / (count - 1)
    typical = (total - sum(len(runs) ** 2 for runs in usable) / total) / (count - 1)
    s2_deploy = max(0.0, (between - s2_run) / typical)
    return Spreads(s2_deploy=s2_deploy, s2_run=s2_run, freedom=count - 1, source="one arm")


def spreads_of_arms(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> Spreads:
    """Of two arms that were not in blocks: a difference has both variances, freedom after Satterthwaite.

    raises  TooFewSamples as for one arm
    """
    one, other = spreads_of_arm(before), spreads_of_arm(after)
    parts = [(arm.s2_deploy + arm.s2_run) for arm in (one, other)]
    weights = sum(part**2 / arm.freedom for part, arm in zip(parts, (one, other), strict=True))
    return Spreads(
        s2_deploy=(one.s2_deploy + other.s2_deploy) / 2,
        s2_run=(one.s2_run + other.s2_run) / 2,
        freedom=sum(parts) ** 2 / weights if weights else min(one.freedom, other.freedom),
        source="both arms",
    )


def spreads_of_blocks(pilot: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Spreads:
    """pilot: of each block the log values of its two deployments' runs.

    raises  TooFewSamples with fewer than two blocks, or when no deployment has two runs
    """
    whole = [block for block in pilot if all(block)]
    several = [runs for block in whole for runs in block if len(runs) > 1]
    if len(whole) < 2 or not several:
        raise TooFewSamples(
            "a pilot needs two blocks at least, and a deployment of two runs, to tell their spreads apart"
        )
    s2_run = _within(several)
    _, spread = mean_and_spread([fsum(after) / len(after) - fsum(before) / len(before) for before, after in whole])
    own = fsum(s2_run * (1 / len(before) + 1 / len(after)) for before, after in whole) / len(whole)
    s2_deploy = max(0.0, (spread**2 - own) / 2)
    return Spreads(s2_deploy=s2_deploy, s2_run=s2_run, freedom=len(whole) - 1, source="blocks")


def _within(pilot: Sequence[Sequence[float]]) -> float:
    """Variance of runs around their own deployment's mean."""
    means = [fsum(runs) / len(runs) for runs in pilot]
    squares = fsum((value - mean) ** 2 for runs, mean in zip(pilot, means, strict=True) for value in runs)
    return squares / sum(len(runs) - 1 for runs in pilot)


class Levels(msgspec.Struct, frozen=True, kw_only=True):
    """Deployments above runs: where the spread comes from, and how to spend time on it.

    s2_deploy, s2_run, source  as in Spreads
    spread, spread_upper       of a block's difference with `runs` on each deployment, and its 80 % bound
    runs               runs to take on each deployment
    deployments        of each arm, that is blocks, so that the gain asked for is shown; None: more than RUNS_MOST
    hours, gpu_hours   of both arms together
    order              which arm each deployment is of, so that a drift cancels (ABBA)
    """

    s2_deploy: float
    s2_run: float
    source: Source
    spread: float
    spread_upper: float
    runs: int
    deployments: int | None
    hours: float | None
    gpu_hours: float | None
    order: str


def levels(
    spreads: Spreads,
    gain_pct: float,
    better: Better,
    *,
    deploy_s: float,
    run_s: float,
    gpus: int = 0,
    power: float = POWER,
) -> Levels:
    """Blocks of one deployment of each arm, and runs on each, for the paired t test over blocks.

    deploy_s, run_s  what one more deployment, one more run costs

    Runs a deployment sqrt(c_deploy / c_run x s2_run / s2_deploy): W. G. Cochran, Sampling Techniques, 3rd ed., 10.6.
    """
    s2_deploy, s2_run = spreads.s2_deploy, spreads.s2_run
    runs = RUNS_MIN if s2_deploy == 0 else max(1, round(sqrt(deploy_s / run_s * s2_run / s2_deploy)))
    runs = min(runs, 50)
    spread = spreads.of_block(runs)
    upper = spread_bound(spread, spreads.freedom + 1)
    deployments = runs_for(log_effect(gain_pct, better), upper, power=power)
    hours = None if deployments is None else 2 * deployments * (deploy_s + runs * run_s) / 3600
    return Levels(
        s2_deploy=s2_deploy,
        s2_run=s2_run,
        source=spreads.source,
        spread=spread,
        spread_upper=upper,
        runs=runs,
        deployments=deployments,
        hours=hours,
        gpu_hours=None if hours is None else hours * gpus,
        order="" if deployments is None else abba(deployments),
    )


def abba(deployments: int) -> str:
    """A and B in turn, each pair the other way round than the last: ABBAABBA..."""
    return "".join("AB" if place % 2 == 0 else "BA" for place in range(deployments))

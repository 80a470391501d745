"""Over repeated runs: the mean of run-level values, and the gain of one test over another."""

from collections.abc import Mapping, Sequence
from math import exp, expm1, fsum, isfinite, log, sqrt
from typing import Literal

import msgspec

from kvgauge.stats.estimate import Estimate, bare, missing
from kvgauge.stats.means import mean_and_spread, mean_estimate, t_quantile, t_tails
from kvgauge.stats.paired import LogRatio, together

Better = Literal["lower", "higher"]

RUNS_MIN = 5  # fewer pairs give no verdict
CONFIDENCE = 0.95
LEVEL = 0.05  # how often a comparison of equal tests may name any metric better or worse
PRIMARY_SHARE = 0.8  # of that, the primary metric's; what is left is the others' until the primary one shows a gain
# A plan that stops as soon as its gains are known well enough stops more often when luck made them look so. With
# intervals at 96 % and two repetitions more than the rule asked for, those of such a plan hold the truth 93.5 to 96.5
# times in 100 (tests/statistics/test_stopping.py; docs/calibration.md).
STOPPING_CONFIDENCE = 0.96
STOPPING_EXTRA = 2
LOG_MOST = 700.0  # of a ratio that a float can hold
RUNS_MAX = 100  # nobody is told to run more than this: the effect is too small for the spread
SHOWN_PCT = 5.0  # when the point is smaller than this, runs_needed aims for this gain instead
POWER = 0.8  # how often the advised number of runs would show the effect


def over_runs(values: Sequence[float | None], unit: str) -> Estimate:
    """Mean over runs with a t interval, n = runs that have the value. Missing and non-finite values do not count."""
    return mean_estimate([value for value in values if value is not None and isfinite(value)], unit, of="run")


class Gain(msgspec.Struct, frozen=True, kw_only=True):
    """What `after` gained over `before`, in percent; positive is better whichever way the metric points.

    estimate     n = pairs (not paired: runs of the smaller side); low and high at 95 %
    log_mean     mean of log(after / before) over the pairs, None without a pair
    log_spread   its standard deviation, None below two pairs; not paired: of a difference of one run from each side
    p_value      two-sided, of the paired t test (not paired: Welch's) that the log ratio is 0; None below two pairs
    left_out     repetitions that one side lacks, or whose value has no logarithm
    paired       whether runs of one repetition were set against each other
    pairs        of requests, where n counts them and not runs: what they said together
    """

    better: Better
    estimate: Estimate
    log_mean: float | None
    log_spread: float | None
    p_value: float | None
    left_out: tuple[int, ...] = ()
    paired: bool = True
    pairs: LogRatio | None = None


def percent(log_ratio: float, better: Better) -> float:
    """A log ratio as a gain: 1 - after/before for latencies, after/before - 1 for throughput, in percent."""
    change = expm1(min(log_ratio, LOG_MOST))
    return 100 * (change if better == "higher" else -change)


def point_gain(before: float, after: float, better: Better) -> float:
    """The gain of one number over another, in percent. Both are positive."""
    return percent(log(after / before), better)


def gain(
    before: Mapping[int, float], after: Mapping[int, float], better: Better, *, confidence: float = CONFIDENCE
) -> Gain:
    """Gain over repetitions that both sides have: paired, because a repetition of every test runs close together.

    before, after  repetition -> run-level value
    confidence     of the interval

    t interval of the mean log ratio, then converted: ratios of latencies are closer to normal than latencies are,
    and the interval stays inside what a ratio can be.
    """
    repetitions = sorted(before.keys() | after.keys())
    ratios = {k: _log_ratio(before.get(k), after.get(k)) for k in repetitions}
    logs = [ratio for ratio in ratios.values() if ratio is not None]
    left_out = tuple(k for k, ratio in ratios.items() if ratio is None)
    n = len(logs)
    if n == 0:
        none = missing("%", "no repetition has a value above 0 on both sides")
        return Gain(better=better, estimate=none, log_mean=None, log_spread=None, p_value=None, left_out=left_out)
    if n == 1:
        one = bare(percent(logs[0], better), "%", 1, "one pair of runs: an interval needs at least 2")
        return Gain(better=better, estimate=one, log_mean=logs[0], log_spread=None, p_value=None, left_out=left_out)
    mean, spread = mean_and_spread(logs)
    error = spread / sqrt(n)
    half = t_quantile((1 + confidence) / 2, n - 1) * error
    low, high = sorted((percent(mean - half, better), percent(mean + half, better)))
    estimate = Estimate(point=percent(mean, better), low=low, high=high, n=n, unit="%")
    p_value = t_tails(mean / error, n - 1) if error > 0 else float(mean == 0)
    return Gain(better=better, estimate=estimate, log_mean=mean, log_spread=spread, p_value=p_value, left_out=left_out)


def gain_of_pairs(ratios: Mapping[int, LogRatio], better: Better) -> Gain:
    """Gain over pairs of requests that stood side by side.

    ratios  repetition -> what its pairs said. Five repetitions or more, each on deployments of their own, are runs: one
            ratio each, t over them. Of fewer the answer is about these deployments only, and n counts pairs.
    """
    means = {k: exp(ratio.mean) for k, ratio in ratios.items() if ratio.mean is not None}
    if len(means) >= RUNS_MIN:
        return gain(dict.fromkeys(means, 1.0), means, better)
    found = together(ratios)
    if found is None or found.mean is None:
        none = missing("%", "no pair of requests has this value on both sides")
        return Gain(better=better, estimate=none, log_mean=None, log_spread=None, p_value=None)
    point, half = percent(found.mean, better), found.half_width()
    if half is None:
        estimate = bare(point, "%", found.pairs, found.reason or "no interval")
    else:
        low, high = sorted((percent(found.mean - half, better), percent(found.mean + half, better)))
        estimate = Estimate(point=point, low=low, high=high, n=found.pairs, unit="%")
    return Gain(
        better=better, estimate=estimate, log_mean=found.mean, log_spread=None, p_value=found.p_value, pairs=found
    )


def unpaired_gain(
    before: Sequence[float], after: Sequence[float], better: Better, *, confidence: float = CONFIDENCE
) -> Gain:
    """Gain of runs that were not interleaved: nothing they share cancels, so each side keeps its own spread.

    before, after  run-level values; those without a logarithm are left out by the caller

    Welch's t interval on the difference of mean logs, degrees of freedom after Satterthwaite.
    B. L. Welch, The generalization of "Student's" problem when several different population variances are involved,
    Biometrika 34 (1947) 28-35.
    """
    sides = [[log(value) for value in side] for side in (before, after)]
    n = min(len(side) for side in sides)
    if n == 0:
        none = missing("%", "one side has no valid run with a value above 0")
        return Gain(better=better, estimate=none, log_mean=None, log_spread=None, p_value=None, paired=False)
    mean = fsum(sides[1]) / len(sides[1]) - fsum(sides[0]) / len(sides[0])
    if n == 1:
        one = bare(percent(mean, better), "%", 1, "one run on a side: an interval needs at least 2")
        return Gain(better=better, estimate=one, log_mean=mean, log_spread=None, p_value=None, paired=False)
    error, freedom, spread = _welch(sides)
    half = t_quantile((1 + confidence) / 2, freedom) * error if error else 0.0
    low, high = sorted((percent(mean - half, better), percent(mean + half, better)))
    estimate = Estimate(point=percent(mean, better), low=low, high=high, n=n, unit="%")
    p_value = t_tails(mean / error, freedom) if error else float(mean == 0)
    return Gain(better=better, estimate=estimate, log_mean=mean, log_spread=spread, p_value=p_value, paired=False)


def change(before: Mapping[int, float], after: Mapping[int, float], unit: str, *, paired: bool) -> Estimate:
    """after - before, in the values' own unit: t over the pairs' differences, or Welch's where runs are no pairs."""
    if paired:
        both = sorted(before.keys() & after.keys())
        return over_runs([after[k] - before[k] for k in both], unit)
    sides = [list(before.values()), list(after.values())]
    n = min(len(side) for side in sides)
    if n == 0:
        return missing(unit, "one side has no value")
    point = fsum(sides[1]) / len(sides[1]) - fsum(sides[0]) / len(sides[0])
    if n == 1:
        return bare(point, unit, 1, "one run on a side: an interval needs at least 2")
    error, freedom, _ = _welch(sides)
    half = t_quantile(0.975, freedom) * error if error else 0.0
    return Estimate(point=point, low=point - half, high=point + half, n=n, unit=unit)


def _welch(sides: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Standard error of the difference of means, Satterthwaite's degrees of freedom, spread of one difference.

    Without any spread the error is 0 and the degrees are 1.
    """
    spreads = [mean_and_spread(side)[1] for side in sides]
    parts = [spread**2 / len(side) for spread, side in zip(spreads, sides, strict=True)]
    weights = sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
    freedom = sum(parts) ** 2 / weights if weights else 1.0
    return sqrt(sum(parts)), freedom, sqrt(sum(spread**2 for spread in spreads))


def _log_ratio(before: float | None, after: float | None) -> float | None:
    if before is None or after is None or not (isfinite(before) and isfinite(after)) or min(before, after) <= 0:
        return None
    return log(after) - log(before)


def runs_needed(gained: Gain, level: float = LEVEL * PRIMARY_SHARE) -> int:
    """How many runs a side would be enough, if the spread stays as it is, to show this gain 8 times in 10.

    level  two-sided, that its p-value has to stay below

    A gain below 5 % is not what anybody plans for: then the number that would show 5 %.
    returns  RUNS_MIN..RUNS_MAX; RUNS_MIN too when there are fewer than two pairs, since no spread is known;
             RUNS_MAX stands for "this many or more"

    Smallest n with (t(1 - level / 2, n-1) + t(0.8, n-1)) spread / sqrt(n) <= effect.
    """
    if gained.log_mean is None or gained.log_spread is None:
        return RUNS_MIN
    least = abs(log(1 + SHOWN_PCT / 100 if gained.better == "higher" else 1 - SHOWN_PCT / 100))
    effect = max(abs(gained.log_mean), least)
    for n in range(RUNS_MIN, RUNS_MAX):
        reach = t_quantile(1 - level / 2, n - 1) + t_quantile(POWER, n - 1)
        if reach * gained.log_spread / sqrt(n) <= effect:
            return n
    return RUNS_MAX


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given: reject where one is at most the level.

    S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979) 65-70.
    """
    adjusted, running = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = running
    return adjusted

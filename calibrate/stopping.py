"""Plans that stop once their gains are known well enough: how often the interval they end with holds the truth.

Values of runs are drawn as such, and looked at by the rule that `kvgauge run` stops by, after every repetition.
"""

from math import exp, log, sqrt

import msgspec
import numpy as np

from calibrate.noise import CELLS, PRIMARY, plan_of
from calibrate.rates import Rate, rate
from kvgauge.compare.gains import gains
from kvgauge.compare.stopping import may_stop
from kvgauge.compare.values import TestValues
from kvgauge.plan.records import Plan
from kvgauge.stats.runs import RUNS_MIN, STOPPING_CONFIDENCE, percent

KINDS = ("normal", "bimodal", "heavy")
SPREADS = (0.01, 0.03, 0.045, 0.07)  # of a pair: stops at once, early, late, never
WITHIN_PCT, MOST = 3.0, 16
FACTOR = 0.9
KEY = (PRIMARY.cell, PRIMARY.metric)


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """coverage: of the gain's interval when the plan ended; stopped: before its last repetition; runs: on average."""

    kind: str
    spread_pct: float
    coverage: Rate
    stopped: Rate
    runs: float


def noise(kind: str, rng: np.random.Generator) -> float:
    """Of mean 0 and variance 1; heavy: t with 4 degrees of freedom."""
    if kind == "bimodal":
        return float(((rng.random() < 0.3) * 2.0 - 0.6 + rng.normal()) / sqrt(1.84))
    return float(rng.standard_t(4) / sqrt(2) if kind == "heavy" else rng.normal())


def stop(kind: str, spread: float, plans: int, seed: int) -> Stopped:
    rng = np.random.default_rng([seed, 2, round(1e4 * spread), *kind.encode()])
    plan = msgspec.structs.replace(plan_of(("A", "B"), MOST, cells=CELLS), gain_within_pct=WITHIN_PCT)
    covered = stopped = total = 0
    truth = percent(log(FACTOR), "lower")
    for _ in range(plans):
        runs, low, high = _one(plan, [noise(kind, rng) * spread for _ in range(MOST)])
        covered += low <= truth <= high
        stopped += runs < MOST
        total += runs
    return Stopped(
        kind=kind,
        spread_pct=100 * spread,
        coverage=rate(covered, plans),
        stopped=rate(stopped, plans),
        runs=total / plans,
    )


def _one(plan: Plan, logs: list[float]) -> tuple[int, float, float]:
    """Repetitions made, and the interval at the end."""
    before = dict.fromkeys(range(1, MOST + 1), 100.0)
    after = {k: 100 * FACTOR * exp(value) for k, value in enumerate(logs, 1)}
    for reached in range(RUNS_MIN, MOST + 1):
        tests = [
            TestValues(
                test=test, values={KEY: {k: v for k, v in side.items() if k <= reached}}, confidence=STOPPING_CONFIDENCE
            )
            for test, side in zip(plan.tests, (before, after), strict=True)
        ]
        if reached == MOST or may_stop(tests, plan, reached):
            break
    gained = gains(tests, plan)[0].gain
    assert gained.low is not None
    assert gained.high is not None
    return reached, gained.low, gained.high

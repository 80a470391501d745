"""A planted tenth: pilot, proposal of `kvgauge plan --pilot`, experiment of that size, and whether it is found."""

from collections.abc import Sequence

import msgspec
import numpy as np

from calibrate.family import interleaved, sides
from calibrate.noise import plan_of
from calibrate.rates import Rate, rate
from kvgauge.compare.sides import compare
from kvgauge.report.pilot import propose
from kvgauge.report.results import build
from kvgauge.stats.design import PILOT_MIN

GAIN_PCT = 10.0
FACTOR = 1 - GAIN_PCT / 100


class Planted(msgspec.Struct, frozen=True, kw_only=True):
    """Experiments of a kind.

    found     verdict better of the primary metric
    proposed  runs, by each pilot; None: more than any number
    """

    experiments: int
    found: int
    proposed: list[int | None]


def plant(kind: str, experiments: int, seed: int) -> Planted:
    rng = np.random.default_rng([seed, 1, *kind.encode()])
    found, proposed = 0, list[int | None]()
    plan = plan_of(("A", "B"), PILOT_MIN)
    for number in range(experiments):
        pilot = build(plan, interleaved(kind, PILOT_MIN, rng, number, factor=FACTOR), {})
        (one,) = propose(pilot, "pilot", GAIN_PCT)
        runs = one.design.runs if one.design is not None else None
        proposed.append(runs)
        if runs is None:
            continue
        given = interleaved(kind, runs, rng, number, factor=FACTOR)
        found += compare(*sides(given, paired=True)).rows[0].row.verdict == "better"
    return Planted(experiments=experiments, found=found, proposed=proposed)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the table. runs: that were proposed: smallest tenth, median, largest tenth; unproposed: none was."""

    kind: str
    found: Rate
    runs: tuple[float, float, float]
    unproposed: int


def found_of(kind: str, parts: Sequence[Planted]) -> Found:
    proposed = [runs for part in parts for runs in part.proposed]
    known = [runs for runs in proposed if runs is not None]
    low, middle, high = (float(q) for q in np.quantile(known, (0.1, 0.5, 0.9)))
    return Found(
        kind=kind,
        found=rate(sum(part.found for part in parts), len(proposed)),
        runs=(low, middle, high),
        unproposed=len(proposed) - len(known),
    )

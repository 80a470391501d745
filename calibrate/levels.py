"""Deployments above runs: coverage with the deployment as the unit, and what runs as the unit would give instead; in
blocks of two, by time, and not, while the machine drifts.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import exp
from typing import Literal

import msgspec
import numpy as np

from calibrate.noise import CELLS, PRIMARY, plan_of
from calibrate.rates import Rate, rate
from kvgauge.compare.sides import Comparison, Side, compare, joined
from kvgauge.compare.values import Stay, TestValues
from kvgauge.plan.records import Test
from kvgauge.stats.design import abba
from kvgauge.stats.estimate import Estimate

DEPLOY_SPREAD, RUN_SPREAD = 0.05, 0.03
SHAPES = ((5, 3), (10, 3), (5, 8))  # deployments of a side, runs on each
KEY = (PRIMARY.cell, PRIMARY.metric)

Drift = Literal["none", "line", "walk"]
DRIFTS: tuple[Drift, ...] = ("none", "line", "walk")
DRIFT_STEP = 0.03  # from one deployment to the next: each time, or the deviation of what it is
BLOCKS, BLOCK_RUNS = (5, 10), 3
HOUR = timedelta(hours=1)
BEGUN = datetime(2026, 1, 1, tzinfo=UTC)


class Nested(msgspec.Struct, frozen=True, kw_only=True):
    """Equal sides. as_runs: coverage if every run counted by itself; alarms: of deployments."""

    deployments: int
    runs: int
    coverage: Rate
    alarms: Rate
    as_runs: Rate


def nest(deployments: int, runs: int, comparisons: int, seed: int) -> Nested:
    rng = np.random.default_rng([seed, 3, deployments, runs])
    covered = alarms = covered_as_runs = 0
    tests = plan_of(("A", "B"), 1).tests
    for _ in range(comparisons):
        before, after = (_side(test, deployments, runs, rng) for test in tests)
        row = compare(before, after).rows[0].row
        covered += _holds(row.gain)
        alarms += row.verdict in ("better", "worse")
        covered_as_runs += _holds(compare(*(_unnamed(side) for side in (before, after))).rows[0].row.gain)
    return Nested(
        deployments=deployments,
        runs=runs,
        coverage=rate(covered, comparisons),
        alarms=rate(alarms, comparisons),
        as_runs=rate(covered_as_runs, comparisons),
    )


def _side(test: Test, deployments: int, runs: int, rng: np.random.Generator) -> Side:
    """As many folders as deployments, put together."""
    return joined([_folder(test, f"{test.name}{number}", runs, rng) for number in range(deployments)])


def _folder(
    test: Test, deployment: str, runs: int, rng: np.random.Generator, *, drifted: float = 0.0, place: int | None = None
) -> Side:
    """drifted: log level of the machine then; place: in time, None: not on record"""
    level = drifted + rng.normal(0, DEPLOY_SPREAD)
    values = {k: 100 * exp(level + rng.normal(0, RUN_SPREAD)) for k in range(1, runs + 1)}
    return Side(
        label=test.name,
        source=deployment,
        values=TestValues(
            test=test,
            values={KEY: values},
            deployments=dict.fromkeys(values, deployment),
            stays={} if place is None else dict.fromkeys(values, _stay(deployment, place)),
        ),
        cells={CELLS[1].name: msgspec.to_builtins(CELLS[1])},
        machine={},
        primary=KEY,
    )


def _stay(deployment: str, place: int) -> Stay:
    return Stay(deployment=deployment, began=BEGUN + place * HOUR, ended=BEGUN + (place + 0.9) * HOUR, host="synthetic")


def _holds(gain: Estimate) -> bool:
    """Whether the interval holds that there is no difference."""
    return gain.low is not None and gain.low <= 0 <= (gain.high or 0)


class Drifted(msgspec.Struct, frozen=True, kw_only=True):
    """Equal sides on a machine that drifts.

    blocks    of a side: deployments
    order     ABBA: in blocks, and without them ("by side"); AABB: one side after the other, by side
    coverage, alarms, width_pct  of the primary gain's interval, by how it was compared; width: mean, in points
    """

    drift: Drift
    blocks: int
    order: Literal["ABBA", "AABB"]
    by: Literal["block", "side"]
    coverage: Rate
    alarms: Rate
    width_pct: float


def drift(kind: Drift, blocks: int, comparisons: int, seed: int) -> list[Drifted]:
    """ABBA in blocks and by side, and AABB, on the same machine each time."""
    rng = np.random.default_rng([seed, 4, blocks, *kind.encode()])
    tests = plan_of(("A", "B"), 1).tests
    found: dict[tuple[Literal["ABBA", "AABB"], Literal["block", "side"]], list[Comparison]] = {}
    for _ in range(comparisons):
        levels = _machine(kind, 2 * blocks, rng)
        turned = _sides(tests, abba(blocks), levels, rng)
        found.setdefault(("ABBA", "block"), []).append(compare(*turned))
        found.setdefault(("ABBA", "side"), []).append(compare(*turned, wanted="no"))
        apart = _sides(tests, "A" * blocks + "B" * blocks, levels, rng)
        found.setdefault(("AABB", "side"), []).append(compare(*apart))
    return [_counted(kind, blocks, order, by, compared) for (order, by), compared in found.items()]


def _counted(
    kind: Drift,
    blocks: int,
    order: Literal["ABBA", "AABB"],
    by: Literal["block", "side"],
    compared: list[Comparison],
) -> Drifted:
    rows = [one.rows[0].row for one in compared]
    assert all(one.unit == ("block" if by == "block" else "deployment") for one in compared)
    return Drifted(
        drift=kind,
        blocks=blocks,
        order=order,
        by=by,
        coverage=rate(sum(_holds(row.gain) for row in rows), len(rows)),
        alarms=rate(sum(row.verdict in ("better", "worse") for row in rows), len(rows)),
        width_pct=sum((row.gain.high or 0) - (row.gain.low or 0) for row in rows) / len(rows),
    )


def _machine(kind: Drift, places: int, rng: np.random.Generator) -> list[float]:
    """Log level of the machine at each deployment."""
    if kind == "walk":
        return [float(level) for level in rng.normal(0, DRIFT_STEP, places).cumsum()]
    return [DRIFT_STEP * place * (kind == "line") for place in range(places)]


def _sides(tests: Sequence[Test], order: str, levels: list[float], rng: np.random.Generator) -> tuple[Side, Side]:
    folders: tuple[list[Side], list[Side]] = [], []
    for place, (letter, level) in enumerate(zip(order, levels, strict=True)):
        which = "AB".index(letter)
        folders[which].append(_folder(tests[which], f"d{place}", BLOCK_RUNS, rng, drifted=level, place=place))
    return joined(folders[0]), joined(folders[1])


def _unnamed(side: Side) -> Side:
    return msgspec.structs.replace(side, values=msgspec.structs.replace(side.values, deployments={}))

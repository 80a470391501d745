"""Deployments above runs: coverage with the deployment as the unit, and what runs as the unit would give instead."""

from math import exp

import msgspec
import numpy as np

from calibrate.noise import CELLS, PRIMARY, plan_of
from calibrate.rates import Rate, rate
from kvgauge.compare.sides import Side, compare, joined
from kvgauge.compare.values import TestValues
from kvgauge.plan.records import Test

DEPLOY_SPREAD, RUN_SPREAD = 0.05, 0.03
SHAPES = ((5, 3), (10, 3), (5, 8))  # deployments of a side, runs on each
KEY = (PRIMARY.cell, PRIMARY.metric)


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
        covered += row.gain.low is not None and row.gain.low <= 0 <= (row.gain.high or 0)
        alarms += row.verdict in ("better", "worse")
        apart = compare(*(_unnamed(side) for side in (before, after))).rows[0].row.gain
        covered_as_runs += apart.low is not None and apart.low <= 0 <= (apart.high or 0)
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


def _folder(test: Test, deployment: str, runs: int, rng: np.random.Generator) -> Side:
    level = rng.normal(0, DEPLOY_SPREAD)
    values = {k: 100 * exp(level + rng.normal(0, RUN_SPREAD)) for k in range(1, runs + 1)}
    return Side(
        label=test.name,
        source=deployment,
        values=TestValues(test=test, values={KEY: values}, deployments=dict.fromkeys(values, deployment)),
        cells={CELLS[1].name: msgspec.to_builtins(CELLS[1])},
        machine={},
        primary=KEY,
    )


def _unnamed(side: Side) -> Side:
    return msgspec.structs.replace(side, values=msgspec.structs.replace(side.values, deployments={}))

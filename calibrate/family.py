"""Comparisons of two tests that do not differ: how often any metric is called better or worse, and what intervals hold.

Every comparison goes the whole way of `kvgauge compare`: exchanges, metrics of cells, values of runs, gains, Holm,
verdicts. A comparison of 10 runs a side is looked at as one of 3 and of 5, too.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from calibrate.noise import CELLS, plan_of, run_levels, run_of
from calibrate.rates import Rate, rate
from kvgauge.compare.sides import Comparison, Side, compare
from kvgauge.plan.expand import expand
from kvgauge.report.records import RunResult
from kvgauge.report.results import values_of

Design = tuple[str, int]  # "paired" or "two folders", runs a side
DESIGNS: tuple[Design, ...] = (("paired", 3), ("paired", 5), ("paired", 10), ("two folders", 5), ("two folders", 10))


IN_TIME = ("autocorrelated", "drifting")  # kinds in which it matters when a run was made


class Tally(msgspec.Struct):
    """What comparisons of one kind and design gave. An alarm: any metric, the primary one, any other one."""

    comparisons: int = 0
    alarms: int = 0
    primary_alarms: int = 0
    secondary_alarms: int = 0
    primary_covered: int = 0
    intervals: int = 0
    covered: int = 0
    warned: int = 0

    def add(self, compared: Comparison) -> None:
        rows = [row.row for row in compared.rows]
        alarms = {row.primary for row in rows if row.verdict in ("better", "worse")}
        self.comparisons += 1
        self.alarms += bool(alarms)
        self.primary_alarms += True in alarms
        self.secondary_alarms += False in alarms
        for row in rows:
            if row.gain.low is None or row.gain.high is None:
                continue
            holds = row.gain.low <= 0 <= row.gain.high
            self.intervals += 1
            self.covered += holds
            self.primary_covered += holds and row.primary
        self.warned += any("ran at different times" in remark for remark in compared.remarks)

    def joined(self, other: "Tally") -> "Tally":
        both = (msgspec.structs.asdict(one) for one in (self, other))
        first, second = both
        return Tally(**{name: first[name] + second[name] for name in first})


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the table. coverage: of the primary metric's interval; coverage_all_pct: of every metric's."""

    kind: str
    design: str
    runs: int
    metrics: float
    alarms: Rate
    primary_alarms: Rate
    secondary_alarms: Rate
    coverage: Rate
    coverage_all_pct: float
    warned: Rate


def rows_of(tallies: Mapping[str, Mapping[Design, Tally]]) -> list[Row]:
    return [
        Row(
            kind=kind,
            design=how,
            runs=runs,
            metrics=tally.intervals / tally.comparisons,
            alarms=rate(tally.alarms, tally.comparisons),
            primary_alarms=rate(tally.primary_alarms, tally.comparisons),
            secondary_alarms=rate(tally.secondary_alarms, tally.comparisons),
            coverage=rate(tally.primary_covered, tally.comparisons),
            coverage_all_pct=100 * tally.covered / tally.intervals,
            warned=rate(tally.warned, tally.comparisons),
        )
        for kind, designs in tallies.items()
        for (how, runs), tally in designs.items()
    ]


def tally(kind: str, comparisons: int, seed: int, designs: Iterable[Design] = DESIGNS) -> dict[Design, Tally]:
    """Of so many comparisons. The same seed gives the same."""
    rng = np.random.default_rng([seed, *kind.encode()])
    found = {design: Tally() for design in designs}
    most = max(runs for _, runs in found)
    for number in range(comparisons):
        together = interleaved(kind, most, rng, number)
        apart = _apart(kind, most, rng) if kind in IN_TIME else together
        whole = {"paired": sides(together, paired=True), "two folders": sides(apart, paired=False)}
        for (how, runs), counted in found.items():
            before, after = (first_of(side, runs) for side in whole[how])
            counted.add(compare(before, after))
    return found


def interleaved(
    kind: str, runs: int, rng: np.random.Generator, seed: int, *, factor: float = 1.0
) -> dict[str, list[RunResult]]:
    """Both tests as a plan's runs, in the order in which kvgauge makes them. factor: planted, on B's times."""
    order = expand(plan_of(("A", "B"), runs, seed=seed))
    levels = run_levels(kind, len(order), rng)
    given: dict[str, list[RunResult]] = {"A": [], "B": []}
    for run in order:
        given[run.test.name] += run_of(
            kind, run.repetition, float(levels[run.order]), rng, factor=factor if run.test.name == "B" else 1.0
        )
    return given


def _apart(kind: str, runs: int, rng: np.random.Generator) -> dict[str, list[RunResult]]:
    """One test after the other, as two folders have them."""
    levels = run_levels(kind, 2 * runs, rng)
    return {
        name: [one for k in range(runs) for one in run_of(kind, k + 1, float(levels[place * runs + k]), rng)]
        for place, name in enumerate("AB")
    }


def sides(given: Mapping[str, Sequence[RunResult]], *, paired: bool) -> tuple[Side, Side]:
    """As compare reads them, from one folder or from two."""
    plan = plan_of(("A", "B"), 1)
    cells = {cell.name: msgspec.to_builtins(cell) for cell in CELLS}
    first, second = (
        Side(
            label=test.name,
            source="one folder" if paired else test.name,
            values=values_of(test, given[test.name]),
            cells=cells,
            machine={},
            primary=(plan.primary.cell, plan.primary.metric),
        )
        for test in plan.tests
    )
    return first, second


def first_of(side: Side, runs: int) -> Side:
    """What it would be, had there been so many runs."""
    values = {key: {k: value for k, value in of.items() if k <= runs} for key, of in side.values.values.items()}
    return msgspec.structs.replace(side, values=msgspec.structs.replace(side.values, values=values))

"""docs/calibration.md, from calibrate/results/: written by the commands that made the results."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from calibrate.family import Row
from calibrate.levels import BLOCK_RUNS, DEPLOY_SPREAD, DRIFT_STEP, RUN_SPREAD, Drifted
from calibrate.rates import Rate
from calibrate.records import Real, Synthetic
from calibrate.stopping import WITHIN_PCT
from kvgauge.samples.disk import write_whole

HERE = Path(__file__).parent
SYNTHETIC, REAL = HERE / "results" / "synthetic.json", HERE / "results" / "real.json"
PAGE = HERE.parent / "docs" / "calibration.md"
ALARMS_MOST_PCT, FOUND_LEAST_PCT, COVERAGE_PCT, COVERAGE_OFF_PCT = 5.0, 90.0, 95.0, 1.5

HEAD = """# Calibration

How often kvgauge is wrong, counted. `make calibrate` makes the synthetic part, `make calibrate-real` the pairs of real
runs; both write their figures into calibrate/results/ and this page from them. Asked for is: an alarm in at most 5 % of
comparisons of tests that do not differ, a planted tenth found 9 times in 10 at the number of runs that kvgauge
proposed, intervals that hold the truth 95 +- 1.5 times in 100 where a verdict is given.

**met**: the rate is; **chance**: it is not, but the exact interval (Clopper-Pearson, 95 %) of the count holds what was
asked; **MISSED**: it does not.
"""


def most(rate: Rate, limit_pct: float = ALARMS_MOST_PCT) -> str:
    return "met" if rate.pct <= limit_pct else "chance" if rate.low_pct <= limit_pct else "MISSED"


def least(rate: Rate, limit_pct: float = FOUND_LEAST_PCT) -> str:
    return "met" if rate.pct >= limit_pct else "chance" if rate.high_pct >= limit_pct else "MISSED"


def near(rate: Rate) -> str:
    low, high = COVERAGE_PCT - COVERAGE_OFF_PCT, COVERAGE_PCT + COVERAGE_OFF_PCT
    if low <= rate.pct <= high:
        return "met"
    return "chance" if rate.high_pct >= low and rate.low_pct <= high else "MISSED"


def said(rate: Rate) -> str:
    return f"{rate.pct:.1f} ({rate.low_pct:.1f} to {rate.high_pct:.1f})"


def synthetic_lines(found: Synthetic) -> list[str]:
    tables = [_family(found), _coverage(found), _planted(found), _stopping(found), _levels(found)]
    tables += [_drifts(found.drifts)] if found.drifts else []
    lines = [line for table in tables for line in ("", *table)]
    return [*([found.note, ""] if found.note else []), *lines[1:]]


def _judged(row: Row) -> bool:
    """Two folders, one made after the other, share nothing: what drifts in between is in their gain."""
    return row.design == "paired" or row.kind not in ("drifting", "autocorrelated")


def _family(found: Synthetic) -> Iterator[str]:
    verdicts = [row for row in found.family if row.runs >= 5]
    yield "## False alarms: comparisons of two equal tests"
    if any(row.alarms.n < found.comparisons for row in verdicts):
        yield ""
        yield (
            f"**Cut off before its end**: {found.comparisons:,} comparisons of each kind were asked for; there are as "
            "many as n says. `make calibrate` on a quiet machine makes them all."
        )
    yield ""
    yield "| kind | design | runs a side | n | any metric, % | | primary, % | any other, % | warned, % |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in verdicts:
        verdict = most(row.alarms) if _judged(row) else "not judged: drift"
        yield (
            f"| {row.kind} | {row.design} | {row.runs} | {row.alarms.n:,} | {said(row.alarms)} | {verdict} | "
            f"{said(row.primary_alarms)} | "
            f"{row.secondary_alarms.pct:.1f} | {row.warned.pct:.0f} |"
        )
    yield ""
    yield (
        f"Each comparison has {max(row.metrics for row in verdicts):.0f} gains in two cells (no verdict on P99). "
        "Two folders made one after the other cannot cancel a drift, or that a run resembles the one before it: there "
        "the alarms are many, as they must be, and `kvgauge compare` warns (last column)."
    )


def _coverage(found: Synthetic) -> Iterator[str]:
    yield "## Coverage: how often the interval of a gain holds the truth"
    yield ""
    yield "| kind | design | runs a side | primary metric, % | | all metrics, % |"
    yield "|---|---|---|---|---|---|"
    for row in found.family:
        verdict = near(row.coverage) if _judged(row) else "not judged: drift"
        verdict += ", no verdict at 3" if row.runs < 5 else ""
        numbers = f"{said(row.coverage)} | {verdict} | {row.coverage_all_pct:.1f}"
        yield f"| {row.kind} | {row.design} | {row.runs} | {numbers} |"


def _planted(found: Synthetic) -> Iterator[str]:
    yield "## A planted tenth: pilots of 5 pairs, each with the experiment it proposed"
    yield ""
    yield "| kind | n | found, % | | proposed runs: smallest tenth, median, largest tenth |"
    yield "|---|---|---|---|---|"
    for row in found.planted:
        runs = ", ".join(f"{q:.0f}" for q in row.runs)
        none = f"; {row.unproposed} pilots: more than any number" if row.unproposed else ""
        yield f"| {row.kind} | {row.found.n:,} | {said(row.found)} | {least(row.found)} | {runs}{none} |"


def _stopping(found: Synthetic) -> Iterator[str]:
    yield f"## Coverage through the stopping rule: gain within {WITHIN_PCT:g} %, at most 16 repetitions"
    yield ""
    yield "| noise of pairs | spread, % | n | coverage, % | | stopped early, % | repetitions, mean |"
    yield "|---|---|---|---|---|---|---|"
    for row in found.stopping:
        numbers = f"{said(row.coverage)} | {near(row.coverage)} | {row.stopped.pct:.0f} | {row.runs:.1f}"
        yield f"| {row.kind} | {row.spread_pct:g} | {row.coverage.n:,} | {numbers} |"


def _levels(found: Synthetic) -> Iterator[str]:
    yield "## Deployments above runs: several folders a side, compared by deployment"
    yield ""
    yield "| deployments a side | runs on each | n | coverage, % | | alarms, % | | coverage if runs were the unit, % |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in found.levels:
        shape = f"{row.deployments} | {row.runs} | {row.coverage.n:,}"
        yield (
            f"| {shape} | {said(row.coverage)} | {near(row.coverage)} | {said(row.alarms)} | "
            f"{most(row.alarms)} | {row.as_runs.pct:.1f} |"
        )


DRIFT_WORDS = {
    "none": "none",
    "line": f"each {100 * DRIFT_STEP:g} % slower than the last",
    "walk": f"random walk, steps of {100 * DRIFT_STEP:g} %",
}


def _drifts(drifts: Sequence[Drifted]) -> Iterator[str]:
    yield "## Deployments in time: in blocks of two, and each side by itself, while the machine drifts"
    yield ""
    yield "| drift | order | compared | n of a side | comparisons | coverage, % | | alarms, % | | width, points |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in drifts:
        judged = row.by == "block" or row.drift == "none"
        near_by, few = (near(row.coverage), most(row.alarms)) if judged else ("not judged: drift", "not judged: drift")
        how = "in blocks (paired)" if row.by == "block" else "by side (Welch)"
        yield (
            f"| {DRIFT_WORDS[row.drift]} | {row.order} | {how} | {row.blocks} | {row.coverage.n:,} | "
            f"{said(row.coverage)} | {near_by} | {said(row.alarms)} | {few} | {row.width_pct:.1f} |"
        )
    yield ""
    yield (
        f"{BLOCK_RUNS} runs on each deployment; spread {100 * DEPLOY_SPREAD:g} % between deployments, "
        f"{100 * RUN_SPREAD:g} % between runs of one; width: of the interval, mean. `kvgauge compare` takes blocks "
        "where times show them. By side, the order ABBA keeps a drift out of the gain and leaves it in the interval, "
        "which is wider for it; one side after the other it is in the gain, and the page says that it may be. Where "
        "nothing drifts, blocks of few deployments cost width: they have half the degrees of freedom."
    )


def real_lines(found: Real) -> Iterator[str]:
    yield f"## Real pairs: {found.pairs} pairs of runs of two equal tests on the embedded target"
    yield ""
    yield (
        f"{found.plan}, on {', '.join(f'{key} {value}' for key, value in found.machine.items())}; spread of a pair "
        f"{found.spread_pct:.1f} %, {found.metrics} metrics, {found.left_out} pairs left out."
    )
    yield ""
    yield "| pairs | comparisons | any metric, % | | primary, % | coverage, % | random groups: any, % | primary, % |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in found.groups:
        drawn = [
            f"{p:.1f} ({low:.1f} to {high:.1f})"
            for p, low, high in (row.drawn_alarms_pct, row.drawn_primary_alarms_pct)
        ]
        yield (
            f"| {row.pairs} | {row.alarms.n} | {said(row.alarms)} | {most(row.alarms)} | {said(row.primary_alarms)} | "
            f"{said(row.coverage)} | {drawn[0]} | {drawn[1]} |"
        )


def write() -> None:
    """The page, of what results there are."""
    lines = [HEAD]
    if SYNTHETIC.exists():
        lines += synthetic_lines(msgspec.json.decode(SYNTHETIC.read_bytes(), type=Synthetic))
    if REAL.exists():
        lines += ["", *real_lines(msgspec.json.decode(REAL.read_bytes(), type=Real))]
    else:
        lines += ["", "## Real pairs", "", "Not made yet: `make calibrate-real` (200 pairs, about 20 minutes)."]
    write_whole(PAGE, ("\n".join(lines) + "\n").encode())

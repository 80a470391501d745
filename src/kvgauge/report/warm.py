"""How a cell was warmed up, in lines for a terminal."""

from collections.abc import Sequence

from kvgauge.report import rows
from kvgauge.report.numbers import NONE, value_text, with_interval
from kvgauge.report.records import RunResult, TestResult
from kvgauge.stats.settling import VALUES
from kvgauge.stats.warmth import WarmUp


def warm_lines(test: TestResult, cell: str) -> list[str]:
    """One line about warm-up, one about drift, one about batch sizes: of every run that has something to say."""
    runs = [run for run in rows.runs_in(test, cell) if run.warmup is not None]
    if not runs:
        return []
    known = [run.warmup for run in runs if run.warmup is not None]
    return [_how(test, cell, known), *_drift(runs), *_sizes(known)]


def _how(test: TestResult, cell: str, known: Sequence[WarmUp]) -> str:
    said = [f"warm-up ({known[0].rule}): {_range([each.took_s for each in known if each.took_s is not None])} s"]
    said.append(f"{_range([each.requests for each in known])} requests")
    if any(each.state != "fixed" for each in known):
        steady = sum(each.state == "steady" for each in known)
        said.append("steady" if steady == len(known) == 1 else f"steady in {steady} of {len(known)} runs")
    penalty = rows.summary_of(test, None, "first_request_penalty_s")
    if cell == rows.cells_of(test)[0] and penalty.point is not None:
        said.append(f"the run's first request took {value_text(penalty)} s more than a warm one")
    return ", ".join(said)


def _range(values: Sequence[float]) -> str:
    if not values:
        return "?"
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low} to {high}"


def _drift(runs: Sequence[RunResult]) -> list[str]:
    told = []
    for run in runs:
        drifts = run.warmup.drifts if run.warmup is not None else {}
        values = [
            f"{VALUES.get(name, name)} {with_interval(value)} %"
            if value.point is not None
            else f"{VALUES.get(name, name)} {NONE} ({value.reason})"
            for name, value in drifts.items()
        ]
        if values:
            told.append(f"run {run.repetition}: {', '.join(values)}" if len(runs) > 1 else ", ".join(values))
    return [f"change while measured: {'; '.join(told)}"] if told else []


def _sizes(known: Sequence[WarmUp]) -> list[str]:
    told = list(
        dict.fromkeys(
            f"{each.sizes_before} before, {each.sizes_measured} while measured" for each in known if each.sizes_measured
        )
    )
    return [f"at a time in decode: {'; '.join(told)}"] if told else []

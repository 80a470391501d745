"""results.json and results.csv: everything a plan gave so far, in one shape. docs/results.md documents it.

Version history of `schema`
    1  first
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kvgauge.compare.deployments import scope
from kvgauge.compare.gains import gains
from kvgauge.compare.values import Stay, TestValues
from kvgauge.failures import SamplesError
from kvgauge.plan.records import Plan, Run, Test
from kvgauge.report.records import SCHEMA, Results, RunResult, SummaryRow, TestResult, Tp
from kvgauge.samples.disk import write_whole
from kvgauge.stats.cells import counter_of
from kvgauge.stats.estimate import Estimate, missing
from kvgauge.stats.paired import LogRatio
from kvgauge.stats.runs import CONFIDENCE, STOPPING_CONFIDENCE, over_runs
from kvgauge.stats.tails import is_largest, no_tail

RESULTS_JSON, RESULTS_CSV = "results.json", "results.csv"


def build(
    plan: Plan,
    run_results: Mapping[str, Sequence[RunResult]],
    machine: Mapping[str, Any],
    planned: Sequence[Run] = (),
    *,
    enough_after: int | None = None,
) -> Results:
    """Results so far: summaries over valid runs, gains, and what has not run yet as pending.

    run_results  test name -> what its runs gave, in any order
    planned      the plan's runs as expanded, so that pending ones carry their run_id and seed
    enough_after  the repetition after which gains were known well enough: later ones are not pending
    """
    last = enough_after or plan.repetitions
    runs = {test.name: _with_pending(plan, test, run_results.get(test.name, ()), planned, last) for test in plan.tests}
    confidence = confidence_of(plan)
    values = [values_of(test, runs[test.name], confidence=confidence) for test in plan.tests]
    rows = gains(values, plan)
    ended = None
    if enough_after is not None and enough_after < plan.repetitions:
        ended = (
            f"after repetition {enough_after} of {plan.repetitions}: gains are known within {plan.gain_within_pct:g} %"
        )
    return Results(
        schema=SCHEMA,
        plan=msgspec.to_builtins(plan),
        rehearsal=plan.rehearsal,
        machine=dict(machine),
        ended=ended,
        scope=scope([(one.test.name, one) for one in values]),
        tests=tuple(
            TestResult(
                name=test.name,
                backend=test.backend,
                fabric=test.fabric,
                build=test.build,
                stand_in=test.stand_in,
                patches=test.patches,
                model=test.model,
                tp=Tp(prefill=test.prefill_tp, decode=test.decode_tp),
                expect=test.expect,
                baseline=test.baseline,
                runs=runs[test.name],
                summary=tuple(_summary(plan, runs[test.name])),
                gains=tuple(row for row in rows if row.test == test.name),
                cold_start=test.cold_start,
                planted=test.planted,
            )
            for test in plan.tests
        ),
    )


def confidence_of(plan: Plan) -> float:
    """Of its gains' intervals."""
    return stopping_confidence(stops=plan.gain_within_pct is not None, mode=plan.mode)


def stopping_confidence(*, stops: bool, mode: str) -> float:
    """Runs that stop once gains are known pay for it here; pairs of requests pay in their own looks."""
    return STOPPING_CONFIDENCE if stops and mode == "runs" else CONFIDENCE


def _with_pending(
    plan: Plan, test: Test, given: Sequence[RunResult], planned: Sequence[Run], last: int
) -> tuple[RunResult, ...]:
    """What was given, in order, and an entry without metrics for each run x cell that is still to come.

    A run that is invalid as a whole makes its cells invalid: its evidence is theirs.
    """
    contradicted = {run.repetition: run.reasons for run in given if run.cell is None and run.status == "invalid"}
    given = [
        msgspec.structs.replace(run, status="invalid", reasons=contradicted[run.repetition])
        if run.status == "valid" and run.repetition in contradicted
        else run
        for run in given
    ]
    known = {(run.repetition, run.cell) for run in given}
    ids = {run.repetition: run for run in planned if run.test.name == test.name}
    whole = {run.repetition: run.run_id for run in given}
    runs = list(given)
    for repetition in range(1, last + 1):
        expanded = ids.get(repetition)
        for cell in expanded.cells if expanded else plan.cells:
            if (repetition, cell.name) in known:
                continue
            runs.append(
                RunResult(
                    run_id=expanded.run_id if expanded else whole.get(repetition, ""),
                    repetition=repetition,
                    cell=cell.name,
                    concurrency=cell.concurrency,
                    seed=expanded.seed if expanded else None,
                    status="pending",
                    reasons=(),
                    metrics={},
                )
            )
    places = {cell.name: place for place, cell in enumerate(plan.cells)}
    return tuple(sorted(runs, key=lambda run: (run.repetition, -1 if run.cell is None else places.get(run.cell, 999))))


def values_of(
    test: Test, runs: Sequence[RunResult], *, confidence: float = CONFIDENCE, host: str | None = None
) -> TestValues:
    """Run-level values of valid runs; a value that is only the largest of too few requests gives no verdict.

    host  that conducted them
    """
    values: dict[tuple[str | None, str], dict[int, float]] = {}
    no_verdict: dict[tuple[str | None, str], str] = {}
    left_out: dict[tuple[str | None, int], str] = {}
    units: dict[tuple[str | None, str], str] = {}
    counted_by: dict[tuple[str | None, str], str] = {}
    pairs: dict[tuple[str | None, str], dict[int, LogRatio]] = {}
    deployments: dict[int, str] = {}
    stays: dict[int, Stay] = {}
    for run in runs:
        if run.began is not None and run.ended is not None:
            stays[run.repetition] = Stay(deployment=run.deployment, began=run.began, ended=run.ended, host=host)
        if run.status != "valid":
            left_out[run.cell, run.repetition] = run.status
            continue
        for metric, ratio in run.pairs.items():
            pairs.setdefault((run.cell, metric), {})[run.repetition] = ratio
        if run.deployment is not None:
            deployments[run.repetition] = run.deployment
        for metric, estimate in run.metrics.items():
            if estimate.point is None:
                continue
            values.setdefault((run.cell, metric), {})[run.repetition] = estimate.point
            units[run.cell, metric] = estimate.unit
            if (counter := counter_of(estimate)) is not None:
                counted_by[run.cell, metric] = counter
            if (why := no_tail(metric, estimate, run.metrics.get("requests"))) is not None:
                no_verdict[run.cell, metric] = why
    return TestValues(
        test=test,
        values=values,
        left_out=left_out,
        no_verdict=no_verdict,
        units=units,
        confidence=confidence,
        counted_by=counted_by,
        beside=next((run.beside for run in runs if run.beside), None),
        pairs=pairs,
        deployments=deployments,
        stays=stays,
    )


def _summary(plan: Plan, runs: Sequence[RunResult]) -> Iterable[SummaryRow]:
    """Cells in the plan's order, then whole runs."""
    concurrency = {cell.name: cell.concurrency for cell in plan.cells}
    for cell in (*concurrency, None):
        here = [run for run in runs if run.cell == cell]
        valid = [run for run in here if run.status == "valid"]
        for metric in dict.fromkeys(metric for run in here for metric in run.metrics):
            estimate = _over_valid_runs(
                [run.metrics[metric] for run in valid if metric in run.metrics],
                next(run.metrics[metric].unit for run in here if metric in run.metrics),
            )
            yield SummaryRow(
                cell=cell,
                concurrency=None if cell is None else concurrency[cell],
                metric=metric,
                point=estimate.point,
                low=estimate.low,
                high=estimate.high,
                n=estimate.n,
                unit=estimate.unit,
                reason=estimate.reason,
                note=estimate.note,
            )


def _over_valid_runs(found: Sequence[Estimate], unit: str) -> Estimate:
    if not found:
        return missing(unit, "no valid run")
    over = over_runs([estimate.point for estimate in found], unit)
    notes = dict.fromkeys(estimate.note for estimate in found if estimate.note)
    over = msgspec.structs.replace(over, note="; ".join(notes) or None)
    within = [estimate.reason for estimate in found if estimate.reason]
    if over.point is None and within:
        return missing(unit, within[0])
    largest = next((estimate.reason for estimate in found if is_largest(estimate)), None)
    if largest is None:
        return over
    reason = f"{largest}; {over.reason}" if over.reason else largest
    return msgspec.structs.replace(over, reason=reason)


def write(results: Results, folder: Path) -> None:
    """results.json and results.csv, each whole or not at all.

    raises  SamplesError when the folder cannot be written
    """
    write_whole(folder / RESULTS_JSON, json_text(results).encode())
    write_whole(folder / RESULTS_CSV, csv_text(results).encode())


def json_text(results: Results) -> str:
    """results.json as text, indented, ending in a newline."""
    return msgspec.json.format(msgspec.json.encode(results), indent=1).decode() + "\n"


CSV_COLUMNS = (
    "test", "backend", "fabric", "build", "stand_in", "patches", "model", "tp_prefill", "tp_decode", "run_id",
    "repetition", "cell", "concurrency", "seed", "status", "reasons", "metric", "point", "low", "high", "n", "unit",
    "reason", "note",
)  # fmt: skip


def csv_text(results: Results) -> str:
    """One row for each run x cell x metric; a run without metrics keeps one row, so that none disappears."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for test in results.tests:
        about: list[object] = [test.name, test.backend, test.fabric, test.build, test.stand_in, test.patches]
        about += [test.model, test.tp.prefill, test.tp.decode]
        for run in test.runs:
            where = [run.run_id, run.repetition, run.cell, run.concurrency, run.seed, run.status]
            row = [*about, *where, "; ".join(run.reasons)]
            for metric, value in run.metrics.items():
                numbers = (value.point, value.low, value.high, value.n, value.unit, value.reason, value.note)
                writer.writerow([*row, metric, *numbers])
            if not run.metrics:
                writer.writerow(row + [None] * 8)
        for line in test.summary if results.published else ():
            row = [*about, None, None, line.cell, line.concurrency, None, "published", results.published]
            numbers = (line.point, line.low, line.high, line.n, line.unit, line.reason, line.note)
            writer.writerow([*row, line.metric, *numbers])
    return out.getvalue()


class _Schema(msgspec.Struct):
    schema: int


def read(folder: Path) -> Results:
    """results.json of a run folder (or the file itself).

    raises  SamplesError, saying what was found and what to do
    """
    path = folder if folder.is_file() else folder / RESULTS_JSON
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SamplesError(
            f"no results at {path}: {error.strerror}. `kvgauge run` writes them; or name the folder of a run"
        ) from error
    return decode(data, str(path))


def decode(data: bytes, source: str) -> Results:
    """results.json from bytes; `source` names them in errors. Raises SamplesError."""
    try:
        schema = msgspec.json.decode(data, type=_Schema).schema
        if schema != SCHEMA:
            raise SamplesError(
                f"{source} has schema {schema}; this kvgauge reads schema {SCHEMA}. Use the kvgauge that wrote it"
            )
        return msgspec.json.decode(data, type=Results)
    except msgspec.MsgspecError as error:
        raise SamplesError(f"{source} is not a results.json: {error}. Run again, or name another folder") from error
    except UnicodeDecodeError as error:
        raise SamplesError(f"{source} is not a results.json: not UTF-8 at byte {error.start}") from error

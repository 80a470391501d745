"""What one run gave, judged: status, reasons, metrics of every cell and of the run as a whole. Pure."""

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType

import msgspec

from kvgauge.evidence import proof
from kvgauge.evidence.facts import Evidence
from kvgauge.load.tally import CellLoad
from kvgauge.load.texts import Texts
from kvgauge.plan.parts import turned
from kvgauge.plan.records import Cell, Goodput, Run
from kvgauge.plan.trace import FileRequest
from kvgauge.report.records import RunResult, Status
from kvgauge.samples.records import Exchange, Transfer
from kvgauge.stats.cells import cell_metrics
from kvgauge.stats.client import client_metrics, client_troubles
from kvgauge.stats.estimate import Estimate, counted
from kvgauge.stats.goodput import goodput_metrics
from kvgauge.stats.held_back import held_back
from kvgauge.stats.offered import offered_metrics, offered_troubles
from kvgauge.stats.run_level import proved, run_metrics
from kvgauge.stats.settling import Settled
from kvgauge.stats.steps import step_metrics
from kvgauge.stats.turns import turn_metrics, turn_troubles
from kvgauge.stats.warmth import judged


class Measured(msgspec.Struct):
    """What one run gave, before it is judged."""

    exchanges: list[Exchange]
    transfers: list[Transfer]
    loads: list[tuple[Cell, CellLoad, list[Exchange]]]
    seed: int  # that its prompts were made from
    evidence: Evidence | None = None
    failure: str | None = None
    interrupted: bool = False
    mishaps: list[tuple[str, str]] = []  # (cell, what ended there and was started again)
    windows: dict[str, tuple[int, int]] = {}  # cell -> from its first scrape to its last, ns of CLOCK_MONOTONIC
    parts: dict[str, int] = {}  # cell -> place in its dataset of the first prompt it sent
    repeated: dict[str, tuple[int, int]] = {}  # cell -> prompts that had been sent before, of how many
    texts: Texts | None = None  # of answers without usage
    settled: dict[str, Settled] = {}  # cell -> how its warm-up ended, where that was watched
    deployment: str | None = None  # what it was measured on
    began: datetime | None = None  # by the wall clock, before its target was started
    ended: datetime | None = None  # likewise, after that was stopped
    until: dict[str, Estimate] = {}  # cell -> what its own end looked at, and how it went


def requests_of(
    cell: Cell, files: Mapping[str, tuple[FileRequest, ...]], parts: Mapping[str, int] = MappingProxyType({})
) -> tuple[FileRequest, ...]:
    file = cell.trace or cell.dataset
    return () if file is None else turned(files[file.path], parts.get(cell.name, 0))


def judge(
    run: Run,
    measured: Measured,
    files: Mapping[str, tuple[FileRequest, ...]] = MappingProxyType({}),
    goodput: Goodput | None = None,
) -> list[RunResult]:
    """Status, reasons and metrics of every cell of a run, and of the run as a whole. Pure."""
    against = (
        proof.contradictions(run.test, measured.evidence, measured.transfers, measured.exchanges)
        if measured.evidence is not None
        else []
    )
    results = [_whole(run, measured, against)]
    done = {cell.name for cell, _, _ in measured.loads}
    workers = {transfer.request_id: transfer.decode_worker for transfer in measured.transfers}
    cold = run.test.cold_start
    for place, (cell, load, exchanges) in enumerate(measured.loads):
        metrics: dict[str, Estimate] = {}
        if load.started_ns is not None and load.ended_ns is not None:
            ended_ns = load.started_ns + load.measured_ns
            metrics = cell_metrics(exchanges, measured.transfers, load.started_ns, ended_ns, streamed=cell.stream)
            metrics |= offered_metrics(load) | client_metrics(exchanges, load)
            metrics |= step_metrics(cell, exchanges, load) | turn_metrics(cell, exchanges, load)
            metrics |= goodput_metrics(goodput, exchanges, load.measured_ns, streamed=cell.stream)
        if cell.name in measured.until:
            metrics["until_half_width_pct"] = measured.until[cell.name]
        remarks = [remark] if (remark := held_back(exchanges)) is not None else []
        if cell.name in measured.repeated:
            again, sent = measured.repeated[cell.name]
            metrics["prompts_repeated"] = counted(again, "prompts", sent)
            remarks += [_repeated(cell, again, sent)] if again else []
        warm = judged(
            cell,
            load,
            exchanges,
            metrics,
            settled=measured.settled.get(cell.name),
            earlier=[each for before in measured.loads[:place] for each in before[2]],
            workers=workers,
            graph_batch_max=cold.graph_batch_max if cold is not None and cold.graph_capture_s else None,
        )
        metrics = warm.metrics
        remarks += warm.remarks
        ttft = metrics.get("ttft_ms_mean")
        troubles = [
            *offered_troubles(cell, load, ttft.point if ttft is not None else None),
            *client_troubles(cell, exchanges),
            *proof.cell_troubles(
                cell, [each for each in exchanges if not each.warmup], requests_of(cell, files, measured.parts)
            ),
            *turn_troubles(exchanges),
            *([warm.trouble] if warm.trouble is not None else []),
        ]
        status, reasons = _verdict(load, measured, against, troubles)
        results.append(
            msgspec.structs.replace(
                _result(run, cell, status, reasons, metrics),
                load_workers=load.workers,
                load_workers_why=load.workers_why,
                remarks=tuple(remarks),
                warmup=warm.warm_up,
            )
        )
    last = next(iter(reversed(measured.loads)), None)
    for cell in run.cells:
        if cell.name in done:
            continue
        if measured.interrupted:
            results.append(_result(run, cell, "interrupted", ["stopped before this cell"], {}))
        else:
            why = measured.failure or f"not tried: every request of cell {last[0].name if last else '?'} failed"
            results.append(_result(run, cell, "invalid" if against else "failed", [*against, why], {}))
    return results


def _repeated(cell: Cell, again: int, sent: int) -> str:
    assert cell.dataset is not None
    return (
        f"prompts repeated: {again} of {sent} had been sent to this target before, which a prefix cache may have kept "
        f"({cell.dataset.path} has {cell.dataset.prompts:,}). Use a longer dataset, or fewer requests or cells"
    )


def _verdict(load: CellLoad, measured: Measured, against: list[str], troubles: list[str]) -> tuple[Status, list[str]]:
    happened = [what for name, what in measured.mishaps if name == load.cell]
    if measured.failure is not None:
        return "failed", [*happened, measured.failure, *troubles]
    if measured.interrupted and load.interrupted:
        return "interrupted", [*happened, "stopped by the user"]
    if happened:
        return "failed", [*happened, *troubles, *against]
    if against:
        return "invalid", [*troubles, *against]
    if measured.evidence is None:
        return "failed", [measured.failure or "the run ended before its evidence could be collected", *troubles]
    if not troubles:
        return "valid", []
    return ("invalid" if load.completed else "failed"), troubles


def _whole(run: Run, measured: Measured, against: list[str]) -> RunResult:
    """The entry without a cell: what belongs to the run as a whole."""
    metrics = (
        run_metrics(measured.evidence, measured.exchanges, streamed=run.cells[0].stream)
        if measured.evidence is not None
        else {}
    )
    status: Status = "valid"
    reasons = list(against)
    if measured.interrupted:
        status, reasons = "interrupted", ["stopped by the user"]
    elif measured.failure is not None or measured.evidence is None:
        happened = [f"cell {cell}: {what}" for cell, what in measured.mishaps]
        status, reasons = "failed", [*happened, measured.failure or "no evidence was collected"]
    elif measured.mishaps:
        happened = [f"cell {cell}: {what}" for cell, what in measured.mishaps]
        status, reasons = "failed", [*happened, *against]
    elif against:
        status = "invalid"
    return RunResult(
        run_id=run.run_id,
        repetition=run.repetition,
        cell=None,
        concurrency=None,
        seed=run.seed,
        status=status,
        reasons=tuple(reasons),
        metrics=metrics,
        proved=proved(measured.evidence) if measured.evidence is not None else {},
    )


def failed(run: Run, cell: Cell, reasons: list[str]) -> RunResult:
    """A cell that could not even be offered."""
    return _result(run, cell, "failed", reasons, {})


def _result(run: Run, cell: Cell, status: Status, reasons: list[str], metrics: dict[str, Estimate]) -> RunResult:
    return RunResult(
        run_id=run.run_id,
        repetition=run.repetition,
        cell=cell.name,
        concurrency=cell.concurrency,
        seed=run.seed,
        status=status,
        reasons=tuple(reasons),
        metrics=metrics,
    )

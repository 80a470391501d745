"""Pieces into a run folder: sample files, evidence.json, results.json, as `kvgauge run` leaves them."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from kvgauge import __version__
from kvgauge.evidence.facts import Evidence, Missing
from kvgauge.failures import UsageError
from kvgauge.peers import nixlbench
from kvgauge.peers.records import TOOLS, TRANSPORT, UNKNOWN, Piece
from kvgauge.plan.read import slug
from kvgauge.plan.records import UNOBSERVED, Cell, Plan, Primary, Test
from kvgauge.report import results as results_files
from kvgauge.report.records import Results, RunResult, Tp
from kvgauge.samples.disk import disk_errors
from kvgauge.samples.files import SampleWriter

ELSEWHERE = Missing(reason="measured by another tool, elsewhere")


def check(pieces: Sequence[Piece], cell: str | None = None) -> None:
    """raises UsageError when they are no one test: of one tool, model, way of asking; one cell if it is named"""
    if cell is not None and len({piece.cell.name for piece in pieces}) > 1:
        raise UsageError("--cell names one cell, these files hold several: leave it away, or import them one by one")
    for field, said in (("tool", "tools"), ("model", "models")):
        found = sorted({str(getattr(piece, field)) for piece in pieces})
        if len(found) > 1:
            raise UsageError(f"these files are of different {said} ({', '.join(found)}): import them one by one")
    if (differing := nixlbench.differing(pieces)) is not None:
        raise UsageError(
            f"these results were not asked for alike: {differing}; runs of one test are. "
            f"Import them one by one; where one file holds them, cut it before the second configuration"
        )


def write_run(pieces: Sequence[Piece], folder: Path, *, test: str | None = None, cell: str | None = None) -> Results:
    """Write them as one test; the k-th piece of a cell is its repetition k.

    folder  must not hold samples yet; made if need be
    test    its name; None: the tool and the model
    cell    what to call the cell, so that it can be set against a run's; there must be one
    raises  UsageError as `check`, SamplesError when the folder cannot be written
    """
    check(pieces, cell)
    if cell is not None:
        pieces = [
            msgspec.structs.replace(piece, cell=msgspec.structs.replace(piece.cell, name=cell)) for piece in pieces
        ]
    plan = _plan(pieces, test)
    name = plan.tests[0].name
    given: list[RunResult] = []
    for repetition, run in enumerate(_repetitions(pieces), 1):
        run_id = f"r{repetition}-{slug(name)}"
        _write_samples(run, folder / "runs" / run_id, run_id)
        given += _results(run, run_id, repetition)
    machine = {"kvgauge": __version__, "imported from": _tool(pieces[0])}
    results = results_files.build(plan, {name: given}, machine)
    unknown = Tp(prefill=None, decode=None)
    results = msgspec.structs.replace(
        results, tests=tuple(msgspec.structs.replace(each, tp=unknown, build=UNKNOWN) for each in results.tests)
    )
    results_files.write(results, folder)
    return results


def _tool(piece: Piece) -> str:
    return " ".join(filter(None, (TOOLS[piece.tool], piece.version)))


def _plan(pieces: Sequence[Piece], test: str | None) -> Plan:
    """The plan these results could have come from, as far as it is known."""
    cells: dict[str, Cell] = {}
    for piece in pieces:
        cells.setdefault(piece.cell.name, piece.cell)
    first = pieces[0]
    metric = "ttft_ms_mean" if first.cell.stream else "e2e_latency_ms_mean"
    return Plan(
        name=f"import from {TOOLS[first.tool]}",
        source=", ".join(dict.fromkeys(piece.source for piece in pieces))[:500],
        tests=(
            Test(
                name=test
                or (TOOLS[first.tool] if first.tool == "nixlbench" else f"{TOOLS[first.tool]}: {first.model}"),
                backend=UNOBSERVED,
                fabric=UNOBSERVED,
                build=UNOBSERVED,
                patches=UNKNOWN,
                stand_in=None,
                model=first.model,
                prefill_tp=1,
                decode_tp=1,
            ),
        ),
        cells=tuple(cells.values()),
        repetitions=len(_repetitions(pieces)),
        primary=Primary(metric="bandwidth_gb_s" if first.tool == "nixlbench" else metric, cell=next(iter(cells))),
    )


def _repetitions(pieces: Sequence[Piece]) -> list[list[Piece]]:
    runs: list[list[Piece]] = []
    for piece in pieces:
        run = next((run for run in runs if all(each.cell.name != piece.cell.name for each in run)), None)
        if run is None:
            runs.append([piece])
        else:
            run.append(piece)
    return runs


def _results(run: Sequence[Piece], run_id: str, repetition: int) -> list[RunResult]:
    def entry(piece: Piece | None, limits: tuple[str, ...] = ()) -> RunResult:
        reasons = () if piece is None else tuple(_troubles(piece))
        return RunResult(
            run_id=run_id,
            repetition=repetition,
            cell=None if piece is None else piece.cell.name,
            concurrency=None if piece is None else piece.cell.concurrency,
            seed=None,
            status="invalid" if reasons else "valid",
            reasons=reasons,
            metrics={} if piece is None else piece.metrics,
            limits=limits,
        )

    limits = tuple(dict.fromkeys(limit for piece in run for limit in piece.limits))
    return [entry(None, limits), *(entry(piece) for piece in run)]


def _troubles(piece: Piece) -> list[str]:
    """Why its numbers cannot stand for what was offered, by the rule that kvgauge's own cells follow."""
    good, bad = piece.metrics.get("requests"), piece.metrics.get("failures")
    if good is not None and not good.point:
        return ["no request succeeded"]
    if bad is not None and bad.point:
        kinds = sorted({each.failure for each in piece.exchanges if each.failure is not None and not each.warmup})
        named = f" ({', '.join(kinds)})" if kinds else ""
        return [f"{bad.point:g} of {bad.n} requests failed{named}: what is left is not the load that was offered"]
    return []


def _write_samples(run: Sequence[Piece], folder: Path, run_id: str) -> None:
    with SampleWriter(folder) as writer:
        for piece in run:
            for exchange in piece.exchanges:
                writer.add_exchange(msgspec.structs.replace(exchange, run_id=run_id, cell=piece.cell.name))
            writer.flush()
    evidence = Evidence(
        backends={},
        providers=(),
        facts=tuple(dict.fromkeys(claim for piece in run for claim in piece.claims)),
        connections=(),
        handshakes_nixl=ELSEWHERE,
        handshakes_efa=ELSEWHERE,
        wire_bytes=ELSEWHERE,
        gpu_memory_bytes=ELSEWHERE,
        build_sha256={},
        machine=ELSEWHERE,
        unobserved=TRANSPORT,
    )
    with disk_errors(folder, "evidence.json"):
        (folder / "evidence.json").write_bytes(msgspec.json.format(msgspec.json.encode(evidence)))

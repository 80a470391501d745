"""What the views lean on: Arrow tables of results.json and evidence.json, and the sample files of every run, unread."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kvgauge.evidence.facts import Fact, Missing, Proving
from kvgauge.failures import SamplesError, UsageError
from kvgauge.query.views import TABLES, metric_columns
from kvgauge.report import results as results_files
from kvgauge.report.records import Results, RunResult, TestResult
from kvgauge.samples.files import parquet_path, read_stream, stream_path
from kvgauge.samples.records import Connection
from kvgauge.samples.schema import KINDS, Kind, check_schema, schema_of
from kvgauge.stats.estimate import Estimate

if TYPE_CHECKING:
    import pyarrow as pa

FOLDERS_MAX = 200
STREAMS_BYTES_MAX = 1 << 30  # of runs that were cut off: they are read whole
EVIDENCE_BYTES_MAX = 64 << 20
STATES = ("failed", "invalid", "interrupted", "pending", "valid")  # worst first
Row = dict[str, Any]

_TYPES = {
    "repetition": "int64", "prefill_tp": "int64", "decode_tp": "int64", "seed": "int64", "n": "int64",
    "concurrency": "int64", "valid": "bool", "rehearsal": "bool", "primary_metric": "bool", "point": "double",
    "low": "double", "high": "double", "gain_pct": "double", "gain_low_pct": "double", "gain_high_pct": "double",
    "p_value": "double", **dict.fromkeys(metric_columns(), "double"),
}  # fmt: skip


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """evidence.json as it lies on disk: evidence/facts.py's Evidence, `machine` its fields or a reason."""

    backends: dict[str, int] = {}
    providers: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    connections: tuple[Connection, ...] = ()
    handshakes_nixl: int | Missing = Missing(reason="not on record")
    handshakes_efa: int | Missing = Missing(reason="not on record")
    wire_bytes: int | Missing = Missing(reason="not on record")
    gpu_memory_bytes: int | Missing = Missing(reason="not on record")
    build_sha256: dict[str, str] = {}
    machine: dict[str, Any] = {}
    unobserved: str | None = None
    proving: Proving | None = None


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A run folder: its label in `folder`, what results.json says, and the folder of each run that left samples."""

    label: str
    path: Path
    results: Results
    runs: dict[str, Path]


def sources(folders: Sequence[Path]) -> list[Source]:
    """raises UsageError for too many, SamplesError for what is not a run folder"""
    if len(folders) > FOLDERS_MAX:
        raise UsageError(f"{len(folders)} folders are more than {FOLDERS_MAX}: ask about fewer at a time")
    paths = list(dict.fromkeys(folder.resolve() for folder in folders))
    names = [path.name for path in paths]
    found = []
    for path in paths:
        if not path.is_dir():
            raise SamplesError(f"{path} is not a folder: name one that `kvgauge run`, `load` or `import` wrote")
        known = results_files.read(path)
        kept = {run.run_id for test in known.tests for run in test.runs}
        runs = {run_id: path / "runs" / run_id for run_id in sorted(kept) if run_id and _inside(path / "runs", run_id)}
        label = path.name if names.count(path.name) == 1 else str(path)
        found.append(Source(label=label, path=path, results=known, runs=runs))
    return found


def _inside(parent: Path, name: str) -> bool:
    """A results.json may name any run: only folders right below `runs` are looked into."""
    return name == Path(name).name and name != ".." and (parent / name).is_dir()


def result_tables(found: Sequence[Source]) -> dict[str, "pa.Table"]:
    """The tables of views.TABLES, by name. raises SamplesError for a number that no column holds"""
    import pyarrow as pa

    rows = {
        "runs": [row for source in found for row in _runs(source)],
        "cells": [row for source in found for row in _cells(source)],
        "estimates": [row for source in found for row in _estimates(source)],
        "summary": [row for source in found for row in _summary(source)],
        "gains": [row for source in found for row in _gains(source)],
        "evidence": [row for source in found for row in _evidence(source)],
    }
    kinds = {"int64": pa.int64(), "bool": pa.bool_(), "double": pa.float64(), "string": pa.string()}
    try:
        return {
            view.name: pa.Table.from_pylist(
                rows[view.name],
                schema=pa.schema([pa.field(name, kinds[_TYPES.get(name, "string")]) for name in view.columns]),
            )
            for view in TABLES
        }
    except (OverflowError, pa.ArrowException) as error:
        names = ", ".join(str(source.path) for source in found[:3])
        raise SamplesError(f"results.json of {names} holds a number that nothing measures: {error}") from None


def sample_parts(found: Sequence[Source], kind: Kind) -> list[tuple[str, Any]]:
    """(folder, what DuckDB can scan) for every folder that has samples of this kind: Parquet stays on disk.

    raises  SamplesError when a file is damaged, of another version, or streams are too large to be read whole
    """
    import pyarrow.dataset as ds

    parts: list[tuple[str, Any]] = []
    for source in found:
        whole = [path for run in source.runs.values() if (path := parquet_path(run, kind)).is_file()]
        for path in whole:
            _check(path, kind)
        if whole:
            parts.append((source.label, ds.dataset([str(path) for path in whole], schema=schema_of(kind))))
        streams = [
            path
            for run in source.runs.values()
            if (path := stream_path(run, kind)).is_file() and not parquet_path(run, kind).is_file()
        ]
        if streams:
            parts.append((source.label, _streamed(streams, kind)))
    return parts


def _check(path: Path, kind: Kind) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        said = str(error).splitlines()[0][:200]
        raise SamplesError(f"{path} cannot be read: {said}; leave its folder out, or run it again") from None
    check_schema(schema, kind, str(path))


def _streamed(paths: Sequence[Path], kind: Kind) -> "pa.Table":
    import pyarrow as pa

    size = sum(path.stat().st_size for path in paths)
    if size > STREAMS_BYTES_MAX:
        raise SamplesError(
            f"{paths[0].parent}: {size >> 20} MiB of {kind} lie in streams that were cut off, more than the "
            f"{STREAMS_BYTES_MAX >> 20} MiB that are read at once; `kvgauge run --resume` puts them aside"
        )
    schema = schema_of(kind)
    batches = [batch for path in paths for batch in read_stream(path, kind)]
    tables = [_complete(pa.Table.from_batches([batch]), schema) for batch in batches]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _complete(table: "pa.Table", schema: "pa.Schema") -> "pa.Table":
    """An older version's batch, with the optional columns it lacks as null."""
    import pyarrow as pa

    held = set(table.schema.names)
    columns = [
        table.column(field.name) if field.name in held else pa.nulls(table.num_rows, field.type) for field in schema
    ]
    return pa.table(columns, schema=schema)


def _of_runs(source: Source) -> Iterator[tuple[TestResult, RunResult, Row]]:
    """Every entry of results.json with what all rows begin with."""
    for test in source.results.tests:
        states = _states(test)
        for run in test.runs:
            begin = {"folder": source.label, "run_id": run.run_id, "test": test.name}
            yield test, run, begin | {"run_status": states[run.run_id]}


def _states(test: TestResult) -> dict[str, str]:
    listed: dict[str, list[str]] = {}
    for run in test.runs:
        listed.setdefault(run.run_id, []).append(run.status)
    return {run_id: min(states, key=STATES.index) for run_id, states in listed.items()}


def _runs(source: Source) -> Iterator[Row]:
    grouped: dict[tuple[str, str], list[tuple[TestResult, RunResult, Row]]] = {}
    for test, run, begin in _of_runs(source):
        grouped.setdefault((test.name, run.run_id), []).append((test, run, begin))
    for entries in grouped.values():
        test, run, begin = entries[0]
        reasons = dict.fromkeys(reason for _, each, _ in entries for reason in each.reasons)
        proved = {name: value for _, each, _ in entries for name, value in each.proved.items()}
        limits = dict.fromkeys(limit for _, each, _ in entries for limit in each.limits)
        yield begin | {
            "plan": str(source.results.plan.get("name", "")),
            "repetition": run.repetition,
            "valid": begin["run_status"] == "valid",
            "reasons": "; ".join(reasons),
            "backend": test.backend,
            "fabric": test.fabric,
            "build": test.build,
            "stand_in": test.stand_in,
            "model": test.model,
            "prefill_tp": test.tp.prefill,
            "decode_tp": test.tp.decode,
            "rehearsal": source.results.rehearsal,
            "seed": run.seed,
            "proved": "; ".join(f"{name} {value}" for name, value in proved.items()),
            "limits": "; ".join(limits),
            "samples": _samples_of(source, run.run_id),
        }


def _samples_of(source: Source, run_id: str) -> str:
    folder = source.runs.get(run_id)
    if folder is None:
        return "none"
    if any(parquet_path(folder, kind).is_file() for kind in KINDS):
        return "parquet"
    return "streams" if any(stream_path(folder, kind).is_file() for kind in KINDS) else "none"


def _cells(source: Source) -> Iterator[Row]:
    for _, run, begin in _of_runs(source):
        if run.cell is None:
            continue
        points = {name: run.metrics[name].point for name in metric_columns() if name in run.metrics}
        more = {"concurrency": run.concurrency, "reasons": "; ".join(run.reasons), "remarks": "; ".join(run.remarks)}
        yield begin | _state(run) | more | points


def _state(run: RunResult) -> Row:
    return {"cell": run.cell, "cell_status": run.status, "valid": run.status == "valid"}


def _estimates(source: Source) -> Iterator[Row]:
    for _, run, begin in _of_runs(source):
        for metric, estimate in run.metrics.items():
            yield begin | _state(run) | {"repetition": run.repetition, "metric": metric} | _fields(estimate)


def _fields(estimate: Estimate) -> Row:
    return {name: getattr(estimate, name) for name in ("point", "low", "high", "n", "unit", "reason")}


def _summary(source: Source) -> Iterator[Row]:
    for test in source.results.tests:
        for row in test.summary:
            where = {"folder": source.label, "test": test.name, "cell": row.cell, "metric": row.metric}
            yield where | _fields(row.estimate)


def _gains(source: Source) -> Iterator[Row]:
    for test in source.results.tests:
        for row in test.gains:
            yield {
                "folder": source.label,
                "test": row.test,
                "baseline": row.baseline,
                "cell": row.cell,
                "metric": row.metric,
                "primary_metric": row.primary,
                "gain_pct": row.gain.point,
                "gain_low_pct": row.gain.low,
                "gain_high_pct": row.gain.high,
                "n": row.gain.n,
                "n_counts": row.of,
                "verdict": row.verdict,
                "p_value": row.p_value,
                "reason": row.reason or row.gain.reason,
            }


def _evidence(source: Source) -> Iterator[Row]:
    begins = {run.run_id: begin for _, run, begin in _of_runs(source)}
    for run_id, folder in source.runs.items():
        path = folder / "evidence.json"
        if not path.is_file():
            continue
        for name, value, shown_by in _seen(_read_evidence(path)):
            yield begins[run_id] | {"name": name, "value": value, "shown_by": shown_by}


def _read_evidence(path: Path) -> Kept:
    try:
        if path.stat().st_size > EVIDENCE_BYTES_MAX:
            raise SamplesError(f"{path} is larger than any evidence; was it written by another program?")
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise SamplesError(f"{path} cannot be read: {error}; leave its folder out, or run it again") from None


def _seen(evidence: Kept) -> Iterator[tuple[str, str | None, str]]:
    """(name, value, shown by) of everything in it."""
    if evidence.proving is not None:
        yield "transport", evidence.proving.verdict, evidence.proving.headline
    elif evidence.unobserved is not None:
        yield "transport", None, evidence.unobserved
    for backend, transfers in evidence.backends.items():
        yield "backend", backend, f"{transfers} transfers, as NIXL answered"
    for provider in evidence.providers:
        yield "provider", provider, "start-up lines"
    for fact in evidence.facts:
        yield fact.name, fact.value, fact.shown_by
    counts = {
        "handshakes_nixl": evidence.handshakes_nixl,
        "handshakes_efa": evidence.handshakes_efa,
        "wire_bytes": evidence.wire_bytes,
        "gpu_memory_bytes": evidence.gpu_memory_bytes,
    }
    for name, count in counts.items():
        yield (name, None, count.reason) if isinstance(count, Missing) else (name, str(count), "counted over the run")
    for connection in evidence.connections:
        total = connection.total_ns
        yield "connection_ns", None if total is None else str(total), f"{connection.initiator} to {connection.peer}"
    for role, digest in evidence.build_sha256.items():
        yield f"sha256 of {role}", digest, "the file that was loaded"
    if "reason" in evidence.machine:
        yield "machine", None, str(evidence.machine["reason"])
    for name in ("busy", "steal"):
        if name in evidence.machine:
            yield f"machine_{name}_share", str(evidence.machine[name]), f"of {evidence.machine.get('cores')} cores"

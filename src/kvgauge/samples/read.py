"""Samples back from disk: from Parquet, or from the streams of a run that was cut off."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from kvgauge.failures import SamplesError
from kvgauge.samples.files import parquet_path, read_stream, stream_path
from kvgauge.samples.records import Exchange, MetricPoint, Phases, Transfer
from kvgauge.samples.schema import CUT_OFF_KEY, PHASES, Kind, check_schema, schema_of

if TYPE_CHECKING:
    import pyarrow as pa

Record = TypeVar("Record", bound=msgspec.Struct)
Key = tuple[str, str, int]  # run_id, cell, seq


def load_exchanges(folder: Path, *, run_id: str | None = None) -> list[Exchange]:
    """Every exchange on disk, in the order they were added; of one run when `run_id` names it.

    Of a run that was cut off, an exchange whose arrivals did not all reach the disk is left out.
    raises  SamplesError when there are no samples, of a schema this version does not know, or Parquet that is damaged
    """
    arrivals = _arrivals(_table(folder, "arrivals"))
    table = _table(folder, "exchanges")
    cut_off = CUT_OFF_KEY in table.schema.metadata or not parquet_path(folder, "exchanges").is_file()
    exchanges = []
    for row in _rows(table, run_id):
        count = row.pop("arrival_count")
        stamps = arrivals.get((row["run_id"], row["cell"], row["seq"]), ())
        if len(stamps) == count:
            exchanges.append(_exchange(row, stamps))
        elif not cut_off:
            raise SamplesError(
                f"{folder}: request {row['seq']} of cell {row['cell']} should have {count} arrivals and has "
                f"{len(stamps)}; the files do not belong together, or were edited"
            )
    return exchanges


def load_transfers(folder: Path, *, run_id: str | None = None) -> list[Transfer]:
    """Every transfer on disk, in the order they were added; of one run when `run_id` names it."""
    transfers = []
    for row in _rows(_table(folder, "transfers"), run_id):
        del row["run_id"]
        transfers.append(_checked(row, Transfer))
    return transfers


def load_metrics(folder: Path, *, run_id: str | None = None, names: Collection[str] | None = None) -> list[MetricPoint]:
    """Every series that changed, in the order they were written, of these names only when they are given.

    Empty when nothing was scraped. raises SamplesError when what is there cannot be read
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (parquet_path(folder, "metrics").is_file() or stream_path(folder, "metrics").is_file()):
        return []
    table = _table(folder, "metrics")
    if names is not None:
        table = table.filter(pc.field("name").isin(pa.array(sorted(names), type=pa.string())))
    return [_checked(row, MetricPoint) for row in _rows(table, run_id)]


def _table(folder: Path, kind: Kind) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole, stream = parquet_path(folder, kind), stream_path(folder, kind)
    try:
        if whole.is_file():
            table = pq.read_table(whole)
            check_schema(table.schema, kind, str(whole))
            return table
        if stream.is_file():
            return pa.Table.from_batches(read_stream(stream, kind), schema=schema_of(kind))
    except (pa.ArrowException, OSError) as error:
        raise SamplesError(f"{folder}: the {kind} cannot be read: {error}") from error
    raise SamplesError(f"{folder} holds no {kind}: neither {whole.name} nor {stream.name} is there")


def _rows(table: "pa.Table", run_id: str | None) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=65_536):
        for row in batch.to_pylist():
            if run_id is None or row["run_id"] == run_id:
                yield row


def _arrivals(table: "pa.Table") -> dict[Key, tuple[int, ...]]:
    """The stamps of each exchange. They lie together on disk, index 0 first."""
    if table.num_rows == 0:
        return {}
    stamps = table.column("arrival_ns").to_numpy()
    starts = np.flatnonzero(table.column("index").to_numpy() == 0)
    ends = np.append(starts[1:], len(stamps))
    heads = table.select(["run_id", "cell", "seq"]).take(starts).to_pylist()
    return {
        (head["run_id"], head["cell"], head["seq"]): tuple(stamps[start:end].tolist())
        for head, start, end in zip(heads, starts, ends, strict=True)
    }


def _exchange(row: dict[str, Any], stamps: tuple[int, ...]) -> Exchange:
    phases = {name: row.pop(f"phase_{name}", None) for name in ("clock", "host", *PHASES)}
    known = phases["clock"] is not None
    return _checked({**row, "arrivals_ns": stamps, "phases": _checked(phases, Phases) if known else None}, Exchange)


def _checked(row: dict[str, Any], record: type[Record]) -> Record:
    try:
        return msgspec.convert(row, record)
    except msgspec.ValidationError as error:
        raise SamplesError(f"a row of {record.__name__} is not what its schema says: {error}") from None

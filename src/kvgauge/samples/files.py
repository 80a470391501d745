"""Samples on disk as they happen.

While a run lasts: one Arrow IPC stream for each kind, flushed at least every second, readable when cut off at any
byte. When it ends: Parquet, under the final name only once it is whole. docs/samples.md describes both.
"""

import contextlib
import os
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from kvgauge.failures import SamplesError
from kvgauge.samples.disk import disk_errors
from kvgauge.samples.records import Exchange, Transfer
from kvgauge.samples.schema import CUT_OFF_KEY, KINDS, OURS, PHASES, Kind, check_schema, schema_of

if TYPE_CHECKING:
    import pyarrow as pa

FLUSH_EVERY_NS = 1_000_000_000
ROW_GROUP_ROWS = 1 << 18
HIDDEN = "***"
Key = tuple[str, str, int]  # run_id, cell, seq
STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


def stream_path(folder: Path, kind: Kind) -> Path:
    return folder / f"{kind}.arrows"


def parquet_path(folder: Path, kind: Kind) -> Path:
    return folder / f"{kind}.parquet"


class SampleWriter:
    """Writes the exchanges and transfers of one folder. Not thread-safe.

    folder          made if need be; must not hold samples yet
    flush_every_ns  how long a sample may wait before `flush_due` hands it to the kernel
    secrets         strings that must not reach the disk: wherever a server quotes one, `***` is written
    raises          SamplesError when the folder cannot be written or holds samples; every method may, when the disk
                    is full: what was written before stays readable

    As a context manager: `finish` at the end of the block; after an exception the streams are flushed and left as
    they are, which readers take as well.
    """

    def __init__(
        self,
        folder: Path,
        *,
        flush_every_ns: int = FLUSH_EVERY_NS,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        secrets: Sequence[str] = (),
    ) -> None:
        self._folder, self._flush_every_ns, self._clock_ns = folder, flush_every_ns, clock_ns
        self._secrets = tuple(secret for secret in secrets if secret)
        self._exchanges: list[Exchange] = []
        self._transfers: list[tuple[str, Transfer]] = []
        self._arrivals_ns = array("q")
        self._flushed_ns = clock_ns()
        self._streams: dict[Kind, Stream] = {}
        self._failed: SamplesError | None = None
        self._counted: dict[Key, Exchange] = {}
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for kind in KINDS:
                for path in (stream_path(folder, kind), parquet_path(folder, kind)):
                    if path.is_file():
                        raise SamplesError(f"{path} exists: samples are never overwritten; give another folder")
            try:
                for kind in reversed(OURS):  # exchanges last: where they are, a reader finds the others too
                    self._streams[kind] = Stream(stream_path(folder, kind), kind)
            except BaseException:
                self._close_streams()
                raise

    def add_exchange(self, exchange: Exchange) -> None:
        """Keep one exchange; it is on its way to the disk with the next flush."""
        if self._failed is not None:
            raise self._failed
        if self._secrets and exchange.detail:
            exchange = _without(exchange, self._secrets)
        self._exchanges.append(exchange)
        self._arrivals_ns.extend(exchange.arrivals_ns)

    def add_transfer(self, run_id: str, transfer: Transfer) -> None:
        """Keep one transfer of this run."""
        if self._failed is not None:
            raise self._failed
        self._transfers.append((run_id, transfer))

    def count(self, exchanges: Sequence[Exchange]) -> None:
        """Take the token counts of these, which were added before, in place of what was known then.

        They reach the Parquet files: the streams of a run that is killed before its end keep the first counts.
        """
        self._counted |= {(each.run_id, each.cell, each.seq): each for each in exchanges}

    def flush_due(self) -> None:
        """Flush when the oldest sample may have waited long enough. Cheap otherwise: call it often."""
        if self._clock_ns() - self._flushed_ns >= self._flush_every_ns:
            self.flush()

    def flush(self) -> None:
        """Hand all there is to the kernel. Arrivals first: an exchange on disk then has its arrivals there too."""
        if self._failed is not None:
            raise self._failed
        self._flushed_ns = self._clock_ns()
        try:
            with disk_errors(self._folder):
                self._write()
        except SamplesError as error:
            self._failed = error
            raise

    def _write(self) -> None:
        if self._exchanges:
            if self._arrivals_ns:
                self._streams["arrivals"].write(_arrivals_batch(self._exchanges, self._arrivals_ns))
            self._streams["exchanges"].write(_exchanges_batch(self._exchanges))
            self._exchanges, self._arrivals_ns = [], array("q")
        if self._transfers:
            self._streams["transfers"].write(_transfers_batch(self._transfers))
            self._transfers = []

    def finish(self) -> None:
        """Flush, end the streams and turn them into Parquet. Call once; nothing can be added after it."""
        self.flush()
        with disk_errors(self._folder):
            self._close_streams()
        seal(self._folder, self._counted)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
            return
        with contextlib.suppress(SamplesError, OSError):  # the exception under way says more
            self.flush()
        with contextlib.suppress(OSError):
            self._close_streams()

    def _close_streams(self) -> None:
        for stream in self._streams.values():
            stream.close()


def seal(folder: Path, counted: Mapping[Key, Exchange] = MappingProxyType({})) -> None:
    """Turn the streams in a folder into Parquet and remove them; those of a killed run too, as far as they go.

    counted  exchanges whose tokens were counted since they were written
    raises  SamplesError; the streams are then still there
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    streams = [(kind, stream_path(folder, kind)) for kind in KINDS if stream_path(folder, kind).is_file()]
    cut_off = not all(_ends(path) for kind, path in streams if kind in OURS)
    with disk_errors(folder):
        for kind, path in streams:
            final = parquet_path(folder, kind)
            if final.exists():  # an earlier call got this far
                continue
            partial = final.with_name(final.name + ".partial")
            schema = schema_of(kind)
            if cut_off or not _ends(path):
                schema = schema.with_metadata({**schema.metadata, CUT_OFF_KEY: b"1"})
            try:
                with partial.open("wb") as file:
                    with pq.ParquetWriter(file, schema, compression="zstd") as parquet:
                        for batches in _groups(read_stream(path, kind)):
                            table = pa.Table.from_batches(batches)
                            if counted and kind == "exchanges":
                                table = _recounted(table, counted)
                            parquet.write_table(table.cast(schema))
                    file.flush()
                    os.fsync(file.fileno())
                partial.rename(final)
            except OSError:
                partial.unlink(missing_ok=True)  # a full disk needs the room
                raise
        _sync_folder(folder)
        for _, path in streams:
            path.unlink()


def _recounted(table: "pa.Table", counted: Mapping[Key, Exchange]) -> "pa.Table":
    import pyarrow as pa

    keys = zip(*(table.column(name).to_pylist() for name in ("run_id", "cell", "seq")), strict=True)
    found = [counted.get(key) for key in keys]
    for name in ("tokens_in", "tokens_out", "tokens_source", "tokenizer", "tokenizer_stands_in"):
        before = table.column(name).to_pylist()
        values = [old if each is None else getattr(each, name) for old, each in zip(before, found, strict=True)]
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, type=field.type))
    return table


def read_stream(path: Path, kind: Kind) -> Iterator["pa.RecordBatch"]:
    """The complete batches of a stream, wherever it was cut off.

    raises  SamplesError when its beginning says that it is something else
    """
    import pyarrow as pa

    with path.open("rb") as file:
        try:
            reader = pa.ipc.open_stream(file)
        except (pa.ArrowException, EOFError, OSError):
            return  # cut off before its schema was whole
        check_schema(reader.schema, kind, str(path))
        while True:
            try:
                batch = reader.read_next_batch()
                batch.validate(full=True)
            except StopIteration:
                return
            except (pa.ArrowException, EOFError, OSError):
                return  # cut off inside this batch
            yield batch


def _ends(path: Path) -> bool:
    """Whether a stream was ended, not cut off."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(STREAM_END)))
        return file.read() == STREAM_END


class Stream:
    """One Arrow IPC stream. Unbuffered: what was written is the kernel's.

    After a write that failed nothing more is written: readers would take it for the rest of the torn batch.
    compression  of every batch: None, or "zstd" where the same text comes again and again
    """

    def __init__(self, path: Path, kind: Kind, *, compression: str | None = None) -> None:
        import pyarrow as pa

        self._schema = schema_of(kind)
        self._torn = False
        self._file = pa.OSFile(str(path), mode="wb")  # which writes all or raises, as a raw Python file does not
        try:
            options = pa.ipc.IpcWriteOptions(compression=compression)
            self._writer = pa.ipc.new_stream(self._file, self._schema, options=options)
        except BaseException:
            self._file.close()
            raise

    def write(self, columns: dict[str, Any]) -> None:
        import pyarrow as pa

        arrays = [
            column if isinstance(column, pa.Array) else pa.array(column, type=field.type)
            for field, column in ((field, columns[field.name]) for field in self._schema)
        ]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        self._torn = True
        self._writer.write_batch(batch)
        self._torn = False

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            if not self._torn:
                self._writer.close()
        finally:
            self._file.close()


def _exchanges_batch(exchanges: list[Exchange]) -> dict[str, Any]:
    plain = [name for name in Exchange.__struct_fields__ if name not in ("arrivals_ns", "phases")]
    columns: dict[str, Any] = {name: [getattr(exchange, name) for exchange in exchanges] for name in plain}
    columns["arrival_count"] = [len(exchange.arrivals_ns) for exchange in exchanges]
    phases = [exchange.phases for exchange in exchanges]
    for name in ("clock", "host", *PHASES):
        columns[f"phase_{name}"] = [None if each is None else getattr(each, name) for each in phases]
    return columns


def _arrivals_batch(exchanges: list[Exchange], arrivals_ns: "array[int]") -> dict[str, Any]:
    """Built from arrays: there may be 100,000 arrivals a second, and the load loop waits for this."""
    import pyarrow as pa

    counts = np.array([len(exchange.arrivals_ns) for exchange in exchanges])
    first = np.repeat(np.cumsum(counts) - counts, counts)
    rows = pa.array(np.repeat(np.arange(len(exchanges)), counts))
    stamps = np.array(arrivals_ns, dtype=np.int64)
    return {
        "run_id": pa.array([exchange.run_id for exchange in exchanges]).take(rows),
        "cell": pa.array([exchange.cell for exchange in exchanges]).take(rows),
        "seq": pa.array([exchange.seq for exchange in exchanges], type=pa.int64()).take(rows),
        "index": pa.array((np.arange(len(first)) - first).astype(np.int32)),
        "arrival_ns": pa.array(stamps),
    }


def _transfers_batch(transfers: list[tuple[str, Transfer]]) -> dict[str, Any]:
    columns: dict[str, Any] = {"run_id": [run_id for run_id, _ in transfers]}
    for name in Transfer.__struct_fields__:
        columns[name] = [getattr(transfer, name) for _, transfer in transfers]
    return columns


def _groups(batches: Iterator["pa.RecordBatch"]) -> Iterator[list["pa.RecordBatch"]]:
    """Batches of a second each, gathered into row groups worth having."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(each.num_rows for each in held) >= ROW_GROUP_ROWS:
            yield held
            held = []
    if held:
        yield held


def _without(exchange: Exchange, secrets: tuple[str, ...]) -> Exchange:
    import msgspec

    detail = exchange.detail or ""
    for secret in secrets:
        detail = detail.replace(secret, HIDDEN)
    return msgspec.structs.replace(exchange, detail=detail)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

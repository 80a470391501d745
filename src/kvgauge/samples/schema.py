"""The columns of the sample files; docs/samples.md explains them. pyarrow is imported when they are asked for.

A change that a reader must know of raises SCHEMA_VERSION. Columns may be added without: readers take a missing
optional column as null.
"""

from typing import TYPE_CHECKING, Literal

from kvgauge.failures import SamplesError

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1
VERSION_KEY, KIND_KEY = b"kvgauge.schema", b"kvgauge.kind"
CUT_OFF_KEY = b"kvgauge.cut_off"  # in Parquet made from the streams of a run that was killed

Kind = Literal["exchanges", "arrivals", "transfers", "metrics"]
KINDS: tuple[Kind, ...] = ("exchanges", "arrivals", "transfers", "metrics")
OURS: tuple[Kind, ...] = KINDS[:3]  # what the client itself sees; metrics come from a process of their own, or not

PHASES = (
    "received_ns",
    "prefill_start_ns",
    "prefill_end_ns",
    "posted_ns",
    "transferred_ns",
    "first_token_ns",
    "written_ns",
)

# name, Arrow type, may be null
_COLUMNS: dict[Kind, tuple[tuple[str, str, bool], ...]] = {
    "exchanges": (
        ("run_id", "string", False),
        ("cell", "string", False),
        ("seq", "int64", False),
        ("warmup", "bool", False),
        ("slot", "int32", False),
        ("worker", "int32", False),
        ("host", "string", False),
        ("clock", "string", False),
        ("stamp_source", "string", False),
        ("due_ns", "int64", False),
        ("sent_ns", "int64", False),
        ("done_ns", "int64", True),
        ("arrival_count", "int64", False),
        ("tokens_in", "int64", True),
        ("tokens_out", "int64", False),
        ("tokens_source", "string", False),
        ("status", "int32", True),
        ("failure", "string", True),
        ("detail", "string", True),
        ("request_id", "string", True),
        ("phase_clock", "string", True),
        ("phase_host", "string", True),
        *((f"phase_{name}", "int64", True) for name in PHASES),
        ("arrivals_shared", "int64", True),
        ("arrivals_user", "int64", True),
        ("lag_ns_max", "int64", True),
        ("lag_ns_mean", "int64", True),
        ("tls", "string", True),
        ("fresh", "bool", True),
        ("first_byte_ns", "int64", True),
        ("session", "int64", True),
        ("turn", "int32", True),
        ("tokenizer", "string", True),
        ("tokenizer_stands_in", "bool", True),
    ),
    "arrivals": (
        ("run_id", "string", False),
        ("cell", "string", False),
        ("seq", "int64", False),
        ("index", "int32", False),
        ("arrival_ns", "int64", False),
    ),
    "transfers": (
        ("run_id", "string", False),
        ("request_id", "string", False),
        ("prefill_worker", "int32", False),
        ("decode_worker", "int32", False),
        ("operation", "string", False),
        ("backend", "string", False),
        ("prompt_tokens", "int64", False),
        ("pairs", "int32", False),
        ("descriptors", "int64", False),
        ("bytes_expected", "int64", False),
        ("bytes_listed", "int64", False),
        ("bytes_moved", "int64", True),
        ("posted_ns", "int64", False),
        ("transferred_ns", "int64", True),
        ("post_ns", "int64", False),
        ("checked_ns", "int64", False),
        ("pieces", "int64", False),
        ("pieces_wrong", "int64", False),
        ("failure", "string", True),
    ),
    "metrics": (
        ("run_id", "string", False),
        ("source", "string", False),
        ("time_ns", "int64", False),
        ("done_ns", "int64", False),
        ("realtime_ns", "int64", False),
        ("name", "string", False),
        ("labels", "string", False),
        ("kind", "string", False),
        ("value", "double", True),
        ("detail", "string", True),
    ),
}


def columns_of(kind: Kind) -> tuple[str, ...]:
    """The names of its columns, in order."""
    return tuple(name for name, _, _ in _COLUMNS[kind])


def schema_of(kind: Kind) -> "pa.Schema":
    """The Arrow schema of one file, its version in the metadata."""
    import pyarrow as pa

    types = {"string": pa.string(), "bool": pa.bool_(), "int32": pa.int32(), "int64": pa.int64()}
    types["double"] = pa.float64()
    fields = [pa.field(name, types[kind_of], nullable=nullable) for name, kind_of, nullable in _COLUMNS[kind]]
    return pa.schema(fields, metadata={VERSION_KEY: str(SCHEMA_VERSION).encode(), KIND_KEY: kind.encode()})


def check_schema(schema: "pa.Schema", kind: Kind, source: str) -> None:
    """raises SamplesError when a file is not of this kind and version, or lacks columns it must have."""
    metadata = schema.metadata or {}
    version, found = metadata.get(VERSION_KEY), metadata.get(KIND_KEY)
    if version is None or found != kind.encode():
        raise SamplesError(f"{source} does not hold {kind} of kvgauge; was it written by another program?")
    if version != str(SCHEMA_VERSION).encode():
        raise SamplesError(
            f"{source} has schema version {version.decode('ascii', 'replace')}, this kvgauge reads version "
            f"{SCHEMA_VERSION}; read it with the kvgauge that wrote it"
        )
    present = set(schema.names)
    lacking = [name for name, _, nullable in _COLUMNS[kind] if not nullable and name not in present]
    if lacking:
        raise SamplesError(f"{source} lacks the columns {', '.join(lacking)}; it is damaged or was edited")

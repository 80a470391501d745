"""results.json of `kvgauge xfer`. docs/xfer.md describes it."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from kvgauge import __version__
from kvgauge.builds.records import Build
from kvgauge.failures import SamplesError
from kvgauge.xfer.figures import Ratio, RowResult, summed
from kvgauge.xfer.files import SCHEMA
from kvgauge.xfer.rounds import Setting
from kvgauge.xfer.tools import Figure

KIND = "xfer"
NIXLBENCH = {  # the column of nixlbench's table -> our figure; the first two are numbers of the workload
    "B/W (GB/Sec)": "bandwidth_gb_s",
    "Aggregate B/W (GB/Sec)": "aggregate_gb_s",
    "Network Util (%)": "stream_share_pct",
    "Avg Lat. (us)": "latency_us_mean",
    "Avg Prep (us)": "prepare_us_mean",
    "P99 Prep (us)": "prepare_us_p99",
    "Avg Post (us)": "post_us_mean",
    "P99 Post (us)": "post_us_p99",
    "Avg Tx (us)": "transfer_us_mean",
    "P99 Tx (us)": "transfer_us_p99",
}


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """results.json as it is read: what the table and the chart are made of.

    fabric  None: of a kvgauge that did not keep it
    """

    schema: int
    machine: Mapping[str, str]
    build: Mapping[str, Any]
    rounds: int
    notes: tuple[str, ...]
    rows: tuple[RowResult, ...]
    ratios: tuple[Ratio, ...]
    beside: tuple[Figure, ...]
    fabric: str | None = None


class _Kind(msgspec.Struct):
    schema: int
    kind: str = ""


def written(data: bytes) -> bool:
    """Whether these bytes are results of `kvgauge xfer`, of whichever schema."""
    try:
        return msgspec.json.decode(data, type=_Kind).kind == KIND
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False


def decode(data: bytes, source: str) -> Saved:
    """`source` names the bytes in errors. raises SamplesError"""
    try:
        schema = msgspec.json.decode(data, type=_Kind).schema
        if schema != SCHEMA:
            raise SamplesError(
                f"{source} has schema {schema} of kvgauge xfer; this kvgauge reads schema {SCHEMA}. Use the kvgauge "
                "that wrote it"
            )
        return msgspec.json.decode(data, type=Saved)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SamplesError(f"{source} is not what kvgauge xfer wrote: {error}. Name another folder") from error


def document(
    rows: Sequence[RowResult],
    ratios: Sequence[Ratio],
    tools: Sequence[Figure],
    *,
    setting: Setting,
    build: Build,
    args: dict[str, object],
    notes: Sequence[str],
) -> bytes:
    """The whole of it as JSON, a final newline included."""
    integrity = summed([row.integrity for row in rows])
    whole: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": KIND,
        "kvgauge": __version__,
        "machine": {"host": platform.node(), "system": platform.release(), "processor": platform.machine()},
        "build": {"name": build.name, "version": build.version, "identity": build.identity, "sha256": build.sha256},
        "asked": args,
        "fabric": setting.fabric,
        "rounds": setting.rounds,
        "pace": setting.pace,
        "notes": list(notes),
        "integrity": {**msgspec.to_builtins(integrity), "right": integrity.right},
        "rows": [{**msgspec.to_builtins(row), "nixlbench": nixlbench_row(row)} for row in rows],
        "ratios": ratios,
        "beside": tools,
    }
    return msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"


def nixlbench_row(row: RowResult) -> dict[str, float | int | None]:
    """The row under nixlbench's headings; Network Util is of a plain TCP stream, not of the 50 GB/s it assumes."""
    columns: dict[str, float | int | None] = {
        "Block Size (B)": row.workload.block_bytes,
        "Batch Size": row.workload.descriptors,
    }
    return columns | {head: row.figures[name].point for head, name in NIXLBENCH.items()}

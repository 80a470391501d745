"""nixlbench: the table it prints, and the configuration above it. Pure.

Form: benchmark/nixlbench/src/utils/utils.cpp of NIXL, `printConfig`, `printStatsHeader`, `printStats`; columns are
found by their heads, since versions differ in them. 1 GB is 10^9 bytes.
"""

import re
from collections.abc import Sequence

import msgspec

from kvgauge.evidence.facts import Fact
from kvgauge.failures import SamplesError
from kvgauge.peers.records import AGGREGATED, TRANSPORT, UNKNOWN, Piece, number
from kvgauge.plan.records import Cell
from kvgauge.stats.estimate import Estimate, bare

ROWS_MAX = 10_000
LINE_CHARS_MAX = 4096
LARGE_BLOCK_BYTES = 1 << 20  # above it nixlbench does fewer iterations
HEAD = "Block Size (B)"
COLUMNS = {  # nixlbench's heads -> our name and unit
    "B/W (GB/Sec)": ("bandwidth_gb_s", "GB/s"),
    "Aggregate B/W (GB/Sec)": ("bandwidth_aggregate_gb_s", "GB/s"),
    "Avg Lat. (us)": ("descriptor_us_mean", "us"),
    "Avg Prep (us)": ("prep_us_mean", "us"),
    "P99 Prep (us)": ("prep_us_p99", "us"),
    "Avg Post (us)": ("post_us_mean", "us"),
    "P99 Post (us)": ("post_us_p99", "us"),
    "Avg Tx (us)": ("wait_us_mean", "us"),
    "P99 Tx (us)": ("wait_us_p99", "us"),
}
CLAIMS = (  # of the configuration; others may hold keys and paths, and stay out
    "runtime_type", "worker_type", "backend", "enable_pt", "progress_threads", "recreate_xfer", "reregister_mem",
    "pipeline_depth", "initiator_seg_type", "target_seg_type", "scheme", "mode", "op_type", "check_consistency",
    "total_buffer_size", "num_initiator_dev", "num_target_dev", "num_iter", "warmup_iter", "large_blk_iter_ftr",
    "num_threads",
)  # fmt: skip
_CELL = ("op_type", "initiator_seg_type", "target_seg_type")  # a cell's name has them
ALIKE = tuple(name for name in CLAIMS if name not in (*_CELL, "runtime_type", "num_iter", "warmup_iter"))
_OPTION = re.compile(r"\(--(\w+)(?:=[^)]*)?\)\s*:\s*(.*)$")
_ROW = re.compile(r"\d+\s")
_STAMP = re.compile(r"^\[?\d{4}-\d\d-\d\dT[\d:.,]+(?:Z|[+-]\d\d:?\d\d)?\]?\s*")  # kubectl logs --timestamps, Jenkins


class Line(msgspec.Struct, frozen=True):
    """A row of the table: which line it is, and its values by head."""

    number: int
    values: dict[str, float]


class Table(msgspec.Struct):
    """One start of nixlbench: its configuration, the heads of its table, its rows."""

    options: dict[str, str]
    heads: list[str] | None = None
    rows: list[Line] = msgspec.field(default_factory=list)


def read(data: bytes, *, source: str) -> list[Piece]:
    """One piece for each row, of each table: a log may hold several starts, one after the other.

    raises  SamplesError that names the line
    """
    tables, rows = [Table({})], 0
    for count, raw in enumerate(data.split(b"\n"), 1):
        text = _STAMP.sub("", raw[:LINE_CHARS_MAX].decode("utf-8", "replace").strip())
        table = tables[-1]
        option = _OPTION.search(text)
        if HEAD in text:
            if table.heads is not None:  # its configuration is the one before, unless it printed another
                tables.append(table := Table(dict(table.options)))
            table.heads = _heads(text[text.index(HEAD) :], f"{source}:{count}")
        elif option is not None:
            if table.heads is not None:
                tables.append(table := Table({}))
            if option[1] in CLAIMS:
                table.options[option[1]] = option[2].strip()[:100]
        elif table.heads is not None and _ROW.match(text + " "):
            table.rows.append(Line(count, _values(text, table.heads, f"{source}:{count}")))
            rows += 1
            if rows > ROWS_MAX:
                raise SamplesError(f"{source}: more than {ROWS_MAX:,} rows; import a part of it")
    if all(table.heads is None for table in tables):
        raise SamplesError(f"{source} holds no table of nixlbench's: no line has {HEAD!r}")
    if not rows:
        raise SamplesError(
            f"{source} has the head of nixlbench's table and no row below it; did it end before the first?"
        )
    return [_piece(line, table.options, source) for table in tables for line in table.rows]


def differing(pieces: Sequence[Piece]) -> str | None:
    """What these results were not asked for alike, so that they are no repetitions of one test; None: nothing."""
    for name in ALIKE:
        found = {fact.value for piece in pieces for fact in piece.claims if fact.name == f"claimed_{name}"}
        if len(found) > 1:
            return f"{name} ({', '.join(sorted(found))})"
    return None


def _heads(text: str, where: str) -> list[str]:
    heads = re.split(r"\s{2,}", text)
    lacking = [name for name in (HEAD, "Batch Size", "B/W (GB/Sec)") if name not in heads]
    if lacking:
        raise SamplesError(f"{where}: the head of the table lacks {', '.join(lacking)}; is it nixlbench's?")
    return heads


def _values(text: str, heads: list[str], where: str) -> dict[str, float]:
    fields = text.split()
    if len(fields) != len(heads):
        raise SamplesError(
            f"{where}: {len(fields)} values below {len(heads)} heads; the line was cut off or ran together"
        )
    values = {}
    for head, field in zip(heads, fields, strict=True):
        try:
            values[head] = float(field)
        except ValueError:
            raise SamplesError(f"{where}: {field[:40]!r} below {head!r} is not a number") from None
        number(values[head], f"{where}: {head}", most=1e15)
    for head in (HEAD, "Batch Size"):
        if values[head] != int(values[head]) or values[head] < 1:
            raise SamplesError(f"{where}: {head} is {values[head]:g}; expected a whole number from 1")
    return values


def _piece(line: Line, options: dict[str, str], source: str) -> Piece:
    block, batch = int(line.values[HEAD]), int(line.values["Batch Size"])
    iterations = _iterations(options, block)
    why = "nixlbench prints a mean or P99 over its iterations, without samples: no interval"
    metrics: dict[str, Estimate] = {
        ours: bare(line.values[head], unit, iterations or 0, why)
        for head, (ours, unit) in COLUMNS.items()
        if head in line.values
    }
    threads = _whole(options, "num_threads") or 1
    return Piece(
        tool="nixlbench",
        version=None,
        source=source,
        model="no model",
        cell=Cell(
            name="-".join([f"{block}B", f"x{batch}", *_way(options)]),
            load="closed",
            concurrency=threads,
            requests=iterations or 1,
            output_tokens=0,
            warmup_requests=_whole(options, "warmup_iter") or 0,
        ),
        metrics=metrics,
        limits=tuple(_limits(options)),
        claims=tuple(
            Fact(name=f"claimed_{name}", value=value, shown_by=f"nixlbench's configuration, {source}")
            for name, value in options.items()
        ),
    )


def _way(options: dict[str, str]) -> list[str]:
    """Direction and memory: a READ is never set against a WRITE, nor host memory against a GPU's."""
    memory = dict.fromkeys(options[name] for name in ("initiator_seg_type", "target_seg_type") if name in options)
    return [word for word in (options.get("op_type", ""), *memory) if re.fullmatch(r"\w{1,20}", word)]


def _iterations(options: dict[str, str], block: int) -> int | None:
    iterations = _whole(options, "num_iter")
    factor = _whole(options, "large_blk_iter_ftr") if block > LARGE_BLOCK_BYTES else 1
    return None if iterations is None or not factor else iterations // factor


def _whole(options: dict[str, str], name: str) -> int | None:
    text = options.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _limits(options: dict[str, str]) -> list[str]:
    backend = options.get("backend")
    said = [
        f"{TRANSPORT}; nixlbench says it asked for {backend}" if backend else TRANSPORT,
        AGGREGATED,
        "transfers by themselves: no requests, no model, no serving",
        "no percentile of a whole transfer: preparation, posting and waiting are told apart, each with its own P99",
        "connection time is not measured",
    ]
    if not options:
        said.append(f"the configuration is not in the file: iterations, warm-up, memory and direction are {UNKNOWN}")
    elif options.get("check_consistency") != "1":
        said.append("bytes were not checked (--check_consistency)")
    return said

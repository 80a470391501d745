"""TensorRT-LLM's rank_<r>_send.csv and rank_<r>_recv.csv (TRTLLM_KVCACHE_TIME_OUTPUT_PATH) to transfers. Pure.

Two headers are known, both read by name:

    RequestID,Delay(ms),Duration(ms),Bandwidth(Gbps)                     repeated for each peer rank, older
    RequestID,RequestInfo,Preparation,Preprocess,Transmissions,Postprocess,Delay,Duration,Bandwidth(Gbps),...   newer

Of the file's numbers, bandwidth x duration is the size: size x 8 / duration(ms) / 1e6, printed with six digits.
"""

import csv
from collections.abc import Iterable, Iterator
from math import isfinite

import msgspec

ROWS_MAX = 1_000_000
DIGITS_SHARE = 1e-5  # both printed with six digits: half a unit of the last, twice


class SentRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request as one rank sent or received it; `size_bytes` over all its peers, to DIGITS_SHARE."""

    request_id: str
    peers: int
    size_bytes: float
    duration_ms: float


def is_header(line: str) -> bool:
    """Whether a file that begins so is one of these."""
    return line.startswith("RequestID,") and "Bandwidth(Gbps)" in line


def rows(lines: Iterable[str]) -> Iterator[SentRow]:
    """Rows that can be read; of others nothing. A header in the middle (a file that was added to) is one again."""
    columns: list[tuple[int, int]] = []
    for count, line in enumerate(lines):
        if count > ROWS_MAX:
            return
        if is_header(line):
            columns = _columns(line)
        elif columns and (row := _row(line, columns)) is not None:
            yield row


def _columns(header: str) -> list[tuple[int, int]]:
    """(duration, bandwidth) of each peer."""
    names = [name.strip().removesuffix("(ms)") for name in header.split(",")]
    durations = [at for at, name in enumerate(names) if name == "Duration"]
    bandwidths = [at for at, name in enumerate(names) if name == "Bandwidth(Gbps)"]
    return list(zip(durations, bandwidths, strict=False))


def _row(line: str, columns: list[tuple[int, int]]) -> SentRow | None:
    try:
        cells = next(csv.reader([line]))
        measures = [(float(cells[d]), float(cells[b])) for d, b in columns if b < len(cells) and cells[b].strip()]
    except (ValueError, csv.Error, StopIteration):
        return None
    if not measures or not cells[0].strip().isdecimal() or not all(isfinite(v) for pair in measures for v in pair):
        return None
    return SentRow(
        request_id=cells[0].strip()[:40],
        peers=len(measures),
        size_bytes=sum(duration * bandwidth for duration, bandwidth in measures) * 1e6 / 8,
        duration_ms=max(duration for duration, _ in measures),
    )

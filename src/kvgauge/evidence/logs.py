"""A log of any size, line by line, to the facts of one process. Bounded: line, text, and what is kept.

`read_file` is the thin edge that opens the file; the rest is pure.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from kvgauge.evidence import engines, libfabric, nixl, ucx
from kvgauge.evidence.facts import Fact
from kvgauge.evidence.nixl import SHOWN_CHARACTERS, Seen

LINE_BYTES_MAX = 8_192  # of a longer line only this much is looked at
HEAD_BYTES, TAIL_BYTES = 96 << 20, 32 << 20  # of a larger file its beginning and its end: about 10 s
KEPT_MAX = 2_000  # different facts of one log
CHUNK_BYTES = 1 << 18
VALUE_CHARACTERS_MAX = 200
PREFIX_CHARACTERS_MAX = 256
_UCX_HEAD = re.compile(r"\[\d+\.\d+\] \[")


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """A fact and how many lines said it; `shown_by` is the first of them."""

    fact: Fact
    count: int


class LogFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What one log says. cut: why not all of it was read; None when all was."""

    process: str
    lines: int
    sightings: tuple[Sighting, ...]
    cut: str | None = None

    def of(self, name: str) -> list[Sighting]:
        return [sighting for sighting in self.sightings if sighting.fact.name == name]

    @property
    def facts(self) -> list[Fact]:
        return nixl.settled(sighting.fact for sighting in self.sightings)


class Scan:
    """Takes lines, keeps facts."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._seen: dict[Seen, tuple[int, str]] = {}
        self._tables = ucx.Tables()
        self._lines = 0
        self._full = False

    def take(self, line: str) -> None:
        self._lines += 1
        line = engines.plain(line)
        for name, value in _read(line, self._tables):
            key = name, value[:VALUE_CHARACTERS_MAX]
            count, shown = self._seen.get(key, (0, ""))
            if count == 0 and len(self._seen) >= KEPT_MAX:
                self._full = True
                continue
            self._seen[key] = count + 1, shown or line.strip()[:SHOWN_CHARACTERS]

    def result(self, cut: str | None = None) -> LogFacts:
        full = f"only the first {KEPT_MAX:,} different facts were kept" if self._full else None
        return LogFacts(
            process=self._process,
            lines=self._lines,
            sightings=tuple(
                Sighting(fact=Fact(name=name, value=value, shown_by=f"{self._process}: {shown}"), count=count)
                for (name, value), (count, shown) in self._seen.items()
            ),
            cut="; ".join(filter(None, (cut, full))) or None,
        )


def _read(line: str, tables: ucx.Tables) -> Iterator[Seen]:
    """Each kind of line is told by a word, so that most lines cost a few searches."""
    if "] [" in line and (head := _UCX_HEAD.search(line, 0, PREFIX_CHARACTERS_MAX)):
        line = line[head.start() :]  # behind what kubectl, docker and others put before a line
        yield from ucx.read(line)
        yield from tables.take(line)
    elif "libfabric:" in line or "HANDSHAKE received" in line:
        yield from libfabric.read(line)
    else:
        nixls = list(nixl.read(line))
        yield from nixls
        if not nixls:
            yield from engines.read(line)
            if "UCX" in line or "cfg#" in line:
                yield from ucx.read(line)


def scan(lines: Iterable[str], process: str, cut: str | None = None) -> LogFacts:
    """The facts of one process's log."""
    taking = Scan(process)
    for line in lines:
        taking.take(line)
    return taking.result(cut)


def split(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines of text that comes in pieces; of one that is too long its beginning."""
    pending = b""
    skipping = False
    for chunk in chunks:
        *whole, pending = (pending + chunk).split(b"\n")
        for line in whole:
            if not skipping:
                yield line[:LINE_BYTES_MAX].decode("utf-8", "replace").rstrip("\r")
            skipping = False
        if len(pending) > LINE_BYTES_MAX:
            if not skipping:
                yield pending[:LINE_BYTES_MAX].decode("utf-8", "replace")
            pending, skipping = b"", True
    if pending and not skipping:
        yield pending.decode("utf-8", "replace").rstrip("\r")


def read_file(path: Path) -> tuple[Iterator[str], str | None]:
    """Its lines, and what was left out. raises OSError"""
    size = path.stat().st_size
    if size <= HEAD_BYTES + TAIL_BYTES:
        return split(_pieces(path, 0, None)), None
    left_out = (size - HEAD_BYTES - TAIL_BYTES) >> 20
    return (
        (line for part in ((0, HEAD_BYTES), (size - TAIL_BYTES, None)) for line in split(_pieces(path, *part))),
        f"{left_out:,} MiB in the middle of {path.name} were not read",
    )


def _pieces(path: Path, start: int, count: int | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        left = count
        while left is None or left > 0:
            data = file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
            if not data:
                return
            left = None if left is None else left - len(data)
            yield data

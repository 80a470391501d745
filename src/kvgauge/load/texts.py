"""What answers without usage said, kept until the run is over: their tokens are counted then, never before."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

import msgspec

BYTES_MAX = 512 << 20
IN_MEMORY_BYTES = 8 << 20


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """One answer's texts, which are counted apart: between them a server puts tokens of its own."""

    cell: str
    seq: int
    texts: tuple[str, ...]


class Texts:
    """A file without a name beside the samples, gone with the process. As a context manager it is closed at the end.

    Beyond BYTES_MAX nothing more is kept: those answers stay counted by their events.
    """

    def __init__(self, folder: Path, *, bytes_max: int = BYTES_MAX) -> None:
        self._folder, self._bytes_max = folder, bytes_max
        self._file: IO[bytes] | None = None
        self.kept = 0
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, said: Said) -> None:
        """raises OSError when the disk is full"""
        line = msgspec.json.encode(said) + b"\n"
        if self._bytes + len(line) > self._bytes_max:
            return
        if self._file is None:
            self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES, dir=str(self._folder))  # noqa: SIM115
        self._file.write(line)
        self._bytes += len(line)
        self.kept += 1

    def __iter__(self) -> Iterator[Said]:
        """Everything that was kept, in order; call when nothing more is added."""
        if self._file is None:
            return
        self._file.seek(0)
        for line in self._file:
            yield msgspec.json.decode(line, type=Said)

"""A worker's exchanges on their way into the run's samples: a file that grows by whole frames, and its reader.

A frame is its length (four bytes, little-endian) and a MessagePack list. What a killed worker leaves is readable up to
its last whole frame.
"""

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from kvgauge.load.orders import LENGTH, cut
from kvgauge.load.texts import Said
from kvgauge.samples.disk import disk_errors
from kvgauge.samples.records import Exchange

FRAME_EXCHANGES = 512
READ_BYTES = 4 << 20


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """sent: the request left; fresh: on a connection made for it (Tally wants to know). said: without usage."""

    exchange: Exchange
    sent: bool
    fresh: bool
    said: Said | None = None


class KeptWriter:
    """raises SamplesError, in every method, when the disk does not take it"""

    def __init__(self, path: Path) -> None:
        self._path, self._kept = path, list[Kept]()
        self._encode = msgspec.msgpack.Encoder().encode
        with disk_errors(path.parent, path.name):
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def add(self, kept: Kept) -> None:
        self._kept.append(kept)
        if len(self._kept) >= FRAME_EXCHANGES:
            self.flush()

    def flush(self) -> None:
        """Hand all there is to the kernel."""
        if not self._kept:
            return
        data = self._encode(self._kept)
        self._kept = []
        left = memoryview(LENGTH.pack(len(data)) + data)
        with disk_errors(self._path.parent, self._path.name):
            while left:
                left = left[os.write(self._fd, left) :]

    def close(self) -> None:
        os.close(self._fd)


class KeptReader:
    """Reads a file that a worker may still be writing, or has not made yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending, self._at = bytearray(), 0
        self._decode = msgspec.msgpack.Decoder(list[Kept]).decode

    def take(self) -> list[Kept]:
        """What came since the last call. raises SamplesError"""
        if not self.path.exists():
            return []
        with disk_errors(self.path.parent, self.path.name), self.path.open("rb", buffering=0) as file:
            file.seek(self._at)
            while data := file.read(READ_BYTES):
                self._pending += data
                self._at += len(data)
        return [kept for frame in cut(self._pending) for kept in self._decode(frame)]

    def remove(self) -> None:
        """What is in it was taken; a file that cannot go is no reason to fail."""
        with suppress(OSError):
            self.path.unlink()

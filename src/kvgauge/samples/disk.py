"""What a disk says when it takes no more, as one error that names the folder and what to do."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from kvgauge.failures import SamplesError

FULL = (errno.ENOSPC, errno.EDQUOT)


def unwritten(error: OSError, folder: Path, what: str = "samples") -> SamplesError:
    """The error to raise instead."""
    said = os.strerror(error.errno) if error.errno else error.strerror or error  # pyarrow wraps it in words of its own
    return SamplesError(
        f"{what} cannot be written to {folder}: {said}; what was written before is still there and "
        "readable. Make room or name another folder, then run again."
    )


def write_whole(path: Path, data: bytes) -> None:
    """A temporary name, fsync, rename: a reader, and a crash, see the old file or the new one. raises SamplesError"""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise unwritten(error, path.parent, path.name) from error


@contextlib.contextmanager
def disk_errors(folder: Path, what: str = "samples") -> Iterator[None]:
    """Every OSError within as SamplesError."""
    try:
        yield
    except OSError as error:
        raise unwritten(error, folder, what) from error

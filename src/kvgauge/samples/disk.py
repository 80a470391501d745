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


@contextlib.contextmanager
def disk_errors(folder: Path, what: str = "samples") -> Iterator[None]:
    """Every OSError within as SamplesError."""
    try:
        yield
    except OSError as error:
        raise unwritten(error, folder, what) from error

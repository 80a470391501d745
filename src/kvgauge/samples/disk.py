"""What a disk says when it takes no more, as one error that names the folder and what to do."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from kvgauge.failures import SamplesError

FULL = (errno.ENOSPC, errno.EDQUOT)


def unwritten(error: OSError, folder: Path, what: str = "samples") -> SamplesError:
    """The error to raise instead."""
    return SamplesError(
        f"{what} cannot be written to {folder}: {error.strerror or error}; what was written before is still there and "
        "readable. Make room or name another folder, then run again."
    )


@contextlib.contextmanager
def disk_errors(folder: Path, what: str = "samples") -> Iterator[None]:
    """Every OSError within as SamplesError."""
    try:
        yield
    except OSError as error:
        raise unwritten(error, folder, what) from error

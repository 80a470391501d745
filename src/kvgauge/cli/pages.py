"""Printing pages to somebody who may stop reading. Nothing is wrong then, and exit codes stay what they were."""

import contextlib
import os
import sys
from collections.abc import Iterator


def silence() -> None:
    """Let further output go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def pages() -> Iterator[None]:
    """Print inside; a reader that leaves ends the printing, not the command.

    rich turns a broken pipe into SystemExit(1), which would read as "worse".
    """
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):
        silence()

"""Flags that take several values, separated by commas. What cannot be read is argparse's error."""

import argparse
from collections.abc import Callable
from pathlib import Path


def check_writable(flag: str, path: Path) -> None:
    """Said before minutes are spent on what would be written there, not after. raises UsageError"""
    from kvgauge.failures import UsageError

    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{flag} {path}: {'a folder' if path.is_dir() else 'its folder is not there'}; name a file")


def words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers, separated by commas, got {text!r}") from None


def sizes(text: str) -> tuple[int, ...]:
    from kvgauge.xfer.workload import parse_size

    try:
        return tuple(parse_size(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def choice(*allowed: str) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        words = tuple(dict.fromkeys(text.split(",")))
        for word in words:
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"expected {' or '.join(allowed)}, got {word!r}")
        return words

    return read

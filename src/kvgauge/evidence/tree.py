"""Reading /proc, /sys, /dev and /etc below a root that may be another: bounded, and never raising."""

from collections.abc import Iterator
from pathlib import Path

TEXT_BYTES_MAX = 1 << 20
NAMES_MAX = 10_000


class Tree:
    """The files of a machine, or of a copy of one."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str | None:
        """What it holds, without the newline at its end; None where it cannot be read."""
        try:
            with self.path(path).open("rb") as handle:
                return handle.read(TEXT_BYTES_MAX).decode("utf-8", "replace").strip("\n\0")
        except OSError:
            return None

    def word(self, path: str) -> str | None:
        """Its text without space around it; None where there is none."""
        text = (self.text(path) or "").strip()
        return text or None

    def number(self, path: str) -> int | None:
        """Its decimal or 0x number; None for anything else."""
        try:
            return int(self.word(path) or "", 0)
        except ValueError:
            return None

    def names(self, path: str) -> list[str]:
        """What lies in a folder, sorted; empty where it cannot be read."""
        return sorted(self._names(path))

    def link(self, path: str) -> str | None:
        """The last part of what a symbolic link points to."""
        try:
            return self.path(path).readlink().name
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        try:
            return self.path(path).exists()
        except OSError:
            return False

    def _names(self, path: str) -> Iterator[str]:
        try:
            for count, entry in enumerate(self.path(path).iterdir()):
                if count >= NAMES_MAX:
                    return
                yield entry.name
        except OSError:
            return

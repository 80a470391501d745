"""The metrics stream of a run, written by the process that scrapes; sealed with the other samples of the run."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from kvgauge.samples.files import Stream, stream_path

STREAM_BYTES_MAX = 512 << 20  # compressed: days of a large engine's metrics


class MetricWriter:
    """Writes what each scrape changed, at once. Not thread-safe.

    folder  the run's, which must be there
    raises  OSError when it cannot be written
    """

    def __init__(self, folder: Path, run_id: str, *, bytes_max: int = STREAM_BYTES_MAX) -> None:
        self._path, self._run_id, self._bytes_max = stream_path(folder, "metrics"), run_id, bytes_max
        self._stream = Stream(self._path, "metrics", compression="zstd")

    def add(
        self,
        changes: Sequence[tuple[str, str, str, float | None]],
        *,
        source: str,
        stamps_ns: tuple[int, int, int],
        detail: str | None,
    ) -> bool:
        """One scrape: name, labels, kind and value of each change, the first of them the scrape's own.

        stamps_ns  time_ns, done_ns, realtime_ns
        returns    False, and nothing is written, when the file has its full size
        """
        if self._path.stat().st_size >= self._bytes_max:
            return False
        rows = len(changes)
        time_ns, done_ns, realtime_ns = stamps_ns
        self._stream.write(
            {
                "run_id": [self._run_id] * rows,
                "source": [source] * rows,
                "time_ns": [time_ns] * rows,
                "done_ns": [done_ns] * rows,
                "realtime_ns": [realtime_ns] * rows,
                "name": [name for name, _, _, _ in changes],
                "labels": [labels for _, labels, _, _ in changes],
                "kind": [kind for _, _, kind, _ in changes],
                "value": [value for _, _, _, value in changes],
                "detail": [detail, *[None] * (rows - 1)],
            }
        )
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

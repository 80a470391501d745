"""The process that scrapes, so that no byte of it is read or parsed where the client takes its stamps.

Standard input: a `Task` as one line of JSON; then `mark N` lines, each answered by `done N` once every source that
answers has been scraped since; its end ends the process, also when whoever started it was killed.
"""

import os
import sys
import threading
import time
from pathlib import Path

import msgspec

from kvgauge.samples.series import MetricWriter
from kvgauge.scrape.source import AS_ANYBODY, FETCH_TIMEOUT_S, Asking, Scrape, Source, Watcher

MARK, DONE = "mark", "done"
NICE = 5  # the client and a target on this machine go first


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """Where to write, as which run, what to scrape and how often."""

    folder: str
    run_id: str
    sources: tuple[Source, ...]
    interval_s: float
    asking: Asking = AS_ANYBODY


def main() -> None:
    """Until the end of standard input."""
    begin = sys.stdin.buffer.readline()
    if not begin:
        return  # the target did not start: nothing is to be scraped
    task = msgspec.json.decode(begin, type=Task)
    os.nice(NICE)
    lock = threading.Lock()
    with MetricWriter(Path(task.folder), task.run_id) as writer:

        def keep(scrape: Scrape) -> None:
            stamps_ns = (scrape.time_ns, scrape.done_ns, scrape.realtime_ns)
            with lock:
                if not writer.add(scrape.changes, source=scrape.source, stamps_ns=stamps_ns, detail=scrape.detail):
                    raise SystemExit(f"{scrape.source}: the metrics file has its full size, no more is scraped")

        watchers = [Watcher(source, task.interval_s, keep, task.asking) for source in task.sources]
        for line in sys.stdin.buffer:
            deadline = time.monotonic() + FETCH_TIMEOUT_S
            wanted = [watcher.want() for watcher in watchers]
            for watcher, number in zip(watchers, wanted, strict=True):
                watcher.wait(number, deadline)
            print(DONE, int(line.split()[1]), flush=True)
        for watcher in watchers:
            watcher.stop(FETCH_TIMEOUT_S)
        lock.acquire()  # nothing is written behind the stream's end
    os._exit(0)  # a fetch that hangs is not waited for


if __name__ == "__main__":
    main()

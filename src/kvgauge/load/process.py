"""What the driver asks of its own process: no garbage collection while stamps are taken, and its CPU time."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

from kvgauge.load.work import Steady


class CpuFrom:
    """Notes this process's CPU time at the moment from which requests are measured."""

    def __init__(self, steady: Steady) -> None:
        self._steady, self.cpu_ns = steady, time.process_time_ns()

    def measure_from(self, now_ns: int) -> int | None:
        begin_ns = self._steady.measure_from(now_ns)
        if begin_ns is not None:
            self.cpu_ns = time.process_time_ns()
        return begin_ns


@contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection while stamps are taken: nothing here makes cycles that outlive a request."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

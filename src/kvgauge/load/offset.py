"""The kernel's receive stamps, which are CLOCK_REALTIME, in the driver's clock. Pure: clocks are arguments.

Linux keeps CLOCK_REALTIME as CLOCK_MONOTONIC plus an offset. NTP bends both by the same factor; the offset itself
changes only when the clock is set: a step. So it is measured between two readings of the monotonic clock, every such
bracket must agree with those before, and one that cannot is a step. docs/stamps.md has the figures.
"""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

STAMP_BYTES = 16  # struct timespec: seconds and nanoseconds, 64 bits each
NO_STAMP = bytes(STAMP_BYTES)
EPOCHS_MAX = 16


class _Epoch:
    """A stretch of monotonic time without a step: the offset lies within low..high at its first and last moment."""

    __slots__ = ("first_ns", "high_ns", "last_ns", "low_ns")

    def __init__(self, before_ns: int, low_ns: int, high_ns: int, after_ns: int) -> None:
        self.first_ns, self.last_ns = before_ns, after_ns
        self.low_ns, self.high_ns = low_ns, high_ns


class RealtimeOffset:
    """What CLOCK_REALTIME is ahead of the driver's clock, and since when.

    steps  how often the clock was found set, since the beginning
    """

    def __init__(self, clock_ns: Callable[[], int], realtime_ns: Callable[[], int]) -> None:
        self._clock_ns, self._realtime_ns = clock_ns, realtime_ns
        self._epochs: deque[_Epoch] = deque(maxlen=EPOCHS_MAX)
        self.steps = 0
        self.measure()

    @property
    def uncertainty_ns(self) -> int:
        """Half the width of what the brackets leave open now."""
        epoch = self._epochs[-1]
        return (epoch.high_ns - epoch.low_ns + 1) // 2

    def measure(self) -> None:
        """Read both clocks. What was stamped up to now can be converted afterwards."""
        before_ns = self._clock_ns()
        realtime_ns = self._realtime_ns()
        after_ns = self._clock_ns()
        low_ns, high_ns = realtime_ns - after_ns, realtime_ns - before_ns
        if self._epochs:
            epoch = self._epochs[-1]
            if low_ns <= epoch.high_ns and high_ns >= epoch.low_ns:
                epoch.low_ns, epoch.high_ns = max(low_ns, epoch.low_ns), min(high_ns, epoch.high_ns)
                epoch.last_ns = after_ns
                return
            self.steps += 1
        self._epochs.append(_Epoch(before_ns, low_ns, high_ns, after_ns))

    def stamps_ns(self, read_ns: Sequence[int], stamps: Sequence[bytes]) -> list[int]:
        """For each read the moment its last segment arrived, in the driver's clock; read_ns where that is not known.

        read_ns  when each read returned, in the driver's clock
        stamps   the kernel's stamp of each, as it came; NO_STAMP where there was none

        Not known: there is no stamp, it lies after its own read, or between the last measurement before a step
        and the first after it. A stamp is always before its read, so equality tells one from the other.
        """
        joined = b"".join(stamps)
        if len(joined) != STAMP_BYTES * len(read_ns):
            joined = b"".join(stamp if len(stamp) == STAMP_BYTES else NO_STAMP for stamp in stamps)
        parts = np.frombuffer(joined, dtype=np.int64).reshape(-1, 2)
        realtime = parts[:, 0] * 1_000_000_000 + parts[:, 1]
        read = np.array(read_ns, dtype=np.int64)
        found, times = read.copy(), np.zeros(len(read), dtype=np.int64)
        for epoch in self._epochs:
            arrived = realtime - (epoch.low_ns + epoch.high_ns) // 2
            fits = (realtime != 0) & (arrived >= epoch.first_ns) & (arrived <= epoch.last_ns) & (arrived < read)
            found[fits] = arrived[fits]
            times += fits
        found[times > 1] = read[times > 1]  # set back over moments that had been: either could be meant
        known: list[int] = found.tolist()
        return known

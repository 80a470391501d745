"""Whether the machine's wall clock was stepped, or the machine slept, while a run lasted.

Everything kvgauge measures is of CLOCK_MONOTONIC, which neither moves: what is found here is for the reader of other
logs, and, after a sleep, for the reader of the figures.
"""

import time

import msgspec

from kvgauge.evidence.facts import Fact

STEP_NS = 100_000_000  # slewing (NTP) turns all clocks alike: only steps part them
READINGS = 5


class Clocks(msgspec.Struct, frozen=True, kw_only=True):
    """The three clocks at one moment; `wall` may be stepped, `boot` counts sleep, `monotonic` neither."""

    wall_ns: int
    boot_ns: int
    monotonic_ns: int


def read_clocks() -> Clocks:
    """The reading, of a few, that took the least time: being kept from running in its middle would look like a step."""
    best, best_ns = None, 0
    for _ in range(READINGS):
        began_ns = time.monotonic_ns()
        wall_ns, boot_ns = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        took_ns = time.monotonic_ns() - began_ns
        if best is None or took_ns < best_ns:
            best = Clocks(wall_ns=wall_ns, boot_ns=boot_ns, monotonic_ns=began_ns + took_ns // 2)
            best_ns = took_ns
    assert best is not None
    return best


def changes(before: Clocks, after: Clocks) -> list[Fact]:
    """What happened between two readings. Pure."""
    stepped_ns = (after.wall_ns - after.boot_ns) - (before.wall_ns - before.boot_ns)
    slept_ns = (after.boot_ns - after.monotonic_ns) - (before.boot_ns - before.monotonic_ns)
    found = []
    if abs(stepped_ns) > STEP_NS:
        found.append(
            Fact(
                name="clock_step",
                value=f"the wall clock was stepped by {stepped_ns / 1e9:+.3f} s during this run; "
                "nothing kvgauge measured uses it",
                shown_by="CLOCK_REALTIME minus CLOCK_BOOTTIME at the run's start and end",
            )
        )
    if slept_ns > STEP_NS:
        found.append(
            Fact(
                name="sleep",
                value=f"the machine slept for {slept_ns / 1e9:.3f} s during this run, which no latency here counts; "
                "run it again",
                shown_by="CLOCK_BOOTTIME minus CLOCK_MONOTONIC at the run's start and end",
            )
        )
    return found

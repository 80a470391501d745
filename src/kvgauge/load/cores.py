"""How many cores this process may use, and how many of them are free."""

import os
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from kvgauge.load.how_many import Cores

LOOK_S = 0.25
CGROUP_MAX, STAT = Path("/sys/fs/cgroup/cpu.max"), Path("/proc/stat")


def look(*, reserved: int = 0) -> Cores:
    """Takes a quarter of a second.

    reserved  cores that something of ours, not started yet, will need
    """
    allowed, ours = allowed_cores(), os.sched_getaffinity(0)
    before = STAT.read_text()
    time.sleep(LOOK_S)
    idle = idle_cores(before, STAT.read_text(), ours)
    return Cores(allowed=allowed, free=max(1, min(allowed, round(idle)) - reserved))


def allowed_cores() -> int:
    """By affinity and by the control group's quota, at least 1."""
    allowed = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        quota, period = CGROUP_MAX.read_text().split()
        if quota != "max":
            allowed = min(allowed, int(quota) // int(period))
    return max(1, allowed)


def idle_cores(before: str, after: str, ours: Collection[int]) -> float:
    """How many of these cores were idle between two looks at /proc/stat; one that is not listed counts as idle."""
    first, last = _ticks(before), _ticks(after)
    idle = 0.0
    for core in ours:
        (idle_1, all_1), (idle_2, all_2) = first.get(core, (0, 0)), last.get(core, (0, 0))
        idle += (idle_2 - idle_1) / (all_2 - all_1) if all_2 > all_1 else 1.0
    return idle


def _ticks(stat: str) -> dict[int, tuple[int, int]]:
    """core -> (idle, all) ticks. cpuN user nice system idle iowait irq softirq steal ...: proc(5)"""
    found = {}
    for line in stat.splitlines():
        name, *words = line.split()
        if name.startswith("cpu") and name[3:].isdecimal():
            ticks = [int(word) for word in words[:8]]
            found[int(name[3:])] = ticks[3] + ticks[4], sum(ticks)
    return found

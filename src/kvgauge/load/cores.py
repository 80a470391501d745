"""How many cores this process may use, and how many of them are free."""

import os
import time
from contextlib import suppress
from pathlib import Path

from kvgauge.evidence.machine import parse_stat
from kvgauge.load.how_many import Cores

LOOK_S = 0.25
CGROUP_MAX = Path("/sys/fs/cgroup/cpu.max")


def look(*, reserved: int = 0) -> Cores:
    """Takes a quarter of a second.

    reserved  cores that something of ours, not started yet, will need
    """
    allowed = allowed_cores()
    total = os.cpu_count() or allowed
    before = parse_stat(Path("/proc/stat").read_text())
    time.sleep(LOOK_S)
    after = parse_stat(Path("/proc/stat").read_text())
    busy = (after.total - before.total) and (1 - (after.idle - before.idle) / (after.total - before.total)) * total
    return Cores(allowed=allowed, free=max(1, allowed - round(busy) - reserved))


def allowed_cores() -> int:
    """By affinity and by the control group's quota, at least 1."""
    allowed = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        quota, period = CGROUP_MAX.read_text().split()
        if quota != "max":
            allowed = min(allowed, int(quota) // int(period))
    return max(1, allowed)

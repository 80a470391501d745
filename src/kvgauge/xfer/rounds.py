"""Walks rounds, rows and backends, interleaved; keeps what each found, on disk as it happens.

In every round each row is measured with each backend, in turn, the first backend changing from round to round, so that
a machine that becomes slower is no backend's fault.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvgauge.xfer.figures import Ratio, RowResult, ratios, row_of
from kvgauge.xfer.files import Folder
from kvgauge.xfer.measure import Measured, Pace, measure
from kvgauge.xfer.places import Crew
from kvgauge.xfer.workload import Workload

FAILURES_MAX = 2  # of one row with one backend: then it is not tried in later rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """threads  of NIXL's backend"""

    workloads: tuple[Workload, ...]
    backends: tuple[str, ...]
    rounds: int
    pace: Pace
    progress_thread: bool = False
    threads: int = 0
    fabric: str = "any"  # what the user asked the transport to be


def conduct(
    setting: Setting, crew: Crew, folder: Folder | None, say: Callable[[str], None], found: list[Measured]
) -> None:
    """Put everything into `found` as it is known, failures included: an interrupted run keeps what it has.

    raises SamplesError when the disk takes no more
    """
    failed: dict[tuple[str, str], int] = {}
    cores = len(os.sched_getaffinity(0))
    for number in range(1, setting.rounds + 1):
        order = setting.backends if number % 2 else setting.backends[::-1]
        for work in setting.workloads:
            for backend in order:
                if failed.get((work.name, backend), 0) >= FAILURES_MAX:
                    continue
                say(f"round {number} of {setting.rounds}: {work.name}, {backend}")
                one = measure(
                    crew,
                    number,
                    backend,
                    work,
                    setting.pace,
                    progress_thread=setting.progress_thread,
                    threads=setting.threads,
                    cores=cores,
                )
                found.append(one)
                if folder is not None:
                    folder.keep(one)
                if one.failure is not None:
                    failed[work.name, backend] = failed.get((work.name, backend), 0) + 1
                    say(f"FAILED: {work.name}, {backend}, round {number}: {one.failure}")
                one.records = []  # on disk, or not wanted


def results_of(
    found: Sequence[Measured], setting: Setting, release: tuple[int, ...]
) -> tuple[list[RowResult], list[Ratio]]:
    """Table rows in the order they were asked for, and the ratio of two backends for each workload."""
    rows = [
        row_of(rounds, release, fabric=setting.fabric)
        for work in setting.workloads
        for backend in setting.backends
        if (rounds := [one for one in found if one.work.name == work.name and one.backend == backend])
    ]
    valid = {(row.name, row.backend) for row in rows if row.valid}
    return rows, ratios(found, valid, setting.backends)

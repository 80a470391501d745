"""A run folder that was cut off: what it was made under, what it holds already, and whether it may go on.

A resumed plan must be the same experiment: the same plan, builds (by hash), machine and kvgauge. What differs is
named and nothing is started.
"""

import fcntl
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kvgauge import __version__
from kvgauge.failures import UsageError
from kvgauge.plan.records import Plan
from kvgauge.report import results as results_files
from kvgauge.report.records import RunResult
from kvgauge.samples.disk import disk_errors, write_whole

CONDITIONS, PLAN, LOCK = "conditions.json", "plan.json", ".lock"
UNFINISHED = ("pending", "interrupted")


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was made under.

    machine  where it ran: what a reader needs to judge the figures, nothing that names the user
    builds   build name -> role -> sha256; empty for a target that is not ours
    target   embedded, or the URL
    options  of the command line, where they change what is measured
    """

    kvgauge: str
    machine: dict[str, str | int]
    builds: dict[str, dict[str, str]]
    target: str
    options: dict[str, str | float | None] = {}


def conditions_now(
    builds: Mapping[str, Mapping[str, str]], target: str, options: Mapping[str, str | float | None]
) -> Conditions:
    return Conditions(
        kvgauge=__version__,
        machine={
            "host": platform.node(),
            "cores": os.cpu_count() or 1,
            "kernel": platform.release(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
        builds={name: dict(hashes) for name, hashes in builds.items()},
        target=target,
        options=dict(options),
    )


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """A folder to go on in. `done` holds whole runs only: test name -> results of its runs that ended."""

    folder: Path
    plan: Plan
    conditions: Conditions
    done: dict[str, list[RunResult]]

    @property
    def run_ids(self) -> set[str]:
        return {run.run_id for runs in self.done.values() for run in runs}


def write_start(folder: Path, plan: Plan, conditions: Conditions) -> None:
    """Before the first run: what `load` will need. raises SamplesError when the folder cannot be written"""
    for name, what in ((PLAN, plan), (CONDITIONS, conditions)):
        write_whole(folder / name, msgspec.json.format(msgspec.json.encode(what)))


def load(folder: Path) -> Saved:
    """Read a cut-off folder. raises UsageError when it is none, SamplesError when its results are damaged."""
    try:
        plan = msgspec.json.decode((folder / PLAN).read_bytes(), type=Plan)
        conditions = msgspec.json.decode((folder / CONDITIONS).read_bytes(), type=Conditions)
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be resumed: {error.filename} is not there ({error.strerror}). Name a folder that "
            "`kvgauge run` made"
        ) from None
    except msgspec.DecodeError as error:
        raise UsageError(f"{folder} cannot be resumed: its plan or conditions are damaged ({error})") from None
    done: dict[str, list[RunResult]] = {}
    if (folder / results_files.RESULTS_JSON).exists():
        for test in results_files.read(folder).tests:
            by_run: dict[str, list[RunResult]] = {}
            for run in test.runs:
                by_run.setdefault(run.run_id, []).append(run)
            ended = [runs for runs in by_run.values() if not any(run.status in UNFINISHED for run in runs)]
            done[test.name] = [run for runs in ended for run in runs]
    return Saved(folder=folder, plan=plan, conditions=conditions, done=done)


def refuse_changes(saved: Saved, plan: Plan | None, now: Conditions) -> None:
    """raises UsageError naming everything that differs from when the folder was begun

    plan  the plan given again on the command line, if one was
    """
    changed = []
    if plan is not None and msgspec.structs.replace(plan, source=saved.plan.source) != saved.plan:
        changed.append("the plan")
    before = saved.conditions
    changed += [
        f"{field} (was {before.machine.get(field)}, is {value})"
        for field, value in now.machine.items()
        if before.machine.get(field) != value
    ]
    if before.kvgauge != now.kvgauge:
        changed.append(f"kvgauge (was {before.kvgauge}, is {now.kvgauge})")
    if before.target != now.target:
        changed.append(f"the target (was {before.target}, is {now.target})")
    changed += [
        f"{name} (was {before.options.get(name)}, is {now.options.get(name)})"
        for name in dict.fromkeys((*before.options, *now.options))
        if before.options.get(name) != now.options.get(name)
    ]
    for build in sorted(before.builds.keys() | now.builds.keys()):
        old, new = before.builds.get(build, {}), now.builds.get(build, {})
        changed += [
            f"{role} of build {build}" for role in sorted(old.keys() | new.keys()) if old.get(role) != new.get(role)
        ]
    if changed:
        raise UsageError(
            f"{saved.folder} cannot be resumed: {', '.join(changed)} changed since it was begun, so its runs could not "
            "be compared with new ones. Begin a new run instead"
        )


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """One kvgauge at a time in a folder; the kernel lets go of a killed one. raises UsageError, SamplesError"""
    with disk_errors(folder, LOCK):
        lock = (folder / LOCK).open("w")
    with lock as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another kvgauge is at work in {folder}; wait for it, or end it first") from None
        yield


def put_aside(run_folder: Path) -> None:
    """Keep the samples of a run that was cut off, beside the run that takes its place."""
    if not run_folder.exists():
        return
    number = 1
    while (aside := run_folder.with_name(f"{run_folder.name}.cut-{number}")).exists():
        number += 1
    run_folder.rename(aside)

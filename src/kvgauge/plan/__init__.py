"""What to vary: read a plan, check it, expand it into runs.

Importing this package costs nothing; YAML is imported when a plan is read, since workers import the records too.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvgauge.plan.records import Cell, Plan
    from kvgauge.plan.trace import TraceRequest


def _plan_text(path: Path) -> bytes:
    """The file's bytes; one byte too many when it is longer than any plan."""
    from kvgauge.failures import PlanError
    from kvgauge.plan.nodes import TEXT_BYTES_MAX

    try:
        with path.open("rb") as file:
            return file.read(TEXT_BYTES_MAX + 1)
    except OSError as error:
        raise PlanError(f"cannot be read: {error.strerror}; name a YAML file", source=str(path)) from None


def file_bytes(path: str) -> bytes:
    """A trace's bytes; one byte too many when it is longer than any trace. raises OSError"""
    from kvgauge.plan.trace import BYTES_MAX

    with Path(path).expanduser().open("rb") as file:
        return file.read(BYTES_MAX + 1)


def load_traces(cells: "Iterable[Cell]") -> "dict[str, tuple[TraceRequest, ...]]":
    """The requests of every trace that cells replay, by its path.

    raises  PlanError for one that is gone, or not the file that the plan was read with
    """
    from kvgauge.failures import PlanError
    from kvgauge.plan.trace import again

    found: dict[str, tuple[TraceRequest, ...]] = {}
    for trace in {cell.trace.path: cell.trace for cell in cells if cell.trace is not None}.values():
        try:
            found[trace.path] = again(trace, file_bytes(trace.path))
        except OSError as error:
            raise PlanError(f"the trace cannot be read: {error.strerror}; put it back", source=trace.path) from None
    return found


def load_plan(path: Path | None, quick: bool, tests: Sequence[str]) -> "Plan":
    """The plan a command was asked for.

    path    a YAML file; None: the reference plan
    quick   few requests and repetitions (`--quick`)
    tests   names of the tests to keep (`--test`); none: all
    raises  PlanError
    """
    from kvgauge.builds.pins import known_versions
    from kvgauge.plan import expand, read, reference

    known_builds = known_versions()
    if path is None:
        plan = reference.reference(known_builds)
    else:
        plan = read.read(_plan_text(path), source=str(path), known_builds=known_builds, read_file=file_bytes)
    plan = expand.select(plan, tests)
    return reference.quick(plan) if quick else plan

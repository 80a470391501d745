"""What to vary: read a plan, check it, expand it into runs.

Importing this package costs nothing; YAML is imported when a plan is read, since workers import the records too.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvgauge.plan.records import Cell, Plan, Test
    from kvgauge.plan.trace import FileRequest
    from kvgauge.tokens.choose import Chosen


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
    """A trace's or dataset's bytes; one byte too many when it is longer than any. raises OSError"""
    from kvgauge.plan.dataset import BYTES_MAX

    with Path(path).expanduser().open("rb") as file:
        return file.read(BYTES_MAX + 1)


def load_files(cells: "Iterable[Cell]") -> "dict[str, tuple[FileRequest, ...]]":
    """The requests of every trace and dataset that cells send, by its path.

    raises  PlanError for one that is gone, or not the file that the plan was read with
    """
    from kvgauge.failures import PlanError
    from kvgauge.plan import dataset, trace
    from kvgauge.plan.records import TraceFile

    found: dict[str, tuple[FileRequest, ...]] = {}
    for file in (file for cell in cells if (file := cell.trace or cell.dataset) is not None):
        if file.path in found:
            continue
        try:
            data = file_bytes(file.path)
        except OSError as error:
            raise PlanError(f"it cannot be read: {error.strerror}; put it back", source=file.path) from None
        found[file.path] = trace.again(file, data) if isinstance(file, TraceFile) else dataset.again(file, data)
    return found


def load_tokenizers(tests: "Iterable[Test]") -> "dict[str, Chosen]":
    """The tokenizer of every test that names one, by the test's name.

    raises  PlanError for one that is gone, or not the file that the plan was read with
    """
    import hashlib

    from kvgauge.failures import PlanError
    from kvgauge.tokens.choose import given

    found: dict[str, Chosen] = {}
    for test in tests:
        file = test.tokenizer
        if file is None:
            continue
        try:
            data = file_bytes(file.path)
        except OSError as error:
            raise PlanError(f"it cannot be read: {error.strerror}; put it back", source=file.path) from None
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise PlanError("it has changed since the plan was read; begin a new run", source=file.path)
        found[test.name] = given(data, file.path)
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

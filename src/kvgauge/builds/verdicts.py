"""What self-tests found, kept beside the builds by the hashes of what was tested, and said in a line."""

import os
import tempfile
from pathlib import Path
from typing import get_args

import msgspec

from kvgauge.builds.case import Operation, Outcome, Trial
from kvgauge.builds.install import cache_folder
from kvgauge.builds.records import Build

BACKENDS = ("UCX", "LIBFABRIC")
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
# Raise when a self-test looks at more, or at something else: what older ones found is then no longer shown.
SELFTEST_VERSION = 1
_CARRIES = {"UCX": "ucx", "LIBFABRIC": "libfabric"}


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What one build did with one backend and one operation.

    detail     which blocks of which shape were wrong, where it hung, what does not load; empty when it works
    plugin     file that was opened, None where it was not seen
    libfabric  version as the library gives it (2.5 for 2.5.1), None where there was none
    tested_at  ISO 8601, with the offset from UTC
    """

    backend: str
    operation: Operation
    outcome: Outcome
    detail: str
    trials: tuple[Trial, ...]
    plugin: str | None
    libfabric: str | None
    took_s: float
    timeout_s: float
    tested_at: str


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    selftest_version: int
    sha256: dict[str, str]
    verdict: Verdict


def files_tested(build: Build, backend: str) -> dict[str, str]:
    """The hashes a verdict about this backend is about: plugin, libnixl, and UCX or libfabric."""
    roles = (f"plugin_{backend.lower()}", "libnixl", _CARRIES[backend])
    return {role: build.sha256[role] for role in roles if role in build.sha256}


def recall(build: Build, backend: str, operation: Operation) -> Verdict | None:
    """The verdict on exactly these files by this version of the self-test, if there is one."""
    try:
        kept = msgspec.json.decode(_file(build, backend, operation).read_bytes(), type=_Kept)
    except (OSError, msgspec.DecodeError):
        return None
    same = kept.selftest_version == SELFTEST_VERSION and kept.sha256 == files_tested(build, backend)
    return kept.verdict if same else None


def keep(build: Build, verdict: Verdict) -> None:
    """Write it beside the builds, at once or not at all. raises OSError"""
    path = _file(build, verdict.backend, verdict.operation)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = _Kept(selftest_version=SELFTEST_VERSION, sha256=files_tested(build, verdict.backend), verdict=verdict)
    handle, made = tempfile.mkstemp(prefix=".verdict-", dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(kept)))
    Path(made).replace(path)


def said(build: Build, backend: str) -> str:
    """The verdicts on one backend: one word where READ and WRITE agree. Reads the cache only."""
    found = {operation: recall(build, backend, operation) for operation in OPERATIONS}
    words = {operation: verdict.outcome if verdict else "not tested" for operation, verdict in found.items()}
    if len(set(words.values())) == 1:
        return words["READ"]
    return ", ".join(f"{operation} {word}" for operation, word in words.items())


def status_line(build: Build) -> str:
    """What to show before a plan uses the build: every verdict in a line, or how to get one. Reads the cache only."""
    parts = [f"{backend} {said(build, backend)}" for backend in BACKENDS]
    line = f"build {build.name} ({build.identity[:12]}): {'; '.join(parts)}"
    return f"{line}; `kvgauge builds test` tells" if "not tested" in line else line


def _file(build: Build, backend: str, operation: Operation) -> Path:
    key = "-".join(digest[:12] for digest in files_tested(build, backend).values())
    return cache_folder() / "verdicts" / f"{backend}-{operation}-{key}.json"

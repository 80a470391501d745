"""Processes of a fidelity run: the C programs built, the pacing server on its core, a client on the other."""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from truth import Truth, read_truth

HERE = Path(__file__).parent
TICKS_S = os.sysconf("SC_CLK_TCK")
POLL_S = 0.1
SERVER_NICE = -10  # the instrument goes before whatever else runs on its core, where that is allowed


def compiler() -> list[str] | None:
    """A C compiler: $CC, one on PATH, or the one in the `ziglang` wheel. None where there is none."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and shutil.which(name):
            return [name]
    return [sys.executable, "-m", "ziglang", "cc"] if find_spec("ziglang") else None


def build(cc: list[str], folder: Path) -> tuple[Path, Path]:
    """(pacing server, bare reader)"""
    for name in ("pacer", "reader"):
        subprocess.run(
            [*cc, "-O2", "-Wall", "-Wextra", "-o", folder / name, HERE / f"{name}.c"], check=True, timeout=300
        )
    return folder / "pacer", folder / "reader"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """Where things run. One core for both where there is only one: then nothing but the protocol can be judged."""

    server: int
    client: int


def cores() -> Cores:
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(server=allowed[-1], client=allowed[0])


class Pacer:
    """One life of the pacing server; `truth` is there once the `with` block was left."""

    def __init__(self, binary: Path, folder: Path, core: int, options: dict[str, object]) -> None:
        self._out = folder / "pacer.bin"
        self._out.unlink(missing_ok=True)
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command = [binary, "--out", self._out, "--cpu", str(core), *words]
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._child.stdout is not None
        said = self._child.stdout.readline().split()
        if len(said) != 2:
            raise RuntimeError(f"the pacing server did not start: exit code {self._child.wait(10)}")
        self.port = int(said[1])
        self.cpu_s = 0.0
        self._truth: Truth | None = None
        if os.geteuid() == 0:
            os.setpriority(os.PRIO_PROCESS, self._child.pid, SERVER_NICE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.send_signal(signal.SIGTERM)
        _, status, used = os.wait4(self._child.pid, 0)
        self._child.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_s = used.ru_utime + used.ru_stime
        if error is None:
            if self._child.returncode:
                raise RuntimeError(f"the pacing server ended with exit code {self._child.returncode}")
            self._truth = read_truth(self._out)

    @property
    def truth(self) -> Truth:
        assert self._truth is not None
        return self._truth


@dataclass(slots=True, kw_only=True)
class Ran:
    """A client's life. Times: CLOCK_MONOTONIC.

    cpu_s    its own and that of its children it waited for
    samples  (at, processor seconds, resident bytes) of all its processes, every tenth of a second: what came in the
             last tenth is not in rss_mb
    foreign  share of its core that was spent on others
    """

    launched_ns: int
    exited_ns: int = 0
    exit_code: int = 0
    cpu_s: float = 0.0
    rss_mb: float = 0.0
    foreign: float = 0.0
    samples: list[tuple[int, float, int]] = field(default_factory=list)

    def cpu_between_s(self, begin_ns: int, end_ns: int) -> float | None:
        """Of the samples nearest to these moments. None without samples."""
        if not self.samples:
            return None

        def at(ns: int) -> float:
            return min(self.samples, key=lambda sample: abs(sample[0] - ns))[1]

        return at(end_ns) - at(begin_ns)


def run_client(command: list[str], core: int, log: Path, *, limit_s: float = 600) -> Ran:
    """Run a client on its core and wait for its end. raises RuntimeError, with the end of its log, when it fails."""
    busy = busy_s(core)
    with log.open("wb") as out, _on(core):
        ran = Ran(launched_ns=time.monotonic_ns())
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    pidfd = os.pidfd_open(child.pid)
    try:
        deadline = time.monotonic() + limit_s
        while not select.select([pidfd], [], [], POLL_S)[0]:
            if time.monotonic() > deadline:
                child.kill()
                break
            ran.samples.append((time.monotonic_ns(), *_tree(child.pid)))
        ran.exited_ns = time.monotonic_ns()
    finally:
        os.close(pidfd)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = ran.exit_code = os.waitstatus_to_exitcode(status)
    ran.cpu_s = max([used.ru_utime + used.ru_stime, *(cpu_s for _, cpu_s, _ in ran.samples)])
    ran.rss_mb = max((rss for _, _, rss in ran.samples), default=0) / 1e6
    ran.foreign = max(0.0, busy_s(core) - busy - ran.cpu_s) * 1e9 / (ran.exited_ns - ran.launched_ns)
    if ran.exit_code:
        raise RuntimeError(
            f"{command[0]} ended with exit code {ran.exit_code}: ...{log.read_text('utf-8', 'replace')[-1500:]}"
        )
    return ran


@contextmanager
def _on(core: int) -> Iterator[None]:
    """What is started inside runs on this core only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def busy_s(core: int) -> float:
    """Processor seconds this core has spent on anything, stolen time included."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _, _, irq, softirq, steal = map(int, ticks[:8])
            return (user + nice + system + irq + softirq + steal) / TICKS_S
    raise RuntimeError(f"/proc/stat does not list core {core}")


def _tree(root: int) -> tuple[float, int]:
    """(processor seconds, resident bytes) of a process and all below it. Pages they share are counted for each."""
    parents: dict[int, tuple[int, float, int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            used = sum(map(int, fields[11:15])) / TICKS_S
            parents[int(entry.name)] = (int(fields[1]), used, int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))
    cpu_s, rss, below = 0.0, 0, {root}
    grown = True
    while grown:
        more = {pid for pid, (parent, _, _) in parents.items() if parent in below} - below
        grown = bool(more)
        below |= more
    for pid in below & parents.keys():
        cpu_s += parents[pid][1]
        rss += parents[pid][2]
    return cpu_s, rss

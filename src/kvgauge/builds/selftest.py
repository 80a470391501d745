"""Self-test of a build: real transfers between two processes, every byte checked, ended at a time limit.

The workers are kvgauge.kv.selftest, started by name: this side loads no NIXL and no numpy. Each case (one backend, one
operation) gets two fresh processes; none survives it, whatever it did.
"""

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import zmq

from kvgauge import backends
from kvgauge.builds.case import CaseSpec, Ended, FromWorker, Opened, Operation, Outcome, Role, Step, Trial
from kvgauge.builds.present import nvidia_gpu
from kvgauge.builds.records import Build
from kvgauge.builds.verdicts import OPERATIONS, Verdict, keep
from kvgauge.failures import BuildError

WORKER = "kvgauge.kv.selftest"
ROLES: tuple[Role, ...] = ("target", "initiator")
TIMEOUT_S = 20.0
GRACE_S = 1.0  # beyond the limit, for a worker that can still say where it stands
LAST_WORDS_S = 0.3  # for what a worker said before it ended
LOG_READ_BYTES = 4 << 20

_NOT_LOADED = re.compile(r"Failed to load plugin from (\S+): (.+)")
_ERROR_LINE = re.compile(r"^E\d{4} \S+ +\d+ \S+\] (.+)$", re.MULTILINE)


def try_build(
    build: Build,
    wanted: tuple[str, ...],
    interface: str | None,
    *,
    timeout_s: float = TIMEOUT_S,
    say: Callable[[Verdict], None] = lambda _verdict: None,
) -> list[Verdict]:
    """Try each of these backends with READ and WRITE, and keep the verdicts beside the build.

    interface  what a transport that refuses loopback may bind; None where there is none
    timeout_s  of each step: loading NIXL, an agent's start, a connection, a transfer
    say        is told each verdict as it is known
    raises     BuildError where a backend needs an interface and there is none
    """
    verdicts = []
    for backend in wanted:
        for operation in OPERATIONS:
            verdict = try_case(build, backend, operation, interface, timeout_s=timeout_s)
            keep(build, verdict)
            say(verdict)
            verdicts.append(verdict)
    return verdicts


def try_case(
    build: Build, backend: str, operation: Operation, interface: str | None, *, timeout_s: float = TIMEOUT_S
) -> Verdict:
    """One backend and one operation: two processes, every shape; no step may take longer than timeout_s.

    raises  BuildError where the backend needs an interface and there is none
    """
    needs = backends.needs_interface(backend, build.release)
    if needs and interface is None:
        raise BuildError(
            f"{backend} of NIXL {build.name} cannot use loopback, and this machine has no other interface with an "
            "IPv4 address: give it one to test this build"
        )
    environment = _environment(build, backend, interface if needs else None)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kvgauge-", dir=_short_folder()) as folder:  # 0700: only we may enter
        case = _Case(Path(folder), build, backend, operation, timeout_s)
        try:
            case.start(environment)
            case.watch()
            outcome, detail = case.verdict()
        finally:
            case.end()
    return Verdict(
        backend=backend,
        operation=operation,
        outcome=outcome,
        detail=detail,
        trials=tuple(case.trials),
        plugin=case.opened.plugin,
        libfabric=case.opened.libfabric if backend == "LIBFABRIC" else None,
        took_s=round(time.monotonic() - began, 3),
        timeout_s=timeout_s,
        tested_at=datetime.now().astimezone().isoformat(timespec="seconds"),
    )


class _Case:
    """Two workers, what they have said, and how they ended."""

    def __init__(self, folder: Path, build: Build, backend: str, operation: Operation, timeout_s: float) -> None:
        self._folder, self._build, self._backend, self._operation = folder, build, backend, operation
        self._timeout_s = timeout_s
        self._until = time.monotonic() + timeout_s  # moves on with every step that begins
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket: Any = self._context.socket(zmq.ROUTER)
        self._socket.bind(f"ipc://{folder}/parent")
        self._decoder = msgspec.msgpack.Decoder(FromWorker)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._steps: dict[str, str] = dict.fromkeys(ROLES, "starting")
        self._ended: dict[str, Ended] = {}
        self.trials: list[Trial] = []
        self.opened = Opened(None, None)

    def start(self, environment: dict[str, str]) -> None:
        for role in ROLES:
            spec = CaseSpec(
                role=role,
                build=self._build,
                backend=self._backend,
                operation=self._operation,
                parent=f"ipc://{self._folder}/parent",
                peer=f"ipc://{self._folder}/peer",
                parent_pid=os.getpid(),
                timeout_s=self._timeout_s,
            )
            with self._log(role).open("wb") as log:
                child = subprocess.Popen(
                    [sys.executable, "-P", "-m", WORKER],  # -P: nothing is imported from the current folder
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,
                )
            self._children[role] = child
            assert child.stdin is not None
            with suppress(BrokenPipeError):  # it has ended already: `watch` sees that
                child.stdin.write(msgspec.msgpack.encode(spec))
                child.stdin.close()

    def watch(self) -> None:
        """Until both have said how they ended, one ended badly, a process is gone, or time is up."""
        while time.monotonic() < self._until + GRACE_S and not self._over():
            self._take(50)
            if any(child.poll() is not None for child in self._children.values()):
                until = time.monotonic() + LAST_WORDS_S
                while time.monotonic() < until and not self._over():
                    self._take(50)
                return

    def end(self) -> None:
        """No process survives. Safe to call twice."""
        for child in self._children.values():
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        self._context.destroy(linger=0)

    def verdict(self) -> tuple[Outcome, str]:
        """What all this means. Wrong data comes first: what happened afterwards stands behind it."""
        after, more = self._end()
        wrong = wrong_data(self.trials)
        if not wrong:
            return after, more
        return "wrong data", wrong if after == "works" else f"{wrong}; then {after}: {more}"

    def _end(self) -> tuple[Outcome, str]:
        for role, child in self._children.items():
            code = child.poll()
            if role not in self._ended and code is not None:
                return "crashes", self._crash(role, code)
        for outcome in ("does not load", "fails"):
            for role, ended in self._ended.items():
                if ended.outcome == outcome:
                    return self._bad(role, ended)
        if all(role in self._ended and self._ended[role].outcome == "works" for role in ROLES):
            return "works", ""
        return "hangs", self._hang()

    def _over(self) -> bool:
        bad = any(ended.outcome != "works" for ended in self._ended.values())
        return bad or len(self._ended) == len(ROLES)

    def _take(self, wait_ms: int) -> None:
        if not self._socket.poll(wait_ms):
            return
        identity, raw = self._socket.recv_multipart()
        role, message = identity.decode(), self._decoder.decode(raw)
        if isinstance(message, Step):
            self._steps[role] = message.what
            self._until = time.monotonic() + self._timeout_s
        elif isinstance(message, Trial):
            self.trials.append(message)
        elif isinstance(message, Opened):
            self.opened = message
        else:
            self._ended[role] = message

    def _log(self, role: str) -> Path:
        return self._folder / f"{role}.log"

    def _read_log(self, role: str) -> str:
        with self._log(role).open("rb") as handle:
            return handle.read(LOG_READ_BYTES).decode("utf-8", "replace")

    def _bad(self, role: str, ended: Ended) -> tuple[Outcome, str]:
        """An end that a worker reported itself, with what NIXL logged about it."""
        log = self._read_log(role)
        if (said := not_loaded(log, self._backend)) is not None:
            return "does not load", said
        if ended.outcome == "does not load":
            return "does not load", short(ended.reason)
        errors = _ERROR_LINE.findall(log)
        logged = f"; NIXL logged: {errors[-1]}" if errors else ""
        return "fails", f"{role}, {self._steps[role]}: {ended.reason}{logged}"

    def _crash(self, role: str, code: int) -> str:
        how = f"killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        lines = [line for line in self._read_log(role).splitlines() if line.strip()]
        return f"{role} {how} while {self._steps[role]}; its last line: {lines[-1] if lines else '(none)'}"

    def _hang(self) -> str:
        steps = "; ".join(f"{role}: {self._steps[role]}" for role in reversed(ROLES))
        said = [ended.reason for ended in self._ended.values() if ended.outcome == "hangs"]
        return f"no end within {self._timeout_s:g} s of {steps}" + (f" ({said[0]})" if said else "")


def wrong_data(trials: list[Trial]) -> str:
    """How much was wrong, of what kind, and where it began; empty when all was right. Pure."""
    wrong = [trial for trial in trials if not trial.right]
    if not wrong:
        return ""
    kinds: dict[str, int] = {}
    for trial in wrong:
        for kind, count in trial.faults.items():
            kinds[kind] = kinds.get(kind, 0) + count
    listed = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
    blocks = sum(trial.blocks for trial in trials)
    words = [f"{sum(kinds.values()):,} of {blocks:,} blocks wrong ({listed})"] if kinds else []
    if outside := sum(trial.outside_bytes for trial in wrong):
        words.append(f"{outside:,} bytes overwritten where no block lies")
    first = f"{wrong[0].shape}, {'later' if wrong[0].later else 'first'} transfer"
    return f"{', '.join(words)}; in {len(wrong)} of {len(trials)} transfers, first at: {first}"


def not_loaded(log: str, backend: str) -> str | None:
    """NIXL's own line about a plugin of this backend that did not load, or None. Pure."""
    found = None
    for path, reason in _NOT_LOADED.findall(log):
        if Path(path).name == f"libplugin_{backend}.so":
            found = short(reason)
    return found


def short(reason: str) -> str:
    """A loader's message with file names in place of long paths. Pure."""
    return re.sub(r"(?:/[^\s/:()']+)+/([^\s/:()']+)", r"\1", reason.strip())


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _environment(build: Build, backend: str, interface: str | None) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in backends.INHERITED if name in os.environ}
    own = backends.worker_environment(
        backend, "tcp", interface, build.release, plugin_dir=build.plugin_dir, gpu=nvidia_gpu()
    )
    return {**inherited, "PYTHONPATH": str(Path(__file__).parents[2]), **own}


def _short_folder() -> str:
    """A folder whose socket paths fit into the 107 bytes a unix socket may have."""
    chosen = tempfile.gettempdir()
    return chosen if len(chosen) + len(secrets.token_hex(8)) + 40 < 107 else "/tmp"  # noqa: S108 - mkdtemp makes a folder only we can enter

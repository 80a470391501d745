"""The processes of the embedded target: started with a spec on standard input, watched, ended. Nothing survives us."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvgauge.failures import TargetError
from kvgauge.serve.messages import PARENT_VARIABLE

STOP_WAIT_S = 3.0
LOG_TAIL_LINES = 5
STATES = {  # proc(5)
    "R": "it runs, but its loop does not turn: caught in a call, or starved of processor time",
    "S": "it sleeps in a call that does not return",
    "D": "it waits for a device or a disk",
    "T": "it was stopped by a signal",
    "t": "a debugger holds it",
}
LOG_READ_BYTES = 4 << 20


class Process:
    """One child. Its standard error goes to a file: NIXL's and UCX's start-up lines are evidence.

    through  the command it is started through, which must become it (`ip netns exec NAME`)
    log      appended to: a worker that is started again goes on in the same file
    """

    def __init__(
        self,
        name: str,
        module: str,
        spec: bytes,
        environment: dict[str, str],
        log: Path,
        through: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.log_path = log
        self.through, self.module, self.environment = through, module, environment
        with log.open("ab") as handle:
            self._child: subprocess.Popen[bytes] = subprocess.Popen(
                [*through, sys.executable, "-P", "-m", module],  # -P: nothing is imported from the current folder
                stdin=subprocess.PIPE,
                stdout=handle,
                stderr=handle,
                env={**environment, PARENT_VARIABLE: str(os.getpid())},
                start_new_session=True,
            )
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(spec)
            self._child.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already: `ended` tells how

    @property
    def pid(self) -> int:
        return self._child.pid

    def log(self) -> str:
        """What it has written so far, the first 4 MiB: start-up lines come first."""
        with self.log_path.open("rb") as handle:
            return handle.read(LOG_READ_BYTES).decode("utf-8", "replace")

    def state(self) -> str:
        """What the kernel says it is doing, for messages."""
        try:
            letter = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return "not there"
        return STATES.get(letter, f"in state {letter}")

    def how(self) -> str | None:
        """None while it runs; else how it ended, in a few words."""
        code = self._child.poll()
        if code is None:
            return None
        return f"{self.name} was killed by signal {-code}" if code < 0 else f"{self.name} ended with exit code {code}"

    def ended(self) -> str | None:
        """None while it runs; else how it ended and its last lines."""
        if (how := self.how()) is None:
            return None
        tail = " | ".join(line for line in self.log().splitlines()[-LOG_TAIL_LINES:] if line.strip())
        return f"{how}; its last lines: {tail or '(none)'}"

    def wait(self, until: float) -> bool:
        """Whether it ended before `until` (monotonic seconds)."""
        try:
            self._child.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """Returns when it has ended, or after 3 s: one that waits for a device ends when that lets go of it."""
        self._child.kill()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(STOP_WAIT_S)


def end(processes: list[Process], ask: Any) -> None:
    """Ask all to stop, then kill what does not. `ask` sends the request and may fail for those already gone."""
    ask()
    until = time.monotonic() + STOP_WAIT_S
    for process in processes:
        if not process.wait(until):
            process.kill()


def check_alive(processes: list[Process]) -> None:
    """raises TargetError naming the first that has ended."""
    for process in processes:
        if (how := process.ended()) is not None:
            raise TargetError(how)

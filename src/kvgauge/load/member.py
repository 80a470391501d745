"""The conductor's end of one load worker: a child process, the private socket to it, and what became of it."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from kvgauge.failures import LoadError
from kvgauge.load.orders import FromWorker, Line, Order, Setup, Up

START_S, END_S = 30.0, 3.0
SEND_TIMEOUT_S = 20.0
LOG_TAIL_BYTES = 2_000
# All that a worker is given of our environment: keys that stand there are not its business.
PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG", "LC_", "TZ", "SSL_CERT_", "PYTHON", "LD_", "RES_OPTIONS", "LOCALDOMAIN",
             "HOSTALIASES", "VIRTUAL_ENV")  # fmt: skip


class Member:
    """Starts at once; `wait_up` says when it can work. log: its standard error."""

    def __init__(self, setup: Setup, log: Path) -> None:
        self.name = f"load worker {setup.index}"
        self._log = log
        self._decode = msgspec.msgpack.Decoder(FromWorker).decode
        self.heard_s = time.monotonic()
        ours, theirs = socket.socketpair()
        with theirs, log.open("ab") as errors:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "kvgauge.load.worker", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(theirs.fileno(),),
                env={name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)},
                start_new_session=True,  # Ctrl-C reaches us only
            )
        self._line = Line(ours, send_timeout_s=SEND_TIMEOUT_S)
        self.say(setup)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def gone(self) -> bool:
        """Its end of the socket is closed, or it has ended."""
        return self._line.ended or self._child.poll() is not None

    def fileno(self) -> int:
        return self._line.fileno()

    def say(self, message: Order) -> None:
        """One that does not listen is found out by its silence."""
        with suppress(TimeoutError):
            self._line.send(message)

    def heard(self) -> list[FromWorker]:
        """What it said since the last call."""
        try:
            messages = [self._decode(frame) for frame in self._line.frames()]
        except (ValueError, msgspec.DecodeError):  # something else writes to its socket: that is no worker of ours
            self._child.kill()
            return []
        if messages:
            self.heard_s = time.monotonic()
        return messages

    def wait_up(self, until_s: float) -> None:
        """raises LoadError when it is not up by then (monotonic seconds), or says what hinders it"""
        while True:
            for message in self.heard():
                if isinstance(message, Up):
                    return
                raise LoadError(f"{self.name} cannot work: {getattr(message, 'said', message)}")
            if self.gone:
                raise LoadError(f"{self.how()} before it could work; its last lines: {self._tail()}")
            if time.monotonic() > until_s:
                raise LoadError(f"{self.name} was not up within {START_S:g} s; is this machine overloaded?")
            time.sleep(0.005)

    def how(self) -> str:
        """How it ended, in a few words. Waits a moment for a child whose socket has closed already."""
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(END_S)
        code = self._child.poll()
        if code is None:
            return f"{self.name} closed its socket and went on"
        return f"{self.name} was killed by signal {-code}" if code < 0 else f"{self.name} ended with exit code {code}"

    def state(self) -> str:
        """What the kernel says of it."""
        try:
            letter = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return "it is gone"
        return {"T": "it was stopped by a signal", "D": "it waits for a device or a disk"}.get(letter, "it hangs")

    def kill(self) -> None:
        """Returns when it has ended, or after 3 s."""
        self._child.kill()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(END_S)

    def let_go(self) -> None:
        """Close the socket, at which it ends by itself."""
        self._line.close()

    def end(self, until_s: float) -> None:
        """After `let_go`: wait until then, kill what is still there, leave no empty log."""
        try:
            self._child.wait(max(0.0, until_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
        with suppress(OSError):
            if self._log.stat().st_size == 0:
                self._log.unlink()

    def _tail(self) -> str:
        with suppress(OSError):
            lines = self._log.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace").splitlines()
            return " | ".join(line for line in lines[-5:] if line.strip()) or "(none)"
        return "(none)"

"""Where workers run: processes of this machine, behind one zmq socket on a unix path that only we may enter."""

import os
import secrets
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import msgspec
import zmq

from kvgauge import backends
from kvgauge.builds.records import Build
from kvgauge.failures import TargetError
from kvgauge.target.processes import Process, end
from kvgauge.xfer.messages import MESSAGE_BYTES_MAX, Bye, Failed, FromWorker, Step, ToWorker, WorkerSpec, encode
from kvgauge.xfer.workload import Side, Workload

WORKER = "kvgauge.xfer.worker"
END_HEARD_S = 0.5


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Workers of one side for one measurement; what the other host is told too, so nothing of ours stands in it."""

    side: Side
    count: int
    work: Workload
    backend: str
    progress_thread: bool = False
    threads: int = 0
    yielding: bool = False
    timeout_s: float = 30.0


class Place(Protocol):
    """Starts workers, carries messages to and from them, ends them. `name`: initiator-0, target-3."""

    def start(self, job: Job) -> list[str]:
        """Names of the workers of this job. raises TargetError"""

    def say(self, name: str, message: ToWorker) -> None: ...

    def hear(self, wait_s: float) -> tuple[str, FromWorker] | None:
        """The next message of any of them. raises TargetError when the place itself is lost"""

    def trouble(self) -> str | None:
        """Which worker ended without a word, and how."""

    def end(self) -> dict[str, str]:
        """End every worker of the last jobs; what each has logged."""


class Here:
    """This machine.

    environments  backend -> variables of its workers, besides those they inherit
    keep          a folder for logs; None: they go when the workers end
    """

    def __init__(
        self, build: Build, environments: dict[str, dict[str, str]], *, device: int = 0, stream_host: str = "127.0.0.1"
    ) -> None:
        self.build = build
        self._environments, self._device, self._stream_host = environments, device, stream_host
        self._folder = Path(tempfile.mkdtemp(prefix="kvgauge-", dir=_short_folder()))  # 0700
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket: Any = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
        self._endpoint = f"ipc://{self._folder}/parent"
        self._socket.bind(self._endpoint)
        self._decoder = msgspec.msgpack.Decoder(FromWorker)
        self._workers: dict[str, Process] = {}
        self._jobs = 0

    @property
    def socket(self) -> Any:
        """For a poller that waits for several things."""
        return self._socket

    def start(self, job: Job) -> list[str]:
        self._jobs += 1
        if job.backend not in self._environments:
            raise TargetError(f"{job.backend} was not made ready on this host: see --backend, --fabric, --interface")
        environment = {name: os.environ[name] for name in backends.INHERITED if name in os.environ}
        environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), **self._environments[job.backend]}
        names = []
        for index in range(job.count):
            name = f"{job.side}-{index}"
            spec = WorkerSpec(
                side=job.side,
                index=index,
                work=job.work,
                backend=job.backend,
                build=self.build,
                parent=self._endpoint,
                device=self._device,
                progress_thread=job.progress_thread,
                threads=job.threads,
                stream_host=self._stream_host,
                yielding=job.yielding,
                timeout_s=job.timeout_s,
            )
            log = self._folder / f"{self._jobs}-{name}.log"
            self._workers[name] = Process(name, WORKER, encode(spec), environment, log)
            names.append(name)
        return names

    def say(self, name: str, message: ToWorker) -> None:
        self.say_raw(name, encode(message))

    def say_raw(self, name: str, raw: bytes) -> None:
        with suppress(zmq.ZMQError):  # one that is gone: `trouble` tells
            self._socket.send_multipart([name.encode(), raw], zmq.NOBLOCK)

    def hear(self, wait_s: float) -> tuple[str, FromWorker] | None:
        heard = self.hear_raw(wait_s)
        if heard is None:
            return None
        name, raw = heard
        try:
            message: FromWorker = self._decoder.decode(raw)
        except msgspec.DecodeError as error:
            raise TargetError(f"{name} said what no worker says: {error}") from error
        return name, message

    def hear_raw(self, wait_s: float) -> tuple[str, bytes] | None:
        if not self._socket.poll(max(0, int(wait_s * 1000))):
            return None
        identity, raw = self._socket.recv_multipart()
        return identity.decode("ascii", "replace"), raw

    def trouble(self) -> str | None:
        return next((how for worker in self._workers.values() if (how := worker.ended()) is not None), None)

    def end(self) -> dict[str, str]:
        def ask() -> None:
            for name in self._workers:
                self.say(name, Bye())

        end(list(self._workers.values()), ask)
        logs = {name: worker.log() for name, worker in self._workers.items()}
        self._workers = {}
        while self._socket.poll(0):  # what they said last belongs to no later job
            self._socket.recv_multipart()
        return logs

    def kill(self) -> None:
        """For workers that would not listen: no time is spent on asking."""
        for worker in self._workers.values():
            worker.kill()

    def close(self) -> None:
        self.kill()
        self._context.destroy(linger=0)
        shutil.rmtree(self._folder, ignore_errors=True)


class Crew:
    """Both sides of one measurement, wherever each runs; waits for answers, and never for ever."""

    def __init__(self, initiators: Place, targets: Place) -> None:
        self.places: list[Place] = [initiators] if initiators is targets else [initiators, targets]
        self._initiators, self._targets = initiators, targets
        self._where: dict[str, Place] = {}
        self._steps: dict[str, str] = {}
        self._early: list[tuple[str, FromWorker]] = []  # said before it was waited for
        self._silent = False  # nothing came when they were last listened to
        self.names: dict[Side, list[str]] = {"initiator": [], "target": []}

    def start(self, initiators: Job, targets: Job) -> None:
        self._early = []
        for place, job in ((self._targets, targets), (self._initiators, initiators)):
            names = place.start(job)
            self.names[job.side] = names
            self._where |= dict.fromkeys(names, place)
            self._steps |= dict.fromkeys(names, "starting")

    def say(self, names: list[str], message: ToWorker) -> None:
        for name in names:
            self._where[name].say(name, message)

    def wait(self, names: list[str], kind: type[Any], timeout_s: float) -> dict[str, Any]:
        """One message of this kind from each. raises TargetError: a failure, an end, or no answer in time"""
        found: dict[str, Any] = {}
        until = time.monotonic() + timeout_s
        while len(found) < len(names):
            if (heard := self._next(names, kind, found)) is not None:
                found[heard[0]] = heard[1]
                continue
            for place in self.places:
                if self._silent and (how := place.trouble()) is not None:
                    self._last_words()
                    raise TargetError(f"{how} (it was {self._step(how.split(' ', 1)[0])})")
            if time.monotonic() > until:
                late = [name for name in names if name not in found]
                told = "; ".join(f"{name}: {self._step(name)}" for name in sorted(self._steps))
                raise TargetError(f"no answer from {', '.join(late)} within {timeout_s:g} s ({told})")
        return found

    def _next(self, names: list[str], kind: type[Any], found: dict[str, Any]) -> tuple[str, Any] | None:
        for number, (name, message) in enumerate(self._early):
            if isinstance(message, kind) and name in names and name not in found:
                del self._early[number]
                return name, message
        self._silent = True
        for place in self.places:
            heard = place.hear(0.05 / len(self.places))
            if heard is None:
                continue
            self._silent = False
            name, message = heard
            if isinstance(message, Failed):
                raise TargetError(f"{self._other_end(name)}{name}, {self._step(name)}: {message.reason}")
            if isinstance(message, Step):
                self._steps[name] = message.what
            elif isinstance(message, kind) and name in names and name not in found:
                return name, message
            elif len(self._early) < 1000:
                self._early.append(heard)
        return None

    def _step(self, name: str) -> str:
        return self._steps.get(name, "starting")

    def _other_end(self, failed: str) -> str:
        """A worker often fails because the other side has ended: then that comes first.

        Its peer hears of an end before its parent can: sockets are closed first. One that ended because it
        failed too, and said so, explains nothing.
        """
        told = {failed}
        until = time.monotonic() + END_HEARD_S
        while True:
            for place in self.places:
                while (heard := place.hear(0)) is not None:
                    told |= {heard[0]} if isinstance(heard[1], Failed) else set()
            ends = [how for place in self.places if (how := place.trouble()) is not None]
            others = [how for how in ends if how.split(" ", 1)[0] not in told]
            if others or time.monotonic() > until:
                return f"{others[0]}; then " if others else ""
            time.sleep(0.02)

    def _last_words(self) -> None:
        """A worker that says why it fails ends right after: the reason is still on its way. raises TargetError"""
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            self._next([], Failed, {})

    def end(self) -> dict[str, str]:
        """End all; logs by name."""
        logs: dict[str, str] = {}
        for place in self.places:
            logs |= place.end()
        self._where, self._steps = {}, {}
        return logs


def _short_folder() -> str:
    """A folder whose socket paths fit into the 107 bytes a unix socket may have."""
    chosen = tempfile.gettempdir()
    return chosen if len(chosen) + len(secrets.token_hex(8)) + 40 < 107 else "/tmp"  # noqa: S108 - mkdtemp makes a folder only we can enter

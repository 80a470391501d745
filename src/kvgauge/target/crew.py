"""The processes of one run and their parent's end of the control socket: who is up, who has ended, who must be told.

Everything happens in the calls of one thread; `look` is cheap and is called often.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import zmq

from kvgauge.failures import TargetError
from kvgauge.kv.transfer import WorkerInfo
from kvgauge.samples.records import Transfer
from kvgauge.serve.messages import (
    Ask,
    Died,
    Down,
    Listening,
    Moved,
    Open,
    Peers,
    Ready,
    Report,
    Stop,
    ToParent,
    Up,
    encode,
)
from kvgauge.target.processes import Process, check_alive, end

START_TIMEOUT_S = 90.0
REPORT_TIMEOUT_S = 10.0
SILENCE_S = 20.0  # a process that says nothing for so long is stopped, or caught in a call: it is ended
LAST_WORDS_MS = 300  # a process that ends on its own says why first
FRONTEND = "frontend-0"  # as it calls itself on the control socket
FRONTEND_PROCESS = "frontend"
OTHER = {"prefill": "decode", "decode": "prefill"}
BLIND_S = 1.0  # when we ourselves looked no more often than this, silence in between says nothing
NOTED_SILENCE_S = 2.0


def place(name: str) -> tuple[str, int]:
    """(role, index) of a worker's name."""
    role, _, index = name.rpartition("-")
    return role, int(index)


class Crew:
    """Started, introduced to each other, watched, started again, ended. `transfers` are the KV moves reported.

    silence_s  how long a process may say nothing before it is killed
    """

    def __init__(self, endpoint: str, log_folder: Path, silence_s: float = SILENCE_S) -> None:
        self._log_folder = log_folder
        self._silence_s = silence_s
        self._heard: dict[str, float] = {}  # process -> when it last said anything, once it was up
        self._looked = time.monotonic()
        self.silences: dict[str, float] = {}  # process -> the longest time, in s, that it said nothing, if long
        self._context: zmq.Context[Any] = zmq.Context()
        self._control: Any = self._context.socket(zmq.ROUTER)
        self._control.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a worker that is started again takes its name over
        self._control.bind(endpoint)
        self._decoder = msgspec.msgpack.Decoder(ToParent)
        self._processes: dict[str, Process] = {}
        self._known: set[str] = set()  # who has ever spoken
        self._up: dict[str, WorkerInfo] = {}
        self._down: set[str] = set()
        self._died: dict[str, str] = {}
        self._starting: dict[str, float] = {}  # started again, not ready yet: until when it must be
        self._url: str | None = None
        self._open = False
        self.transfers: list[Transfer] = []

    # -- starting

    def start(
        self, name: str, module: str, spec: bytes, environment: dict[str, str], through: Sequence[str] = ()
    ) -> None:
        log = self._log_folder / f"{name}.log"
        log.unlink(missing_ok=True)
        self._processes[name] = Process(name, module, spec, environment, log, through)

    def introduce(self) -> str:
        """Wait until all have reported, tell workers of each other, open the frontend. Returns its URL.

        raises  TargetError when they are not ready within 90 s or one has ended
        """
        workers = len(self._processes) - 1
        until = time.monotonic() + START_TIMEOUT_S
        while self._url is None or len(self._up) < workers:
            self._hear(until, f"{workers - len(self._up)} workers were")
        for role in OTHER:
            self._tell_side(role)
        self._tell(FRONTEND, Open())
        while not self._open:
            self._hear(until, "the frontend was")
        self._heard = dict.fromkeys(self._processes, time.monotonic())
        return self._url

    def _hear(self, until: float, who: str) -> None:
        """Take in one message, if one comes. raises TargetError when it is too late or someone has ended"""
        if time.monotonic() > until:
            raise TargetError(f"{who} not ready after {START_TIMEOUT_S:.0f} s; see {self._log_folder}")
        if not self._control.poll(50):
            ended = any(process.how() for process in self._processes.values())
            if not (ended and self._control.poll(LAST_WORDS_MS)):
                check_alive(list(self._processes.values()))
                return
        name, message = self._take(self._control.recv_multipart())
        if isinstance(message, Died):
            raise TargetError(f"{name} did not start: {message.reason}")

    def begin_again(self, name: str, spec: bytes) -> None:
        """Start a worker again; `look` and `wait_up` take it in once it is ready. One that still runs is killed."""
        process = self._processes[name]
        if process.how() is None:
            process.kill()
        self.look()
        self._died.pop(name, None)
        self._heard.pop(name, None)
        again = Process(name, process.module, spec, process.environment, process.log_path, process.through)
        self._processes[name] = again
        self._down.discard(name)
        self._starting[name] = time.monotonic() + START_TIMEOUT_S

    def wait_up(self, name: str) -> None:
        """raises TargetError when the worker ends again or takes more than 90 s."""
        while name in self._starting:
            self.look(50)
            if name in self._died:
                raise TargetError(self._died[name])

    # -- while they run

    def look(self, wait_ms: int = 0) -> None:
        """Take in what they say and notice who has ended; everyone concerned is told."""
        while self._control.poll(wait_ms):
            self._take(self._control.recv_multipart())
            wait_ms = 0
        self._notice()

    def trouble(self) -> str | None:
        """Who has ended or given up and was not started again, if anyone."""
        self._notice()
        return next(iter(self._died.values()), None)

    def dead(self) -> list[str]:
        """The workers that have ended and were not started again."""
        self._notice()
        return [name for name in self._died if name not in (FRONTEND_PROCESS, FRONTEND)]

    def why(self, name: str) -> str:
        """How a dead worker ended."""
        return self._died[name]

    def serving(self) -> bool:
        """Whether each side has a worker that is up."""
        return {place(name)[0] for name in self._up} == set(OTHER)

    def wait_serving(self) -> None:
        """Until whatever was started again is up. raises TargetError when it ends again or takes more than 90 s"""
        for name in list(self._starting):
            self.wait_up(name)

    def reports(self) -> dict[str, Report]:
        """Ask every worker for its facts. raises TargetError when one does not answer"""
        asked = set(self._up)
        for name in asked:
            self._tell(name, Ask())
        reports: dict[str, Report] = {}
        until = time.monotonic() + REPORT_TIMEOUT_S
        while (how := self.trouble()) is None and len(reports) < len(asked):
            if time.monotonic() > until:
                silent = sorted(asked - set(reports))
                raise TargetError(f"no answer from {', '.join(silent)} within {REPORT_TIMEOUT_S:.0f} s")
            if self._control.poll(50):
                name, message = self._take(self._control.recv_multipart())
                if isinstance(message, Report):
                    reports[name] = message
        if how is not None:
            raise TargetError(how)
        return reports

    def logs(self) -> dict[str, str]:
        return {name: process.log() for name, process in self._processes.items()}

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._processes.items()}

    def stop(self) -> None:
        """End every process and close the socket."""
        if self._processes:
            end(list(self._processes.values()), self._say_stop)
        self._context.destroy(linger=0)

    # -- telling and hearing

    def _say_stop(self) -> None:
        for name in self._known:
            self._tell(name, Stop())

    def _tell(self, name: str, message: Any) -> None:
        self._control.send_multipart([name.encode(), encode(message)], flags=zmq.NOBLOCK)

    def _side(self, role: str) -> Peers:
        """What the workers of the other side are told of this one."""
        return Peers([info for name, info in sorted(self._up.items()) if place(name)[0] == role])

    def _tell_side(self, role: str) -> None:
        peers = self._side(OTHER[role])
        for name in self._up:
            if place(name)[0] == role:
                self._tell(name, peers)

    def _take(self, frames: list[bytes]) -> tuple[str, Any]:
        name, message = frames[0].decode(), self._decoder.decode(frames[1])
        self._known.add(name)
        self._hears(FRONTEND_PROCESS if name == FRONTEND else name)
        if isinstance(message, Moved):
            self.transfers.append(message.transfer)
        elif isinstance(message, Died):
            self._died[name] = f"{name} gave up: {message.reason}"
        elif isinstance(message, Listening):
            self._url = message.url
        elif isinstance(message, Open):
            self._open = True
        elif isinstance(message, Ready):
            self._up[name] = message.info
            if self._open:
                self._welcome(name)
        return name, message

    def _welcome(self, name: str) -> None:
        """A worker that was started again is ready: the other side first, so that it is known when requests come."""
        del self._starting[name]
        role, index = place(name)
        self._tell(name, self._side(OTHER[role]))
        self._tell_side(OTHER[role])
        self._tell(FRONTEND, Up(role, index))

    def _hears(self, process: str) -> None:
        now = time.monotonic()
        silent = now - self._heard.get(process, now)
        if silent > max(NOTED_SILENCE_S, self.silences.get(process, 0.0)):
            self.silences[process] = silent
        if self._open:  # starting takes what it takes, within its own limit
            self._heard[process] = now

    def _unheard(self, name: str) -> float | None:
        """How long it has said nothing, when that is too long."""
        silent = self._looked - self._heard.get(name, self._looked)
        return silent if silent > self._silence_s else None

    def _look_up(self) -> None:
        """What we did not look at for a while has not been silent for that while."""
        now = time.monotonic()
        blind = now - self._looked
        if blind > BLIND_S:
            self._heard = {name: min(now, heard + blind) for name, heard in self._heard.items()}
        self._looked = now

    def _ended(self, name: str, process: Process) -> tuple[str, str] | None:
        """How it ended, in a few words and at length; None while it runs. One silent for too long is ended."""
        if (how := process.how()) is not None:
            return how, process.ended() or how
        if (silent := self._unheard(name)) is None:
            return None
        why = f"{name} did nothing for {silent:.0f} s ({process.state()}) and was killed"
        process.kill()
        return why, why

    def _notice(self) -> None:
        self._look_up()
        for name, process in self._processes.items():
            if name not in self._down and (end := self._ended(name, process)) is not None:
                how, at_length = end
                self._down.add(name)
                self._died.setdefault(name, at_length)
                self._starting.pop(name, None)
                if self._up.pop(name, None) is not None and self._open:
                    role, index = place(name)
                    self._tell_side(OTHER[role])
                    self._tell(FRONTEND, Down(role, index, how))
        for name in [name for name, until in self._starting.items() if time.monotonic() > until]:
            del self._starting[name]
            self._died[name] = f"{name} was started again and was not ready after {START_TIMEOUT_S:.0f} s"

"""`kvgauge xfer --listen`: starts targets for whoever has the token, relays what is said, ends them afterwards."""

import time
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from kvgauge import __version__
from kvgauge.failures import KvgaugeError, TargetError, UsageError
from kvgauge.xfer.messages import encode
from kvgauge.xfer.places import Here
from kvgauge.xfer.remote import (
    PROTOCOL,
    SILENCE_S,
    Close,
    End,
    Ended,
    FromHost,
    Heard,
    Open,
    Opened,
    Ping,
    Pong,
    Say,
    Started,
    StartJob,
    ToHost,
    host_name,
)
from kvgauge.xfer.workload import refusal


class Listener:
    """One session: from the first Open to its Close, or until the other side has been silent for too long.

    available_bytes  asked before workers start: a row that needs more is refused
    """

    def __init__(self, socket: Any, here: Here, interface: str | None, available_bytes: Callable[[], int]) -> None:
        self._socket, self._here, self._interface = socket, here, interface
        self._available_bytes = available_bytes
        self._decoder = msgspec.msgpack.Decoder(ToHost)
        self._peer: bytes | None = None
        self._last_s = 0.0

    def serve(self, wait_s: float, say: Callable[[str], None]) -> None:
        """raises TargetError: nobody came, or the other side was lost"""
        until = time.monotonic() + wait_s
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._here.socket, zmq.POLLIN)
        try:
            while True:
                poller.poll(100)
                if self._from_peer(say):
                    return
                self._from_workers()
                now = time.monotonic()
                if self._peer is None and now > until:
                    raise TargetError(f"nobody with this token came within {wait_s:g} s")
                if self._peer is not None and now - self._last_s > SILENCE_S:
                    raise TargetError(
                        f"nothing from the other side for {SILENCE_S:g} s: its kvgauge or the network is gone"
                    )
        finally:
            self._here.kill()

    def _from_peer(self, say: Callable[[str], None]) -> bool:
        """Take what has come; True: the session is over."""
        while self._socket.poll(0):
            identity, *rest = self._socket.recv_multipart()
            if self._peer is not None and identity != self._peer:
                self._send(self._opened("another session is under way"), identity)
                continue
            try:
                message: ToHost = self._decoder.decode(rest[-1] if rest else b"")
            except msgspec.DecodeError:
                self._send(self._opened(f"kvgauge {__version__} does not know that message"), identity)
                continue
            self._last_s = time.monotonic()
            if isinstance(message, Open):
                if message.protocol != PROTOCOL:
                    self._send(
                        self._opened(f"kvgauge {__version__} speaks another protocol than {message.version}"), identity
                    )
                    continue
                self._peer = identity
                say("connected")
                self._send(self._opened(None))
            elif self._peer is None:
                continue
            elif isinstance(message, Close):
                return True
            else:
                self._obey(message)
        return False

    def _obey(self, message: ToHost) -> None:
        if isinstance(message, StartJob):
            self._send(self._start(message))
        elif isinstance(message, Say):
            self._here.say_raw(message.name, message.raw)
        elif isinstance(message, Ping):
            self._send(Pong(self._here.trouble()))
        elif isinstance(message, End):
            self._send(Ended(self._here.end()))

    def _start(self, message: StartJob) -> Started:
        job = message.job
        if job.side != "target":
            return Started([], "a host that listens runs targets only")
        why = refusal(job.work)
        needed = job.work.memory_bytes["target"]
        if why is None and needed > (free := self._available_bytes()):
            why = f"{job.work.name} needs {needed >> 20:,} MiB here and {free >> 20:,} MiB are available"
        if why is None and not 1 <= job.count <= job.work.targets:
            why = f"{job.count} targets were asked for, {job.work.targets} belong to the row"
        if why is not None:
            return Started([], why)
        try:
            return Started(self._here.start(job))
        except (KvgaugeError, KeyError) as error:
            return Started([], str(error))

    def _from_workers(self) -> None:
        while (heard := self._here.hear_raw(0)) is not None:
            self._send(Heard(*heard))

    def _opened(self, refused: str | None) -> Opened:
        build = self._here.build
        return Opened(host_name(), build.name, build.identity, __version__, self._interface, refused)

    def _send(self, message: FromHost, to: bytes | None = None) -> None:
        try:
            self._socket.send_multipart([to or self._peer or b"", encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if to is None:
                raise TargetError(f"the other side takes no more messages: {error}") from error


def refuse_everywhere(host: str) -> None:
    """raises UsageError: listening on every interface is never asked for by accident"""
    if host in ("0.0.0.0", "::", "*", ""):  # noqa: S104 - refused
        raise UsageError(f"--listen {host or '*'} would be every interface of this machine: name the address of one")

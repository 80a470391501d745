"""Two hosts: what `--connect` and `--listen` say to one another, encrypted, and only with the same token.

CurveZMQ (RFC 26): a client must know the server's public key before its first byte, and the server answers nobody who
does not. Here that key is derived from the token and never sent, so whoever joins has the token. It is in the
environment of both, never on a command line, in a file, a log or a result.
"""

import hashlib
import os
import platform
import secrets
import time
from typing import Any

import msgspec
import zmq

from kvgauge import __version__
from kvgauge.failures import TargetError, UsageError
from kvgauge.xfer.messages import MESSAGE_BYTES_MAX, FromWorker, ToWorker, encode
from kvgauge.xfer.places import Job

TOKEN_VARIABLE = "KVGAUGE_XFER_TOKEN"  # noqa: S105 - the name of a variable, not a token
TOKEN_CHARACTERS_MIN = 16
PING_S = 1.0
SILENCE_S = 20.0  # nothing at all for so long: the other side is lost
ANSWER_S = 15.0  # to the very first message
START_S = 60.0  # a build may have to be installed over there
PROTOCOL = 2


class Open(msgspec.Struct, tag="open", frozen=True):
    protocol: int
    version: str


class Opened(msgspec.Struct, tag="opened", frozen=True):
    """The other host: what it is called, its build's name and identity, its machine. refused: why it takes no part."""

    host: str
    build: str
    identity: str
    version: str
    interface: str | None = None
    refused: str | None = None


class StartJob(msgspec.Struct, tag="start", frozen=True):
    job: Job


class Started(msgspec.Struct, tag="started", frozen=True):
    names: list[str]
    refused: str | None = None


class Say(msgspec.Struct, tag="say", frozen=True):
    name: str
    raw: bytes


class Heard(msgspec.Struct, tag="heard", frozen=True):
    name: str
    raw: bytes


class Ping(msgspec.Struct, tag="ping", frozen=True):
    pass


class Pong(msgspec.Struct, tag="pong", frozen=True):
    trouble: str | None = None


class End(msgspec.Struct, tag="end", frozen=True):
    pass


class Ended(msgspec.Struct, tag="ended", frozen=True):
    logs: dict[str, str]


class Close(msgspec.Struct, tag="close", frozen=True):
    pass


ToHost = Open | StartJob | Say | Ping | End | Close
FromHost = Opened | Started | Heard | Pong | Ended


def token_here() -> str | None:
    """From the environment. raises UsageError for one that is too short to be secret"""
    token = os.environ.get(TOKEN_VARIABLE)
    if token is not None and len(token) < TOKEN_CHARACTERS_MIN:
        raise UsageError(f"{TOKEN_VARIABLE} has fewer than {TOKEN_CHARACTERS_MIN} characters: take a long random one")
    return token


def new_token() -> str:
    return secrets.token_urlsafe(24)


def secret_key(token: str) -> bytes:
    """The server's secret key, as zmq writes keys (Z85)."""
    from zmq.utils import z85

    digest = hashlib.sha256(b"kvgauge xfer server key\0" + token.encode()).digest()
    encoded: bytes = z85.encode(digest)
    return encoded


def server_socket(context: Any, token: str, host: str, port: int) -> Any:
    """raises UsageError when that address cannot be listened on, TargetError where zmq has no CURVE"""
    _need_curve()
    socket = _bounded(context.socket(zmq.ROUTER))
    socket.curve_server = True
    socket.curve_secretkey = secret_key(token)
    try:
        socket.bind(f"tcp://{_bracketed(host)}:{port}")
    except zmq.ZMQError as error:
        raise UsageError(f"cannot listen on {host} port {port}: {error}; take another address or port") from error
    return socket


def _need_curve() -> None:
    if not zmq.has("curve"):
        raise TargetError("this libzmq has no CURVE, so two hosts could not talk in private: install pyzmq's own wheel")


def _bounded(socket: Any) -> Any:
    socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
    socket.setsockopt(zmq.RCVHWM, 1000)
    socket.setsockopt(zmq.SNDHWM, 1000)
    socket.setsockopt(zmq.LINGER, 500)
    return socket


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def address_of(text: str, *, host: str | None = None) -> tuple[str, int]:
    """HOST:PORT, or PORT alone where `host` is the default. raises UsageError"""
    name, separator, port = text.rpartition(":")
    chosen = name.strip("[]") if separator else host
    if not chosen or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise UsageError(f"cannot read the address {text!r}: give HOST:PORT{' or PORT' if host else ''}")
    return chosen, int(port)


class There:
    """Workers on the host that listens; a Place.

    raises  TargetError when it does not answer, refuses, or is lost
    """

    def __init__(self, host: str, port: int, token: str) -> None:
        _need_curve()
        self._name = f"{host}:{port}"
        self._context: Any = zmq.Context()
        self._socket = _bounded(self._context.socket(zmq.DEALER))
        public, secret = zmq.curve_keypair()
        self._socket.curve_publickey, self._socket.curve_secretkey = public, secret
        self._socket.curve_serverkey = zmq.curve_public(secret_key(token))
        self._socket.connect(f"tcp://{_bracketed(host)}:{port}")
        self._decoder = msgspec.msgpack.Decoder(FromHost)
        self._worker_decoder = msgspec.msgpack.Decoder(FromWorker)
        self._heard: list[Heard] = []
        self._trouble: str | None = None
        self._last_s = self._pinged_s = time.monotonic()
        self.opened = Opened("", "", "", "")

    def open(self) -> Opened:
        """raises TargetError"""
        self._send(Open(PROTOCOL, __version__))
        self.opened = self._await(
            Opened,
            ANSWER_S,
            f"no answer from {self._name} within {ANSWER_S:g} s: is `kvgauge xfer --listen` running there, reachable, "
            f"and started with the same {TOKEN_VARIABLE}? (it answers nobody with another)",
        )
        if self.opened.refused is not None:
            raise TargetError(f"{self._name} takes no part: {self.opened.refused}")
        return self.opened

    def start(self, job: Job) -> list[str]:
        self._heard, self._trouble = [], None
        self._send(StartJob(job))
        started = self._await(Started, START_S, f"{self._name} started no workers within {START_S:g} s")
        if started.refused is not None:
            raise TargetError(f"{self._name}: {started.refused}")
        names: list[str] = started.names
        return names

    def say(self, name: str, message: ToWorker) -> None:
        self._send(Say(name, encode(message)))

    def hear(self, wait_s: float) -> tuple[str, FromWorker] | None:
        if not self._heard:
            self._receive(wait_s)
        if not self._heard:
            return None
        heard = self._heard.pop(0)
        try:
            message: FromWorker = self._worker_decoder.decode(heard.raw)
        except msgspec.DecodeError as error:
            raise TargetError(f"{heard.name} at {self._name} said what no worker says: {error}") from error
        return heard.name, message

    def trouble(self) -> str | None:
        return self._trouble

    def end(self) -> dict[str, str]:
        """Logs; none when the host is lost: its own limit of silence ends its workers then."""
        try:
            self._send(End())
            return dict(self._await(Ended, 15.0, f"{self._name} ended no workers within 15 s").logs)
        except TargetError:
            return {}

    def close(self) -> None:
        self._send(Close())
        self._socket.close(linger=500)
        self._context.destroy(linger=500)

    def _send(self, message: ToHost) -> None:
        try:
            self._socket.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            raise TargetError(f"{self._name} takes no more messages: is it still there?") from None

    def _await(self, kind: type[Any], wait_s: float, otherwise: str) -> Any:
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            if isinstance(message := self._receive(0.1), kind):
                return message
        raise TargetError(otherwise)

    def _receive(self, wait_s: float) -> FromHost | None:
        """One message, kept if it is a worker's. raises TargetError after too long a silence"""
        now = time.monotonic()
        if now - self._pinged_s > PING_S:
            self._pinged_s = now
            self._send(Ping())
        if not self._socket.poll(max(1, int(wait_s * 1000))):
            if time.monotonic() - self._last_s > SILENCE_S:
                raise TargetError(f"nothing from {self._name} for {SILENCE_S:g} s: its kvgauge or the network is gone")
            return None
        raw = self._socket.recv()
        self._last_s = time.monotonic()
        try:
            message: FromHost = self._decoder.decode(raw)
        except msgspec.DecodeError as error:
            raise TargetError(f"{self._name} said what kvgauge {__version__} does not know: {error}") from error
        if isinstance(message, Heard):
            self._heard.append(message)
        elif isinstance(message, Pong):
            self._trouble = message.trouble
        return message


def host_name() -> str:
    return platform.node()

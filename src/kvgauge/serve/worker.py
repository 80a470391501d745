"""A worker process of the embedded stack: `python -m kvgauge.serve.worker`, its Spec on standard input.

Imports the standard library, numpy, msgspec, pyzmq and kvgauge's own code, nothing else: it runs beside a NIXL
build that may bring anything.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any, Protocol

import msgspec
import zmq

from kvgauge.failures import KvgaugeError
from kvgauge.models import MODELS
from kvgauge.parent import die_with_parent
from kvgauge.serve import messages
from kvgauge.serve.messages import BEAT_NS, Ask, Beat, Died, FromParent, Peers, Ready, Spec, Stop, ToParent, encode
from kvgauge.serve.ranks import Ranks

HIGH_WATER = 10_000  # messages; a sender that meets it waits, which is the back-pressure wanted
SPIN_NS = 1_000_000  # closer to a deadline than this, do not sleep: zmq sleeps in whole milliseconds
IDLE_MS = 5
TURNS_A_LOOK = 8


class Role(Protocol):
    """What prefill and decode have in common."""

    def on_message(self, raw: bytes) -> None: ...
    def on_peers(self, peers: Peers) -> None: ...
    def turn(self, now_ns: int) -> int | None:
        """Do what is due. Returns when to be called again (ns), 0 for at once, None for when a message comes."""

    def report(self) -> messages.Report: ...


class Sockets:
    """The three sockets of a worker. All endpoints are private to the run."""

    def __init__(self, spec: Spec) -> None:
        self.context = zmq.Context(io_threads=1)
        self.control = self._socket(zmq.DEALER)
        self.control.setsockopt(zmq.IDENTITY, f"{spec.role}-{spec.index}".encode())
        self.control.connect(spec.control)
        self.inbox = self._socket(zmq.PULL)
        self.inbox.bind(spec.inbox)
        self.outbox = self._socket(zmq.PUSH)
        self.outbox.connect(spec.outbox)
        self.poller = zmq.Poller()
        self.poller.register(self.control, zmq.POLLIN)
        self.poller.register(self.inbox, zmq.POLLIN)

    def _socket(self, kind: int) -> Any:
        made = self.context.socket(kind)
        made.setsockopt(zmq.LINGER, 200)
        made.set_hwm(HIGH_WATER)
        return made

    def tell_parent(self, message: ToParent) -> None:
        self.control.send(encode(message))

    def beat(self) -> None:
        """Nobody waits for this one: a parent that is stopped itself gets the later ones."""
        with suppress(zmq.Again):
            self.control.send(encode(Beat()), zmq.NOBLOCK)

    def close(self) -> None:
        self.context.destroy(linger=200)


def named_parent() -> int | None:
    """Who started this process, by its environment; None where it was started by hand."""
    parent = os.environ.get(messages.PARENT_VARIABLE)
    return None if parent is None else int(parent)


def main() -> None:
    die_with_parent(named_parent())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    spec = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Spec)
    sockets = Sockets(spec)
    try:
        _work(spec, sockets)
    except KvgaugeError as error:
        sockets.tell_parent(Died(str(error)))
    except Exception as error:
        sockets.tell_parent(Died(f"{type(error).__name__}: {error}"))
        sockets.close()
        raise
    sockets.close()
    sys.stderr.flush()
    os._exit(0)  # NIXL's destructors may hang on a peer that is gone; everything that matters is sent


def _work(spec: Spec, sockets: Sockets) -> None:
    from kvgauge.serve.decode import DecodeWorker
    from kvgauge.serve.prefill import PrefillWorker

    ranks = Ranks(spec, MODELS[spec.model])
    role: Role = (PrefillWorker if spec.role == "prefill" else DecodeWorker)(spec, ranks, sockets.outbox)
    sockets.tell_parent(Ready(ranks.info, os.getpid(), ranks.start_ns))
    loop(role, sockets)


def loop(role: Role, sockets: Sockets) -> None:
    """Serve until told to stop. Sleeps only when nothing is due and no transfer is under way."""
    from_parent = msgspec.msgpack.Decoder(FromParent)
    wait_ms = IDLE_MS
    beat_ns = 0
    while True:
        ready = dict(sockets.poller.poll(wait_ms))
        if time.monotonic_ns() >= beat_ns:
            sockets.beat()
            beat_ns = time.monotonic_ns() + BEAT_NS
        if sockets.control in ready:
            message = from_parent.decode(sockets.control.recv())
            if isinstance(message, Stop):
                return
            if isinstance(message, Peers):
                role.on_peers(message)
            elif isinstance(message, Ask):
                sockets.tell_parent(role.report())
        if sockets.inbox in ready:
            _drain(role, sockets.inbox)
        wait_ms = _turns(role)


def _turns(role: Role) -> int:
    """Let the role work; how long messages may be waited for, in ms.

    While something is under way several turns pass between two looks at the sockets: NIXL's progress is driven by
    these turns, and a look costs as much as one of them.
    """
    for _ in range(TURNS_A_LOOK):
        now = time.monotonic_ns()
        due = role.turn(now)
        if due is None:
            return IDLE_MS
        spare_ns = due - now - SPIN_NS
        if spare_ns > 0:
            return int(min(IDLE_MS, -(-spare_ns // 1_000_000)))
    os.sched_yield()
    return 0


def _drain(role: Role, inbox: Any) -> None:
    for _ in range(256):  # bounded, so that a flood of requests cannot starve transfers
        try:
            raw = inbox.recv(zmq.NOBLOCK)
        except zmq.Again:
            return
        role.on_message(raw)


if __name__ == "__main__":
    main()

"""One worker of a build's self-test: `python -m kvgauge.kv.selftest`, its CaseSpec on standard input.

Two of them, initiator and target, go through every shape twice with agents whose progress threads are off, as the
embedded stack does. The initiator leads; the target prepares what it is told to, polls, and checks what was written.
"""

import ctypes
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zmq

from kvgauge.builds.case import CaseSpec, Ended, FromWorker, Opened, Step, Trial
from kvgauge.builds.records import Build
from kvgauge.failures import BuildError, TransferError
from kvgauge.kv import libraries, shapes
from kvgauge.kv.agent import Agent
from kvgauge.kv.shapes import SHAPES, Shape, UInt64
from kvgauge.kv.transfer import RankInfo
from kvgauge.parent import die_with_parent

LATE_S = 0.2  # wrong data is looked at again after this: late is another mistake than wrong
TURNS = (0, 1)  # the first transfer of a shape, and a later one


class TimeIsUp(TransferError):
    """The time limit passed while a transfer or its notification was waited for."""


class Prepare(msgspec.Struct, tag="prepare", frozen=True, array_like=True):
    """Fill your pools for this transfer."""

    shape: int
    turn: int


class Prepared(msgspec.Struct, tag="prepared", frozen=True, array_like=True):
    ranks: list[RankInfo]


class Check(msgspec.Struct, tag="check", frozen=True, array_like=True):
    """NIXL says DONE here: wait for its notifications there, and compare if you are the destination."""

    shape: int
    turn: int


class Checked(msgspec.Struct, tag="checked", frozen=True, array_like=True):
    notified_ns: int
    faults: dict[str, int]
    outside_bytes: int


class Bye(msgspec.Struct, tag="bye", frozen=True, array_like=True):
    pass


Between = Prepare | Prepared | Check | Checked | Bye
_encode = msgspec.msgpack.Encoder().encode


class Worker:
    """Pools and agents of one side, and the two sockets it talks through."""

    def __init__(self, spec: CaseSpec) -> None:
        self.spec = spec
        self._context: Any = zmq.Context(io_threads=1)
        self._parent = self._context.socket(zmq.DEALER)
        self._parent.setsockopt(zmq.IDENTITY, spec.role.encode())
        self._parent.connect(spec.parent)
        self._peer = self._context.socket(zmq.PAIR)
        if spec.role == "target":
            self._peer.bind(spec.peer)
        else:
            self._peer.connect(spec.peer)
        self._decoder = msgspec.msgpack.Decoder(Between)
        self._api: Any = None
        self._agents: list[Agent] = []
        self._pools: list[UInt64] = []
        self._memory: list[mmap.mmap] = []
        self._noted: dict[bytes, int] = {}

    @property
    def _destination(self) -> bool:
        return (self.spec.role == "initiator") == (self.spec.operation == "READ")

    def say(self, message: FromWorker) -> None:
        self._parent.send(_encode(message))

    def close(self) -> None:
        self._context.destroy(linger=500)

    # -- start

    def load(self) -> None:
        """raises BuildError, TransferError"""
        self.say(Step("loading NIXL"))
        self._api = libraries.load(self.spec.build, self.spec.backend)
        self._ranks(1)
        self.say(Opened(opened(self.spec.build, self.spec.backend), libfabric_version()))

    def _ranks(self, count: int) -> None:
        """Agents and pools for this many ranks; those that are there stay."""
        for rank in range(len(self._agents), count):
            self.say(Step(f"starting agent {rank} with {self.spec.backend}"))
            agent = Agent(self._api, f"{self.spec.role}-{rank}", self.spec.backend, progress_thread=False)
            memory = mmap.mmap(-1, shapes.pool_bytes(rank), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            pool: UInt64 = np.frombuffer(memory, dtype=np.uint64)
            pool[:: mmap.PAGESIZE // shapes.WORD_BYTES] = 0  # every page present before it is registered
            agent.register(pool.ctypes.data, pool.nbytes)
            self._agents.append(agent)
            self._pools.append(pool)
            self._memory.append(memory)

    # -- both sides

    def _prepare(self, shape: Shape, turn: int) -> list[RankInfo]:
        self._ranks(shape.ranks)
        image = shapes.blank_image if self._destination else shapes.source_image
        for rank in range(shape.ranks):
            self._pools[rank][:] = image(len(self._pools[rank]), shape, rank, turn)
        pairs = zip(self._agents, self._pools, strict=True)
        return [RankInfo(metadata=agent.metadata, address=pool.ctypes.data) for agent, pool in pairs]

    def _compare(self, shape: Shape, turn: int) -> tuple[dict[str, int], int]:
        """Faults and bytes changed outside; blocks that are right after all a moment later count as `late`."""
        faults, outside = self._compare_now(shape, turn)
        if not faults:
            return faults, outside
        until = time.monotonic() + LATE_S
        while time.monotonic() < until:
            self._poll()
        still, outside = self._compare_now(shape, turn)
        came = sum(faults.values()) - sum(still.values())
        return (still | {"late": came} if came > 0 else still), outside

    def _compare_now(self, shape: Shape, turn: int) -> tuple[dict[str, int], int]:
        faults: dict[str, int] = {}
        outside = 0
        for rank in range(shape.ranks):
            found, changed = shapes.compare(self._pools[rank], shape, rank, turn)
            outside += changed
            for kind, count in found.items():
                faults[kind] = faults.get(kind, 0) + count
        return faults, outside

    def _poll(self) -> None:
        for agent in self._agents:
            for note in agent.poll():
                self._noted[note] = self._noted.get(note, 0) + 1
        os.sched_yield()

    def _limit(self) -> Callable[[str], None]:
        """A clock for the step that begins now: called with what is waited for, it raises TimeIsUp when time is up."""
        deadline_ns = time.monotonic_ns() + int(self.spec.timeout_s * 1e9)

        def check(waiting: str) -> None:
            if time.monotonic_ns() > deadline_ns:
                raise TimeIsUp(waiting)

        return check

    def _receive(self) -> Between:
        """The peer's next message. Agents are polled meanwhile, for the peer's transfers need it.

        Without a limit of its own: the parent ends both when neither begins a new step.
        """
        while True:
            try:
                message: Between = self._decoder.decode(self._peer.recv(zmq.NOBLOCK))
            except zmq.Again:
                self._poll()
            else:
                return message

    # -- the two roles

    def follow(self) -> None:
        """The target's life. raises TransferError"""
        while True:
            message = self._receive()
            if isinstance(message, Prepare):
                shape = SHAPES[message.shape]
                self.say(Step(f"preparing {shape.name}"))
                self._peer.send(_encode(Prepared(self._prepare(shape, message.turn))))
                self.say(Step(f"polling, {shape.name}"))
            elif isinstance(message, Check):
                self._peer.send(_encode(self._checked(SHAPES[message.shape], message.turn)))
            elif isinstance(message, Bye):
                return

    def _checked(self, shape: Shape, turn: int) -> Checked:
        note, check = _note(shape, turn), self._limit()
        while self._noted.get(note, 0) < shape.ranks:
            check(f"DONE at the initiator, but {self._noted.get(note, 0)} of {shape.ranks} notifications")
            self._poll()
        at_ns = time.monotonic_ns()
        faults, outside = self._compare(shape, turn) if self._destination else ({}, 0)
        return Checked(at_ns, faults, outside)

    def lead(self) -> None:
        """Every shape, twice. raises TransferError"""
        links: list[tuple[Any, Any]] = []
        peers: list[str] = []
        for number, shape in enumerate(SHAPES):
            for turn in TURNS:
                which = f"{shape.name}, {'later' if turn else 'first'} transfer"
                self.say(Step(f"preparing {which}"))
                self._peer.send(_encode(Prepare(number, turn)))
                self._prepare(shape, turn)
                prepared = self._receive()
                assert isinstance(prepared, Prepared)
                if turn == 0:
                    links = self._connect(shape, prepared.ranks, peers)
                self.say(Step(which))
                self.say(self._move(number, turn, links))
        self._peer.send(_encode(Bye()))

    def _connect(self, shape: Shape, ranks: list[RankInfo], peers: list[str]) -> list[tuple[Any, Any]]:
        """Prepared lists (ours, theirs) of each rank for this shape; new peers are connected to and remembered."""
        for rank in range(len(peers), shape.ranks):
            self.say(Step(f"connecting agent {rank}"))
            peers.append(self._agents[rank].connect(ranks[rank].metadata)[0])
        return [
            (
                self._agents[rank].prepare(_listed(self._pools[rank].ctypes.data, shape, rank)),
                self._agents[rank].prepare(_listed(ranks[rank].address, shape, rank), peers[rank]),
            )
            for rank in range(shape.ranks)
        ]

    def _move(self, number: int, turn: int, links: list[tuple[Any, Any]]) -> Trial:
        shape = SHAPES[number]
        reads = self.spec.operation == "READ"
        began = time.monotonic_ns()
        under_way = []
        for rank, (ours, theirs) in enumerate(links):
            into, out_of = (shapes.rows(shape, rank, side).astype(np.int32) for side in ("destination", "source"))
            here, there = (into, out_of) if reads else (out_of, into)
            posted = self._agents[rank].post(self.spec.operation, (ours, here), (theirs, there), _note(shape, turn))
            under_way.append((self._agents[rank], posted[0]))
        self._await(under_way)
        done_ns = time.monotonic_ns()
        faults, outside = self._compare(shape, turn) if reads else ({}, 0)
        self._peer.send(_encode(Check(number, turn)))
        checked = self._receive()
        assert isinstance(checked, Checked)
        return Trial(
            shape=shape.name,
            later=bool(turn),
            blocks=shape.blocks * shape.ranks,
            faults=faults or checked.faults,
            outside_bytes=outside or checked.outside_bytes,
            took_ns=(done_ns if reads else checked.notified_ns) - began,
        )

    def _await(self, under_way: list[tuple[Agent, Any]]) -> None:
        count, check = len(under_way), self._limit()
        while under_way:
            still = []
            for agent, handle in under_way:
                state = agent.state(handle)
                if state == "PROC":
                    still.append((agent, handle))
                elif state == "DONE":
                    agent.release(handle)
                else:
                    raise TransferError(f"NIXL reports {state} for a {self.spec.operation}")
            under_way = still
            check(f"{count - len(still)} of {count} agents' transfers are done")
            self._poll()


def _listed(base: int, shape: Shape, rank: int) -> UInt64:
    """(address, length, device) of every block of the shape's area."""
    start = base + shapes.area(shape, rank).start * shapes.WORD_BYTES
    listed = np.zeros((shape.room, 3), dtype=np.uint64)
    listed[:, 0] = start + np.arange(shape.room, dtype=np.uint64) * np.uint64(shape.block_bytes)
    listed[:, 1] = shape.block_bytes
    return listed


def _note(shape: Shape, turn: int) -> bytes:
    return f"{SHAPES.index(shape)}/{turn}".encode()


def plugin_file(build: Build, backend: str) -> Path:
    """The plugin this build must use."""
    own = Path(build.folder) / f".{build.module}.mesonpy.libs" / "plugins"
    return Path(build.plugin_dir or own) / f"libplugin_{backend}.so"


def opened(build: Build, backend: str) -> str | None:
    """The plugin file this process has mapped; None where none of that name is (linked in, or a build of one piece).

    raises BuildError when it is another than the build's
    """
    name, mine = f"libplugin_{backend}.so", plugin_file(build, backend)
    mapped = {line.split(maxsplit=5)[5].strip() for line in Path("/proc/self/maps").read_text().splitlines()
              if line.endswith(f"/{name}")}  # fmt: skip
    if not mapped:
        return None
    if mine.exists() and not any(mine.samefile(path) for path in mapped):
        raise BuildError(f"NIXL opened {', '.join(sorted(mapped))} and not {mine}, which is the build's")
    return min(mapped)


def libfabric_version() -> str | None:
    """As the library in this process says it: 2.5 for 2.5.1. None where there is none."""
    try:
        number = int(ctypes.CDLL(None).fi_version())
    except AttributeError:
        return None
    return f"{number >> 16}.{number & 0xFFFF}"


def loader_says(build: Build, backend: str) -> str | None:
    """Why the plugin does not load, in the loader's words; None when it does. NIXL itself often gives a code only."""
    plugin = plugin_file(build, backend)
    if not plugin.exists():
        return f"{plugin.name} is not in {plugin.parent}"
    try:
        ctypes.CDLL(str(plugin))
    except OSError as error:
        return str(error)
    return None


def run(worker: Worker) -> Ended:
    """Go through the case; how it ended. Nothing escapes but what ends the process."""
    spec = worker.spec
    try:
        worker.load()
    except BuildError as error:
        return Ended("does not load", str(error))
    except TransferError as error:
        why = loader_says(spec.build, spec.backend)
        return Ended("does not load", why) if why is not None else Ended("fails", str(error))
    try:
        if spec.role == "initiator":
            worker.lead()
        else:
            worker.follow()
    except TimeIsUp as error:
        return Ended("hangs", str(error))
    except TransferError as error:
        return Ended("fails", str(error))
    return Ended("works", "")


def main() -> None:
    die_with_parent(None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    spec = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=CaseSpec)
    if os.getppid() != spec.parent_pid:  # it was killed before the kernel knew that we want to hear of it
        return
    worker = Worker(spec)
    try:
        worker.say(run(worker))
    except Exception as error:
        worker.say(Ended("fails", f"{type(error).__name__}: {error}"))
    worker.close()
    sys.stderr.flush()
    os._exit(0)  # NIXL's destructors may hang on a peer that is gone; everything that matters is sent


if __name__ == "__main__":
    main()

"""One side of `kvgauge xfer` in a process of its own: `python -m kvgauge.xfer.worker`, WorkerSpec on standard input.

It does what the conductor says, one message at a time, and polls its agents meanwhile: without NIXL's progress thread
nothing arrives otherwise. Any error ends it: the conductor starts another for the next row.
"""

import os
import signal
import sys
import threading
import time
from typing import Any

import msgspec
import numpy as np
import zmq

from kvgauge.failures import KvgaugeError, TransferError
from kvgauge.kv import libraries
from kvgauge.kv.agent import Agent
from kvgauge.parent import die_with_parent
from kvgauge.serve.worker import named_parent
from kvgauge.xfer import gathered, image, limits, loop, signals, verify
from kvgauge.xfer.answers import Answers
from kvgauge.xfer.connections import Legs, Own, connect, meet
from kvgauge.xfer.cuda import Device, load_runtime
from kvgauge.xfer.memory import GPU_HINT, make_pool
from kvgauge.xfer.messages import (
    MESSAGE_BYTES_MAX,
    Bye,
    Check,
    Checked,
    Connect,
    Copy,
    Failed,
    Fill,
    Filled,
    FromWorker,
    Go,
    Limited,
    Meet,
    Met,
    Ready,
    Renew,
    Serve,
    Serving,
    Step,
    Stream,
    Timed,
    ToWorker,
    WorkerSpec,
    encode,
    initiator_agent,
    target_agent,
)
from kvgauge.xfer.staging import Staging
from kvgauge.xfer.workload import WORD_BYTES

POLLS_BETWEEN = 32  # of a target, between two looks for messages: a look takes as long as a poll
REST_MS = 1  # an initiator between batches leaves the cores to the others


class Worker:
    """Agents, pools and what is prepared between this side and the other."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec, self.work = spec, spec.work
        self._context: Any = zmq.Context(io_threads=1)
        self._parent = self._context.socket(zmq.DEALER)
        self._parent.setsockopt(zmq.IDENTITY, f"{spec.side}-{spec.index}".encode())
        self._parent.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
        self._parent.connect(spec.parent)
        self._decoder = msgspec.msgpack.Decoder(ToWorker)
        self._api: Any = None
        self._gpu: Device | None = None
        self._own = Own(spec=spec, say=self.say)
        self._notes: dict[bytes, int] = {}
        self._legs = Legs()
        self._answers: Answers | None = None
        self._ended: list[Agent] = []

    @property
    def destination(self) -> bool:
        return (self.spec.side == "initiator") == (self.work.operation == "READ")

    @property
    def _threads(self) -> int:
        return self.work.threads if self.spec.side == "initiator" else 1

    def say(self, message: FromWorker) -> None:
        self._parent.send(encode(message))

    def close(self) -> None:
        self._context.destroy(linger=500)

    # -- start

    def start(self) -> Ready:
        """raises BuildError, TransferError"""
        spec, work = self.spec, self.work
        if work.memory == "VRAM":
            self.say(Step(f"opening GPU {spec.device}"))
            self._gpu = Device(spec.device)  # before NIXL: a stand-in for the driver's library must not take its name
            load_runtime(spec.build.preload)
        self.say(Step("loading NIXL"))
        began = time.monotonic_ns()
        self._api = libraries.load(spec.build, spec.backend)
        load_ns = time.monotonic_ns() - began
        words = work.pool_words_initiator if spec.side == "initiator" else work.pool_words_target
        for number in range(self._threads * work.ranks):
            thread, rank = divmod(number, work.ranks)
            mine = spec.side == "initiator"
            name = initiator_agent(spec.index, thread, rank) if mine else target_agent(spec.index, rank)
            self.say(Step(f"taking {words * WORD_BYTES >> 20:,} MiB of {work.memory} for {name}"))
            pool = make_pool(words, self._gpu)
            held = pool.host()
            image.fill(held, image.base(name, -1))
            pool.store(held)
            self._own.names.append(name)
            self._own.pools.append(pool)
        if work.strategy == "gathered":
            self.say(Step(f"taking {work.staging_words(spec.side) * WORD_BYTES >> 20:,} MiB to gather in, each"))
            self._own.staging = Staging(work, spec.side, self._gpu, self._threads)
        return self._enlist(load_ns, "")

    def _renew(self) -> Ready:
        """raises TransferError"""
        self._ended += self._own.agents  # kept: what their destructors do is no part of what is timed
        self._legs, self._answers = Legs(), None
        if self._own.staging is not None:
            self._own.staging.renew()
        return self._enlist(0, "-again")

    def _enlist(self, load_ns: int, suffix: str) -> Ready:
        """Start an agent for each pool, and register it."""
        spec, work = self.spec, self.work
        agent_ns, register_ns = [], []
        self._own.agents = []
        for number, (name, pool) in enumerate(zip(self._own.names, self._own.pools, strict=True)):
            self.say(Step(f"starting {name}{suffix} with {spec.backend}"))
            began = time.monotonic_ns()
            agent = Agent(
                self._api,
                name + suffix,
                spec.backend,
                progress_thread=spec.progress_thread,
                threads=spec.threads,
                telemetry=bool(suffix),  # it costs time in every transfer: the agents that are timed do without
            )
            started = time.monotonic_ns()
            self.say(Step(f"registering {pool.size_bytes >> 20:,} MiB of {work.memory} with {spec.backend}"))
            before = time.monotonic_ns()
            try:
                agent.register(pool.address, pool.size_bytes, work.memory, pool.device)
                if self._own.staging is not None:
                    self._own.staging.register(agent, number)
            except TransferError as error:
                raise TransferError(f"{error}{GPU_HINT if work.memory == 'VRAM' else ''}") from error
            register_ns.append(time.monotonic_ns() - before)
            agent_ns.append(started - began)
            self._own.agents.append(agent)
        return Ready(
            ranks=self._own.infos(),
            load_ns=load_ns,
            agent_ns=agent_ns,
            register_ns=register_ns,
            pool_bytes=self._own.pools[0].size_bytes,
            gpu=f"{self._gpu.name}, driver for CUDA {self._gpu.driver}" if self._gpu else None,
        )

    # -- messages

    def serve(self) -> None:
        """Until Bye. raises KvgaugeError for what cannot be done"""
        while True:
            message = self._next()
            if isinstance(message, Bye):
                return
            if isinstance(message, Connect):
                connected, self._legs = connect(self._own, message.targets)
                self.say(connected)
            elif isinstance(message, Meet):
                self._answers = meet(self._own, message.initiators)
                self.say(Met())
            elif isinstance(message, Fill):
                self._fill(message.turn)
                self.say(Filled(message.turn))
            elif isinstance(message, Go):
                self.say(self._go(message))
            elif isinstance(message, Check):
                self.say(self._check(message))
            elif isinstance(message, Copy):
                self.say(Limited("copy", *self._copy(message)))
            elif isinstance(message, Renew):
                self.say(self._renew())
            elif isinstance(message, Serve):
                self._take(message)
            else:
                self._send(message)

    def _next(self) -> ToWorker:
        """The next message; agents are polled meanwhile, by a target as fast as it can."""
        polling = self.spec.side == "target"
        while not self._parent.poll(0 if polling else REST_MS):
            for _ in range(POLLS_BETWEEN if polling else 1):
                self._poll()
        message: ToWorker = self._decoder.decode(self._parent.recv())
        return message

    def _poll(self) -> None:
        heard: list[tuple[int, signals.Signal]] = []
        for number, agent in enumerate(self._own.agents):
            try:
                arrived = agent.wheel.get_new_notifs()
            except Exception as error:
                raise TransferError(f"{agent.name} cannot poll {self.spec.backend}: {error}") from error
            if arrived:
                for note in (note for notes in arrived.values() for note in notes):
                    if self._answers is not None and signals.is_signal(note):
                        heard.append((number, signals.decode(note)))
                    else:
                        self._notes[note] = self._notes.get(note, 0) + 1
        if heard and self._answers is not None:
            for turn in self._answers.answer(heard):
                self._notes[_note(turn)] = self._notes.get(_note(turn), 0) + 1
        if self.spec.yielding:
            os.sched_yield()

    def _fill(self, turn: int) -> None:
        for name, pool in zip(self._own.names, self._own.pools, strict=True):
            words = pool.host()
            image.fill(words, image.base(name, turn))
            pool.store(words)

    # -- the timed part

    def _go(self, message: Go) -> Timed:
        self.say(Step(f"batch {message.turn}: {message.count} {self.work.operation} in each of {self.work.threads}"))
        batch = loop.Batch(
            operation=self.work.operation,
            turn=message.turn,
            note=_note(message.turn),
            count=message.count,
            depth=self.work.depth,
            timeout_ns=int(self.spec.timeout_s * 1e9),
            yielding=self.spec.yielding,
        )
        results: list[list[loop.Row] | Exception] = [[] for _ in self._legs.plain]
        seen: dict[str, Any] = {}

        def one(thread: int) -> None:
            try:
                if self._gpu is not None:
                    self._gpu.enter()
                lane = self._own.lane(thread)
                look = (lambda handles: seen.update(loop.seen(handles))) if thread == 0 else (lambda _handles: None)
                if self._own.staging is not None:
                    results[thread] = gathered.run(lane, self._legs.gathered[thread], batch, look)
                else:
                    results[thread] = loop.run(lane, self._legs.plain[thread], batch, look)
            except Exception as error:
                results[thread] = error

        others = [threading.Thread(target=one, args=(thread,)) for thread in range(1, len(self._legs.plain))]
        for other in others:
            other.start()
        one(0)
        for other in others:
            other.join()
        table: list[loop.Row] = []
        for result in results:
            if isinstance(result, Exception):
                raise TransferError(str(result) or type(result).__name__) from result
            table += result
        return Timed(
            turn=message.turn,
            rows=np.array(table, dtype=np.int64).tobytes(),
            backends=seen["backends"],
            merged=seen["merged"],
            nixl_bytes=seen["bytes"],
        )

    # -- integrity

    def _check(self, message: Check) -> Checked:
        """raises TransferError when a notification never came"""
        self.say(Step(f"waiting for notifications of batch {message.turn}"))
        if self.spec.side == "target":
            self._await_notes(message)
        if not self.destination:
            return Checked(turn=message.turn, blocks=0, wrong=[], kinds={}, outside=0)
        self.say(Step(f"comparing batch {message.turn}"))
        return verify.compare(
            self.spec, list(zip(self._own.names, self._own.pools, strict=True)), message.turn, message.count
        )

    def _await_notes(self, message: Check) -> None:
        note = _note(message.turn)
        wanted = self.work.ranks * self.work.groups_target * message.count
        until = time.monotonic() + self.spec.timeout_s
        while self._notes.get(note, 0) < wanted:
            if time.monotonic() > until:
                came = self._notes.get(note, 0)
                raise TransferError(f"DONE at the initiator, but {came} of {wanted} notifications came to the target")
            self._poll()
        del self._notes[note]

    # -- limits

    def _copy(self, message: Copy) -> tuple[int, int]:
        if self._gpu is None:
            return limits.host_copy(message.size_bytes, message.duration_s)
        return limits.device_copy(self._gpu, message.size_bytes, message.duration_s)

    def _take(self, message: Serve) -> None:
        """Whatever becomes of it, the conductor hears: a limit that is missing spoils no row."""
        try:
            server = limits.listen(self.spec.stream_host)
        except OSError as error:
            reason = f"no TCP stream can be taken at {self.spec.stream_host}: {error.strerror}"
            self.say(Limited("stream", 0, 0, reason))
            return
        self.say(Serving(*server.getsockname()[:2]))
        try:
            self.say(Limited("stream", *limits.take_stream(server, message.nonce)))
        except TransferError as error:
            self.say(Limited("stream", 0, 0, str(error)))

    def _send(self, message: Stream) -> None:
        try:
            limits.send_stream(message.host, message.port, message.nonce, message.duration_s)
        except OSError as error:
            reason = f"no TCP stream reaches {message.host} port {message.port}: {error.strerror or error}"
            self.say(Limited("sent", 0, 0, reason))
        else:
            self.say(Limited("sent", 0, 0))


def _note(turn: int) -> bytes:
    return turn.to_bytes(4, "little")


def main() -> None:
    die_with_parent(named_parent())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    spec = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=WorkerSpec)
    worker = Worker(spec)
    try:
        worker.say(worker.start())
        worker.serve()
    except KvgaugeError as error:
        worker.say(Failed(str(error)))
    except Exception as error:
        worker.say(Failed(f"{type(error).__name__}: {error}"))
    worker.close()
    sys.stderr.flush()
    os._exit(0)  # NIXL's destructors may hang on a peer that is gone; everything that matters is sent


if __name__ == "__main__":
    main()

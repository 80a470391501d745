"""The embedded target: frontend, prefill and decode workers as processes of this machine, around real NIXL."""

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

from kvgauge import backends
from kvgauge.builds.records import Build
from kvgauge.evidence import machine, nixl, ucx
from kvgauge.evidence.facts import Evidence, Fact, Missing
from kvgauge.failures import TargetError
from kvgauge.kv.transfer import WorkerInfo
from kvgauge.models import BLOCK_TOKENS, MODELS, blocks, copies, kv_bytes_per_token
from kvgauge.plan.records import Cell, Run, Test
from kvgauge.samples.records import Connection, Transfer
from kvgauge.serve.messages import (
    Ask,
    Died,
    FrontendSpec,
    Listening,
    Moved,
    Open,
    Peers,
    Ready,
    Report,
    Spec,
    Stop,
    ToParent,
    encode,
)
from kvgauge.target.contract import Endpoint
from kvgauge.target.interfaces import first_outward
from kvgauge.target.processes import Process, check_alive, end

START_TIMEOUT_S = 90.0
REPORT_TIMEOUT_S = 10.0
LAST_WORDS_MS = 300  # a process that ends on its own says why first
POOL_SHARE = 0.6  # of the memory that is available, for all pools together
LEAST_BLOCKS = 64
DEFAULT_CONCURRENCY = 20
DEFAULT_CONTEXT_TOKENS = 4096


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What does not belong to a plan.

    compute   multiplies modelled compute time; 0 takes it away, to measure the stack itself
    kv        False: no NIXL, no pools, no transfer
    """

    host: str = "127.0.0.1"
    port: int = 0
    compute: float = 1.0
    kv: bool = True
    transfer_timeout_s: float = 60.0
    context_tokens: int = DEFAULT_CONTEXT_TOKENS


class EmbeddedTarget:
    """One at a time: `start` after `stop`. Logs of every process stay in `log_folder`."""

    def __init__(
        self,
        log_folder: Path,
        find_build: Callable[[str], Build],
        options: Options | None = None,
    ) -> None:
        self._log_folder = log_folder
        self._find_build = find_build
        self._options = options or Options()
        self._builds: dict[str, Build] = {}
        self._processes: list[Process] = []
        self._folder: Path | None = None
        self._context: zmq.Context[Any] | None = None
        self._control: Any = None
        self._identities: set[bytes] = set()
        self._transfers: list[Transfer] = []
        self._died: str | None = None
        self._test: Test | None = None
        self._before: machine.Snapshot | None = None
        self.notes: list[str] = []
        self._decoder = msgspec.msgpack.Decoder(ToParent)

    # -- the contract

    def prepare(self, test: Test) -> None:
        """Install the build. raises BuildError, TargetError"""
        backends.worker_environment(test.backend, test.fabric, None)
        if self._options.kv and test.build not in self._builds:
            self._builds[test.build] = self._find_build(test.build)

    def start(self, run: Run) -> Endpoint:
        """raises TargetError when it is not up within 90 s or something died."""
        self.stop()
        self._test, self._died, self._transfers, self.notes = run.test, None, [], []
        try:
            return self._start(run)
        except BaseException:
            self.stop()
            raise

    def evidence(self) -> Evidence:
        """raises TargetError when a worker does not answer."""
        assert self._test is not None
        test = self._test
        reports = self._reports()
        logs = {process.name: process.log() for process in self._processes}
        found = [fact for name, log in logs.items() for fact in (*nixl.facts(log, name), *ucx.facts(log, name))]
        wanted = {"UCX": "lane", "LIBFABRIC": "provider"}[test.backend]
        counted: dict[str, int] = {}
        connections: list[Connection] = []
        for report in reports.values():
            connections += report.connections
            for backend, count in report.backends.items():
                counted[backend] = counted.get(backend, 0) + count
        after = machine.read_snapshot(self.pids())
        before = self._before or after
        build = self._builds.get(test.build)
        return Evidence(
            backends=counted,
            providers=tuple(dict.fromkeys(fact.value for fact in found if fact.name == wanted)),
            facts=(*nixl.unique(found), *self._lateness(reports), *(_note(note) for note in self.notes)),
            connections=tuple(connections),
            handshakes_nixl=nixl.handshake_count(logs, test.backend, build.release if build else (0,)),
            handshakes_efa=Missing(reason="fabric tcp: no EFA provider, so no EFA handshake"),
            wire_bytes=machine.wire_bytes(before, after),
            gpu_memory_bytes=machine.read_gpu_memory(),
            build_sha256=build.sha256 if build else {},
            machine=machine.use(before, after),
        )

    def phases(self) -> list[Transfer]:
        """KV moves that ended since the last call. Cheap; call it often, so that nothing piles up."""
        if self._control is not None:
            while self._control.poll(0):
                self._take(self._control.recv_multipart())
        taken, self._transfers = self._transfers, []
        return taken

    def trouble(self) -> str | None:
        """What died, if anything did."""
        if self._died is None:
            self._died = next((how for process in self._processes if (how := process.ended()) is not None), None)
        return self._died

    def stop(self) -> None:
        """End every process of the run and remove its sockets. Safe to call twice."""
        if self._processes:
            end(self._processes, self._say_stop)
        self._processes, self._identities = [], set()
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = self._control = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def restore(self) -> None:
        """Nothing outside the run's own processes was changed."""

    # -- starting

    def _start(self, run: Run) -> Endpoint:
        test, options = run.test, self._options
        self._folder = Path(tempfile.mkdtemp(prefix="kvgauge-", dir=_short_folder()))  # 0700: only we may connect
        self._context = zmq.Context()
        self._control = self._context.socket(zmq.ROUTER)
        self._control.bind(self._endpoint("control"))
        environment = self._environment(test)
        self._log_folder.mkdir(parents=True, exist_ok=True)
        counts = {"prefill": test.prefill_workers, "decode": test.decode_workers}
        pool_blocks = self._pool_blocks(test, run.cells)
        for role, count in counts.items():
            for index in range(count):
                spec = self._spec(test, role, index, pool_blocks[role])
                self._spawn(f"{role}-{index}", "kvgauge.serve.worker", encode(spec), environment)
        inboxes = {role: tuple(self._endpoint(f"{role}-{i}") for i in range(count)) for role, count in counts.items()}
        frontend = FrontendSpec(
            host=options.host,
            port=options.port,
            model=test.model,
            operation=test.operation,
            max_tokens=min(options.context_tokens, min(pool_blocks.values()) * BLOCK_TOKENS),
            control=self._endpoint("control"),
            inbox=self._endpoint("frontend"),
            prefill=inboxes["prefill"],
            decode=inboxes["decode"],
        )
        self._spawn("frontend", "kvgauge.serve.frontend", encode(frontend), environment)
        url = self._introduce(sum(counts.values()))
        self._before = machine.read_snapshot(self.pids())
        return Endpoint(url=url, model=test.model, fresh=True, same_clock=True)

    def _spawn(self, name: str, module: str, spec: bytes, environment: dict[str, str]) -> None:
        self._processes.append(Process(name, module, spec, environment, self._log_folder / f"{name}.log"))

    def _spec(self, test: Test, role: str, index: int, pool_blocks: int) -> Spec:
        options = self._options
        return Spec(
            role=role,
            index=index,
            model=test.model,
            tp=test.prefill_tp if role == "prefill" else test.decode_tp,
            prefill_tp=test.prefill_tp,
            decode_tp=test.decode_tp,
            kv_dtype=test.kv_dtype,
            blocks=pool_blocks,
            backend=test.backend if options.kv else None,
            build=self._builds[test.build] if options.kv else None,
            progress_thread=test.progress_thread,
            operation=test.operation,
            full_check=test.full_check,
            gpu=test.gpu,
            compute=options.compute,
            control=self._endpoint("control"),
            inbox=self._endpoint(f"{role}-{index}"),
            outbox=self._endpoint("frontend"),
            transfer_timeout_s=options.transfer_timeout_s,
        )

    def _environment(self, test: Test) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in backends.INHERITED if name in os.environ}
        package = str(Path(__file__).parents[2])
        own: dict[str, str] = {**backends.QUIET}
        if self._options.kv:
            release = self._builds[test.build].release
            interface = self._interface(test) if backends.needs_interface(test.backend, release) else None
            own = backends.worker_environment(test.backend, test.fabric, interface, release)
        return {**inherited, "PYTHONPATH": package, **own}

    def _interface(self, test: Test) -> str:
        chosen = first_outward()
        if chosen is None:
            raise TargetError(
                f"{test.backend} of NIXL {test.build} cannot use loopback, and this machine has no other interface "
                "with an IPv4 address. Give it one, for example: ip link add v0 type veth peer name v1; "
                "ip addr add 10.99.0.1/24 dev v0; ip link set v0 up; ip link set v1 up"
            )
        name, address = chosen
        self.notes.append(f"{test.backend} listens on {address} ({name}): it cannot use 127.0.0.1")
        return name

    def _pool_blocks(self, test: Test, cells: tuple[Cell, ...]) -> dict[str, int]:
        """Enough for the cell that needs most, as far as memory goes: beyond that, requests wait for admission."""
        prompt = max((blocks(cell.input_tokens or BLOCK_TOKENS * 4) * cell.concurrency for cell in cells), default=0)
        whole = max(
            (blocks((cell.input_tokens or BLOCK_TOKENS * 4) + cell.output_tokens) * cell.concurrency for cell in cells),
            default=0,
        )
        if not cells:
            prompt = whole = DEFAULT_CONCURRENCY * blocks(1024)
        wanted = {
            "prefill": max(LEAST_BLOCKS, -(-prompt // test.prefill_workers)),
            "decode": max(LEAST_BLOCKS, -(-whole // test.decode_workers)),
        }
        if not self._options.kv:
            return {role: count * 4 for role, count in wanted.items()}
        model = MODELS[test.model]
        block_bytes = kv_bytes_per_token(model, test.kv_dtype) * BLOCK_TOKENS
        spread = {"prefill": (test.prefill_tp, test.prefill_workers), "decode": (test.decode_tp, test.decode_workers)}
        needed = sum(wanted[role] * workers * block_bytes * copies(model, tp) for role, (tp, workers) in spread.items())
        budget = int(machine.read_available_memory() * POOL_SHARE)
        if needed <= budget:
            return wanted
        scaled = {role: int(count * budget / needed) for role, count in wanted.items()}
        if min(scaled.values()) < LEAST_BLOCKS // 2:
            raise TargetError(
                f"{test.model} needs {needed >> 20} MiB of KV pools for this plan and {budget >> 20} MiB may be used: "
                "lower the concurrency or the prompt length, or choose a smaller model"
            )
        self.notes.append(
            f"KV pools cut to {budget >> 20} of {needed >> 20} MiB for want of memory: requests queue for admission"
        )
        return scaled

    def _introduce(self, workers: int) -> str:
        """Wait until all have reported, tell workers of each other, open the frontend. Returns its URL."""
        ready: dict[str, list[WorkerInfo]] = {"prefill": [], "decode": []}
        url = None
        until = time.monotonic() + START_TIMEOUT_S
        while url is None or sum(map(len, ready.values())) < workers:
            if time.monotonic() > until:
                missing = workers - sum(map(len, ready.values()))
                raise TargetError(
                    f"{missing} workers were not ready after {START_TIMEOUT_S:.0f} s; see {self._log_folder}"
                )
            if not self._control.poll(50):
                ended = any(process.ended() for process in self._processes)
                if not (ended and self._control.poll(LAST_WORDS_MS)):
                    check_alive(self._processes)
                    continue
            identity, message = self._take(self._control.recv_multipart())
            if isinstance(message, Ready):
                ready[identity.decode().split("-")[0]].append(message.info)
            elif isinstance(message, Listening):
                url = message.url
            elif isinstance(message, Died):
                raise TargetError(f"{identity.decode()} did not start: {message.reason}")
        for identity in self._identities:
            role = identity.decode().split("-")[0]
            if role == "frontend":
                self._tell(identity, Open())
            else:
                self._tell(identity, Peers(ready["decode" if role == "prefill" else "prefill"]))
        return url

    # -- talking

    def _endpoint(self, name: str) -> str:
        return f"ipc://{self._folder}/{name}"

    def _tell(self, identity: bytes, message: Any) -> None:
        self._control.send_multipart([identity, encode(message)], flags=zmq.NOBLOCK)

    def _say_stop(self) -> None:
        for identity in self._identities:
            self._tell(identity, Stop())

    def _take(self, frames: list[bytes]) -> tuple[bytes, Any]:
        identity, raw = frames
        self._identities.add(identity)
        message = self._decoder.decode(raw)
        if isinstance(message, Moved):
            self._transfers.append(message.transfer)
        elif isinstance(message, Died):
            self._died = f"{identity.decode()} gave up: {message.reason}"
        return identity, message

    def _reports(self) -> dict[str, Report]:
        """Ask every worker for its facts."""
        asked = {identity for identity in self._identities if not identity.startswith(b"frontend")}
        for identity in asked:
            self._tell(identity, Ask())
        reports: dict[str, Report] = {}
        until = time.monotonic() + REPORT_TIMEOUT_S
        while len(reports) < len(asked):
            if (how := self.trouble()) is not None:
                raise TargetError(how)
            if time.monotonic() > until:
                silent = sorted(i.decode() for i in asked if i.decode() not in reports)
                raise TargetError(f"no answer from {', '.join(silent)} within {REPORT_TIMEOUT_S:.0f} s")
            if self._control.poll(50):
                identity, message = self._take(self._control.recv_multipart())
                if isinstance(message, Report):
                    reports[identity.decode()] = message
        return reports

    def pids(self) -> dict[str, int]:
        """Every process of the run, and this one as `client`."""
        return {process.name: process.pid for process in self._processes} | machine.own_pid()

    def _lateness(self, reports: dict[str, Report]) -> list[Fact]:
        return [
            Fact(
                name="steps_late",
                value=f"{report.steps_late} of {report.steps}",
                shown_by=f"{name}: at most {report.step_late_ns_max / 1e6:.1f} ms behind the modelled clock",
            )
            for name, report in sorted(reports.items())
            if report.steps
        ]


def _note(text: str) -> Fact:
    return Fact(name="note", value=text, shown_by="kvgauge's own set-up")


def _short_folder() -> str:
    """A folder whose socket paths fit into the 107 bytes a unix socket may have."""
    chosen = tempfile.gettempdir()
    return chosen if len(chosen) + len(secrets.token_hex(8)) + 40 < 107 else "/tmp"  # noqa: S108 - mkdtemp makes a folder only we can enter

"""The embedded target: frontend, prefill and decode workers as processes of this machine, around real NIXL."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from kvgauge import backends
from kvgauge.builds.present import nvidia_gpu
from kvgauge.builds.records import Build
from kvgauge.evidence import machine, nixl, ucx
from kvgauge.evidence.clocks import Clocks, changes, read_clocks
from kvgauge.evidence.facts import Evidence, Fact, Missing
from kvgauge.failures import TargetError
from kvgauge.plan.records import Run, Test
from kvgauge.samples.records import Connection, Transfer
from kvgauge.serve.messages import FrontendSpec, Report, Spec, encode
from kvgauge.target.contract import Endpoint
from kvgauge.target.crew import SILENCE_S, Crew
from kvgauge.target.namespaces import first_outward_in, inside
from kvgauge.target.pools import context_tokens, pool_blocks

DEFAULT_CONTEXT_TOKENS = 4096
RESTARTS_MAX = 3  # of one run: a worker that keeps ending is the result


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What does not belong to a plan.

    compute     multiplies modelled compute time; 0 takes it away, to measure the stack itself
    kv          False: no NIXL, no pools, no transfer
    silence_s   a process that says nothing for so long is stopped or caught in a call: it is killed
    namespaces  role (prefill, decode) -> an existing network namespace its workers run in; empty: where we are
    recompute_every  a fault for tests: each decode worker answers every so-many-th request without its KV; 0: none
    """

    host: str = "127.0.0.1"
    port: int = 0
    compute: float = 1.0
    kv: bool = True
    transfer_timeout_s: float = 60.0
    silence_s: float = SILENCE_S
    context_tokens: int = DEFAULT_CONTEXT_TOKENS
    namespaces: dict[str, str] = {}
    recompute_every: int = 0


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
        self._folder: Path | None = None
        self._crew: Crew | None = None
        self._specs: dict[str, Spec] = {}
        self._interfaces: dict[str, str] = {}  # role -> what its transport binds inside its namespace
        self._test: Test | None = None
        self._before: machine.Snapshot | None = None
        self._clocks: Clocks | None = None
        self.notes: list[str] = []
        self._restarts = 0

    # -- the contract

    def prepare(self, test: Test) -> None:
        """Install the build. raises BuildError, TargetError"""
        backends.worker_environment(test.backend, test.fabric, None)
        if self._options.kv and test.build not in self._builds:
            self._builds[test.build] = self._find_build(test.build)

    def start(self, run: Run) -> Endpoint:
        """raises TargetError when it is not up within 90 s or something died."""
        self.stop()
        self._test, self._specs, self._interfaces, self.notes, self._restarts = run.test, {}, {}, [], 0
        self._clocks = read_clocks()
        try:
            return self._start(run)
        except BaseException:
            self.stop()
            raise

    def evidence(self) -> Evidence:
        """raises TargetError when a worker does not answer."""
        assert self._test is not None
        assert self._crew is not None
        test = self._test
        reports = self._crew.reports()
        logs = self._crew.logs()
        found = [fact for name, log in logs.items() for fact in (*nixl.facts(log, name), *ucx.facts(log, name))]
        wanted = {"UCX": "lane", "LIBFABRIC": "provider"}[test.backend]
        counted: dict[str, int] = {}
        connections: list[Connection] = []
        for report in reports.values():
            connections += report.connections
            for backend, count in report.backends.items():
                counted[backend] = counted.get(backend, 0) + count
        after = self._snapshot()
        before = self._before or after
        build = self._builds.get(test.build)
        return Evidence(
            backends=counted,
            providers=tuple(dict.fromkeys(fact.value for fact in found if fact.name == wanted)),
            facts=(*nixl.unique(found), *self._happened(reports), *map(_note, self.notes)),
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
        if self._crew is None:
            return []
        self._crew.look()
        taken, self._crew.transfers = self._crew.transfers, []
        return taken

    def trouble(self) -> str | None:
        """What has ended, if anything did and was not started again."""
        return self._crew.trouble() if self._crew is not None else None

    def mend(self) -> list[str]:
        """Start dead workers again, up to 3 times a run; a frontend has its clients' connections and ends with them."""
        happened: list[str] = []
        for name in self._crew.dead() if self._crew is not None else ():
            assert self._crew is not None
            if self._restarts == RESTARTS_MAX or name not in self._specs:
                break
            self._restarts += 1
            happened.append(f"{self._crew.why(name)}; it was started again")
            self.restart(name, wait=False)
        return happened

    def serving(self) -> bool:
        return self._crew is not None and self._crew.serving()

    def wait_serving(self) -> None:
        """raises TargetError"""
        assert self._crew is not None
        self._crew.wait_serving()

    def restart(self, name: str, *, wait: bool = True) -> None:
        """Start a worker again under its old spec: at once when it has ended, after killing it when it has not.

        While it is away the frontend sends it nothing and fails what it had; once it is ready, both sides connect to
        each other anew and it takes requests again.
        name    prefill-N or decode-N
        wait    False: it is taken in by a later `phases`, so that a load driver need not stop
        raises  TargetError when it does not come up
        """
        if self._crew is None or name not in self._specs:
            raise TargetError(f"there is no worker {name} to start again: {', '.join(self._specs) or 'nothing runs'}")
        old = self._specs[name]
        spec = self._specs[name] = msgspec.structs.replace(old, generation=old.generation + 1)
        self._crew.begin_again(name, encode(spec))
        if self._before is not None:  # its processor time counts from nothing again
            left = {other: cpu_s for other, cpu_s in self._before.cpu_s.items() if other != name}
            self._before = msgspec.structs.replace(self._before, cpu_s=left)
        self.notes.append(f"{name} was started again ({spec.generation})")
        if wait:
            self._crew.wait_up(name)

    def stop(self) -> None:
        """End every process of the run and remove its sockets. Safe to call twice."""
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def restore(self) -> None:
        """Nothing outside the run's own processes was changed."""

    # -- starting

    def _start(self, run: Run) -> Endpoint:
        test, options = run.test, self._options
        self._folder = Path(tempfile.mkdtemp(prefix="kvgauge-", dir=_short_folder()))  # 0700: only we may connect
        self._log_folder.mkdir(parents=True, exist_ok=True)
        crew = self._crew = Crew(self._endpoint("control"), self._log_folder, options.silence_s)
        counts = {"prefill": test.prefill_workers, "decode": test.decode_workers}
        available = machine.read_available_memory() if options.kv else None
        blocks, note = pool_blocks(test, run.cells, available)
        self.notes += [note] if note is not None else []
        self.notes += [f"cold start modelled: {test.cold_start.line}"] if test.cold_start is not None else []
        self.notes += [f"planted: {test.planted.line}"] if test.planted is not None else []
        for role, count in counts.items():
            environment, through = self._environment(test, role), inside(options.namespaces.get(role))
            for index in range(count):
                spec = self._specs[f"{role}-{index}"] = self._spec(test, role, index, blocks[role])
                crew.start(f"{role}-{index}", "kvgauge.serve.worker", encode(spec), environment, through)
        inboxes = {role: tuple(self._endpoint(f"{role}-{i}") for i in range(count)) for role, count in counts.items()}
        frontend = FrontendSpec(
            host=options.host,
            port=options.port,
            model=test.model,
            operation=test.operation,
            max_tokens=context_tokens(run.cells, options.context_tokens),
            control=self._endpoint("control"),
            inbox=self._endpoint("frontend"),
            prefill=inboxes["prefill"],
            decode=inboxes["decode"],
        )
        crew.start("frontend", "kvgauge.serve.frontend", encode(frontend), self._environment(test, None))
        url = crew.introduce()
        self._before = self._snapshot()
        return Endpoint(url=url, model=test.model, fresh=True, same_clock=True)

    def _spec(self, test: Test, role: str, index: int, blocks: int) -> Spec:
        options = self._options
        return Spec(
            role=role,
            index=index,
            model=test.model,
            tp=test.prefill_tp if role == "prefill" else test.decode_tp,
            prefill_tp=test.prefill_tp,
            decode_tp=test.decode_tp,
            kv_dtype=test.kv_dtype,
            blocks=blocks,
            backend=test.backend if options.kv else None,
            build=self._builds[test.build] if options.kv else None,
            progress_thread=test.progress_thread,
            operation=test.operation,
            full_check=test.full_check,
            gpu=test.gpu,
            compute=options.compute,
            cold_start=test.cold_start,
            slowed=test.planted.factor(role) if test.planted is not None else 1.0,
            control=self._endpoint("control"),
            inbox=self._endpoint(f"{role}-{index}"),
            outbox=self._endpoint("frontend"),
            transfer_timeout_s=options.transfer_timeout_s,
            recompute_every=options.recompute_every,
        )

    def _environment(self, test: Test, role: str | None) -> dict[str, str]:
        """Variables of a process of that role; None: the frontend, which has no transport."""
        inherited = {name: os.environ[name] for name in backends.INHERITED if name in os.environ}
        package = str(Path(__file__).parents[2])
        own: dict[str, str] = {**backends.QUIET}
        if self._options.kv and role is not None:
            build = self._builds[test.build]
            interface = self._interface(test, role)
            own = backends.worker_environment(
                test.backend,
                test.fabric,
                interface,
                build.release,
                plugin_dir=build.plugin_dir,
                gpu=nvidia_gpu(),
            )
        return {**inherited, "PYTHONPATH": package, **own}

    def _interface(self, test: Test, role: str) -> str | None:
        """What that role's transport binds; None: loopback will do."""
        namespace = self._options.namespaces.get(role)
        if namespace is None and not backends.needs_interface(test.backend, self._builds[test.build].release):
            return None
        chosen = first_outward_in(namespace)
        if chosen is None:
            where = f"network namespace {namespace}" if namespace is not None else "this machine"
            raise TargetError(
                f"{test.backend} of NIXL {test.build} cannot use loopback, and {where} has no other interface "
                "with an IPv4 address. Give it one, for example: ip link add v0 type veth peer name v1; "
                "ip addr add 10.99.0.1/24 dev v0; ip link set v0 up; ip link set v1 up"
            )
        name, address = chosen
        note = f"{test.backend} listens on {address} ({name}): it cannot use 127.0.0.1"
        if namespace is not None:
            self._interfaces[role] = name
            note = f"{role} workers run in network namespace {namespace}: {test.backend} uses {address} ({name}) there"
        if note not in self.notes:
            self.notes.append(note)
        return name

    # -- looking

    def _happened(self, reports: dict[str, Report]) -> list[Fact]:
        """What the reader of the figures should know of the run."""
        assert self._crew is not None
        assert self._clocks is not None
        return [*_lateness(reports), *_cold(reports), *_silences(self._crew), *changes(self._clocks, read_clocks())]

    def _endpoint(self, name: str) -> str:
        return f"ipc://{self._folder}/{name}"

    def _reports(self) -> dict[str, Report]:
        """What every worker says of itself."""
        assert self._crew is not None
        return self._crew.reports()

    def _snapshot(self) -> machine.Snapshot:
        """Bytes on the wire are counted where the workers are: in a namespace, on the interface they were given."""
        pids = self.pids()
        wires = [machine.Wire(pid=pids[f"{role}-0"], interface=name) for role, name in self._interfaces.items()]
        return machine.read_snapshot(pids, wires or (machine.Wire(),))

    def pids(self) -> dict[str, int]:
        """Every process of the run, and this one as `client`."""
        return (self._crew.pids() if self._crew is not None else {}) | machine.own_pid()


def _lateness(reports: dict[str, Report]) -> list[Fact]:
    return [
        Fact(
            name="steps_late",
            value=f"{report.steps_late} of {report.steps}",
            shown_by=f"{name}: at most {report.step_late_ns_max / 1e6:.1f} ms behind the modelled clock",
        )
        for name, report in sorted(reports.items())
        if report.steps
    ]


def _silences(crew: Crew) -> list[Fact]:
    """Who said nothing for a while and then went on: stopped, or kept from running."""
    return [
        Fact(name="silence", value=f"{silent_s:.1f} s", shown_by=f"{name} said nothing for so long, then went on")
        for name, silent_s in sorted(crew.silences.items())
    ]


def _cold(reports: dict[str, Report]) -> list[Fact]:
    return [
        Fact(name="cold_start", value=report.cold.line, shown_by=f"{name}: modelled, paid by this process so far")
        for name, report in sorted(reports.items())
        if report.cold is not None and (report.cold.compile_ns or report.cold.graphs)
    ]


def _note(text: str) -> Fact:
    return Fact(name="note", value=text, shown_by="kvgauge's own set-up")


def _short_folder() -> str:
    """A folder whose socket paths fit into the 107 bytes a unix socket may have."""
    chosen = tempfile.gettempdir()
    return chosen if len(chosen) + len(secrets.token_hex(8)) + 40 < 107 else "/tmp"  # noqa: S108 - mkdtemp makes a folder only we can enter

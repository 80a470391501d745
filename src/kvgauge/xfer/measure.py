"""One measurement: fresh workers, connect, first transfer, warm-up, timed batches, limits, connect again.

The source is filled before and the destination compared after every batch, outside the timed part.
"""

import time
from dataclasses import dataclass, field

import msgspec
import numpy as np

from kvgauge.failures import TargetError, TransferError
from kvgauge.xfer.limits import new_nonce
from kvgauge.xfer.loop import COLUMNS, Table
from kvgauge.xfer.messages import (
    Check,
    Checked,
    Connect,
    Connected,
    Copy,
    Fill,
    Filled,
    Go,
    Limited,
    Meet,
    Met,
    Ready,
    Renew,
    Serve,
    Serving,
    Stream,
    Timed,
)
from kvgauge.xfer.places import Crew, Job
from kvgauge.xfer.workload import Side, Workload

LIMIT_S = 0.15  # of each limit that is measured, in each round of each row
GRACE_S = 10.0  # beyond a worker's own time limit, so that it can still say what happened
CONNECT_S = 70.0  # LIBFABRIC waits up to 60 s for a handshake
ORDER = ("round", "measured", "batch", *COLUMNS, "wrong_blocks")


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How much of each row in each round: at most so many transfers (of each thread), at most so long."""

    transfers: int = 100
    warmup: int = 3
    seconds: float = 2.0
    timeout_s: float = 30.0


@dataclass(slots=True, kw_only=True)
class Measured:
    """What one round of one row with one backend found. Times in ns, sizes in bytes.

    failure     why it ended before its end; what was measured until then stands
    batches     [transfers, COLUMNS] of each measured batch, all threads of all initiators
    first_ns    first transfer after connecting, from before it was prepared until DONE; again: after connecting anew
    """

    round: int
    backend: str
    work: Workload
    failure: str | None = None
    load_ns: list[int] = field(default_factory=list)
    agent_ns: list[int] = field(default_factory=list)
    register_ns: list[int] = field(default_factory=list)
    pool_bytes: int = 0
    gpu: str | None = None
    connected: list[Connected] = field(default_factory=list)
    first_ns: int | None = None
    again: list[Connected] = field(default_factory=list)
    again_first_ns: int | None = None
    again_failure: str | None = None
    merged: int | None = None
    nixl_bytes: int | None = None
    backends: set[str] = field(default_factory=set)
    batches: list[Table] = field(default_factory=list)
    records: list[Table] = field(default_factory=list)  # ORDER columns, warm-up included
    blocks_checked: int = 0
    blocks_wrong: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    outside: int = 0
    copy: Limited | None = None
    stream: Limited | None = None
    logs: dict[str, str] = field(default_factory=dict)


class Session:
    """The conductor's side of one measurement."""

    def __init__(self, crew: Crew, found: Measured, pace: Pace) -> None:
        self._crew, self._found, self._pace, self._work = crew, found, pace, found.work
        self._turn = -1
        read = self._work.operation == "READ"
        self._sources = crew.names["target" if read else "initiator"]

    @property
    def _initiators(self) -> list[str]:
        return self._crew.names["initiator"]

    @property
    def _everybody(self) -> list[str]:
        return [*self._crew.names["target"], *self._initiators]

    def run(self) -> None:
        """raises TargetError, TransferError; what was found until then is kept"""
        self._start()
        found = self._found
        first = self._batch(1, measured=False)
        found.first_ns = _slowest_ns(first)
        longest_s = max(1e-6, _slowest_ns(first) / 1e9)
        self._batches(self._pace.warmup, float("inf"), longest_s, measured=False)
        self._batches(self._pace.transfers, self._pace.seconds, longest_s, measured=True)
        self._limits()
        try:
            self._again()
        except (TargetError, TransferError) as error:  # the numbers before it stand
            found.again_failure = str(error)

    def _again(self) -> None:
        """New agents in the same processes, their connection and first transfer."""
        crew, found = self._crew, self._found
        crew.say(self._everybody, Renew())
        found.again = self._connect(crew.wait(self._everybody, Ready, self._pace.timeout_s + GRACE_S))
        found.again_first_ns = _slowest_ns(self._batch(1, measured=False))

    def _connect(self, ready: dict[str, Ready]) -> list[Connected]:
        crew = self._crew
        crew.say(self._initiators, Connect([ready[name].ranks for name in crew.names["target"]]))
        connected = list(crew.wait(self._initiators, Connected, CONNECT_S).values())
        if self._work.strategy == "gathered":
            targets = crew.names["target"]
            crew.say(targets, Meet([ready[name].ranks for name in crew.names["initiator"]]))
            crew.wait(targets, Met, CONNECT_S)
        return connected

    def _start(self) -> None:
        wait, found = self._crew.wait, self._found
        ready: dict[str, Ready] = wait(self._everybody, Ready, self._pace.timeout_s + GRACE_S + self._fill_s())
        for one in ready.values():
            found.load_ns.append(one.load_ns)
            found.agent_ns += one.agent_ns
            found.register_ns += one.register_ns
            found.pool_bytes = max(found.pool_bytes, one.pool_bytes)
            found.gpu = found.gpu or one.gpu
        found.connected = self._connect(ready)

    def _fill_s(self) -> float:
        """What filling or comparing every pool may take, at 50 MiB a second."""
        return sum(self._work.memory_bytes.values()) / (50 << 20)

    def _batches(self, transfers: int, seconds: float, longest_s: float, *, measured: bool) -> None:
        """At least one batch where any transfer is wanted."""
        left, until = transfers, time.monotonic() + seconds
        in_time = max(self._work.depth, int(self._pace.timeout_s / 2 / longest_s))
        while left > 0:
            count = min(left, self._work.slots, in_time)
            self._batch(count, measured=measured)
            left -= count
            if time.monotonic() >= until:
                return

    def _batch(self, count: int, *, measured: bool) -> Table:
        crew, found = self._crew, self._found
        self._turn += 1
        crew.say(self._sources, Fill(self._turn))
        crew.wait(self._sources, Filled, self._fill_s() + GRACE_S)
        crew.say(self._initiators, Go(self._turn, count))
        timed: dict[str, Timed] = crew.wait(self._initiators, Timed, self._pace.timeout_s + GRACE_S)
        crew.say(self._everybody, Check(self._turn, count))
        checked: dict[str, Checked] = crew.wait(
            self._everybody, Checked, self._pace.timeout_s + GRACE_S + self._fill_s()
        )
        table = np.concatenate(
            [np.frombuffer(one.rows, dtype=np.int64).reshape(-1, len(COLUMNS)) for one in timed.values()]
        )
        self._account(timed, checked)
        self._keep(table, checked, measured=measured)
        if measured:
            found.batches.append(table)
        return table

    def _account(self, timed: dict[str, Timed], checked: dict[str, Checked]) -> None:
        found = self._found
        counts = [(one.merged, one.nixl_bytes) for one in timed.values()]
        known = [(merged, size) for merged, size in counts if merged is not None and size is not None]
        if len(known) == len(counts):
            found.merged, found.nixl_bytes = known[0]
        for one in timed.values():
            found.backends |= set(one.backends)
        for result in checked.values():
            found.blocks_checked += result.blocks
            found.blocks_wrong += sum(count for _, _, count in result.wrong)
            found.outside += result.outside
            for kind, count in result.kinds.items():
                found.kinds[kind] = found.kinds.get(kind, 0) + count

    def _keep(self, table: Table, checked: dict[str, Checked], *, measured: bool) -> None:
        wrong = {(lane, slot): count for one in checked.values() for lane, slot, count in one.wrong}
        record = np.empty((len(table), len(ORDER)), dtype=np.int64)
        record[:, 0], record[:, 1], record[:, 2] = self._found.round, int(measured), self._turn
        record[:, 3:-1] = table
        record[:, -1] = [wrong.get((int(lane), int(slot)), 0) for lane, slot in table[:, :2]]
        self._found.records.append(record)

    def _limits(self) -> None:
        """A copy at the first initiator, then a stream from it to the first target."""
        crew, found = self._crew, self._found
        one, other = self._initiators[0], self._crew.names["target"][0]
        crew.say([one], Copy(self._work.transfer_bytes, LIMIT_S))
        found.copy = crew.wait([one], Limited, GRACE_S)[one]
        nonce = new_nonce()
        crew.say([other], Serve(nonce))
        serving = crew.wait([other], (Serving, Limited), GRACE_S)[other]  # type: ignore[arg-type]
        if isinstance(serving, Limited):
            found.stream = serving
            return
        crew.say([one], Stream(serving.host, serving.port, nonce, LIMIT_S))
        ends = crew.wait([one, other], Limited, 2 * GRACE_S)
        found.stream = ends[one] if ends[one].reason else ends[other]


def _slowest_ns(table: Table) -> int:
    """Of a batch: the longest time from before a transfer was prepared until DONE."""
    return int((table[:, COLUMNS.index("done_ns")] - table[:, COLUMNS.index("begun_ns")]).max())


def measure(
    crew: Crew,
    number: int,
    backend: str,
    work: Workload,
    pace: Pace,
    *,
    progress_thread: bool,
    threads: int,
    cores: int,
) -> Measured:
    """Round `number` of one row. A failure is part of what is returned, and no worker is left."""
    found = Measured(round=number, backend=backend, work=work)
    workers = work.initiators + work.targets

    def job(side: Side, count: int) -> Job:
        return Job(
            side=side,
            count=count,
            work=work,
            backend=backend,
            progress_thread=progress_thread,
            threads=threads,
            yielding=workers > cores,
            timeout_s=pace.timeout_s,
        )

    try:
        crew.start(job("initiator", work.initiators), job("target", work.targets))
        Session(crew, found, pace).run()
    except (TargetError, TransferError) as error:
        found.failure = str(error)
    finally:
        found.logs = crew.end()
    return found

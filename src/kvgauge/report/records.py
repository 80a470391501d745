"""What results.json holds: a plan's tests, their runs and cells, summaries and gains."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from kvgauge.compare.values import GainRow
from kvgauge.plan.records import ColdStart, Planted
from kvgauge.stats.estimate import Estimate
from kvgauge.stats.paired import LogRatio
from kvgauge.stats.server import Server
from kvgauge.stats.warmth import WarmUp

SCHEMA = 1


Moment = Annotated[datetime, msgspec.Meta(tz=True)]


Status = Literal["valid", "invalid", "failed", "pending", "interrupted"]


class Tp(msgspec.Struct, frozen=True, kw_only=True):
    """Tensor parallelism of the two sides."""

    prefill: int | None
    decode: int | None


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one run gave in one cell, or (cell None) as a whole.

    reasons  why it is not valid, each with what to do
    proved   run-level entries: what was seen to carry the transfers: "backend", "provider", ...
    remarks  cells: what does not make it wrong, but must be known to read it
    server   cells: what the server's own /metrics counted there; None when nothing was scraped
    load_workers, load_workers_why  cells: how many processes offered it (1: the conducting one), and why so many
    warmup   cells: how it was warmed up, where that is more than a number of requests
    limits   run-level entries of imported results: what the other tool's files lack
    beside   the test that stood beside this one under one load (mode paired)
    pairs    cells of the test that is compared: metric -> log(this / beside) over the pairs of requests
    deployment  what it was measured on; runs of one name shared it. None: not known
    began, ended  of the run, its target's start and end included, by the wall clock of the host that conducted it
    """

    run_id: str
    repetition: int
    cell: str | None
    concurrency: int | None
    seed: int | None
    status: Status
    reasons: tuple[str, ...]
    metrics: dict[str, Estimate]
    proved: dict[str, str] = {}
    server: Server | None = None
    load_workers: int = 1
    load_workers_why: str | None = None
    remarks: tuple[str, ...] = ()
    warmup: WarmUp | None = None
    limits: tuple[str, ...] = ()
    beside: str | None = None
    pairs: dict[str, LogRatio] = {}
    deployment: str | None = None
    began: Moment | None = None
    ended: Moment | None = None


class SummaryRow(msgspec.Struct, frozen=True, kw_only=True):
    """A metric over the valid runs of one cell, n = runs (published numbers: n = 0, not known)."""

    cell: str | None
    concurrency: int | None
    metric: str
    point: float | None
    low: float | None
    high: float | None
    n: int
    unit: str
    reason: str | None
    note: str | None = None

    @property
    def estimate(self) -> Estimate:
        return Estimate(
            point=self.point,
            low=self.low,
            high=self.high,
            n=self.n,
            unit=self.unit,
            reason=self.reason,
            note=self.note,
        )


class TestResult(msgspec.Struct, frozen=True, kw_only=True):
    """A test of the plan and everything it gave. What published numbers leave open is None.

    cold_start  what the target was told to imitate of a first run; None: nothing
    planted     by how much its modelled compute was made slower on purpose; None: not
    """

    __test__ = False  # pytest: not a test class

    name: str
    backend: str | None
    fabric: str | None
    build: str
    stand_in: str | None
    patches: str | None
    model: str | None
    tp: Tp
    expect: str
    baseline: tuple[str, ...]
    runs: tuple[RunResult, ...]
    summary: tuple[SummaryRow, ...]
    gains: tuple[GainRow, ...]
    cold_start: ColdStart | None = None
    planted: Planted | None = None


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """results.json as a whole.

    plan       the plan as it was read (plan/records.py)
    rehearsal  nothing here transfers to EFA
    machine    where it ran: what the caller knows of it
    published  None, or where numbers that were not measured here come from
    ended      None, or why the plan stopped before its last repetition
    scope      None, or whom its verdicts are about: deployments that several runs shared
    """

    schema: int
    plan: dict[str, Any]
    rehearsal: bool
    machine: dict[str, Any]
    tests: tuple[TestResult, ...]
    published: str | None = None
    ended: str | None = None
    scope: str | None = None

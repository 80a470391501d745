"""Runs whose truth is known: requests inside runs, run effects between them, in five kinds.

Each kind has a level of runs (log, by the place a run has in time) and requests inside a run. What is planted is a
factor on the times of one side; nothing else differs between the sides.

    lognormal       runs and requests lognormal
    bimodal         3 runs in 10 are 8 % slower; 1 request in 10 takes twice as long
    autocorrelated  a run resembles the one before it by 0.5, a request the one before it by 0.9
    heavy           runs Student's t with 3 degrees of freedom, requests Pareto with exponent 2.5: variance finite,
                    kurtosis not
    drifting        every run is 0.4 % slower than the one before it, and requests slow down by a fifth within a run
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from kvgauge.plan.records import Cell, Plan, Primary, Test
from kvgauge.report.records import RunResult
from kvgauge.samples.records import Exchange
from kvgauge.stats.cells import cell_metrics

Array = npt.NDArray[np.float64]

KINDS = ("lognormal", "bimodal", "autocorrelated", "heavy", "drifting")
RUN_SPREAD = 0.03  # standard deviation of a run's log level, what all its cells share
OWN_SPREAD = 0.4  # of that again, each cell's and each family of metrics' own
REQUEST_SPREAD = 0.15
DRIFT = 0.004
REQUESTS, TOKENS = 24, 6
TTFT_NS, GAP_NS = 80e6, 8e6

CELLS = tuple(
    Cell(
        name=f"c{concurrency}",
        load="closed",
        concurrency=concurrency,
        requests=REQUESTS,
        output_tokens=TOKENS,
        warmup_requests=0,
        input_tokens=512,
    )
    for concurrency in (1, 4)
)
PRIMARY = Primary(metric="ttft_ms_mean", cell="c4")


def plan_of(names: Sequence[str], repetitions: int, *, seed: int = 1, cells: Sequence[Cell] = CELLS) -> Plan:
    """Tests of these names that differ in nothing, each compared with the first."""
    tests = tuple(
        Test(
            name=name,
            backend="UCX",
            fabric="tcp",
            build="1.5.0",
            patches="none",
            stand_in=None,
            model="Qwen3-0.6B",
            prefill_tp=1,
            decode_tp=1,
            baseline=() if name == names[0] else (names[0],),
        )
        for name in names
    )
    return Plan(
        name="calibration",
        source="calibrate",
        tests=tests,
        cells=tuple(cells),
        repetitions=repetitions,
        primary=PRIMARY,
        seed=seed,
    )


def run_levels(kind: str, places: int, rng: np.random.Generator, spread: float = RUN_SPREAD) -> Array:
    """Log level of each run, in the order in which they happen."""
    own = rng.normal(0, spread, places)
    if kind == "bimodal":
        return own + 0.08 * (rng.random(places) < 0.3)
    if kind == "autocorrelated":
        return _resembling(own / spread, 0.5) * spread
    if kind == "heavy":
        return spread * rng.standard_t(3, places) / sqrt(3)
    if kind == "drifting":
        return own + DRIFT * np.arange(places)
    return own


def _resembling(independent: Array, share: float) -> Array:
    """A stationary series of variance 1, in which each value holds `share` of the last."""
    found = independent.copy()
    for i in range(1, len(found)):
        found[i] = share * found[i - 1] + sqrt(1 - share * share) * independent[i]
    return found


def _requests(kind: str, n: int, rng: np.random.Generator) -> Array:
    """Factors on a request's TTFT, in the order of sending."""
    base = rng.normal(0, REQUEST_SPREAD, n)
    if kind == "bimodal":
        return np.asarray(np.exp(base) * np.where(rng.random(n) < 0.1, 2.0, 1.0))
    if kind == "autocorrelated":
        return np.asarray(np.exp(0.5 * REQUEST_SPREAD * _resembling(base / REQUEST_SPREAD, 0.9)))
    if kind == "heavy":
        return np.asarray(1 + 0.2 * rng.pareto(2.5, n))
    if kind == "drifting":
        return np.asarray(np.exp(base + 0.2 * np.arange(n) / n))
    return np.asarray(np.exp(base))


def exchanges_of(kind: str, cell: Cell, levels: tuple[float, float], rng: np.random.Generator) -> list[Exchange]:
    """One cell of one run as a closed loop sends it. levels: log factors on TTFT and on the gaps between tokens."""
    n, slots = cell.requests, cell.concurrency
    times = np.empty((n, TOKENS))
    times[:, 0] = TTFT_NS * np.exp(levels[0]) * _requests(kind, n, rng)
    times[:, 1:] = GAP_NS * np.exp(levels[1] + rng.normal(0, 0.2, (n, TOKENS - 1)))
    arrivals = times.cumsum(axis=1)
    per_slot = arrivals[:, -1].reshape(n // slots, slots)
    due = (per_slot.cumsum(axis=0) - per_slot).reshape(n)
    rows = (arrivals + due[:, None]).astype(np.int64).tolist()
    return [
        Exchange(
            seq=seq,
            run_id="",
            cell=cell.name,
            warmup=False,
            slot=seq % slots,
            worker=0,
            host="synthetic",
            clock="monotonic",
            stamp_source="user",
            due_ns=int(due[seq]),
            sent_ns=int(due[seq]),
            arrivals_ns=tuple(row),
            done_ns=row[-1],
            tokens_in=512,
            tokens_out=TOKENS,
            tokens_source="usage",
            status=200,
        )
        for seq, row in enumerate(rows)
    ]


def run_of(
    kind: str, repetition: int, level: float, rng: np.random.Generator, *, factor: float = 1.0, **more: Any
) -> list[RunResult]:
    """What one run gives in every cell: exchanges made, and measured by kvgauge's own code.

    level   log level of the run
    factor  planted: on all of its times
    more    cells (default CELLS), spread (of runs: its cells' own is a share of it)
    """
    found, own = [], OWN_SPREAD * more.get("spread", RUN_SPREAD)
    for cell in more.get("cells", CELLS):
        shift = np.log(factor) + level
        levels = (float(shift + rng.normal(0, own)), float(shift + rng.normal(0, own)))
        exchanges = exchanges_of(kind, cell, levels, rng)
        ended_ns = max(exchange.arrivals_ns[-1] for exchange in exchanges)
        found.append(
            RunResult(
                run_id=f"r{repetition}",
                repetition=repetition,
                cell=cell.name,
                concurrency=cell.concurrency,
                seed=None,
                status="valid",
                reasons=(),
                metrics=cell_metrics(exchanges, [], 0, ended_ns),
            )
        )
    return found

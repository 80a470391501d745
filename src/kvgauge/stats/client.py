"""How much of what was measured is the client's own doing, and whether that is too much. Pure.

lag       from an answer's arrival (the kernel's stamp) to our reading it: a closed loop's next request waits for it
lateness  from when a request was due, and could leave, to when it left: TTFT counts it
shared    arrivals that came with the read of another: gaps nobody can know, which count as 0

Where several load workers offered a cell, the worst of them is meant: one that is late is late for all it sent, and a
mean over workers would hide it.
"""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvgauge.plan.records import Cell
from kvgauge.samples.records import Exchange
from kvgauge.stats.cells import NS_PER_MS
from kvgauge.stats.estimate import Estimate, bare, missing

if TYPE_CHECKING:
    from kvgauge.load.tally import CellLoad

OWN_MS_MIN = 2.0  # what a client adds below this,
OWN_SHARE = 0.1  # or below this share of what is measured, does not shape the result
FEW = 20  # sends: below this one pause of the machine moves a mean, so the median decides
TOO_FEW = (
    5  # below this one pause is all there is to see: recorded, not judged. A wave is one send: a pause hits it whole
)
WHAT_TO_DO = "Lower the concurrency, or give kvgauge more cores of its own and --workers"
NO_KERNEL_STAMP = "no arrival has the kernel's stamp, so the lag from it is not known"


def client_metrics(exchanges: Sequence[Exchange], load: "CellLoad") -> dict[str, Estimate]:
    """client_lag_ms_mean and _max, arrivals_shared_pct, client_cpu_pct of the measured requests of a cell."""
    measured = [exchange for exchange in exchanges if not exchange.warmup]
    lags = max((_lags(group) for group in _by_worker(measured).values()), key=_mean_or_below, default=[])
    found = {
        "client_lag_ms_mean": missing("ms", NO_KERNEL_STAMP),
        "client_lag_ms_max": missing("ms", NO_KERNEL_STAMP),
    }
    if lags:
        largest = max(exchange.lag_ns_max or 0 for exchange in measured)
        found["client_lag_ms_mean"] = bare(
            statistics.fmean(lags) / NS_PER_MS, "ms", len(lags), f"{_whose(load)} own part: no interval within a run"
        )
        found["client_lag_ms_max"] = bare(
            largest / NS_PER_MS, "ms", len(_lags(measured)), "the largest of all: no interval"
        )
    arrivals = sum(len(exchange.arrivals_ns) for exchange in measured)
    shared = sum(exchange.arrivals_shared or 0 for exchange in measured)
    found["arrivals_shared_pct"] = (
        bare(100 * shared / arrivals, "%", arrivals, "of these arrivals: no interval within a run")
        if arrivals
        else missing("%", "nothing arrived")
    )
    span_ns = (load.ended_ns or 0) - (load.started_ns or 0)
    found["client_cpu_pct"] = (
        bare(
            100 * load.cpu_s / (span_ns / 1e9),
            "%",
            len(measured),
            f"one value for the cell: of one core{', the busiest load worker' if load.workers > 1 else ''}",
        )
        if span_ns > 0
        else missing("%", "the cell has no length")
    )
    return found


def client_troubles(cell: Cell, exchanges: Sequence[Exchange]) -> list[str]:
    """Why this client, not the server, shaped what was measured. Open loads: `offered_troubles` says it of sending.

    Lateness is compared with TTFT, which holds it; lag with the whole latency, by which a closed loop asks again.
    """
    answered = [exchange for exchange in exchanges if not exchange.warmup and exchange.failure is None]
    workers = _by_worker(answered)
    groups = [("this client", answered)]
    if len(workers) > 1:
        groups += [(f"load worker {worker} of this client", group) for worker, group in sorted(workers.items())]
    judged = [group for group in groups if _sends(group[1]) >= TOO_FEW]
    sent = judged
    if cell.is_open:  # a slot is there for later turns only
        later = [(who, [each for each in group if (each.turn or 1) > 1]) for who, group in groups]
        sent = [group for group in later if _sends(group[1]) >= TOO_FEW]
    late = [found for who, group in sent if (found := _late(who, group)) is not None]
    lagging = [found for who, group in judged if (found := _lagging(who, group)) is not None]
    return [max(found, key=lambda trouble: trouble[0])[1] for found in (late, lagging) if found]


def _sends(answered: Sequence[Exchange]) -> int:
    return len({each.due_ns for each in answered})


def _late(who: str, answered: Sequence[Exchange]) -> tuple[float, str] | None:
    """(ms, what is wrong with when these requests left), if anything."""
    sends: dict[int, list[Exchange]] = {}
    for exchange in answered:
        sends.setdefault(exchange.due_ns, []).append(exchange)
    late_ms = _typical_ms([_mean([each.sent_ns - each.due_ns for each in sent]) for sent in sends.values()])
    ttft_ms = _typical_ms([_mean([each.ttft_ns or 0 for each in sent]) for sent in sends.values()])
    if not _matters(late_ms, ttft_ms):
        return None
    return late_ms, (
        f"{who} was the bottleneck: requests left {late_ms:.1f} ms after they were due, of a TTFT of "
        f"{ttft_ms:.1f} ms that counts it. {WHAT_TO_DO}"
    )


def _lagging(who: str, answered: Sequence[Exchange]) -> tuple[float, str] | None:
    """(ms, what is wrong with when these answers were read), if anything."""
    lags = _lags(answered)
    if not lags:
        return None
    lag_ms = _typical_ms(lags)
    e2e_ms = _typical_ms([exchange.e2e_ns or 0 for exchange in answered])
    if not _matters(lag_ms, e2e_ms):
        return None
    return lag_ms, (
        f"{who} was the bottleneck: what arrived waited {lag_ms:.1f} ms to be read, of answers that took "
        f"{e2e_ms:.1f} ms, so less was asked of the server than the plan says. {WHAT_TO_DO}"
    )


def _by_worker(exchanges: Sequence[Exchange]) -> dict[int, list[Exchange]]:
    groups: dict[int, list[Exchange]] = {}
    for exchange in exchanges:
        groups.setdefault(exchange.worker, []).append(exchange)
    return groups


def _lags(exchanges: Sequence[Exchange]) -> list[int]:
    return [exchange.lag_ns_mean for exchange in exchanges if exchange.lag_ns_mean is not None]


def _mean_or_below(spans_ns: Sequence[int]) -> float:
    return statistics.fmean(spans_ns) if spans_ns else -1.0


def _whose(load: "CellLoad") -> str:
    return "the client's" if load.workers == 1 else "the worst load worker's"


def _mean(spans_ns: Sequence[int]) -> float:
    return statistics.fmean(spans_ns)


def _typical_ms(spans_ns: Sequence[float]) -> float:
    of = statistics.median if len(spans_ns) < FEW else statistics.fmean
    return float(of(spans_ns)) / NS_PER_MS


def _matters(own_ms: float, measured_ms: float) -> bool:
    return own_ms > OWN_MS_MIN and own_ms > OWN_SHARE * measured_ms

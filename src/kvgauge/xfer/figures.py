"""Raw times of all rounds to Estimates. Pure.

Transfers of one round share its processes and their connection, so the round is the unit of replication: every figure
is taken within a round, and its interval is Student's t over rounds.
"""

from collections.abc import Callable, Sequence
from math import exp, log

import msgspec
import numpy as np

from kvgauge.evidence import nixl
from kvgauge.evidence.facts import Missing
from kvgauge.stats.estimate import Estimate, bare, counted, missing
from kvgauge.stats.means import mean_estimate
from kvgauge.stats.quantiles import nearest_rank
from kvgauge.xfer.loop import COLUMNS, Table
from kvgauge.xfer.measure import Measured
from kvgauge.xfer.messages import Connected, Limited
from kvgauge.xfer.seen import Integrity, contradictions, evidence_of, expected_merged, failed, off_fabric
from kvgauge.xfer.workload import Workload

NS_PER_US, NS_PER_MS = 1e3, 1e6
QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999))
_AT = {name: index for index, name in enumerate(COLUMNS)}


class RowResult(msgspec.Struct, frozen=True, kw_only=True):
    """One workload with one backend over all rounds.

    rounds    that came to their end;  failures: of those that did not, with their round
    valid     False: something contradicts what was asked, `against` says what
    evidence  what was seen to carry the transfers, in words
    """

    name: str
    backend: str
    workload: Workload
    rounds: int
    transfers: int
    figures: dict[str, Estimate]
    integrity: Integrity
    descriptors: dict[str, int | None]
    evidence: dict[str, str]
    valid: bool
    against: tuple[str, ...]
    failures: tuple[str, ...]


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """Time of one transfer with one backend over that with the other, paired by round."""

    name: str
    numerator: str
    denominator: str
    ratio: Estimate


def summed(results: Sequence[Integrity]) -> Integrity:
    kinds: dict[str, int] = {}
    for result in results:
        for kind, count in result.kinds.items():
            kinds[kind] = kinds.get(kind, 0) + count
    return Integrity(
        blocks_checked=sum(result.blocks_checked for result in results),
        blocks_wrong=sum(result.blocks_wrong for result in results),
        kinds=kinds,
        blocks_outside=sum(result.blocks_outside for result in results),
    )


def integrity_of(found: Measured) -> Integrity:
    return Integrity(
        blocks_checked=found.blocks_checked,
        blocks_wrong=found.blocks_wrong,
        kinds=dict(found.kinds),
        blocks_outside=found.outside,
    )


def row_of(rounds: Sequence[Measured], release: tuple[int, ...], *, fabric: str = "any") -> RowResult:
    """Everything one table row says. rounds: at least one, all of one workload and backend; fabric: what was asked"""
    work, backend = rounds[0].work, rounds[0].backend
    whole = [found for found in rounds if found.failure is None]
    integrity = summed([integrity_of(found) for found in rounds])
    evidence = evidence_of(rounds)
    against = (*contradictions(rounds, integrity), *off_fabric(fabric, evidence))
    return RowResult(
        name=work.name,
        backend=backend,
        workload=work,
        rounds=len(whole),
        transfers=sum(len(table) for found in whole for table in found.batches),
        figures=_figures(whole, work, backend, release),
        integrity=integrity,
        descriptors={
            "listed": work.descriptors,
            "merged": next((found.merged for found in whole if found.merged is not None), None),
            "merged_expected": expected_merged(work),
        },
        evidence=evidence,
        valid=not against and bool(whole),
        against=against,
        failures=tuple(failed(found) for found in rounds if found.failure is not None),
    )


# -- figures


def _figures(whole: Sequence[Measured], work: Workload, backend: str, release: tuple[int, ...]) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {
        "load_ms": _mean(whole, lambda one: max(one.load_ns) / NS_PER_MS, "ms"),
        "agent_start_ms": _mean(whole, lambda one: sum(one.agent_ns) / len(one.agent_ns) / NS_PER_MS, "ms"),
        "register_ms": _mean(whole, lambda one: sum(one.register_ns) / len(one.register_ns) / NS_PER_MS, "ms"),
        "connect_cold_ms": _mean(whole, lambda one: _connection_ms(one.connected), "ms"),
        "connect_warm_ms": _mean(whole, lambda one: _connection_ms(one.again), "ms", _why_cold_only(whole)),
        "first_cold_ms": _mean(whole, lambda one: _ms(one.first_ns), "ms"),
        "first_warm_ms": _mean(whole, lambda one: _ms(one.again_first_ns), "ms", _why_cold_only(whole)),
        "first_excess_ms": _mean(whole, _excess_ms, "ms"),
        "prepare_lists_ms": _mean(whole, lambda one: _longest(one.connected, "prepare_ns"), "ms"),
        "handshakes": _handshakes(whole, backend, release),
        "bandwidth_gb_s": _mean(whole, lambda one: _bandwidth(one.batches, work, each=True), "GB/s"),
        "aggregate_gb_s": _mean(whole, lambda one: _bandwidth(one.batches, work, each=False), "GB/s"),
        "copy_gb_s": _limit(whole, lambda one: one.copy, "GB/s"),
        "stream_gb_s": _limit(whole, lambda one: one.stream, "GB/s"),
        "stream_share_pct": _mean(whole, lambda one: _share(one, one.stream), "%", _limit_reason(whole)),
        "copy_share_pct": _mean(whole, lambda one: _share(one, one.copy), "%"),
    }
    for name, of in PARTS.items():
        ungathered = name in GATHERED_ONLY and work.strategy != "gathered"
        why = "blocks are moved as they lie" if ungathered else None
        found[f"{name}_us_mean"] = (
            missing("us", why) if why else _mean(whole, lambda one, of=of: _average_us(one, of), "us")  # type: ignore[misc]
        )
        for label, q in QUANTILES:
            found[f"{name}_us_{label}"] = missing("us", why) if why else _quantile(whole, of, q)
    found["stamp_error_us_p50"] = _quantile(whole, gap_ns, 0.5)
    found["stamp_error_us_p99"] = _quantile(whole, gap_ns, 0.99)
    return found


def _column(name: str) -> Callable[[Table], Table]:
    return lambda table: table[:, _AT[name]]


def transfer_ns(table: Table) -> Table:
    """From the first post until the last pair of agents was seen to be DONE."""
    return table[:, _AT["moved_ns"]] - table[:, _AT["posted_ns"]]


def latency_ns(table: Table) -> Table:
    """All of it, until the destination can use the blocks: prepared, posted, moved; gathered and scattered too."""
    return table[:, _AT["done_ns"]] - table[:, _AT["begun_ns"]]


gap_ns = _column("gap_ns")  # how long before its stamp a transfer may have been complete
PARTS: dict[str, Callable[[Table], Table]] = {
    "prepare": _column("prepare_ns"),
    "post": _column("post_ns"),
    "transfer": transfer_ns,
    "latency": latency_ns,
    "gather": _column("gather_ns"),
    "scatter": _column("scatter_ns"),
    "signal": _column("signal_ns"),
}
GATHERED_ONLY = ("gather", "scatter", "signal")


def _mean(
    whole: Sequence[Measured], value: Callable[[Measured], float | None], unit: str, reason: str | None = None
) -> Estimate:
    values = [number for one in whole if (number := value(one)) is not None]
    if not values:
        return missing(unit, reason or "no round came to its end")
    return mean_estimate(values, unit, of="round")


def _ms(value_ns: int | None) -> float | None:
    return None if value_ns is None else value_ns / NS_PER_MS


def _connection_ms(connected: Sequence[Connected]) -> float | None:
    """add_remote_agent and make_connection of the slowest pair of agents."""
    times = []
    for one in connected:
        makes = one.make_ns or [0] * len(one.add_ns)
        times += [added + made for added, made in zip(one.add_ns, makes, strict=True)]
    return max(times) / NS_PER_MS if times else None


def _longest(connected: Sequence[Connected], what: str) -> float | None:
    times = [value for one in connected for value in getattr(one, what)]
    return max(times) / NS_PER_MS if times else None


def _why_cold_only(whole: Sequence[Measured]) -> str | None:
    return next((f"not connected again: {one.again_failure}" for one in whole if one.again_failure), None)


def _all(one: Measured, of: Callable[[Table], Table]) -> Table:
    return np.concatenate([of(table) for table in one.batches]) if one.batches else np.empty(0, dtype=np.int64)


def _average_us(one: Measured, of: Callable[[Table], Table]) -> float | None:
    values = _all(one, of)
    return float(values.mean()) / NS_PER_US if len(values) else None


def _excess_ms(one: Measured) -> float | None:
    """What the first transfer took beyond the median of the measured ones."""
    values = _all(one, latency_ns)
    return None if one.first_ns is None or not len(values) else (one.first_ns - float(np.median(values))) / NS_PER_MS


def _quantile(whole: Sequence[Measured], of: Callable[[Table], Table], q: float) -> Estimate:
    """Of each round, then the mean over rounds; where rounds are too short, the largest of all, which says so."""
    samples = [sorted(_all(one, of).tolist()) for one in whole]
    samples = [ordered for ordered in samples if ordered]
    if not samples:
        return missing("us", "no round came to its end")
    needed = round(1 / (1 - q)) if q > 0.5 else 1
    if min(map(len, samples)) < needed:
        total = sum(map(len, samples))
        largest = max(ordered[-1] for ordered in samples)
        return bare(
            largest / NS_PER_US, "us", total, f"max of n={total}: P{q * 100:g} needs {needed} transfers a round"
        )
    return mean_estimate([nearest_rank(ordered, q) / NS_PER_US for ordered in samples], "us", of="round")


def _bandwidth(batches: Sequence[Table], work: Workload, *, each: bool) -> float | None:
    """GB/s from the first transfer's begin to the last one's end in each batch; checks between batches do not count.

    each  of one initiator, on average; else of all together
    """
    size, span = 0, 0
    for table in batches:
        initiators = table[:, _AT["lane"]] // work.threads
        for part in [table[initiators == one] for one in np.unique(initiators)] if each else [table]:
            size += len(part) * work.transfer_bytes
            span += int(part[:, _AT["done_ns"]].max() - part[:, _AT["begun_ns"]].min())
    return size / span if span else None


def _rate(limit: Limited | None) -> float | None:
    return limit.size_bytes / limit.took_ns if limit is not None and limit.took_ns else None


def _limit(whole: Sequence[Measured], of: Callable[[Measured], Limited | None], unit: str) -> Estimate:
    reason = next((limit.reason for one in whole if (limit := of(one)) is not None and limit.reason), None)
    return _mean(whole, lambda one: _rate(of(one)), unit, reason)


def _limit_reason(whole: Sequence[Measured]) -> str | None:
    return next((one.stream.reason for one in whole if one.stream is not None and one.stream.reason), None)


def _share(one: Measured, limit: Limited | None) -> float | None:
    rate, moved = _rate(limit), _bandwidth(one.batches, one.work, each=False)
    return None if rate is None or moved is None else 100 * moved / rate


def _handshakes(whole: Sequence[Measured], backend: str, release: tuple[int, ...]) -> Estimate:
    """NIXL-level handshakes of one round, first connection and second together."""
    if not whole:
        return missing("handshakes", "no round came to its end")
    counts = [nixl.handshake_count(one.logs, backend, release) for one in whole]
    gone = next((count for count in counts if isinstance(count, Missing)), None)
    if gone is not None:
        return missing("handshakes", gone.reason)
    known = [count for count in counts if isinstance(count, int)]
    if len(set(known)) == 1:
        return counted(known[0], "handshakes", len(known))
    return mean_estimate(known, "handshakes", of="round")


# -- the two backends


def ratios(rounds: Sequence[Measured], valid: set[tuple[str, str]], backends: Sequence[str]) -> list[Ratio]:
    """Median latency with the second backend over that with the first, for each workload both carried validly."""
    if len(backends) != 2:
        return []
    first, second = backends
    found = []
    for name in dict.fromkeys(one.work.name for one in rounds):
        medians = {
            (one.round, one.backend): float(np.median(_all(one, latency_ns)))
            for one in rounds
            if one.work.name == name and one.failure is None and one.batches
        }
        if {(name, first), (name, second)} <= valid:
            numbers = sorted({number for number, _ in medians})
            pairs = [
                (medians[number, second], medians[number, first])
                for number in numbers
                if (number, first) in medians and (number, second) in medians
            ]
            ratio = paired_ratio(pairs)
        else:
            ratio = missing("x", "one of the two is not valid here")
        found.append(Ratio(name=name, numerator=second, denominator=first, ratio=ratio))
    return found


def paired_ratio(pairs: Sequence[tuple[float, float]]) -> Estimate:
    """Geometric mean of a / b over pairs (a, b), with a t interval on the logarithm."""
    logs = mean_estimate([log(a / b) for a, b in pairs], "x", of="pair of rounds")
    if logs.point is None:
        return logs
    if logs.low is None or logs.high is None:
        return bare(exp(logs.point), "x", logs.n, logs.reason or "no interval")
    return Estimate(point=exp(logs.point), low=exp(logs.low), high=exp(logs.high), n=logs.n, unit="x")

"""How a cell was warmed up, whether what was measured of it stood still, and which batch sizes were met. Pure."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from kvgauge.plan.records import Cell
from kvgauge.samples.records import Exchange
from kvgauge.stats.cells import NS_PER_MS, tpot_ms
from kvgauge.stats.estimate import Estimate, bare, counted, missing
from kvgauge.stats.settling import VALUES, WIDTH_NS_MIN, Settled
from kvgauge.stats.sizes import held_ns_of, listed, reached, stays
from kvgauge.stats.steady import KEPT_MIN, MARGIN_PCT, REQUESTS_A_BATCH, Values, batches, drift, half_width, shift

if TYPE_CHECKING:
    from kvgauge.load.tally import CellLoad

MEASURED_BATCHES = 20
WIDENED = {"ttft_ms_mean": "ttft_ms", "e2e_latency_ms_mean": "e2e_latency_ms", "tpot_ms_mean": "tpot_ms"}
UNSTEADY = "unsteady"
ALL = 0.9875  # of each of four changes (two values; a line, and early against late), so that all hold at 95 %
SURE = 0.9975  # likewise at 99 %: what it takes to doubt a load that had settled


class WarmUp(msgspec.Struct, frozen=True, kw_only=True):
    """How one cell of one run was warmed up.

    rule      until steady, or how many requests
    took_s    from its first request to the moment from which requests are measured
    requests  due before that, those that ended after it included
    surplus   sent to keep up the load until the last measured request had ended
    state     steady; unsteady; fixed: nobody looked. `reason` says what was seen, at the last look
    drifts    change over what was measured, by value, in percent of its mean; intervals that hold together at 95 %
    sizes_before, sizes_measured   decode batch sizes (or requests under way) met earlier in this run, and then
    sizes_new, sizes_above   of the latter, those that may pay for a graph of their own, and those too large for one
    """

    rule: str
    took_s: float | None
    requests: int
    surplus: int = 0
    state: Literal["steady", "unsteady", "fixed"] = "fixed"
    reason: str | None = None
    drifts: dict[str, Estimate] = {}
    sizes_before: str = ""
    sizes_measured: str = ""
    sizes_new: str = ""
    sizes_above: str = ""


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """warm_up: None where nothing is to be said. trouble: makes the cell invalid. metrics: of the cell, all of them"""

    warm_up: WarmUp | None
    metrics: dict[str, Estimate]
    remarks: tuple[str, ...] = ()
    trouble: str | None = None


def judged(
    cell: Cell,
    load: "CellLoad",
    exchanges: Sequence[Exchange],
    metrics: dict[str, Estimate],
    *,
    settled: Settled | None,
    earlier: Sequence[Exchange],
    workers: Mapping[str, int],
    graph_batch_max: int | None,
) -> Judged:
    """What the warm-up of a cell makes of its metrics.

    settled          how the warm-up ended; None: it was a number of requests
    earlier          exchanges of the run's cells before this one: what they met is warm
    workers          request id -> its decode worker
    graph_batch_max  largest batch with a graph; None: not known
    """
    if settled is None and graph_batch_max is None:
        return Judged(warm_up=None, metrics=metrics)
    warm_up, remark = _sizes(
        _warm_up(cell, load, exchanges, settled), load, exchanges, earlier, workers, graph_batch_max
    )
    remarks = (remark,) if remark else ()
    if settled is None or load.started_ns is None or load.edges is None:
        return Judged(warm_up=warm_up, metrics=metrics, remarks=remarks)
    drifts, means = _drifts(cell, load, exchanges)
    sure = {name: _changes(means[name], SURE) for name in drifts if name in means}
    warm_up = msgspec.structs.replace(warm_up, drifts=drifts)
    found = {
        "warmup_s": bare(settled.took_ns / 1e9, "s", 1, "one warm-up: no interval within a run"),
        "warmup_requests": counted(warm_up.requests, "requests", warm_up.requests),
        **{f"{name.removesuffix('_ms')}_drift_pct": value for name, value in drifts.items()},
    }
    metrics = {**metrics, **found}
    said = _said(settled, drifts)
    if said is None:
        return Judged(warm_up=warm_up, metrics=metrics, remarks=remarks)
    warm_up = msgspec.structs.replace(warm_up, state="unsteady")
    if beyond := _beyond(settled, drifts, sure):
        trouble = f"{UNSTEADY}: {said}. {beyond} of more than {MARGIN_PCT:g} %: {_advice(settled)}"
        return Judged(warm_up=warm_up, metrics=_widened(metrics, means, said), remarks=remarks, trouble=trouble)
    remark = f"{UNSTEADY}: {said}. Its intervals are widened; {_advice(settled)}"
    return Judged(warm_up=warm_up, metrics=_widened(metrics, means, said), remarks=(*remarks, remark))


def _advice(settled: Settled) -> str:
    if settled.state == "steady":
        return "something changed while it was measured; measure again, or give its warm-up `at_least_s`"
    return "raise limit_s, or see what keeps it from settling"


def _warm_up(cell: Cell, load: "CellLoad", exchanges: Sequence[Exchange], settled: Settled | None) -> WarmUp:
    kept = [each for each in exchanges if each.warmup]
    first_ns = min((each.due_ns for each in exchanges), default=0)
    if settled is None or load.edges is None:
        took_s = None if load.started_ns is None else (load.started_ns - first_ns) / 1e9
        return WarmUp(
            rule=f"{cell.warmup_requests} requests, all of which had ended", took_s=took_s, requests=len(kept)
        )
    begin_ns = load.edges.begin_ns
    before = sum(1 for each in kept if begin_ns is None or each.due_ns < begin_ns)
    return WarmUp(
        rule=f"until steady: MSER, trend and wander of {' and '.join(VALUES.values()) if cell.stream else 'latency'} "
        f"over batches of {settled.width_ns / 1e9:g} s",
        took_s=settled.took_ns / 1e9,
        requests=before,
        surplus=len(kept) - before,
        state="steady" if settled.state == "steady" else "unsteady",
        reason=f"{settled.reason} (look {settled.looks}, {settled.batches} batches)",
    )


def _drifts(
    cell: Cell, load: "CellLoad", exchanges: Sequence[Exchange]
) -> tuple[dict[str, Estimate], dict[str, Values]]:
    """(change over what was measured, batch means of it), by value."""
    good = [each for each in exchanges if not each.warmup and each.failure is None and each.arrivals_ns]
    names = [name for name in VALUES if cell.stream or name == "e2e_latency_ms"]
    if not good or load.started_ns is None:
        return {name: missing("%", "no measured request was answered") for name in names}, {}
    span_ns = load.measured_ns
    typical_ns = median(each.e2e_ns or 0 for each in good)
    least_ns = max(int(REQUESTS_A_BATCH * typical_ns), WIDTH_NS_MIN // 4)
    width_ns = max(least_ns, span_ns // MEASURED_BATCHES)
    drifts: dict[str, Estimate] = {}
    means: dict[str, Values] = {}
    for name in (*names, "tpot_ms"):
        known = [(each.sent_ns, value) for each in good if (value := _value(each, name)) is not None]
        found = batches(
            [sent for sent, _ in known],
            [value for _, value in known],
            width_ns=width_ns,
            until_ns=load.started_ns + span_ns,
        )
        if len(found) >= KEPT_MIN:
            means[name] = np.array([batch.mean for batch in found])
        if name in names:
            enough = name in means
            drifts[name] = (
                max(_changes(means[name], ALL), key=_showing)
                if enough
                else missing("%", _too_short(len(found), width_ns))
            )
    return drifts, means


def _too_short(found: int, width_ns: int) -> str:
    return (
        f"{found} batches of {width_ns / 1e9:.3g} s: a drift over what is measured needs {KEPT_MIN}, so measure for "
        f"{KEPT_MIN * width_ns / 1e9:.3g} s or longer"
    )


def _value(exchange: Exchange, name: str) -> float | None:
    if name == "tpot_ms":
        return tpot_ms(exchange)
    time_ns = exchange.ttft_ns if name == "ttft_ms" else exchange.e2e_ns
    return None if time_ns is None else time_ns / NS_PER_MS


def _said(settled: Settled, drifts: Mapping[str, Estimate]) -> str | None:
    """Why it is unsteady; None: it is not."""
    told = [f"{VALUES[name]} {_change(value)}" for name, value in drifts.items() if value.point is not None]
    while_measured = f"while measured {', '.join(told)}" if told else "how it drifted while measured is not known"
    if settled.state != "steady":
        return f"not steady after {settled.took_ns / 1e9:.0f} s of warm-up ({settled.reason}); {while_measured}"
    if any(_shows(value) for value in drifts.values()):
        return f"steady after {settled.took_ns / 1e9:.0f} s of warm-up; {while_measured}"
    return None


def _change(value: Estimate) -> str:
    return f"changed by {value.point:+.1f} % [{value.low:+.1f}, {value.high:+.1f}] over {value.n} batches"


def _shows(value: Estimate) -> bool:
    """A drift that is there, and large enough to matter."""
    if value.point is None or value.low is None or value.high is None:
        return False
    return (value.low > 0 or value.high < 0) and abs(value.point) > MARGIN_PCT


def _changes(means: Values, confidence: float) -> tuple[Estimate, Estimate]:
    return drift(means, confidence=confidence), shift(means, confidence=confidence)


def _showing(value: Estimate) -> float:
    """How far the interval of a change lies from none, in percent; below 0 where it holds none."""
    return max(value.low or 0.0, -(value.high or 0.0))


def _beyond(
    settled: Settled, drifts: Mapping[str, Estimate], sure: Mapping[str, tuple[Estimate, Estimate]]
) -> str | None:
    """Which value drifts too much. Where the load had settled, its whole interval at 99 % must be beyond the margin."""
    for name, value in drifts.items():
        if _shows(value) and (settled.state != "steady" or max(map(_showing, sure[name])) > MARGIN_PCT):
            return f"{VALUES[name]} shows a drift"
    return None


def _widened(metrics: dict[str, Estimate], means: Mapping[str, Values], said: str) -> dict[str, Estimate]:
    """Means with intervals over batches; everything that was timed with a note."""
    timed = ("ttft", "e2e_latency", "tpot", "itl", "output_token_throughput", "request_throughput", "goodput")
    found = dict(metrics)
    for metric, value in metrics.items():
        if value.point is None or not metric.startswith(timed) or metric.endswith("_drift_pct"):
            continue
        has_interval = metric in WIDENED and value.low is not None and value.high is not None
        wide = _over_batches(value, means.get(WIDENED[metric])) if has_interval else value
        note = f"{UNSTEADY}: {said}"
        found[metric] = msgspec.structs.replace(wide, note=f"{note}; {value.note}" if value.note else note)
    return found


def _over_batches(value: Estimate, means: Values | None) -> Estimate:
    assert value.point is not None
    assert value.low is not None
    assert value.high is not None
    if means is None:
        return bare(value.point, value.unit, value.n, "unsteady, and too few batches for an interval")
    half = max(half_width(means), (value.high - value.low) / 2)
    return msgspec.structs.replace(value, low=value.point - half, high=value.point + half, n=len(means))


def _sizes(
    warm_up: WarmUp,
    load: "CellLoad",
    exchanges: Sequence[Exchange],
    earlier: Sequence[Exchange],
    workers: Mapping[str, int],
    graph_batch_max: int | None,
) -> tuple[WarmUp, str | None]:
    """The batch sizes, and a remark where measured requests met new ones."""
    if load.started_ns is None or load.ended_ns is None:
        return warm_up, None
    found, held_ns = stays([*earlier, *exchanges], workers), held_ns_of(exchanges)
    begin_ns = load.started_ns
    before = reached(found, from_ns=0, to_ns=begin_ns, held_ns=held_ns)
    then = reached(found, from_ns=begin_ns, to_ns=load.ended_ns, held_ns=held_ns)
    above = set() if graph_batch_max is None else {size for size in then if size > graph_batch_max}
    new = then - before - above
    warm_up = msgspec.structs.replace(
        warm_up,
        sizes_before=listed(before),
        sizes_measured=listed(then),
        sizes_new=listed(new) if new else "",
        sizes_above=listed(above) if above else "",
    )
    said = []
    if new:
        what = "decode batch sizes" if graph_batch_max is not None else "numbers of requests under way"
        said.append(
            f"{what} {listed(new)} were first met while it was measured: what an engine pays once for each (a graph, "
            "kernels) may be in its values"
        )
    if above:
        said.append(
            f"it ran at batch sizes {listed(above)}, above the largest with a graph ({graph_batch_max}): a jump from "
            "cells below may be owed to that"
        )
    return warm_up, "; ".join(said) or None

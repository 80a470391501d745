"""What each step of a load of steps gave. Pure: a request belongs to the step in which it was due."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from kvgauge.plan.records import Cell
from kvgauge.samples.records import Exchange
from kvgauge.stats.cells import NS_PER_MS, latencies
from kvgauge.stats.estimate import Estimate, bare, counted, missing

if TYPE_CHECKING:
    from kvgauge.load.tally import CellLoad

KEPT = ("ttft_ms_mean", "ttft_ms_p99", "e2e_latency_ms_mean", "tpot_ms_mean")


def step_metrics(cell: Cell, exchanges: Sequence[Exchange], load: "CellLoad") -> dict[str, Estimate]:
    """step_N_* for each step from 1 on; nothing for other loads, and for steps that were never reached.

    Throughput is of the tokens whose requests were due in the step, over the step's time: where requests of one step
    end in the next, it says what was asked for, not what the server did in these seconds.
    """
    if cell.steps is None or load.open is None:
        return {}
    ends_ns = [round(end_s * 1e9) for end_s in accumulate(step.for_s for step in cell.steps.steps)]
    parts: list[list[Exchange]] = [[] for _ in ends_ns]
    for exchange in exchanges:
        if not exchange.warmup:
            at = bisect_right(ends_ns, exchange.due_ns - load.open.start_ns)
            parts[min(at, len(parts) - 1)].append(exchange)
    found: dict[str, Estimate] = {}
    for number, (step, due) in enumerate(zip(cell.steps.steps, parts, strict=True), 1):
        if due:
            found |= {f"step_{number}_{name}": value for name, value in _of_step(cell, step.for_s, due).items()}
    return found


def _of_step(cell: Cell, for_s: float, due: Sequence[Exchange]) -> dict[str, Estimate]:
    good = [exchange for exchange in due if exchange.failure is None]
    known = latencies(good)
    found = {name: known[name] for name in KEPT if cell.stream or name.startswith("e2e")}
    counts = [exchange.tokens_out for exchange in good if exchange.tokens_source == "usage"]
    late_ms = [(exchange.sent_ns - exchange.due_ns) / NS_PER_MS for exchange in due if exchange.failure != "unsent"]
    one = "one value for the step: an interval needs repeated runs"
    return found | {
        "offered_rate_req_s": bare(len(due) / for_s, "req/s", len(due), one),
        "output_token_throughput_tok_s": bare(sum(counts) / for_s, "tok/s", 1, one)
        if counts and len(counts) == len(good)
        else missing("tok/s", "no answer, or one without usage"),
        "late_ms_max": bare(max(late_ms), "ms", len(late_ms), "the largest of all: no interval")
        if late_ms
        else missing("ms", "no request was sent"),
        "failures": counted(len(due) - len(good), "requests", len(due)),
    }

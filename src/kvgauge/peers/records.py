"""What the files of other tools give: a Piece for each load they measured. Pure."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import msgspec

from kvgauge.evidence.facts import Fact
from kvgauge.failures import SamplesError
from kvgauge.plan.records import Cell
from kvgauge.samples.records import Exchange
from kvgauge.stats.cells import NS_PER_MS, cell_metrics
from kvgauge.stats.estimate import Estimate, missing

Tool = Literal["aiperf", "vllm", "nixlbench"]
TOOLS: dict[Tool, str] = {"aiperf": "AIPerf", "vllm": "vllm bench serve", "nixlbench": "nixlbench"}

MS_MAX = 1e9  # eleven days: a longer span is a mistake
DETAIL_CHARS = 300
UNKNOWN = "not known"

TRANSPORT = "transport not observed: nothing in these files proves what carried the KV cache"
DEPLOYMENT = "the deployment's NIXL build, parallelism and GPUs are not on record: what is compared may differ in them"
NO_KERNEL = "no kernel stamps: an arrival is when the tool's own loop got to it, and how late that was is not known"
AGGREGATED = "aggregated only: no samples, so no interval within a run and no percentile but those the tool chose"


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """One load, once, as another tool measured it.

    source     the file's name
    exchanges  warm-up first, then in the order they were sent; their run_id is empty until they are written
    metrics    as in results.json
    limits     what the tool does not tell, each a sentence
    claims     what the tool says of itself and its target; never a proof
    """

    tool: Tool
    version: str | None
    source: str
    model: str
    cell: Cell
    metrics: dict[str, Estimate]
    limits: tuple[str, ...]
    exchanges: tuple[Exchange, ...] = ()
    claims: tuple[Fact, ...] = ()


def number(value: float, where: str, *, most: float) -> float:
    """raises SamplesError when it is negative, not finite, or larger than anything measured"""
    if not 0 <= value <= most:  # neither holds for NaN; an int may be too large for a float
        raise SamplesError(f"{where} is {str(value)[:40]}: expected 0 to {most:g}; the file is damaged or was edited")
    return value


def stamps_ns(start_ns: int, first_ms: float, gaps_ms: Sequence[float], where: str) -> tuple[int, ...]:
    """Arrivals from the time to the first and the gaps after it.

    raises  SamplesError when one of them is no time
    """
    at_ms = number(first_ms, f"{where}: time to first token", most=MS_MAX)
    stamps = [start_ns + round(at_ms * NS_PER_MS)]
    for gap_ms in gaps_ms:
        at_ms += number(gap_ms, f"{where}: a gap", most=MS_MAX)
        stamps.append(start_ns + round(at_ms * NS_PER_MS))
    return tuple(stamps)


def shared(arrivals_ns: Sequence[int]) -> int:
    """How many have the stamp of the one before."""
    return sum(one == other for one, other in pairwise(arrivals_ns))


def measured(
    exchanges: Sequence[Exchange], *, streamed: bool, duration_ns: int | None = None, no_due: str | None = None
) -> dict[str, Estimate]:
    """Metrics of imported exchanges, by kvgauge's definitions.

    duration_ns  of the measured stretch where the exchanges do not tell it; else first due to last arrival
    no_due       why due times are not known; then lateness is not either
    """
    counted = [each for each in exchanges if not each.warmup]
    answered = [each for each in counted if each.arrivals_ns]
    started_ns = min((each.due_ns for each in counted), default=0)
    if duration_ns is None:
        duration_ns = max((each.arrivals_ns[-1] for each in answered), default=started_ns) - started_ns
    metrics = cell_metrics(exchanges, [], started_ns, started_ns + duration_ns, streamed=streamed)
    if no_due is not None:
        for name in ("late_ms_mean", "late_ms_max", "phase_client_ms_mean"):
            metrics[name] = missing("ms", no_due)
    return metrics


def one_line(text: str) -> str:
    """The last line that says something (of a traceback that is the error), not too long."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:DETAIL_CHARS] if lines else "no reason given"

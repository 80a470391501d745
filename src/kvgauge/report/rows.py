"""Looking things up in a Results for the tables: which value stands where, which runs count, what was proved."""

from collections.abc import Sequence

from kvgauge.plan.metrics import METRICS
from kvgauge.report.records import Results, RunResult, TestResult
from kvgauge.stats.estimate import Estimate, missing

HEADLINE = {  # metric -> how a table's head calls it; the unit comes last
    "e2e_latency_ms_mean": ("average", "latency", "ms"),
    "e2e_latency_ms_p99": ("P99", "latency", "ms"),
    "ttft_ms_mean": ("TTFT", "mean", "ms"),
    "tpot_ms_mean": ("TPOT", "mean", "ms"),
    "output_token_throughput_tok_s": ("through-", "put", "tok/s"),
    "transfer_ms_mean": ("KV", "transfer", "ms"),
}
OBJECTIVES_HEAD = {"goodput_req_s": ("good-", "put", "req/s")}
OPEN_HEAD = {"offered_rate_req_s": ("offered", "rate", "req/s"), "sent_rate_req_s": ("sent", "rate", "req/s")}
NO_RATE = "a closed load: requests follow answers, at no rate of their own"
METRIC_WORDS = {
    "e2e_latency_ms_mean": "average latency",
    "e2e_latency_ms_p99": "P99 latency",
    "ttft_ms_mean": "TTFT",
    "tpot_ms_mean": "TPOT",
    "output_token_throughput_tok_s": "throughput",
    "transfer_ms_mean": "KV transfer",
    "goodput_req_s": "goodput",
    "goodput_share_pct": "goodput, share of requests",
    "connection_ms_max": "connection, slowest pair",
}


def metric_words(metric: str) -> str:
    """What people call a metric; its own name where nobody calls it anything else."""
    return METRIC_WORDS.get(metric, metric)


def headline(test: TestResult) -> dict[str, tuple[str, str, str]]:
    """The columns of a test's table; goodput where the plan has objectives, rates where it has open loads."""
    measured = {metric for run in test.runs for metric in run.metrics}
    return HEADLINE | {metric: head for metric, head in (OBJECTIVES_HEAD | OPEN_HEAD).items() if metric in measured}


def unit_of(metric: str) -> str:
    known = METRICS.get(metric)
    return known.unit if known is not None else ""


def summary_of(test: TestResult, cell: str | None, metric: str) -> Estimate:
    """Over the valid runs; missing with the reason where there is none."""
    for row in test.summary:
        if row.cell == cell and row.metric == metric:
            return row.estimate
    waiting = [run for run in test.runs if run.cell == cell]
    states = {run.status for run in waiting} - {"valid"}
    reason = f"no valid run ({', '.join(sorted(states))})" if states else "not measured"
    if metric in OPEN_HEAD and any(run.metrics and metric not in run.metrics for run in waiting):
        reason = NO_RATE
    return missing(unit_of(metric), reason)


def cells_of(test: TestResult) -> list[str]:
    """Cells in the order they were measured."""
    named = [run.cell for run in test.runs] + [row.cell for row in test.summary]
    return list(dict.fromkeys(cell for cell in named if cell is not None))


def runs_in(test: TestResult, cell: str | None, status: str | None = None) -> list[RunResult]:
    return [run for run in test.runs if run.cell == cell and status in (None, run.status)]


def deciding_cell(results: Results) -> str | None:
    """The primary metric's cell, as the plan declared it."""
    primary = results.plan.get("primary")
    cell = primary.get("cell") if isinstance(primary, dict) else None
    return cell if isinstance(cell, str) else None


def run_states(test: TestResult) -> list[tuple[int, str]]:
    """Each repetition and its state: the worst that any of its cells, or the run as a whole, is in."""
    worst = ("failed", "invalid", "interrupted", "pending", "valid")
    by_repetition: dict[int, list[str]] = {}
    for run in test.runs:
        by_repetition.setdefault(run.repetition, []).append(run.status)
    return [(repetition, min(states, key=worst.index)) for repetition, states in sorted(by_repetition.items())]


def runs_text(test: TestResult) -> str:
    """2/3, and what the others are"""
    states = [state for _, state in run_states(test)]
    others = [f"{states.count(s)} {s}" for s in ("invalid", "failed", "interrupted", "pending") if s in states]
    return f"{states.count('valid')}/{len(states)}" + (f" ({', '.join(others)})" if others else "")


def proved_texts(test: TestResult) -> dict[str, str]:
    """What valid runs proved, by name; where runs differ, every answer."""
    found: dict[str, list[str]] = {}
    for run in runs_in(test, None):
        for name, value in run.proved.items():
            if run.status == "valid" and value not in found.setdefault(name, []):
                found[name].append(value)
    return {name: " | ".join(values) for name, values in found.items()}


def limits_of(test: TestResult) -> tuple[str, ...]:
    """What imported results lack; empty where kvgauge measured."""
    return tuple(dict.fromkeys(limit for run in runs_in(test, None) for limit in run.limits))


def not_valid(test: TestResult) -> list[tuple[str, str, tuple[str, ...]]]:
    """(where, state, reasons) of runs that do not count, pending ones aside.

    Cells of one run that share state and reasons are told together.
    """
    grouped: dict[tuple[int, str, tuple[str, ...]], list[str]] = {}
    for run in test.runs:
        if run.status not in ("valid", "pending"):
            where = "the whole run" if run.cell is None else run.cell
            grouped.setdefault((run.repetition, run.status, run.reasons), []).append(where)
    return [(f"run {key[0]}, {_listed(where)}", key[1], key[2]) for key, where in grouped.items()]


def _listed(where: Sequence[str]) -> str:
    if "the whole run" in where:
        return "the whole run"
    return ", ".join(where if len(where) <= 3 else [*where[:2], f"{len(where) - 2} more cells"])


def sum_over_runs(test: TestResult, metric: str) -> int | None:
    """Sum of a count over every cell of every valid run; None where no run has it."""
    found = [run.metrics[metric].point for run in test.runs if run.status == "valid" and metric in run.metrics]
    known = [point for point in found if point is not None]
    return int(sum(known)) if known else None


def stand_in_text(stand_in: str | None) -> str:
    """As the plan says it: "stand-in: NIXL x.y.z, not the patches"; empty where the build is what it is called."""
    if not stand_in:
        return ""
    return stand_in if stand_in.startswith("stand-in") else f"stand-in: {stand_in}"


def build_text(build: str) -> str:
    """A version is one of NIXL; anything else is called what the plan calls it."""
    if "NIXL" in build.upper():
        return build
    return f"NIXL {build}" if build[:1].isdigit() else f"build {build}"


def rehearsal_text(results: Results) -> str | None:
    """What every page of a rehearsal says."""
    if not results.rehearsal:
        return None
    fabrics = ", ".join(sorted({test.fabric for test in results.tests if test.fabric})) or "tcp"
    return f"rehearsal: fabric {fabrics}; what is measured here does not transfer to EFA"

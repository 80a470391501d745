"""What stands under a cell: its steps, the turns of its conversations, its warm-up. And remarks on what is valid."""

from kvgauge.report import rows
from kvgauge.report.numbers import value_text
from kvgauge.report.records import TestResult
from kvgauge.report.warm import warm_lines
from kvgauge.stats.turns import TURNS_SHOWN

STEPS_MAX = 20
OF_STEP = {
    "offered_rate_req_s": "req/s offered",
    "ttft_ms_mean": "ms TTFT",
    "e2e_latency_ms_mean": "ms latency",
    "output_token_throughput_tok_s": "tok/s",
    "failures": "failed",
}


def part_lines(test: TestResult, cell: str) -> list[str]:
    """Lines about the parts of a cell, over its valid runs, and its warm-up; none for most cells."""
    measured = {metric for run in rows.runs_in(test, cell, "valid") for metric in run.metrics}
    lines = []
    for step in range(1, STEPS_MAX + 1):
        told = [
            f"{value_text(estimate)} {words}"
            for name, words in OF_STEP.items()
            if (estimate := rows.summary_of(test, cell, f"step_{step}_{name}")).point is not None
            and f"step_{step}_{name}" in measured
        ]
        lines += [f"step {step}: {', '.join(told)}"] if told else []
    if "sessions" in measured:
        lines += _turns(test, cell, measured)
    return [*lines, *warm_lines(test, cell)]


def _turns(test: TestResult, cell: str, measured: set[str]) -> list[str]:
    counts = {
        "sessions": "answered to the end",
        "sessions_failed": "ended by a failure",
        "sessions_full": "ended at the context's limit",
        "sessions_cut": "cut by the cell's end",
    }
    told = []
    for metric, words in counts.items():
        point = sum(
            run.metrics[metric].point or 0 for run in rows.runs_in(test, cell, "valid") if metric in run.metrics
        )
        if point or metric == "sessions":
            told.append(f"{point:,.0f} {words}")
    lines = [f"sessions: {', '.join(told)}"]
    turns = [
        f"{turn}: {value_text(rows.summary_of(test, cell, f'ttft_turn_{turn}_ms_mean'))}"
        f" ({value_text(rows.summary_of(test, cell, f'input_tokens_turn_{turn}_mean'))} tokens)"
        for turn in range(1, TURNS_SHOWN + 1)
        if f"ttft_turn_{turn}_ms_mean" in measured
    ]
    return [*lines, f"TTFT ms by turn (its prompt): {', '.join(turns)}"] if turns else lines


def remark_lines(test: TestResult) -> list[str]:
    """Each remark once, with the cells it is about."""
    found: dict[str, list[str]] = {}
    for run in test.runs:
        for remark in run.remarks:
            found.setdefault(remark, []).append(f"run {run.repetition}, {run.cell}")
    return [f"{', '.join(where)}: {remark}" for remark, where in found.items()]

"""Gates: by how much a metric may be worse before a release stops. Pure."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from kvgauge.compare.sides import Comparison, Row
from kvgauge.compare.values import Key, direction
from kvgauge.failures import UsageError
from kvgauge.plan.metrics import METRICS
from kvgauge.stats.runs import RUNS_MIN

Outcome = Literal["within", "beyond", "undecided"]

SHORT = {
    "ttft": "ttft_ms_mean",
    "ttft_p99": "ttft_ms_p99",
    "e2e": "e2e_latency_ms_mean",
    "latency": "e2e_latency_ms_mean",
    "latency_p99": "e2e_latency_ms_p99",
    "tpot": "tpot_ms_mean",
    "itl": "itl_ms_mean",
    "throughput": "output_token_throughput_tok_s",
    "requests": "request_throughput_req_s",
    "transfer": "transfer_ms_mean",
    "goodput": "goodput_req_s",
}


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """metric of cell may be worse by margin_pct at most."""

    cell: str | None
    metric: str
    margin_pct: float

    @property
    def words(self) -> str:
        where = f" of {self.cell}" if self.cell else ""
        return f"{self.metric}{where} at most {self.margin_pct:g} % worse"


class Passed(msgspec.Struct, frozen=True, kw_only=True):
    """How a gate came out."""

    gate: Gate
    outcome: Outcome
    reason: str


def read_metric(text: str) -> str:
    """A metric by its name or a short one. raises UsageError"""
    name = SHORT.get(text.strip().lower(), text.strip())
    if direction(name) is None:
        known = ", ".join(SHORT)
        raise UsageError(f"{text!r} is no metric that can be better or worse; short names are {known}; all are in "
                         f"docs/results.md, such as {next(iter(METRICS))}")  # fmt: skip
    return name


def read_key(text: str, cell: str | None = None) -> Key:
    """`METRIC` or `METRIC@CELL`. raises UsageError"""
    metric, at, named = text.partition("@")
    return (named.strip() if at else cell, read_metric(metric))


def read_gate(text: str, cell: str | None) -> Gate:
    """`ttft:5%` or `ttft@512x128-20:5%`; without a cell it is the primary metric's. raises UsageError"""
    what, colon, margin = text.rpartition(":")
    try:
        margin_pct = float(margin.strip().removesuffix("%"))
    except ValueError:
        margin_pct = -1.0
    if not colon or not 0 <= margin_pct < 100:
        raise UsageError(f"--gate {text!r}: needed is METRIC:PERCENT or METRIC@CELL:PERCENT, as in ttft:5%")
    key = read_key(what, cell)
    return Gate(cell=key[0], metric=key[1], margin_pct=margin_pct)


def judge(comparison: Comparison, gates: Sequence[Gate]) -> list[Passed]:
    """Every gate on its own interval at 95 %.

    All of them have to be within: that needs no correction for their number. "Beyond" is said of any one of them, so
    that with many gates it is said more often by chance.
    """
    by_key = {(row.row.cell, row.row.metric): row for row in comparison.rows}
    return [_judge(gate, by_key.get((gate.cell, gate.metric))) for gate in gates]


def _judge(gate: Gate, row: Row | None) -> Passed:
    if row is None:
        return Passed(gate=gate, outcome="undecided", reason="this metric of this cell was not measured on both sides")
    gained = row.row.gain
    untold = gained.n < RUNS_MIN or row.row.verdict in ("cannot tell", "invalid")
    if gained.low is None or gained.high is None or untold:
        why = row.row.reason or gained.reason or f"fewer than {RUNS_MIN} runs"
        return Passed(gate=gate, outcome="undecided", reason=why)
    span = f"between {gained.low:+.1f} and {gained.high:+.1f} %"
    if gained.low >= -gate.margin_pct:
        return Passed(gate=gate, outcome="within", reason=f"the gain lies {span}")
    if gained.high < -gate.margin_pct:
        return Passed(gate=gate, outcome="beyond", reason=f"the gain lies {span}")
    return Passed(gate=gate, outcome="undecided", reason=f"the gain lies {span}: more runs would narrow it")

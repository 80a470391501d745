"""The metrics a plan can decide by: their units, which way is better, and what they mean. Data only."""

from typing import Literal

import msgspec


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """A number each run gives for each cell."""

    name: str
    unit: str
    better: Literal["lower", "higher"]
    meaning: str


STATISTICS: dict[str, str] = {
    "mean": "mean",
    "p50": "median",
    "p90": "90th percentile",
    "p95": "95th percentile",
    "p99": "99th percentile",
}

_FAMILIES: dict[str, str] = {
    "ttft_ms": "time to first token: from when a request was due to its first content",
    "e2e_latency_ms": "from when a request was due to its last content",
    "tpot_ms": "time per output token: (last content - first content) / (output tokens - 1), of each request",
    "itl_ms": "inter-token latency: gap between two content events that follow each other, over all requests",
    "transfer_ms": "KV transfer of a request: first post to last completion, all ranks",
}

_RATES = (
    Metric(
        name="output_token_throughput_tok_s",
        unit="tok/s",
        better="higher",
        meaning="output tokens of all requests over the measured time of the cell",
    ),
    Metric(
        name="request_throughput_req_s",
        unit="req/s",
        better="higher",
        meaning="finished requests over the measured time of the cell",
    ),
)

_GOODPUT = (
    Metric(
        name="goodput_req_s",
        unit="req/s",
        better="higher",
        meaning="requests that met all objectives of the plan's goodput, over the measured time of the cell",
    ),
    Metric(
        name="goodput_share_pct",
        unit="%",
        better="higher",
        meaning="requests that met all objectives of the plan's goodput, of all that were measured",
    ),
)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *(
            Metric(name=f"{family}_{key}", unit="ms", better="lower", meaning=f"{statistic} of {meaning}")
            for family, meaning in _FAMILIES.items()
            for key, statistic in STATISTICS.items()
        ),
        *_RATES,
        *_GOODPUT,
    )
}

# A mean of a value each request has: only for these is there an interval that holds while a run is under way.
GOODPUT_METRICS = tuple(metric.name for metric in _GOODPUT)
STREAM_FAMILIES = ("ttft_ms", "tpot_ms", "itl_ms")  # known only where answers are streamed
UNTIL_METRICS = ("ttft_ms_mean", "e2e_latency_ms_mean", "tpot_ms_mean")

"""Goodput: requests that met every objective, over the measured time and of all that were measured."""

from collections.abc import Sequence

from kvgauge.plan.records import Goodput
from kvgauge.samples.records import Exchange
from kvgauge.stats.cells import NS_PER_MS, noted, tpot_ms
from kvgauge.stats.estimate import Estimate, bare, missing


def goodput_metrics(
    objectives: Goodput | None, exchanges: Sequence[Exchange], duration_ns: int, *, streamed: bool = True
) -> dict[str, Estimate]:
    """goodput_req_s and goodput_share_pct of one run x cell; nothing without objectives.

    As vLLM and AIPerf define it, all objectives together, failed requests meeting none. TPOT is 0 when an answer has at
    most one token. A request whose TPOT cannot be known (no usage, or all in one event) leaves both unknown.
    """
    if objectives is None:
        return {}
    measured = [exchange for exchange in exchanges if not exchange.warmup]
    why = _why_unknown(objectives, measured, duration_ns, streamed=streamed)
    if why is not None:
        return {"goodput_req_s": missing("req/s", why), "goodput_share_pct": missing("%", why)}
    good = sum(meets(objectives, exchange) for exchange in measured)
    n = len(measured)
    found = {
        "goodput_req_s": bare(
            good / (duration_ns / 1e9), "req/s", 1, "one value for the whole run: an interval needs repeated runs"
        ),
        "goodput_share_pct": bare(100 * good / n, "%", n, "requests under load are not independent: no interval"),
    }
    return (
        noted(found, [each for each in measured if each.failure is None]) if objectives.tpot_ms is not None else found
    )


def meets(objectives: Goodput, exchange: Exchange) -> bool:
    """Whether a request succeeded within every objective."""
    ttft_ns, e2e_ns = exchange.ttft_ns, exchange.e2e_ns
    if exchange.failure is not None or ttft_ns is None or e2e_ns is None:
        return False
    taken_ms = {
        "ttft_ms": ttft_ns / NS_PER_MS,
        "tpot_ms": tpot_ms(exchange) or 0.0,
        "e2e_latency_ms": e2e_ns / NS_PER_MS,
    }
    limits_ms = ((name, getattr(objectives, name)) for name in taken_ms)
    return all(limit_ms is None or taken_ms[name] <= limit_ms for name, limit_ms in limits_ms)


def _why_unknown(objectives: Goodput, measured: Sequence[Exchange], duration_ns: int, *, streamed: bool) -> str | None:
    if not measured or duration_ns <= 0:
        return "no request was measured" if not measured else "the measured stretch has no length"
    if not streamed and (objectives.ttft_ms is not None or objectives.tpot_ms is not None):
        return "answers were not streamed: nothing shows when their first token came"
    if objectives.tpot_ms is None:
        return None
    good = [exchange for exchange in measured if exchange.failure is None]
    unknown = sum(_tpot_unknown(exchange) for exchange in good)
    return f"TPOT of {unknown} of {len(good)} answers is not known: no usage, or all in one event" if unknown else None


def _tpot_unknown(exchange: Exchange) -> bool:
    if exchange.tokens_source == "events":
        return True
    return exchange.tokens_out > 1 and tpot_ms(exchange) is None

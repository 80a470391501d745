"""One run x cell: from its exchanges and transfers to named estimates.

Only measured exchanges count (not warm-up), and of them only those that succeeded, except in `failures`.
Definitions are those of vLLM and AIPerf; docs/results.md lists every name.
Requests under load are not independent: the intervals here describe this one run. Over runs: runs.py.
"""

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from kvgauge.samples.records import Exchange, Transfer
from kvgauge.stats import tails
from kvgauge.stats.estimate import Estimate, bare, counted, missing
from kvgauge.stats.means import mean_estimate
from kvgauge.stats.quantiles import quantile_estimate

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
NS_PER_MS = 1e6
COUNTED_BY = "their tokens were counted from their text by "

PHASES: dict[str, tuple[str, str]] = {  # name -> first and last moment, fields of Phases
    "queue": ("received_ns", "prefill_start_ns"),
    "prefill": ("prefill_start_ns", "prefill_end_ns"),
    "handover": ("prefill_end_ns", "posted_ns"),
    "transfer": ("posted_ns", "transferred_ns"),
    "first_step": ("transferred_ns", "first_token_ns"),
    "write": ("first_token_ns", "written_ns"),
}


def cell_metrics(
    exchanges: Sequence[Exchange],
    transfers: Sequence[Transfer],
    started_ns: int,
    ended_ns: int,
    *,
    streamed: bool = True,
) -> dict[str, Estimate]:
    """Every metric of one run x cell, by name; what could not be had is there without a point and with the reason.

    transfers             of the whole run, or of more: those of measured requests are picked by request id
    started_ns, ended_ns  the measured stretch on the client's clock
    streamed              False: answers came whole, so that nothing is known of first tokens
    """
    measured = [exchange for exchange in exchanges if not exchange.warmup]
    good = [exchange for exchange in measured if exchange.failure is None]
    ids = {exchange.request_id for exchange in good if exchange.request_id is not None}
    moves = [transfer for transfer in transfers if transfer.request_id in ids]
    metrics = latencies(good)
    metrics |= family("transfer_ms", _transfer_times_ms(moves), why_none=_why_no_transfers(good, ids, transfers))
    metrics |= _rates(good, ended_ns - started_ns)
    metrics["requests"] = counted(len(good), "requests", len(good))
    metrics["failures"] = counted(len(measured) - len(good), "requests", len(measured))
    metrics |= _lateness(measured)
    metrics |= _bytes_and_pieces(good, moves, _why_no_transfers(good, ids, transfers))
    metrics |= _lengths(good)
    metrics |= phase_means(good)
    metrics = noted(metrics, good)
    return metrics if streamed else without_first_tokens(metrics)


def noted(metrics: dict[str, Estimate], good: Sequence[Exchange]) -> dict[str, Estimate]:
    """What rests on tokens that a tokenizer counted says so."""
    note = count_note(good)
    if note is None:
        return metrics
    of_tokens = ("tpot_ms", "output_token", "input_token", "goodput")
    return {
        name: msgspec.structs.replace(value, note=note)
        if value.point is not None and name.startswith(of_tokens)
        else value
        for name, value in metrics.items()
    }


def count_note(good: Sequence[Exchange]) -> str | None:
    """Whose tokens are counted, where it was not the server."""
    counted_here = [exchange for exchange in good if exchange.tokens_source == "tokenizer"]
    if not counted_here:
        return None
    names = ", ".join(sorted({exchange.tokenizer or "a tokenizer" for exchange in counted_here}))
    estimate = any(exchange.tokenizer_stands_in for exchange in counted_here)
    whose = f"{names}, which stands in for the model's own: an estimate" if estimate else names
    share = f"{len(counted_here)} of {len(good)} answers carried no usage"
    return f"{share}: {COUNTED_BY}{whose}"


def counter_of(estimate: Estimate) -> str | None:
    """Who counted the tokens that a value rests on; None: the server, or it rests on none."""
    return (estimate.note or "").partition(COUNTED_BY)[2] or None


def without_first_tokens(metrics: dict[str, Estimate]) -> dict[str, Estimate]:
    """The metrics of answers that came whole: when their first token was there, nobody saw."""
    why = "answers were not streamed: nothing shows when their first token came"
    unknown = ("ttft_ms", "tpot_ms", "itl_ms", "phases_of_ttft_pct")
    return {name: missing(value.unit, why) if name.startswith(unknown) else value for name, value in metrics.items()}


def family(
    name: str,
    values: Sequence[float] | npt.NDArray[np.float64],
    *,
    independent: bool = True,
    groups: int | None = None,
    why_none: str = "",
) -> dict[str, Estimate]:
    """name_mean, _p50, _p90, _p95, _p99 of values in ms.

    values    in the order of their requests: neighbours that resemble one another count for fewer in quantiles
    groups    how many independent observations the values come from, where that is not their count
    why_none  the reason when there are no values
    """
    if not len(values):
        return {f"{name}_{suffix}": missing("ms", why_none or "no values") for suffix in ("mean", *QUANTILES)}
    series = np.asarray(values, dtype=np.float64)
    ordered = np.sort(series)
    if independent:
        mean = mean_estimate(ordered.tolist(), "ms", of="request")
    else:
        mean = bare(float(ordered.mean()), "ms", len(ordered), "not independent of one another: no interval")
    listed: list[float] = ordered.tolist()
    found = {f"{name}_mean": mean}
    for suffix, q in QUANTILES.items():
        worth = tails.independent(series, q) if independent else None
        found[f"{name}_{suffix}"] = quantile_estimate(listed, q, "ms", independent=independent, effective_n=worth)
    if groups is None:
        return found
    return {key: _with_n(value, groups) for key, value in found.items()}


def _with_n(estimate: Estimate, n: int) -> Estimate:
    return Estimate(
        point=estimate.point, low=estimate.low, high=estimate.high, n=n, unit=estimate.unit, reason=estimate.reason
    )


def latencies(good: Sequence[Exchange]) -> dict[str, Estimate]:
    """TTFT, end-to-end latency, TPOT and ITL, all in ms, of successful exchanges."""
    answered = sorted((exchange for exchange in good if exchange.arrivals_ns), key=lambda each: each.sent_ns)
    none = "no successful request" if not good else "no request brought content"
    ttfts = [ttft / NS_PER_MS for exchange in answered if (ttft := exchange.ttft_ns) is not None]
    e2es = [e2e / NS_PER_MS for exchange in answered if (e2e := exchange.e2e_ns) is not None]
    tpots = [tpot for exchange in answered if (tpot := tpot_ms(exchange)) is not None]
    streamed = [exchange for exchange in answered if len(exchange.arrivals_ns) > 1]
    gaps = _gaps_ms(streamed)
    return (
        family("ttft_ms", ttfts, why_none=none)
        | family("e2e_latency_ms", e2es, why_none=none)
        | family("tpot_ms", tpots, why_none=none if not answered else "no answer of 2 tokens or more in 2 events")
        | family(
            "itl_ms",
            gaps,
            independent=False,
            groups=len(streamed),
            why_none=none if not answered else "no answer in 2 content events or more",
        )
    )


def tpot_ms(exchange: Exchange) -> float | None:
    """(e2e - ttft) / (N - 1) in ms; None below two tokens, when they came in one event and show no pace, or when
    nobody counted its tokens: events are not tokens.
    """
    if exchange.tokens_out < 2 or len(exchange.arrivals_ns) < 2 or exchange.tokens_source == "events":
        return None
    return (exchange.arrivals_ns[-1] - exchange.arrivals_ns[0]) / NS_PER_MS / (exchange.tokens_out - 1)


def _gaps_ms(streamed: Sequence[Exchange]) -> npt.NDArray[np.float64]:
    """Every gap between content events of one request, all requests pooled, in ms."""
    if not streamed:
        return np.empty(0)
    stamps = np.concatenate([np.asarray(exchange.arrivals_ns, dtype=np.int64) for exchange in streamed])
    ends = np.cumsum([len(exchange.arrivals_ns) for exchange in streamed])[:-1]
    return np.delete(np.diff(stamps), ends - 1) / NS_PER_MS


def _transfer_times_ms(moves: Iterable[Transfer]) -> list[float]:
    ordered = sorted(moves, key=lambda move: move.posted_ns)
    return [(move.transferred_ns - move.posted_ns) / NS_PER_MS for move in ordered if move.transferred_ns is not None]


def _why_no_transfers(good: Sequence[Exchange], ids: set[str], transfers: Sequence[Transfer]) -> str:
    if not good:
        return "no successful request"
    if not transfers:
        return "the target reports no KV transfers"
    if not ids:
        return "answers carry no request id to find their KV transfers by"
    return "no KV transfer on record for these requests"


def _rates(good: Sequence[Exchange], duration_ns: int) -> dict[str, Estimate]:
    """Tokens and requests per second of the measured stretch."""
    units = {"output_token_throughput_tok_s": "tok/s", "request_throughput_req_s": "req/s"}
    if not good or duration_ns <= 0:
        reason = "no successful request" if not good else "the measured stretch has no length"
        return {name: missing(unit, reason) for name, unit in units.items()}
    sums = (sum(exchange.tokens_out for exchange in good), len(good))
    reason = "one value for the whole run: an interval needs repeated runs"
    rates = {
        name: bare(total / (duration_ns / 1e9), unit, 1, reason)
        for (name, unit), total in zip(units.items(), sums, strict=True)
    }
    uncounted = sum(exchange.tokens_source == "events" for exchange in good)
    if uncounted:
        why = f"{uncounted} of {len(good)} answers carried no usage: their events are not tokens"
        rates["output_token_throughput_tok_s"] = missing("tok/s", why)
    return rates


def _lengths(good: Sequence[Exchange]) -> dict[str, Estimate]:
    """Mean tokens of prompts and answers, as the server counted them."""
    counts = {
        "input_tokens_mean": [exchange.tokens_in for exchange in good],
        "output_tokens_mean": [
            None if exchange.tokens_source == "events" else exchange.tokens_out for exchange in good
        ],
    }
    found = {}
    for name, listed in counts.items():
        known = [count for count in listed if count is not None]
        reason = "a fact of these requests: no interval"
        if len(known) < len(good):
            reason = f"{len(good) - len(known)} of {len(good)} answers carried no usage"
        why_none = "no successful request" if not good else "no answer carried usage"
        mean = bare(sum(known) / len(known), "tokens", len(known), reason) if known else missing("tokens", why_none)
        found[name] = mean
    return found


def _lateness(measured: Sequence[Exchange]) -> dict[str, Estimate]:
    """How long after it was due a request left, in ms: what TTFT holds of the client, and of waiting for a slot."""
    late_ms = [(each.sent_ns - each.due_ns) / NS_PER_MS for each in measured if each.failure != "unsent"]
    if not late_ms:
        return {name: missing("ms", "no request was sent") for name in ("late_ms_mean", "late_ms_max")}
    n = len(late_ms)
    return {
        "late_ms_mean": bare(sum(late_ms) / n, "ms", n, "requests that wait are not independent: no interval"),
        "late_ms_max": bare(max(late_ms), "ms", n, "the largest of all: no interval"),
    }


def _bytes_and_pieces(good: Sequence[Exchange], moves: Sequence[Transfer], why_none: str) -> dict[str, Estimate]:
    """Sums over the transfers of these requests. A request without one leaves the sum short, which is said."""
    names = {
        "kv_bytes_expected": "B",
        "kv_bytes_moved": "B",
        "kv_pieces_checked": "pieces",
        "kv_pieces_wrong": "pieces",
    }
    if not moves:
        return {name: missing(unit, why_none) for name, unit in names.items()}
    short = len({exchange.seq for exchange in good} - _seqs_with_moves(good, moves))
    note = f"{short} of {len(good)} requests have no KV transfer on record" if short else None
    n = len(moves)
    found = {
        "kv_bytes_expected": counted(sum(move.bytes_expected for move in moves), "B", n, note),
        "kv_pieces_checked": counted(sum(move.pieces for move in moves), "pieces", n, note),
        "kv_pieces_wrong": counted(sum(move.pieces_wrong for move in moves), "pieces", n, note),
    }
    moved = [move.bytes_moved for move in moves if move.bytes_moved is not None]
    if len(moved) == n:
        found["kv_bytes_moved"] = counted(sum(moved), "B", n, note)
    else:
        found["kv_bytes_moved"] = missing("B", f"NIXL counted no bytes for {n - len(moved)} of {n} transfers")
    return found


def _seqs_with_moves(good: Sequence[Exchange], moves: Sequence[Transfer]) -> set[int]:
    moved = {move.request_id for move in moves}
    return {exchange.seq for exchange in good if exchange.request_id in moved}


def phase_means(good: Sequence[Exchange]) -> dict[str, Estimate]:
    """Mean of each phase in ms, and how much of the client's mean TTFT all of them explain, in percent.

    The first phase is the client's own lateness (due to sent): TTFT counts it, so its parts must.
    """
    known = [exchange for exchange in good if exchange.phases is not None]
    why = "no successful request" if not good else "the target reports no phases"
    found = {"phase_client_ms_mean": _mean_ms([_client_ms(exchange) for exchange in good], why)}
    for name, (first, last) in PHASES.items():
        times = [_phase_ms(exchange, first, last) for exchange in known]
        reason = f"the target does not report this phase ({first} to {last})" if known else why
        found[f"phase_{name}_ms_mean"] = _mean_ms(times, reason)
    found["phases_of_ttft_pct"] = _phases_of_ttft(known, why if not known else "no request has all its phases")
    return found


def _mean_ms(times: Sequence[float | None], why_none: str) -> Estimate:
    known = [time for time in times if time is not None]
    return mean_estimate(known, "ms", of="request") if known else missing("ms", why_none)


def _client_ms(exchange: Exchange) -> float:
    return (exchange.sent_ns - exchange.due_ns) / NS_PER_MS


def _phase_ms(exchange: Exchange, first: str, last: str) -> float | None:
    start, end = getattr(exchange.phases, first, None), getattr(exchange.phases, last, None)
    return None if start is None or end is None else (end - start) / NS_PER_MS


def _phases_of_ttft(known: Sequence[Exchange], why_none: str) -> Estimate:
    """The phases follow one another without a gap; what they leave out is the way to the server and back."""
    sums, ttfts = [], []
    for exchange in known:
        ttft_ns = exchange.ttft_ns
        times = [_phase_ms(exchange, first, last) for first, last in PHASES.values()]
        whole = [time for time in times if time is not None]
        if ttft_ns is not None and len(whole) == len(times):
            sums.append(_client_ms(exchange) + sum(whole))
            ttfts.append(ttft_ns / NS_PER_MS)
    if not sums or sum(ttfts) <= 0:
        return missing("%", why_none)
    return bare(100 * sum(sums) / sum(ttfts), "%", len(sums), "a ratio of two means: no interval")

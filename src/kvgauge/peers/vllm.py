"""`vllm bench serve --save-result`, with `--save-detailed` or without. Pure.

Form: vllm/benchmarks/serve.py, `benchmark` and `main_async`: one JSON object, or with --append-result several, a line
each. Times are seconds; `start_times` (newer versions) are of perf_counter, which is CLOCK_MONOTONIC on Linux.
"""

import json
import re
from collections.abc import Iterator, Sized
from typing import Any

import msgspec

from kvgauge.failures import SamplesError
from kvgauge.peers.records import (
    AGGREGATED,
    DEPLOYMENT,
    MS_MAX,
    NO_KERNEL,
    TRANSPORT,
    UNKNOWN,
    Piece,
    measured,
    number,
    one_line,
    shared,
    stamps_ns,
)  # fmt: skip
from kvgauge.plan.records import Cell, LoadShape
from kvgauge.samples.records import Exchange
from kvgauge.stats.estimate import Estimate, bare, counted, missing

REQUESTS_MAX = 1_000_000
TOKENS_MAX = 1e9
NS_PER_S = 1e9
NO_DUE = "vllm bench does not record when requests were due"
SUMS = {"ttft_ms": "ttft", "tpot_ms": "tpot", "itl_ms": "itl", "e2e_latency_ms": "e2el"}
_BLANKS = re.compile(r"\s*")
DETAIL = ("ttfts", "itls", "output_lens", "input_lens", "errors")


class Result(msgspec.Struct, frozen=True):
    duration: float
    completed: int
    failed: int | None = None
    model_id: str = UNKNOWN
    num_prompts: int | None = None
    request_rate: float | str | None = None
    burstiness: float | None = None
    max_concurrency: int | None = None
    ramp_up_strategy: str | None = None
    request_throughput: float | None = None
    output_throughput: float | None = None
    total_input_tokens: int | None = None
    total_output_tokens: int | None = None
    input_lens: list[int] | None = None
    output_lens: list[int] | None = None
    start_times: list[float] | None = None
    ttfts: list[float] | None = None
    itls: list[list[float]] | None = None
    errors: list[str] | None = None


def read(data: bytes, *, source: str) -> list[Piece]:
    """One piece for each result in the file.

    raises  SamplesError that names what is wrong
    """
    found = [_piece(each, where) for each, where in _objects(data, source)]
    if not found:
        raise SamplesError(f"{source} is empty; vllm bench serve writes it with --save-result")
    return found


def _objects(data: bytes, source: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Every JSON object in it: the writer is Python's, so numbers may be NaN."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise SamplesError(f"{source} is not UTF-8 at byte {error.start}") from None
    decoder, count = json.JSONDecoder(parse_constant=lambda _: None), 0
    position = _after_blanks(text, 0)
    while position < len(text):
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise SamplesError(f"{source} is not the JSON that vllm bench serve writes: {error}") from None
        count, position = count + 1, _after_blanks(text, position)
        if not isinstance(value, dict):
            raise SamplesError(f"{source} holds {type(value).__name__} where vllm bench serve writes an object")
        yield value, source if count == 1 else f"{source} (result {count})"


def _after_blanks(text: str, position: int) -> int:
    found = _BLANKS.match(text, position)
    return position if found is None else found.end()


def _piece(value: dict[str, Any], where: str) -> Piece:
    try:
        result = msgspec.convert({name: each for name, each in value.items() if each is not None}, Result)
    except msgspec.ValidationError as error:
        raise SamplesError(f"{where} is not what vllm bench serve writes: {error}") from None
    number(result.duration, f"{where}: duration", most=MS_MAX / 1e3)
    number(result.completed, f"{where}: completed", most=REQUESTS_MAX)
    detailed = [name for name in DETAIL if getattr(result, name) is not None]
    if detailed and len(detailed) < len(DETAIL):
        lacking = ", ".join(name for name in DETAIL if name not in detailed)
        raise SamplesError(f"{where} has {', '.join(detailed)} but not {lacking}; the file is damaged or was edited")
    exchanges = _exchanges(result, where) if detailed else ()
    if detailed:
        duration_ns = None if result.start_times is not None else round(result.duration * NS_PER_S)
        metrics = measured(exchanges, streamed=True, duration_ns=duration_ns, no_due=NO_DUE)
    else:
        metrics = _summed(result, value, where)
    return Piece(
        tool="vllm",
        version=None,
        source=where,
        model=result.model_id[:200],
        cell=_cell(result, exchanges),
        metrics=metrics,
        limits=tuple(_limits(result, exchanges, detailed=bool(detailed))),
        exchanges=exchanges,
    )


def _exchanges(result: Result, where: str) -> tuple[Exchange, ...]:
    ttfts, itls, errors = result.ttfts or [], result.itls or [], result.errors or []
    lens_in, lens_out, starts = result.input_lens or [], result.output_lens or [], result.start_times
    lists: list[Sized] = [ttfts, itls, errors, lens_in, lens_out, *([] if starts is None else [starts])]
    lengths = {len(each) for each in lists}
    if len(lengths) != 1:
        raise SamplesError(f"{where}: lists of {sorted(lengths)} requests; they are of one length in a whole file")
    if not 0 < len(ttfts) <= REQUESTS_MAX:
        raise SamplesError(f"{where}: {len(ttfts):,} requests; 1 to {REQUESTS_MAX:,} are read")
    order = range(len(ttfts)) if starts is None else sorted(range(len(ttfts)), key=starts.__getitem__)
    return tuple(
        _exchange(
            seq,
            f"{where}: request {index}",
            start_s=0.0 if starts is None else starts[index],
            times_s=(ttfts[index], itls[index]),
            tokens=(lens_in[index], lens_out[index]),
            error=errors[index],
        )
        for seq, index in enumerate(order)
    )


def _exchange(
    seq: int, where: str, *, start_s: float, times_s: tuple[float, list[float]], tokens: tuple[int, int], error: str
) -> Exchange:
    sent_ns = round(number(start_s, f"{where}: start time", most=1e9) * NS_PER_S)
    first_s, gaps_s = times_s
    came = not error or first_s > 0  # 0.0 stands for: nothing came
    arrivals = stamps_ns(sent_ns, first_s * 1e3, [gap * 1e3 for gap in gaps_s], where) if came else ()
    for count in tokens:
        number(count, f"{where}: tokens", most=TOKENS_MAX)
    return Exchange(
        seq=seq,
        run_id="",
        cell="",
        warmup=False,
        slot=0,
        worker=0,
        host=UNKNOWN,
        clock="monotonic",
        stamp_source="user",
        due_ns=sent_ns,
        sent_ns=sent_ns,
        arrivals_ns=arrivals,
        done_ns=arrivals[-1] if arrivals else None,
        tokens_in=tokens[0],
        tokens_out=tokens[1],
        tokens_source="tool",
        status=None,
        failure="reported" if error else None,
        detail=one_line(error) if error else None,
        arrivals_shared=shared(arrivals),
        arrivals_user=len(arrivals),
    )


def _summed(result: Result, value: dict[str, Any], where: str) -> dict[str, Estimate]:
    """Metrics of a file without --save-detailed."""
    why = "as vllm bench sums it up, from when it was sent: no samples to make an interval from"
    found: dict[str, Estimate] = {}
    for name, theirs in SUMS.items():
        words = {"mean": "mean", "p50": "median", "p90": "p90", "p95": "p95", "p99": "p99"}
        for suffix, word in words.items():
            key = f"{word}_{theirs}_ms"
            point = value.get(key)
            if isinstance(point, int | float) and not isinstance(point, bool) and result.completed:
                known = number(point, f"{where}: {key}", most=MS_MAX)
                found[f"{name}_{suffix}"] = bare(known, "ms", result.completed, why)
            else:
                found[f"{name}_{suffix}"] = missing("ms", f"{key} is not in the file")
    rates = {
        "output_token_throughput_tok_s": (result.output_throughput, "tok/s"),
        "request_throughput_req_s": (result.request_throughput, "req/s"),
    }
    for name, (rate, unit) in rates.items():
        known_rate = None if rate is None else number(rate, f"{where}: a rate", most=1e12)
        found[name] = missing(unit, "not in the file") if known_rate is None else bare(known_rate, unit, 1, why)
    failed = round(number(result.failed or 0, f"{where}: failed", most=REQUESTS_MAX))
    found["requests"] = counted(result.completed, "requests", result.completed)
    found["failures"] = (
        missing("requests", "failed is not in the file")
        if result.failed is None
        else counted(failed, "requests", result.completed + failed)
    )
    return found


def _cell(result: Result, exchanges: tuple[Exchange, ...]) -> Cell:
    slots = result.max_concurrency if result.max_concurrency and 0 < result.max_concurrency < 1e9 else None
    rate = result.request_rate if isinstance(result.request_rate, float | int) else None
    rate = float(rate) if rate is not None and 0 < rate < 1e9 else None
    requests = len(exchanges) or max(result.num_prompts or 0, result.completed, 1)
    load: LoadShape = "closed" if slots else "wave"
    name = f"concurrency-{slots}" if slots else f"all-{requests}-at-once"
    if result.ramp_up_strategy is not None:
        load, name = "ramp", f"ramp-{result.ramp_up_strategy[:20]}"
    elif rate is not None:
        load = "poisson" if result.burstiness in (None, 1, 1.0) else "gamma"
        name = f"{load}-{rate:g}" + (f"-concurrency-{slots}" if slots else "")
    return Cell(
        name=name,
        load=load,
        concurrency=slots or requests,
        requests=requests,
        output_tokens=max((each.tokens_out for each in exchanges), default=0),
        warmup_requests=0,
        rate=rate,
        burstiness=result.burstiness if load == "gamma" else None,
    )


def _limits(result: Result, exchanges: tuple[Exchange, ...], *, detailed: bool) -> list[str]:
    said = [TRANSPORT, DEPLOYMENT, f"{NO_DUE}: waiting for a slot is not counted"]
    said.append("warm-up requests (--num-warmups) are not on record: how many there were is not known")
    if not detailed:
        return [*said, f"{AGGREGATED} (--save-detailed keeps samples)"]
    said.append(f"{NO_KERNEL}; the first one may hold no text")
    said.append("output tokens are the server's usage or, where it sends none, counted by vllm bench's tokenizer")
    if result.start_times is None:
        said.append(
            "no start times: every request begins at 0 here, only spans within a request mean anything, and rates are "
            "over vllm bench's own duration"
        )
    good = sum(each.failure is None for each in exchanges)
    if good != result.completed:
        said.append(f"the file does not add up: completed is {result.completed}, {good} requests have no error")
    return said

"""AIPerf: profile_export.jsonl (a record for each request) and profile_export_aiperf.json (sums). Pure.

Form: AIPerf 0.13, `MetricRecordInfo` in common/models/record_models.py, and files that it wrote.
"""

from typing import Annotated, Any

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
Stamp = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Tokens = Annotated[float, msgspec.Meta(ge=0, le=1e9)]

SCHEDULED = "due times are when AIPerf's scheduler issued a request, before it reached the worker that sends it"
NO_DUE = "AIPerf did not record when requests were due"
LOADS: dict[str, LoadShape] = {"concurrency": "closed", "constant": "constant", "poisson": "poisson", "gamma": "gamma"}
SUMS = {  # ours -> (theirs, unit)
    "ttft_ms": "time_to_first_token",
    "e2e_latency_ms": "request_latency",
    "tpot_ms": "inter_token_latency",  # what vLLM calls TPOT
    "itl_ms": "inter_chunk_latency",
}
RATES = {
    "output_token_throughput_tok_s": ("output_token_throughput", "tok/s"),
    "request_throughput_req_s": ("request_throughput", "req/s"),
}


class Span(msgspec.Struct, frozen=True):
    value: float
    unit: str


class Spans(msgspec.Struct, frozen=True):
    value: list[float]
    unit: str


class Count(msgspec.Struct, frozen=True):
    value: Tokens


class Metrics(msgspec.Struct, frozen=True):
    time_to_first_token: Span | None = None
    inter_chunk_latency: Spans | None = None
    request_latency: Span | None = None
    output_sequence_length: Count | None = None
    usage_completion_tokens: Count | None = None
    usage_prompt_tokens: Count | None = None
    input_sequence_length: Count | None = None


class Metadata(msgspec.Struct, frozen=True):
    request_start_ns: Stamp
    request_end_ns: Stamp
    credit_issued_ns: Stamp | None = None
    x_request_id: str | None = None
    worker_id: str | None = None
    benchmark_phase: str = "profiling"
    was_cancelled: bool = False


class Error(msgspec.Struct, frozen=True):
    code: int | None = None
    type: str | None = None
    message: str = ""


class Record(msgspec.Struct, frozen=True):
    metadata: Metadata
    metrics: Metrics
    error: Error | None = None


class Sum(msgspec.Struct, frozen=True):
    unit: str
    avg: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    count: int | None = None


class Summary(msgspec.Struct, frozen=True):
    aiperf_version: str | None = None
    input_config: dict[str, Any] = {}
    time_to_first_token: Sum | None = None
    request_latency: Sum | None = None
    inter_token_latency: Sum | None = None
    inter_chunk_latency: Sum | None = None
    output_token_throughput: Sum | None = None
    request_throughput: Sum | None = None
    request_count: Sum | None = None
    error_request_count: Sum | None = None
    input_sequence_length: Sum | None = None
    output_sequence_length: Sum | None = None


def read(records: bytes | None, sums: bytes | None, *, source: str) -> Piece:
    """One AIPerf run.

    records  of profile_export.jsonl; None: only the sums are there
    sums     of profile_export_aiperf.json, which also says what was asked for; None: that is not known
    source   named in errors
    raises   SamplesError that names the line
    """
    summary = Summary() if sums is None else _summary(sums, source)
    exchanges = () if records is None else _exchanges(records, source)
    streamed = any(len(each.arrivals_ns) > 1 for each in exchanges) or summary.time_to_first_token is not None
    metrics = _summed(summary, source) if records is None else measured(exchanges, streamed=streamed)
    return Piece(
        tool="aiperf",
        version=summary.aiperf_version,
        source=source,
        model=_model(summary.input_config),
        cell=_cell(summary, exchanges, streamed=streamed),
        metrics=metrics,
        limits=tuple(_limits(exchanges, aggregated=records is None, asked=sums is not None)),
        exchanges=exchanges,
    )


def _summary(data: bytes, source: str) -> Summary:
    try:
        return msgspec.json.decode(data, type=Summary)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SamplesError(f"{source}: its summary is not what AIPerf writes: {error}") from None


def _exchanges(data: bytes, source: str) -> tuple[Exchange, ...]:
    decoder = msgspec.json.Decoder(Record)
    records: list[tuple[int, Record]] = []
    for line, text in enumerate(data.split(b"\n"), 1):
        if not text.strip():
            continue
        if len(records) >= REQUESTS_MAX:
            raise SamplesError(f"{source}: more than {REQUESTS_MAX:,} requests; import a part of it")
        try:
            records.append((line, decoder.decode(text)))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise SamplesError(f"{source}:{line} is not a record of AIPerf's: {error}") from None
    if not records:
        raise SamplesError(f"{source} holds no requests; was AIPerf stopped before the first one ended?")
    records.sort(key=lambda held: (held[1].metadata.benchmark_phase != "warmup", held[1].metadata.request_start_ns))
    workers: dict[str | None, int] = {}
    return tuple(
        _exchange(record, seq, workers.setdefault(record.metadata.worker_id, len(workers)), f"{source}:{line}")
        for seq, (line, record) in enumerate(records)
    )


def _exchange(record: Record, seq: int, worker: int, where: str) -> Exchange:
    about, said = record.metadata, record.metrics
    start_ns = about.request_start_ns
    if about.request_end_ns < start_ns:
        raise SamplesError(f"{where}: its end lies before its start; the file is damaged, or the clock was set")
    due_ns = start_ns if about.credit_issued_ns is None else min(about.credit_issued_ns, start_ns)
    failure, status, detail = _failure(record)
    arrivals: tuple[int, ...] = ()
    if said.time_to_first_token is not None:
        gaps = said.inter_chunk_latency
        gaps_ms = [] if gaps is None else [_ms(gap, gaps.unit, where) for gap in gaps.value]
        arrivals = stamps_ns(start_ns, _ms(said.time_to_first_token.value, said.time_to_first_token.unit, where),
                             gaps_ms, where)  # fmt: skip
    elif said.request_latency is not None:
        arrivals = stamps_ns(start_ns, _ms(said.request_latency.value, said.request_latency.unit, where), (), where)
    elif failure is None:
        raise SamplesError(f"{where}: neither an error nor a latency; it needs time_to_first_token or request_latency")
    usage, counted_by_tool = said.usage_completion_tokens, said.output_sequence_length
    known = usage or counted_by_tool
    prompt = said.usage_prompt_tokens or said.input_sequence_length
    return Exchange(
        seq=seq,
        run_id="",
        cell="",
        warmup=about.benchmark_phase == "warmup",
        slot=0,
        worker=worker,
        host=UNKNOWN,
        clock="realtime",
        stamp_source="user",
        due_ns=due_ns,
        sent_ns=start_ns,
        arrivals_ns=arrivals,
        done_ns=about.request_end_ns,
        tokens_in=None if prompt is None else round(prompt.value),
        tokens_out=len(arrivals) if known is None else round(known.value),
        tokens_source="usage" if usage is not None else "tool" if known is not None else "events",
        status=status,
        failure=failure,
        detail=detail,
        request_id=about.x_request_id,
        arrivals_shared=shared(arrivals),
        arrivals_user=len(arrivals),
    )


def _ms(value: float, unit: str, where: str) -> float:
    if unit not in ("ms", "sec", "us"):
        raise SamplesError(f"{where}: a time in {unit[:20]!r}; known are ms, sec and us")
    return number(value, f"{where}: a time", most=MS_MAX) * {"ms": 1.0, "sec": 1e3, "us": 1e-3}[unit]


def _failure(record: Record) -> tuple[str | None, int | None, str | None]:
    """Kind, HTTP status and detail."""
    error = record.error
    if record.metadata.was_cancelled:
        return "interrupted", None, "cancelled by AIPerf" if error is None else one_line(error.message)
    if error is None:
        return None, None, None
    if error.code is not None and 400 <= error.code <= 599:
        return "status", error.code, one_line(error.message)
    return "reported", None, one_line(f"{error.type or 'error'}: {error.message}".replace("\n", " "))


def _summed(summary: Summary, source: str) -> dict[str, Estimate]:
    """Metrics from the sums alone; latencies count from when requests were sent."""
    why = "as AIPerf sums it up, from when it was sent: no samples to make an interval from"
    found: dict[str, Estimate] = {}
    for name, theirs in SUMS.items():
        each: Sum | None = getattr(summary, theirs)
        for suffix in ("mean", "p50", "p90", "p95", "p99"):
            value = None if each is None else each.avg if suffix == "mean" else getattr(each, suffix)
            if each is None or value is None:
                found[f"{name}_{suffix}"] = missing("ms", "not among AIPerf's sums")
            else:
                found[f"{name}_{suffix}"] = bare(_ms(value, each.unit, source), "ms", max(each.count or 0, 0), why)
    for name, (theirs, unit) in RATES.items():
        rate: Sum | None = getattr(summary, theirs)
        known = None if rate is None or rate.avg is None else number(rate.avg, f"{source}: {theirs}", most=1e12)
        found[name] = missing(unit, "not among AIPerf's sums") if known is None else bare(known, unit, 1, why)
    good = _count(summary.request_count, source)
    if good is None:
        raise SamplesError(f"{source} does not say how many requests it sums up (request_count)")
    failed = _count(summary.error_request_count, source) or 0
    found["requests"] = counted(good, "requests", good)
    found["failures"] = counted(failed, "requests", good + failed)
    for name, lengths in (
        ("input_tokens_mean", summary.input_sequence_length), ("output_tokens_mean", summary.output_sequence_length)
    ):  # fmt: skip
        if lengths is not None and lengths.avg is not None:
            found[name] = bare(number(lengths.avg, f"{source}: {name}", most=1e9), "tokens", good, "as AIPerf counts")
    return found


def _count(each: Sum | None, source: str) -> int | None:
    return None if each is None or each.avg is None else round(number(each.avg, f"{source}: a count", most=1e9))


def _phase(config: dict[str, Any]) -> dict[str, Any]:
    phases = config.get("phases")
    found = [phase for phase in phases if isinstance(phase, dict)] if isinstance(phases, list) else []
    return next((phase for phase in found if phase.get("kind") != "warmup"), {})


def _model(config: dict[str, Any]) -> str:
    models = config.get("models")
    items = models.get("items") if isinstance(models, dict) else None
    first = items[0] if isinstance(items, list) and items else None
    name = first.get("name") if isinstance(first, dict) else None
    return name[:200] if isinstance(name, str) and name else UNKNOWN


def _cell(summary: Summary, exchanges: tuple[Exchange, ...], *, streamed: bool) -> Cell:
    """What was asked for, as far as the summary says it."""
    phase = _phase(summary.input_config)
    concurrency, rate = _positive(phase.get("concurrency")), _positive(phase.get("rate"))
    kind = str(phase.get("type", ""))[:40]
    load = LOADS.get(kind, "trace" if kind else "closed")
    name = kind if load == "trace" else "all requests"
    if load == "closed" and concurrency is not None:
        name = f"concurrency-{concurrency:g}"
    elif rate is not None:
        name = f"{load}-{rate:g}"
    most = _count(summary.request_count, "") if summary.request_count is not None else 0
    given = max((each.tokens_out for each in exchanges if each.failure is None), default=0)
    return Cell(
        name=name,
        load=load,
        concurrency=round(concurrency or 0) or 1,
        requests=sum(not each.warmup for each in exchanges) or most or 1,
        output_tokens=_asked_tokens(summary.input_config) or given,
        warmup_requests=sum(each.warmup for each in exchanges),
        rate=rate,
        stream=streamed,
    )


def _asked_tokens(config: dict[str, Any]) -> int | None:
    """The mean length of the answers that were asked for."""
    value: Any = config.get("datasets")
    value = value[0] if isinstance(value, list) and value else None
    for key in ("prompts", "osl", "mean"):
        value = value.get(key) if isinstance(value, dict) else None
    mean = _positive(value)
    return None if mean is None else round(mean)


def _positive(value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9
    return float(value) if good and isinstance(value, int | float) else None


def _limits(exchanges: tuple[Exchange, ...], *, aggregated: bool, asked: bool) -> list[str]:
    said = [TRANSPORT, DEPLOYMENT]
    if not asked:
        said.append("the summary (profile_export_aiperf.json) is not there: model and load are not known")
    if aggregated:
        return [*said, AGGREGATED, f"{NO_DUE}: waiting in the tool is not counted"]
    said += [f"{NO_KERNEL}; events of one read share a stamp", "times are of the wall clock, which may be set"]
    known = any(each.due_ns != each.sent_ns for each in exchanges)
    said.append(SCHEDULED if known else f"{NO_DUE}: waiting in the tool is not counted")
    if any(each.tokens_source == "tool" for each in exchanges):
        said.append("output tokens are counted by AIPerf's tokenizer, not by the server's usage")
    if not any(each.warmup for each in exchanges):
        said.append("no warm-up on record: the first requests may carry connections and compilation")
    return said

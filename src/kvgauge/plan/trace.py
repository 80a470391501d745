"""A trace to replay: Mooncake's JSONL, one request a line, in the order they arrived. Pure.

    {"timestamp": 3052, "input_length": 2287, "output_length": 316, "hash_ids": [0, 42, 43, 44, 45]}

timestamp      ms since any moment; only differences count
input_length   prompt tokens
output_length  answer tokens
hash_ids       one for each block of 512 prompt tokens, the last of which may be cut short; the same id is the same
               block, so prompts that begin with the same ids share a prefix. Tokens beyond the ids given are unique

Other keys are ignored.
"""

import hashlib
from typing import Annotated

import msgspec

from kvgauge.failures import PlanError
from kvgauge.plan.dataset import DatasetPrompt
from kvgauge.plan.records import Cell, TraceFile

BLOCK_TOKENS = 512
BYTES_MAX = 32 << 20
REQUESTS_MAX = 1_000_000
TOKENS_MAX = 131_072
MS_MAX = 10_000_000_000_000  # an epoch in ms fits

Tokens = Annotated[int, msgspec.Meta(ge=1, le=TOKENS_MAX)]
HashId = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class TraceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a trace. at_ns: after the trace's first."""

    at_ns: int
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...]


FileRequest = TraceRequest | DatasetPrompt  # what a cell reads from a file


class _Line(msgspec.Struct, frozen=True):
    timestamp: Annotated[float, msgspec.Meta(ge=0, le=MS_MAX)]
    input_length: Tokens
    output_length: Tokens
    hash_ids: tuple[HashId, ...] = ()


def parse(data: bytes, source: str) -> tuple[TraceRequest, ...]:
    """The requests of a trace.

    data    JSONL; blank lines are passed over
    source  what messages call it
    raises  PlanError, with the line: not JSON, a key missing or out of range, a time before the last one's, too many
            hash_ids for the prompt; and for a trace that is empty or too large
    """
    if len(data) > BYTES_MAX:
        raise PlanError(f"longer than {BYTES_MAX >> 20} MiB; cut the trace into parts", source=source)
    decode = msgspec.json.Decoder(_Line).decode
    requests: list[TraceRequest] = []
    first_ms = last_ms = None
    for number, text in enumerate(data.splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            wanted = "timestamp (ms), input_length and output_length (tokens), and hash_ids"
            raise PlanError(f"{error}; a line holds {wanted}", source=source, line=number) from None
        problem = _problem(line, last_ms)
        if problem is not None:
            raise PlanError(problem, source=source, line=number)
        if len(requests) == REQUESTS_MAX:
            raise PlanError(f"more than {REQUESTS_MAX} requests; cut the trace", source=source, line=number)
        first_ms = line.timestamp if first_ms is None else first_ms
        last_ms = line.timestamp
        requests.append(
            TraceRequest(
                at_ns=round((line.timestamp - first_ms) * 1_000_000),
                input_tokens=line.input_length,
                output_tokens=line.output_length,
                hash_ids=line.hash_ids,
            )
        )
    if not requests:
        raise PlanError("the trace is empty: it needs one JSON object a line", source=source)
    return tuple(requests)


def _problem(line: _Line, last_ms: float | None) -> str | None:
    if last_ms is not None and line.timestamp < last_ms:
        return f"timestamp {line.timestamp:g} is before the last one's, {last_ms:g}; sort the trace by timestamp"
    needed = -(-line.input_length // BLOCK_TOKENS)
    if len(line.hash_ids) > needed:
        return (
            f"{len(line.hash_ids)} hash_ids for {line.input_length} prompt tokens, which are {needed} blocks of "
            f"{BLOCK_TOKENS}; a trace of another block size must be converted"
        )
    return None


def summary(path: str, data: bytes, requests: tuple[TraceRequest, ...]) -> TraceFile:
    """What a plan remembers of a trace."""
    inputs = [request.input_tokens for request in requests]
    outputs = [request.output_tokens for request in requests]
    return TraceFile(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        requests=len(requests),
        span_s=requests[-1].at_ns / 1e9,
        input_tokens_mean=sum(inputs) / len(inputs),
        input_tokens_max=max(inputs),
        output_tokens_mean=sum(outputs) / len(outputs),
        output_tokens_max=max(outputs),
    )


def again(trace: TraceFile, data: bytes) -> tuple[TraceRequest, ...]:
    """The requests of a trace read before. PlanError when the file is another by now."""
    if hashlib.sha256(data).hexdigest() != trace.sha256:
        raise PlanError(
            "the trace is not what it was when the plan was read (its sha256 differs); put it back, or begin a new run",
            source=trace.path,
        )
    return parse(data, trace.path)


def asked(cell: Cell, requests: "tuple[FileRequest, ...]", seq: int) -> tuple[int | None, int]:
    """(prompt tokens, answer tokens) of request `seq` of a cell; prompt tokens None for text that is given.

    requests  those of the trace or the dataset that the cell sends; none otherwise

    Warm-up comes first. That of a trace has its mean lengths, and none of its blocks: it must not fill prefix caches.
    """
    if cell.dataset is not None:
        prompt = requests[seq % len(requests)]
        assert isinstance(prompt, DatasetPrompt)
        return None, prompt.output_tokens or cell.output_tokens
    if cell.trace is None:
        return cell.input_tokens, cell.output_tokens
    if seq < cell.warmup_requests:
        return round(cell.trace.input_tokens_mean), round(cell.trace.output_tokens_mean)
    request = requests[seq - cell.warmup_requests]
    assert isinstance(request, TraceRequest)
    return request.input_tokens, request.output_tokens

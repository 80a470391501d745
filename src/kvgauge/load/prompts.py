"""Prompts and the request bodies that carry them. Pure: the same seed, cell and number give the same bytes.

A unique prompt is a list of token ids, so that it has exactly the length asked for whatever the tokenizer, and no
prefix cache can have seen it: ids 0 and 1 count the requests of the cell, the rest is random.
"""

import hashlib
import struct
from functools import lru_cache
from typing import Literal

import msgspec

from kvgauge.failures import LoadError
from kvgauge.plan.records import Cell
from kvgauge.plan.trace import BLOCK_TOKENS, TraceRequest, asked

Api = Literal["completions", "chat"]

TOKEN_ID_LOW, TOKEN_ID_HIGH = 0, 31_999  # every vocabulary we know is at least this large
SPAN_MIN = 256

_encode = msgspec.json.Encoder().encode


def unique_tokens(
    seed: int, cell: str, seq: int, count: int, *, low: int = TOKEN_ID_LOW, high: int = TOKEN_ID_HIGH
) -> list[int]:
    """`count` token ids in low..high that no other `seq` of this seed and cell begins with.

    Two ids already tell (high - low + 1) squared requests of one cell apart; the 14 after them, 32 random bits each,
    tell cells and seeds apart before the first block of 16 is full.
    raises  LoadError for a range below 256 ids, or a count below 1
    """
    span = high - low + 1
    if span < SPAN_MIN or count < 1:
        raise LoadError(
            f"a unique prompt needs at least 1 token and {SPAN_MIN} token ids to choose from, not {count} and {span}"
        )
    name = f"{seed}\0{cell}".encode()
    offsets = struct.unpack("<2Q", hashlib.sha256(name).digest()[:16])
    counted = [(offsets[0] + seq) % span, (offsets[1] + seq // span) % span]
    drawn = struct.unpack(f"<{count}I", hashlib.shake_256(name + f"\0{seq}".encode()).digest(4 * count))
    ids = [low + (draw * span >> 32) for draw in drawn]
    ids[:2] = [low + digit for digit in counted[:count]]
    return ids


def shared_tokens(
    seed: int, cell: str, request: TraceRequest, seq: int, *, low: int = TOKEN_ID_LOW, high: int = TOKEN_ID_HIGH
) -> list[int]:
    """The prompt of a trace's request: for each of its hash_ids the same block that this id is everywhere in the cell
    (the last cut to length), and tokens that are unique to `seq` where there are no ids left.
    """
    ids: list[int] = []
    for hash_id in request.hash_ids:
        ids += _block(seed, cell, hash_id, low, high)
    left = request.input_tokens - len(ids)
    if left > 0:
        ids += unique_tokens(seed, cell, seq, left, low=low, high=high)
    return ids[: request.input_tokens]


@lru_cache(maxsize=1024)
def _block(seed: int, cell: str, hash_id: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(unique_tokens(seed, f"{cell}\0block", hash_id, BLOCK_TOKENS, low=low, high=high))


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = True


class _Message(msgspec.Struct, frozen=True):
    role: str
    content: str


class _Completion(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    model: str
    prompt: str | list[int]
    max_tokens: int
    temperature: int | None = None
    ignore_eos: bool = False
    stream: bool = False
    stream_options: _StreamOptions | None = None


class _Chat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    model: str
    messages: tuple[_Message, ...]
    max_tokens: int
    temperature: int | None = None
    ignore_eos: bool = False
    stream: bool = False
    stream_options: _StreamOptions | None = None


def completion_body(*, model: str, prompt: str | list[int], max_tokens: int, stream: bool = True) -> bytes:
    """The JSON body of POST /v1/completions: greedy, to the last token, usage asked for."""
    return _encode(
        _Completion(
            model=model,
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=0,
            ignore_eos=True,
            stream=stream,
            stream_options=_StreamOptions() if stream else None,
        )
    )


def chat_body(*, model: str, prompt: str, max_tokens: int, stream: bool = True) -> bytes:
    """The JSON body of POST /v1/chat/completions, with `prompt` as the user's one message."""
    return _encode(
        _Chat(
            model=model,
            messages=(_Message("user", prompt),),
            max_tokens=max_tokens,
            temperature=0,
            ignore_eos=True,
            stream=stream,
            stream_options=_StreamOptions() if stream else None,
        )
    )


class Bodies:
    """The bodies of one cell's requests, by their number; a literal prompt is encoded once.

    trace   the requests of the trace that the cell replays, its warm-up not among them
    raises  LoadError when the cell cannot be asked for: neither a prompt nor a length, or token ids over chat
    """

    def __init__(
        self,
        cell: Cell,
        *,
        model: str,
        seed: int,
        api: Api = "completions",
        stream: bool = True,
        token_ids: tuple[int, int] = (TOKEN_ID_LOW, TOKEN_ID_HIGH),
        trace: tuple[TraceRequest, ...] = (),
    ) -> None:
        self._cell, self._model, self._seed, self._stream, self._token_ids = cell, model, seed, stream, token_ids
        self._trace = trace
        self._literal: bytes | None = None
        if cell.prompt is not None:
            encode = chat_body if api == "chat" else completion_body
            self._literal = encode(model=model, prompt=cell.prompt, max_tokens=cell.output_tokens, stream=stream)
        elif cell.input_tokens is None and cell.trace is None:
            raise LoadError(f"cell {cell.name}: it has neither a prompt nor input_tokens; give one of them")
        elif api == "chat":
            raise LoadError(
                f"cell {cell.name}: chat takes text, and prompts of exact token length are lists of token ids; "
                "use the completions API, or give the cell a literal prompt"
            )

    def body(self, seq: int) -> bytes:
        """The body of request `seq`."""
        if self._literal is not None:
            return self._literal
        low, high = self._token_ids
        count, max_tokens = asked(self._cell, self._trace, seq)
        cell, first = self._cell.name, self._cell.warmup_requests
        if self._cell.trace is not None and seq >= first:
            prompt = shared_tokens(self._seed, cell, self._trace[seq - first], seq, low=low, high=high)
        else:
            prompt = unique_tokens(self._seed, cell, seq, count or 0, low=low, high=high)
        return completion_body(model=self._model, prompt=prompt, max_tokens=max_tokens, stream=self._stream)

"""Prompts and the request bodies that carry them. Pure: the same seed, cell and number give the same bytes.

A unique prompt is a list of token ids, so that it has exactly the length asked for whatever the tokenizer, and no
prefix cache can have seen it: ids 0 and 1 count the requests of the cell, the rest is random.

Where text is asked for, the ids are those of 1,024 English words (words.txt) that are one token each, at the start of
a text and after a blank, in every vocabulary we could try: docs/plan.md names them. So text has the length asked for
too, but for what a server adds: a start token, a chat template.
"""

import hashlib
import struct
from functools import cache, lru_cache
from importlib import resources
from typing import Any

import msgspec

from kvgauge.failures import LoadError
from kvgauge.plan.dataset import DatasetPrompt
from kvgauge.plan.records import Cell
from kvgauge.plan.trace import BLOCK_TOKENS, FileRequest, TraceRequest, asked
from kvgauge.tokens.files import Tokenizer

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


def prefixed_tokens(
    seed: int, cell: Cell, seq: int, count: int, *, low: int = TOKEN_ID_LOW, high: int = TOKEN_ID_HIGH
) -> list[int]:
    """`count` ids of which the first `shared_prefix_tokens` are one of the cell's `prefixes`, taken in turn, and the
    rest is unique to `seq`."""
    shared = cell.shared_prefix_tokens
    rest = unique_tokens(seed, cell.name, seq, max(1, count - shared), low=low, high=high)
    if not shared:
        return rest
    return [*_prefix(seed, cell.name, seq % cell.prefixes, shared, low, high), *rest]


@lru_cache(maxsize=64)
def _prefix(seed: int, cell: str, number: int, count: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(unique_tokens(seed, f"{cell}\0prefix", number, count, low=low, high=high))


@cache
def words() -> tuple[str, ...]:
    """The words that text prompts are made of, by their number."""
    return tuple(resources.files("kvgauge.load").joinpath("words.txt").read_text("ascii").split())


def words_of(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Those of the words that are one token each in this vocabulary, first or after a blank.

    raises  LoadError when they are too few to make prompts of: then only a prompt of the user's own can be sent
    """
    found = [word for word in words() if tokenizer.count(word) == 1 and tokenizer.count(f"{word} {word}") == 2]
    if len(found) < SPAN_MIN:
        raise LoadError(
            f"only {len(found)} of {len(words())} words are one token each in the tokenizer given, and {SPAN_MIN} are "
            "needed to make prompts; is it this model's? Else use a dataset, or prompt_kind: tokens"
        )
    return tuple(found)


def text_of(ids: list[int], known: tuple[str, ...]) -> str:
    """As many words as there are numbers, each below len(known)."""
    return " ".join([known[number] for number in ids])


@lru_cache(maxsize=1024)
def _block(seed: int, cell: str, hash_id: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(unique_tokens(seed, f"{cell}\0block", hash_id, BLOCK_TOKENS, low=low, high=high))


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = True


class _Message(msgspec.Struct, frozen=True):
    role: str
    content: str


class _Body(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of both endpoints: `prompt` is for completions, `messages` for chat."""

    model: str
    prompt: str | list[int] | None = None
    messages: tuple[_Message, ...] | None = None
    max_tokens: int
    temperature: int | None = None
    ignore_eos: bool = False
    stream: bool = False
    stream_options: _StreamOptions | None = None


def body_of(cell: Cell, *, model: str, prompt: str | list[int] | list[tuple[str, str]], max_tokens: int) -> bytes:
    """The JSON body of one request of a cell: greedy, usage asked for, to the last token unless it says otherwise.

    prompt  over chat it is the user's one message, or all messages: (role, content) each
    """
    messages: tuple[_Message, ...] | None = None
    if cell.api == "chat":
        said = [("user", str(prompt))] if isinstance(prompt, str) else prompt
        messages = tuple(_Message(role, content) for role, content in said)  # type: ignore[misc]
    body = _encode(
        _Body(
            model=model,
            prompt=prompt if cell.api == "completions" else None,  # type: ignore[arg-type]
            messages=messages,
            max_tokens=max_tokens,
            temperature=0,
            ignore_eos=cell.ignore_eos,
            stream=cell.stream,
            stream_options=_StreamOptions() if cell.stream else None,
        )
    )
    return body[:-1] + b"," + _encode(cell.extra_body)[1:] if cell.extra_body else body


def sample_text(cell: Cell, count: int, known: tuple[str, ...]) -> str:
    """A text prompt of `count` words, as the cell's are; for asking a server how many tokens it makes of it."""
    return text_of(unique_tokens(0, f"{cell.name}\0sample", 0, max(1, count), low=0, high=len(known) - 1), known)


class Bodies:
    """The bodies of one cell's requests, by their number; a literal prompt is encoded once.

    requests  those of the trace or dataset that the cell sends; of a trace its warm-up is not among them
    added     tokens that the server adds to a text, found by asking it: text prompts are made so much shorter
    known     the words that texts are made of; None: all of ours
    raises    LoadError when the cell cannot be asked for: neither a prompt nor a length, or token ids over chat
    """

    def __init__(
        self,
        cell: Cell,
        *,
        model: str,
        seed: int,
        token_ids: tuple[int, int] = (TOKEN_ID_LOW, TOKEN_ID_HIGH),
        requests: tuple[FileRequest, ...] = (),
        added: int = 0,
        known: tuple[str, ...] | None = None,
    ) -> None:
        self._cell, self._model, self._seed = cell, model, seed
        self._requests, self._added = requests, added
        self._words = known if known is not None else words()
        self._is_text = cell.prompt_kind == "text"
        self._range: dict[str, Any] = dict(zip(("low", "high"), token_ids, strict=True))
        if self._is_text:
            self._range = {"low": 0, "high": len(self._words) - 1}
        self._literal: bytes | None = None
        if cell.prompt is not None:
            self._literal = body_of(cell, model=model, prompt=cell.prompt, max_tokens=cell.output_tokens)
        elif cell.input_tokens is None and cell.trace is None and cell.dataset is None:
            raise LoadError(f"cell {cell.name}: it has neither a prompt nor input_tokens; give one of them")
        elif cell.api == "chat" and not self._is_text and cell.dataset is None:
            raise LoadError(
                f"cell {cell.name}: chat takes text, and its prompts are lists of token ids; give it "
                "prompt_kind: text, or use the completions API"
            )

    def body(self, seq: int) -> bytes:
        """The body of request `seq`."""
        if self._literal is not None:
            return self._literal
        count, max_tokens = asked(self._cell, self._requests, seq)
        prompt = self._given(seq) if self._cell.dataset is not None else self._made(seq, count or 0)
        return body_of(self._cell, model=self._model, prompt=prompt, max_tokens=max_tokens)

    def _given(self, seq: int) -> str:
        given = self._requests[seq % len(self._requests)]
        assert isinstance(given, DatasetPrompt)
        return given.text

    def _made(self, seq: int, count: int) -> str | list[int]:
        cell, first = self._cell, self._cell.warmup_requests
        if self._is_text:
            count = max(1, count - self._added)
        if cell.trace is not None and seq >= first:
            request = self._requests[seq - first]
            assert isinstance(request, TraceRequest)
            ids = shared_tokens(self._seed, cell.name, request, seq, **self._range)[:count]
        else:
            ids = prefixed_tokens(self._seed, cell, seq, count, **self._range)
        return text_of(ids, self._words) if self._is_text else ids

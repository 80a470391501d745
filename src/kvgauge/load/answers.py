"""From one answer as it came over the wire to an Exchange. Pure; runs after the answer has ended, off the hot path.

A chunk is content when its text is not empty: completions `choices[0].text`, chat `choices[0].delta.content` (or the
`reasoning_content` some servers send first: reasoning tokens are tokens). Tokens are counted from `usage`, never from
chunks, where the server sends it: one chunk may carry several tokens.

Our own target adds `"kvgauge": {"request_id": ..., "phases": {...}}` to its last chunk; see docs/samples.md.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import msgspec

from kvgauge.load.sse import EventSplitter
from kvgauge.samples.records import Clock, Exchange, Phases, StampSource

DETAIL_CHARS_MAX = 300
INT64_MAX = (1 << 63) - 1

Cut = Literal["unsent", "connect", "tls", "no_first_token", "stall", "truncated", "malformed", "timeout", "interrupted"]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What was sent, and by whom. `sent_ns`: taken just before the request's last byte went to the kernel; when
    nothing could be sent, when that was tried."""

    run_id: str
    cell: str
    seq: int
    warmup: bool
    slot: int
    worker: int
    host: str
    clock: Clock
    due_ns: int
    sent_ns: int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back.

    status     None when no status line came
    stamps_ns  one for each read that brought bytes of the body
    ends       bytes of the body received with that read and all before it; as long as stamps_ns
    cut        why we or the network ended it before its HTTP message was whole; None when it was whole
    """

    status: int | None
    content_type: str
    body: bytes
    stamps_ns: list[int]
    ends: list[int]
    stamp_source: StampSource
    ended_ns: int
    cut: Cut | None = None
    detail: str | None = None


Count = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]


class _Usage(msgspec.Struct):
    completion_tokens: Count | None = None
    prompt_tokens: Count | None = None


class _Said(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Said | None = None
    message: _Said | None = None

    def has_content(self) -> bool:
        said = self.delta or self.message
        return bool(self.text or (said and (said.content or said.reasoning_content or said.reasoning)))


class _Chunk(msgspec.Struct):
    """The parts of a chunk, or of a whole answer, that are looked at; anything else in it is skipped unread."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    id: str | None = None
    error: msgspec.Raw = msgspec.Raw(b"")
    kvgauge: msgspec.Raw = msgspec.Raw(b"")


class _ErrorBody(msgspec.Struct):
    message: str | None = None
    detail: str | None = None
    error: msgspec.Raw = msgspec.Raw(b"")


class _Extension(msgspec.Struct):
    request_id: str | None = None
    phases: Phases | None = None


_chunk = msgspec.json.Decoder(_Chunk).decode
_error_body = msgspec.json.Decoder(_ErrorBody).decode
_error_text = msgspec.json.Decoder(str).decode
_extension = msgspec.json.Decoder(_Extension).decode
UNREADABLE = (msgspec.MsgspecError, RecursionError, ValueError)  # ValueError: bytes that are not UTF-8


class _Reading:
    """What the body said, so far as it could be read; `problem` is the first thing wrong with it."""

    __slots__ = ("arrivals_ns", "done", "phases", "problem", "request_id", "usage")

    def __init__(self) -> None:
        self.arrivals_ns: list[int] = []
        self.done = False
        self.usage: _Usage | None = None
        self.request_id: str | None = None
        self.phases: Phases | None = None
        self.problem: tuple[str, str] | None = None

    def chunk(self, data: bytes, at_ns: int, name: bytes = b"") -> None:
        """Take in one JSON chunk, which was whole at `at_ns`."""
        try:
            chunk = _chunk(data)
        except UNREADABLE as error:
            kind = "error_event" if name == b"error" else "malformed"
            self.problem = (kind, f"{error}: {_excerpt(data)}" if kind == "malformed" else _excerpt(data))
            return
        if name == b"error" or (chunk.error and chunk.error != b"null"):
            self.problem = ("error_event", error_message(data))
            return
        if chunk.choices and chunk.choices[0].has_content():
            self.arrivals_ns.append(at_ns)
        if chunk.usage is not None:
            self.usage = chunk.usage
        if chunk.id and self.request_id is None:
            self.request_id = chunk.id[:DETAIL_CHARS_MAX]
        if chunk.kvgauge:
            self._extend(chunk.kvgauge)

    def _extend(self, raw: msgspec.Raw) -> None:
        try:
            extension = _extension(raw)
        except UNREADABLE:
            return  # another program's field of the same name: not ours to complain about
        if extension.request_id:
            self.request_id = extension.request_id[:DETAIL_CHARS_MAX]
        if extension.phases is not None and _storable(extension.phases):
            self.phases = extension.phases


def read_answer(asked: Asked, answer: Answer) -> Exchange:
    """The record of one request. Never raises, whatever the body holds."""
    reading = _Reading()
    if answer.status == 200 and answer.body:
        streamed = answer.content_type.startswith("text/event-stream") or (
            "json" not in answer.content_type and not answer.body.lstrip().startswith(b"{")
        )
        (_read_events if streamed else _read_whole)(answer, reading)
    failure, detail = _judge(answer, reading)
    usage = reading.usage
    counted = usage is not None and usage.completion_tokens is not None
    return Exchange(
        seq=asked.seq,
        run_id=asked.run_id,
        cell=asked.cell,
        warmup=asked.warmup,
        slot=asked.slot,
        worker=asked.worker,
        host=asked.host,
        clock=asked.clock,
        stamp_source=answer.stamp_source,
        due_ns=asked.due_ns,
        sent_ns=asked.sent_ns,
        arrivals_ns=tuple(reading.arrivals_ns),
        done_ns=answer.ended_ns,
        tokens_in=usage.prompt_tokens if usage else None,
        tokens_out=(usage and usage.completion_tokens) or 0 if counted else len(reading.arrivals_ns),
        tokens_source="usage" if counted else "events",
        status=answer.status,
        failure=failure,
        detail=one_line(detail) if detail else None,
        request_id=one_line(reading.request_id) if reading.request_id else None,
        phases=reading.phases,
    )


def _read_events(answer: Answer, reading: _Reading) -> None:
    splitter = EventSplitter()
    stamp_at = _stamps(answer)
    for data, name, end in splitter.feed(answer.body):
        if data == b"[DONE]":
            reading.done = True
            return
        reading.chunk(data, stamp_at(end), name)
        if reading.problem:
            return
    if splitter.overlong:
        reading.problem = ("malformed", "an event larger than 1 MiB")
        return
    left = splitter.close()
    reading.done = left is not None and left.data == b"[DONE]"


def _read_whole(answer: Answer, reading: _Reading) -> None:
    """A body of one JSON object: its content arrived when its last byte did."""
    if answer.cut is None:
        reading.chunk(answer.body, answer.stamps_ns[-1])
        reading.done = True


def _stamps(answer: Answer) -> Callable[[int], int]:
    """A function from an offset in the body to the stamp of the read that brought it; offsets must not fall."""
    reads: Iterator[tuple[int, int]] = iter(zip(answer.ends, answer.stamps_ns, strict=True))
    reached, stamp_ns = next(reads)

    def stamp_at(offset: int) -> int:
        nonlocal reached, stamp_ns
        while reached < offset:
            reached, stamp_ns = next(reads)
        return stamp_ns

    return stamp_at


def _judge(answer: Answer, reading: _Reading) -> tuple[str | None, str | None]:
    """(failure, detail): what the server said outranks how the connection ended."""
    cut, detail = answer.cut, answer.detail
    if cut == "interrupted":
        return cut, detail
    if answer.status is None:
        return ("no_first_token" if cut in ("timeout", "stall") else cut), detail
    if answer.status != 200:
        said = error_message(answer.body)
        return "status", f"HTTP {answer.status}: {said}" if said else f"HTTP {answer.status}, without a message"
    if reading.problem:
        return reading.problem
    if reading.done and (cut is None or cut == "truncated") and reading.arrivals_ns:
        return None, detail
    if cut is not None:
        waiting = cut in ("timeout", "stall") and not reading.arrivals_ns
        return ("no_first_token" if waiting else cut), detail
    if not reading.done:
        return "truncated", f"the stream ended without [DONE], after {len(reading.arrivals_ns)} content events"
    return "no_first_token", "the answer ended as it should, but held no text"


def error_message(body: bytes) -> str:
    """The message of an OpenAI-style error body, in any of the forms servers send; else the start of the body."""
    message = _error_in(body)
    return one_line(message) if message else _excerpt(body)


def _error_in(body: bytes) -> str | None:
    for _ in range(3):  # {"error": {"message": ...}}, {"error": "..."}, {"message": ...}, {"detail": ...}
        try:
            return _error_text(body)
        except UNREADABLE:
            pass
        try:
            found = _error_body(body)
        except UNREADABLE:
            return None
        if found.message or found.detail:
            return found.message or found.detail
        if not found.error:
            return None
        body = bytes(found.error)
    return None


def one_line(text: str) -> str:
    """Text from outside, fit to be printed in a table: one line, no control characters, bounded."""
    clipped = text[: 2 * DETAIL_CHARS_MAX]
    line = " ".join("".join(char if char.isprintable() else " " for char in clipped).split())
    return line if len(line) <= DETAIL_CHARS_MAX else line[: DETAIL_CHARS_MAX - 3] + "..."


def _excerpt(data: bytes) -> str:
    return one_line(data[:DETAIL_CHARS_MAX].decode("utf-8", "replace"))[:120]


def _storable(phases: Phases) -> bool:
    moments = (getattr(phases, name) for name in phases.__struct_fields__ if name.endswith("_ns"))
    return len(phases.host) <= DETAIL_CHARS_MAX and all(at is None or -INT64_MAX <= at <= INT64_MAX for at in moments)

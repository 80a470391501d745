"""From one answer as it came over the wire to an Exchange. Pure; runs after the answer has ended, off the hot path.

A chunk is content when its text is not empty: completions `choices[0].text`, chat `choices[0].delta.content` (or the
`reasoning_content` some servers send first: reasoning tokens are tokens). Tokens are counted from `usage`, never from
chunks, where the server sends it: one chunk may carry several tokens.

Our own target adds `"kvgauge": {"request_id": ..., "phases": {...}}` to its last chunk; see docs/samples.md.
"""

from array import array
from bisect import bisect_left
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np

from kvgauge.load.alike import Alike
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
    tls: Literal["verified", "unverified"] | None = None
    fresh: bool = False
    session: int | None = None
    turn: int | None = None
    due_ns: int
    sent_ns: int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back.

    status     None when no status line came
    stamps_ns  one for each read: when its last segment arrived
    read_ns    when each read returned; the same as its stamp where the kernel gave none
    ends       bytes of the body received with that read and all before it; as long as stamps_ns
    cut        why we or the network ended it before its HTTP message was whole; None when it was whole
    """

    status: int | None
    content_type: str
    body: bytes
    stamps_ns: list[int]
    read_ns: list[int]
    ends: list[int]
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
    """What the body said, so far as it could be read; `problem` is the first thing wrong with it.

    reads  for each content event the number of the read that made it whole
    """

    __slots__ = ("done", "phases", "problem", "reads", "request_id", "usage")

    def __init__(self) -> None:
        self.reads = array("q")
        self.done = False
        self.usage: _Usage | None = None
        self.request_id: str | None = None
        self.phases: Phases | None = None
        self.problem: tuple[str, str] | None = None

    def chunk(self, data: bytes, read: int, name: bytes = b"") -> bool:
        """Take in one JSON chunk, which was whole after this read. True: it held content."""
        try:
            chunk = _chunk(data)
        except UNREADABLE as error:
            kind = "error_event" if name == b"error" else "malformed"
            self.problem = (kind, f"{error}: {_excerpt(data)}" if kind == "malformed" else _excerpt(data))
            return False
        if name == b"error" or (chunk.error and bytes(chunk.error) != b"null"):
            self.problem = ("error_event", error_message(data))
            return False
        has_content = bool(chunk.choices and chunk.choices[0].has_content())
        if has_content:
            self.reads.append(read)
        if chunk.usage is not None:
            self.usage = chunk.usage
        if chunk.id and self.request_id is None:
            self.request_id = chunk.id[:DETAIL_CHARS_MAX]
        if chunk.kvgauge:
            self._extend(chunk.kvgauge)
        return has_content

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
        (_read_events if _is_streamed(answer) else _read_whole)(answer, reading)
    failure, detail = _judge(answer, reading)
    usage, stamps = reading.usage, _stamps(answer, reading.reads)
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
        stamp_source=stamps.source,
        due_ns=asked.due_ns,
        sent_ns=asked.sent_ns,
        arrivals_ns=stamps.arrivals_ns,
        done_ns=answer.ended_ns,
        tokens_in=usage.prompt_tokens if usage else None,
        tokens_out=(usage and usage.completion_tokens) or 0 if counted else len(stamps.arrivals_ns),
        tokens_source="usage" if counted else "events",
        status=answer.status,
        failure=failure,
        detail=one_line(detail) if detail else None,
        request_id=one_line(reading.request_id) if reading.request_id else None,
        phases=reading.phases,
        arrivals_shared=stamps.shared,
        arrivals_user=stamps.user,
        lag_ns_max=stamps.lag_ns_max,
        lag_ns_mean=stamps.lag_ns_mean,
        tls=asked.tls,
        fresh=asked.fresh,
        first_byte_ns=answer.stamps_ns[0] if answer.stamps_ns else None,
        session=asked.session,
        turn=asked.turn,
    )


def answer_text(answer: Answer) -> str:
    """What a whole answer said, without what the model thought aloud: chat histories leave that out."""
    return answer_texts(answer)[1]


def _is_streamed(answer: Answer) -> bool:
    return answer.content_type.startswith("text/event-stream") or (
        "json" not in answer.content_type and not answer.body.lstrip().startswith(b"{")
    )


def _read_events(answer: Answer, reading: _Reading) -> None:
    """Event by event; those that differ from the last in their text only are read many at a time."""
    body, ends = answer.body, answer.ends
    splitter, alike, at, skipped = EventSplitter(), Alike(), 0, 0
    while at < len(body):
        stop = body.find(b"\n\n", at) + 2  # wherever it comes, the event there is whole: what follows stands alone
        stop = stop if stop > 1 else len(body)
        last = None
        for event in splitter.feed(body[at:stop]):
            if event.data == b"[DONE]":
                reading.done = True
                return
            read = bisect_left(ends, skipped + event.end)
            last = event if reading.chunk(event.data, read, event.name) else None
            if reading.problem:
                return
        at = stop
        if last is not None and not last.name and alike.learn(last.data, _content_of):
            run = alike.run(body, at)
            if len(run):
                reading.reads.frombytes(np.searchsorted(ends, run).astype(np.int64, copy=False).tobytes())
                skipped += int(run[-1]) - at
                at = int(run[-1])
    if splitter.overlong:
        reading.problem = ("malformed", "an event larger than 1 MiB")
        return
    left = splitter.close()
    reading.done = left is not None and left.data == b"[DONE]"


def answer_texts(answer: Answer) -> tuple[str, str]:
    """What a whole answer said, for counting its tokens: (reasoning, content). What cannot be read is left out."""
    reasoning: list[str] = []
    content: list[str] = []
    splitter = EventSplitter()
    streamed = _is_streamed(answer)
    datas = [event.data for event in splitter.feed(answer.body)] if streamed else [answer.body]
    if streamed and (left := splitter.close()) is not None:
        datas.append(left.data)
    for data in datas:
        if data == b"[DONE]":
            break
        try:
            choice = (_chunk(data).choices or [_Choice()])[0]
        except UNREADABLE:
            continue  # garbage that the reading of the answer has told of
        said = choice.delta or choice.message or _Said()
        reasoning += filter(None, (said.reasoning_content or said.reasoning,))
        content += filter(None, (choice.text, said.content))
    return "".join(reasoning), "".join(content)


def _content_of(data: bytes) -> str | None:
    """The text of a chunk that holds content and, but for its id, nothing else that is looked at; else None."""
    try:
        chunk = _chunk(data)
    except UNREADABLE:
        return None
    if not chunk.choices or chunk.usage is not None or bytes(chunk.error) not in (b"", b"null") or chunk.kvgauge:
        return None
    choice = chunk.choices[0]
    said = choice.delta or choice.message
    texts = [choice.text, *((said.content, said.reasoning_content, said.reasoning) if said else ())]
    held = [text for text in texts if text]
    return held[0] if len(held) == 1 else None


def _read_whole(answer: Answer, reading: _Reading) -> None:
    """A body of one JSON object: its content arrived when its last byte did."""
    if answer.cut is None:
        reading.chunk(answer.body, bisect_left(answer.ends, len(answer.body)))
        reading.done = True


class _Stamps(NamedTuple):
    arrivals_ns: tuple[int, ...]
    shared: int
    source: StampSource
    user: int
    lag_ns_max: int | None
    lag_ns_mean: int | None


def _stamps(answer: Answer, reads: "array[int]") -> _Stamps:
    """The content's stamps, whose they are, and how late those reads were; of all reads, when no content came."""
    at = np.frombuffer(reads, dtype=np.int64)
    stamps_ns = np.array(answer.stamps_ns, dtype=np.int64)
    lags_ns = np.array(answer.read_ns, dtype=np.int64) - stamps_ns
    arrivals_ns = stamps_ns[at]
    shared = int(np.count_nonzero(arrivals_ns[1:] == arrivals_ns[:-1]))
    user = int(np.count_nonzero(lags_ns[at] == 0))
    counted = lags_ns[np.concatenate((at[:1], at[1:][at[1:] != at[:-1]]))] if reads else lags_ns
    late = counted[counted > 0]
    source: StampSource = "user" if not len(late) else "kernel" if len(late) == len(counted) else "mixed"
    return _Stamps(
        arrivals_ns=tuple(arrivals_ns.tolist()),
        shared=shared,
        source=source,
        user=user,
        lag_ns_max=int(late.max()) if len(late) else None,
        lag_ns_mean=int(late.sum()) // len(late) if len(late) else None,
    )


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
    if reading.done and (cut is None or cut == "truncated") and reading.reads:
        return None, detail
    if cut is not None:
        waiting = cut in ("timeout", "stall") and not reading.reads
        return ("no_first_token" if waiting else cut), detail
    if not reading.done:
        return "truncated", f"the stream ended without [DONE], after {len(reading.reads)} content events"
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

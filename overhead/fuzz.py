"""A million answers that no server should send, through the whole response path: never an exception, hang or leak.

    python overhead/fuzz.py [--streams 1000000] [--seed 1] [--workers N]

Each stream is a real answer (streamed completions and chat, whole answers, errors, our own extension, Dynamo's error
event inside a 200) with up to six mutations (bits, bytes, cuts, repetitions, pieces of other answers, lengths, line
ends, endless runs), read in random pieces, closed or cut at the end. For each, what `load/stream.py` and
`load/answers.py` promise is held: no exception; memory within ANSWER_BYTES_MAX; offsets within the body; a record that
can be written; a failure of a known kind or none; and no stream takes longer than 2 s. The first that breaks a promise
is printed, with its number, so that `--only NUMBER` repeats it. Exit code 1 then.
"""

import argparse
import faulthandler
import multiprocessing
import os
import random
import resource
import sys
import time

import msgspec

from kvgauge.load.answers import Asked, answer_texts, read_answer
from kvgauge.load.offset import RealtimeOffset
from kvgauge.load.stream import Incoming
from kvgauge.samples.records import Exchange

KINDS = {
    None, "unsent", "connect", "tls", "status", "no_first_token", "stall", "truncated", "error_event", "malformed",
    "timeout", "interrupted",
}  # fmt: skip
STREAM_S_MAX = 2.0  # of processor time
WATCHED = 100  # streams between two looks of the watchdog
GROWTH_BYTES_MAX = 64 << 20
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ASKED = Asked(
    run_id="r", cell="c", seq=1, warmup=False, slot=0, worker=0, host="h", clock="monotonic", due_ns=1, sent_ns=2
)


def event(text: bytes) -> bytes:
    data = b"data: " + text + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def wires() -> list[bytes]:
    """Answers as servers send them."""
    head = STREAM_HEAD
    text = [b'{"id":"cmpl-1","choices":[{"index":0,"text":" word%d","finish_reason":null}]}' % at for at in range(6)]
    chat = [b'{"id":"chat-1","choices":[{"delta":{"content":"\xc3\xa9%d"}}]}' % at for at in range(4)]
    reason = b'{"choices":[{"delta":{"reasoning_content":"hm"}}]}'
    usage = b'{"id":"cmpl-1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":6}}'
    ours = (
        b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":6},"kvgauge":{"request_id":"00ff","phases":'
        b'{"clock":"monotonic","host":"h","received_ns":5,"posted_ns":7}}}'
    )
    error = b'{"error":{"message":"decode worker is gone","type":"internal","code":500}}'
    done, last = event(b"[DONE]"), b"0\r\n\r\n"
    whole = b'{"id":"x","choices":[{"text":"a whole answer"}],"usage":{"prompt_tokens":1,"completion_tokens":4}}'
    return [
        head + b"".join(map(event, text)) + event(usage) + done + last,
        head + b"".join(map(event, text)) + event(ours) + done + last,
        head + event(reason) + b"".join(map(event, chat)) + done + last,
        head + event(text[0]) + event(error) + done + last,
        head + b"e: 1\r\n" + b"".join(map(event, text)).replace(b"\n\n", b"\r\n\r\n") + last,
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(whole) + whole,
        b"HTTP/1.0 200 OK\r\n\r\n" + whole,
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n" % len(error) + error,
        b"HTTP/1.1 100 Continue\r\n\r\n" + head + event(text[0]) + event(usage) + done + last,
    ]


WIRES = wires()
BODIES = [  # the same events without their HTTP
    b"".join(line + b"\n\n" for line in wire.replace(b"\r\n", b"\n").split(b"\n") if line.startswith(b"data: "))
    for wire in WIRES
    if b"data: " in wire
]
PIECES = [
    b"\r\n", b"\n", b"\n\n", b"data: ", b"event: error\n", b"data: [DONE]\n\n", b":", b"\0", b"\xff\xfe", b"{",
    b"[" * 200,
    b'{"choices":' * 50, b"0\r\n\r\n", b"ffffffff\r\n", b"Content-Length: 99999999999999999999\r\n", b"1e999",
    b'"usage":{"completion_tokens":-1}', b'"usage":{"completion_tokens":18446744073709551616}', b"HTTP/1.1 200 OK\r\n",
    b"Transfer-Encoding: chunked\r\n", b"\xef\xbb\xbf", b"A" * 5000,
]  # fmt: skip


def mutated(random_: random.Random) -> bytes:
    """One answer with up to six things wrong with it; in every other one its HTTP is right, its body not."""
    if random_.random() < 0.5:
        return damaged(random_, random_.choice(WIRES), WIRES)
    body = damaged(random_, random_.choice(BODIES), BODIES)
    framed = [STREAM_HEAD]
    while body:
        size = random_.choice((1, 20, 200, 5_000))
        framed.append(b"%x\r\n%s\r\n" % (len(body[:size]), body[:size]))
        body = body[size:]
    return b"".join([*framed, b"0\r\n\r\n"])


def damaged(random_: random.Random, right: bytes, others: list[bytes]) -> bytes:
    wire = bytearray(right)
    for _ in range(random_.randint(0, 6)):
        at = random_.randrange(len(wire) + 1)
        to = min(len(wire), at + random_.randint(0, 40))
        what = random_.randrange(7)
        if what == 0 and at < len(wire):
            wire[at] ^= 1 << random_.randrange(8)
        elif what == 1:
            wire[at:to] = random_.randbytes(random_.randint(0, 20))
        elif what == 2:
            del wire[at:to]
        elif what == 3:
            wire[at:at] = wire[at:to] * random_.randint(1, 8)
        elif what == 4:
            wire[at:at] = random_.choice(PIECES)
        elif what == 5:
            other = random_.choice(others)
            start = random_.randrange(len(other))
            wire[at:at] = other[start : start + random_.randint(0, 200)]
        else:
            del wire[at:]
        if not wire:
            wire += b"\r"
    return bytes(wire)


def read_one(number: int, seed: int) -> Exchange:
    """Stream `number`, from bytes to its record. AssertionError when a promise is broken"""
    random_ = random.Random(f"{seed}/{number}")
    wire = mutated(random_)
    incoming, at, now_ns = Incoming(), 0, 10
    while at < len(wire) and incoming.end is None:
        size = random_.choice((1, 3, 17, 100, 1_000, 65_536))
        incoming.take(wire[at : at + size], now_ns)
        at, now_ns = at + size, now_ns + 7
    if incoming.end is None and random_.random() < 0.7:
        incoming.take(b"", now_ns)
    cut = None
    if incoming.end != "complete":
        cut = {"malformed": "malformed", None: random_.choice(("stall", "timeout", "interrupted"))}.get(
            incoming.end, "truncated"
        )
    detail = incoming.problem if incoming.end not in (None, "complete") else "what the loop says of its own cuts"
    answer = incoming.answer(RealtimeOffset(lambda: 0, lambda: 0), ended_ns=now_ns, cut=cut, detail=cut and detail)
    assert len(answer.ends) == len(answer.stamps_ns)
    assert all(0 <= end <= len(answer.body) for end in answer.ends)
    exchange = read_answer(ASKED, answer)
    assert exchange.failure in KINDS, exchange.failure
    assert exchange.failure is None or exchange.detail
    assert list(exchange.arrivals_ns) == sorted(exchange.arrivals_ns)
    assert 0 <= exchange.tokens_out < 1 << 63
    msgspec.msgpack.encode(exchange)
    if exchange.failure is None and exchange.tokens_source == "events":
        assert any(answer_texts(answer)), "content without a text"
    return exchange


def fuzz(first: int, last: int, seed: int) -> tuple[dict[str, int], str | None]:
    """(how many ended how, the first broken promise) of these streams."""
    ended: dict[str, int] = {}
    before_bytes = rss_bytes()
    for number in range(first, last):
        began = time.process_time()
        try:
            exchange = read_one(number, seed)
        except Exception as error:
            return ended, f"stream {number}: {type(error).__name__}: {error}"
        took_s = time.process_time() - began
        if took_s > STREAM_S_MAX:
            return ended, f"stream {number}: took {took_s:.1f} s"
        kind = exchange.failure or "answered"
        ended[kind] = ended.get(kind, 0) + 1
    if rss_bytes() > before_bytes + GROWTH_BYTES_MAX:
        return ended, f"memory grew by {(rss_bytes() - before_bytes) >> 20} MiB"
    return ended, None


def share(first: int, last: int, seed: int) -> tuple[dict[str, int], str | None]:
    """`fuzz`, in a process of its own, which ends with a traceback when a stream hangs."""
    ended: dict[str, int] = {}
    for at in range(first, last, WATCHED):
        faulthandler.dump_traceback_later(STREAM_S_MAX * WATCHED, exit=True)
        counts, broken = fuzz(at, min(last, at + WATCHED), seed)
        for kind, count in counts.items():
            ended[kind] = ended.get(kind, 0) + count
        if broken is not None:
            return ended, broken
    return ended, None


def rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this stream, and what became of it")
    args = parser.parse_args()
    if args.only is not None:
        print(read_one(args.only, args.seed))
        return 0
    began = time.monotonic()
    each = -(-args.streams // args.workers)
    parts = [(at, min(args.streams, at + each), args.seed) for at in range(0, args.streams, each)]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        found = pool.starmap(share, parts)
    ended: dict[str, int] = {}
    for counts, _ in found:
        for kind, count in counts.items():
            ended[kind] = ended.get(kind, 0) + count
    broken = [problem for _, problem in found if problem is not None]
    print(f"{sum(ended.values()):,} streams in {time.monotonic() - began:.0f} s, seed {args.seed}")
    for kind, count in sorted(ended.items(), key=lambda item: -item[1]):
        print(f"  {count:9,} {kind}")
    print("\n".join(broken) if broken else "no exception, no hang, no growth")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

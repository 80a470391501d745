"""What the pacing server and the bare reader wrote down, and what follows from it. Pure but for reading the files.

Every time is nanoseconds of CLOCK_MONOTONIC of this host. Words, defined here once:

true TTFT      first chunk left the server (clock just before its send()) - the request's last byte reached the server
               (the kernel's receive stamp).
client TTFT    first chunk at the client, as the client stamps it - just before the request's last byte was sent.
inflation      client TTFT - true TTFT of the same request. Two loopback hops are in it, one each way: what the floor
               shows is what is left when a client adds next to nothing.
refill         the end of an answer frees a slot, and the next request takes it: with S streams, the k-th answer's
               tail leaves the server, the (S + k)-th request reaches it. Two hops are in it.
kept           content chunks/s that left while every slot was being refilled (from the S-th request's arrival to the
               last one's), beside streams x tokens / (ttft + (tokens - 1) x itl): what no refill time would give.
lateness       a chunk left - it was due.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MAGIC = 0x3152454341504B4B
HEAD, SIDE_HEAD = 10, 4
STEP_NS_MAX = 2_000  # by which the two clocks of a run may differ at its end from what they did at its start

Times = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """One life of the pacing server. One row a request, in the order they came; left and taken: a column a piece,
    tokens + 1 of them, the clock just before and just after its send(); 0 where it never went."""

    tokens: int
    ttft_ns: int
    itl_ns: int
    flood: int
    refused: int
    offset_ns: int
    offset_end_ns: int
    connection: Times
    received_ns: Times
    heard_ns: Times
    tag: Times
    blocked: Times
    pieces: Times
    left_ns: Times
    taken_ns: Times

    def whole(self) -> Times:
        """Numbers of the requests whose answers went out to the end."""
        return np.flatnonzero(self.pieces == self.tokens + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What the bare reader saw: one row a request. stamps_ns: a column a chunk, negative where a later chunk came in
    the same read, so that the stamp is that one's."""

    offset_ns: int
    offset_end_ns: int
    number: Times
    stream: Times
    sending_ns: Times
    sent_ns: Times
    first_ns: Times
    end_ns: Times
    chunks: Times
    warmup: Times
    stamps_ns: Times


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Of n values, in us."""

    n: int
    mean: float
    p50: float
    p99: float
    max: float


def spread(values_ns: Times) -> Spread | None:
    """None of nothing. p99 of fewer than 100 values is their largest."""
    if values_ns.size == 0:
        return None
    us = values_ns / 1e3
    p50, p99 = np.quantile(us, 0.5), np.quantile(us, 0.99, method="higher")
    return Spread(n=us.size, mean=float(us.mean()), p50=float(p50), p99=float(p99), max=float(us.max()))


def read_truth(path: Path) -> Truth:
    """raises ValueError for a file that is not the pacing server's, is cut short, or during which a clock was set"""
    numbers = np.fromfile(path, dtype=np.int64)
    if numbers.size < HEAD or numbers[0] != MAGIC:
        raise ValueError(f"{path} is not the pacing server's file; did it end by SIGTERM?")
    _, tokens, ttft_ns, itl_ns, flood, requests, refused, offset_ns, offset_end_ns, fields = map(int, numbers[:HEAD])
    width = fields + 2 * (tokens + 1)
    if numbers.size != HEAD + requests * width:
        raise ValueError(f"{path} holds {numbers.size} numbers, {requests} requests need {HEAD + requests * width}")
    _no_step(path, offset_ns, offset_end_ns)
    rows = numbers[HEAD:].reshape(requests, width)
    received_ns, heard_ns = rows[:, 2], rows[:, 3]
    return Truth(
        tokens=tokens,
        ttft_ns=ttft_ns,
        itl_ns=itl_ns,
        flood=flood,
        refused=refused,
        offset_ns=offset_ns,
        offset_end_ns=offset_end_ns,
        connection=rows[:, 1],
        received_ns=np.where(received_ns > 0, received_ns, heard_ns),
        heard_ns=heard_ns,
        tag=rows[:, 4],
        blocked=rows[:, 5],
        pieces=rows[:, 6],
        left_ns=rows[:, fields::2],
        taken_ns=rows[:, fields + 1 :: 2],
    )


def read_side(path: Path) -> Side:
    """raises ValueError as read_truth"""
    numbers = np.fromfile(path, dtype=np.int64)
    if numbers.size < SIDE_HEAD:
        raise ValueError(f"{path} is not the bare reader's file")
    offset_ns, offset_end_ns, fields, chunks = map(int, numbers[:SIDE_HEAD])
    _no_step(path, offset_ns, offset_end_ns)
    rows = numbers[SIDE_HEAD:].reshape(-1, fields + chunks)
    names = ("number", "stream", "sending_ns", "sent_ns", "first_ns", "end_ns", "chunks", "warmup")
    columns = {name: rows[:, at] for at, name in enumerate(names)}
    return Side(offset_ns=offset_ns, offset_end_ns=offset_end_ns, stamps_ns=rows[:, fields:], **columns)


def _no_step(path: Path, begun_ns: int, ended_ns: int) -> None:
    if abs(ended_ns - begun_ns) > STEP_NS_MAX:
        raise ValueError(f"{path}: the wall clock was set by {ended_ns - begun_ns} ns meanwhile; run it again")


def true_ttft_ns(truth: Truth, numbers: Times) -> Times:
    return truth.left_ns[numbers, 0] - truth.received_ns[numbers]


def inflation_ns(truth: Truth, numbers: Times, ttft_ns: Times) -> Times:
    """numbers: which request of the server each of the client's TTFTs belongs to."""
    return ttft_ns - true_ttft_ns(truth, numbers)


def refill_ns(truth: Truth, numbers: Times, streams: int) -> Times:
    """Of a closed loop's measured requests; as many as there were refills."""
    ends = np.sort(truth.left_ns[numbers, truth.tokens])
    arrivals = np.sort(truth.received_ns[numbers])
    return arrivals[streams:] - ends[: max(0, len(numbers) - streams)]


def offered_chunks_s(truth: Truth, streams: int) -> float:
    return streams * truth.tokens * 1e9 / (truth.ttft_ns + (truth.tokens - 1) * truth.itl_ns)


def kept_chunks_s(truth: Truth, numbers: Times, streams: int) -> float | None:
    """None where slots were not refilled at least once."""
    arrivals = np.sort(truth.received_ns[numbers])
    if len(arrivals) < 2 * streams:
        return None
    begin, end = arrivals[streams - 1], arrivals[-1]
    left = truth.left_ns[numbers, : truth.tokens]
    return float(np.count_nonzero((left > begin) & (left <= end)) * 1e9 / (end - begin))


def flood_chunks_s(truth: Truth, numbers: Times, ended_ns: int | None) -> float:
    """Every HTTP chunk (content, usage, [DONE]), from the first request's arrival to the client's last end (or, where
    it does not tell, to the last byte's leaving)."""
    end = ended_ns if ended_ns is not None else int(truth.taken_ns[numbers, truth.tokens].max())
    return float(len(numbers) * (truth.tokens + 2) * 1e9 / (end - truth.received_ns[numbers].min()))


def lateness_ns(truth: Truth) -> Times:
    """Of every content chunk that left, in one row."""
    whole = truth.whole()
    due = truth.received_ns[whole, None] + truth.ttft_ns + np.arange(truth.tokens) * truth.itl_ns
    return (truth.left_ns[whole, : truth.tokens] - due).ravel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The server's times against the kernel's stamps at the bare reader.

    chunks     content chunks with a stamp of their own, of `of` that went
    error      the kernel's stamp - the server's "left": what a client's figures cannot be better than
    inside     share of these chunks whose stamp lies between the server's before and after
    asked      share of requests whose receive stamp at the server lies between the reader's before and after
    asking     the request's receive stamp - just before its send(): the other hop
    late       a chunk left - it was due
    """

    chunks: int
    of: int
    error: Spread
    inside: float
    asked: float
    asking: Spread
    late: Spread


def prove(truth: Truth, side: Side) -> Proof:
    """raises ValueError where the two do not hold the same requests"""
    left, taken, stamps = _side_by_side(truth, side)
    single = stamps > 0
    inside = (left <= stamps) & (stamps <= taken)
    received = truth.received_ns[side.number]
    asked = (side.sending_ns <= received) & (received <= side.sent_ns)
    error, late, asking = (
        spread((stamps - left)[single]),
        spread(lateness_ns(truth)),
        spread(received - side.sending_ns),
    )
    if error is None or late is None or asking is None:
        raise ValueError("no chunk came in a read of its own: too many streams for this proof")
    return Proof(
        chunks=int(single.sum()),
        of=single.size,
        error=error,
        inside=float(inside[single].mean()),
        asked=float(asked.mean()),
        asking=asking,
        late=late,
    )


def held(truth: Truth, side: Side, every: int, hold_ns: int) -> tuple[int, int, int]:
    """A server told to hold every `every`-th piece back between its "left" and its send(): (pieces held that had a
    stamp of their own, of these found late by the hold, other pieces found so)."""
    left, _, stamps = _side_by_side(truth, side)
    at = side.number[:, None] + np.arange(truth.tokens)
    was_held, single = at % every == every - 1, stamps > 0
    found = stamps - left >= hold_ns
    return (
        int((was_held & single).sum()),
        int((was_held & single & found).sum()),
        int((~was_held & single & found).sum()),
    )


def _side_by_side(truth: Truth, side: Side) -> tuple[Times, Times, Times]:
    """(left, taken, stamp) of every content chunk, a row for each request of the reader."""
    if not np.array_equal(np.sort(side.number), truth.whole()):
        raise ValueError(f"the reader has {len(side.number)} requests, the server {len(truth.whole())}")
    left, taken = truth.left_ns[side.number, : truth.tokens], truth.taken_ns[side.number, : truth.tokens]
    return left, taken, side.stamps_ns[:, : truth.tokens]

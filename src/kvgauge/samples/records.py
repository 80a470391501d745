"""What is measured: an Exchange for each request, a Transfer for each KV move.

Imports nothing but msgspec, since workers that run beside other NIXL builds make these records too.
All times are integer nanoseconds of the clock that `clock` names, on `host`; only differences mean anything.
"""

from typing import Literal

import msgspec

Clock = Literal["monotonic", "realtime"]
StampSource = Literal[
    "user", "kernel", "mixed"
]  # by us right after the read, by the kernel on arrival, or some of each


TokensSource = Literal["usage", "tokenizer", "events", "tool"]


class Phases(msgspec.Struct, frozen=True, kw_only=True):
    """The moments of one request inside the target, in the order they happen. None: did not happen or not known.

    queued          received_ns -> prefill_start_ns
    prefill         prefill_start_ns -> prefill_end_ns
    handover        prefill_end_ns -> posted_ns      (messages, block allocation, admission)
    transfer        posted_ns -> transferred_ns      (first post to last completion, all ranks)
    first step      transferred_ns -> first_token_ns (check of the blocks, wait for a step, the step)
    write           first_token_ns -> written_ns     (decode worker to the client's socket)
    """

    clock: Clock
    host: str
    received_ns: int | None = None
    prefill_start_ns: int | None = None
    prefill_end_ns: int | None = None
    posted_ns: int | None = None
    transferred_ns: int | None = None
    first_token_ns: int | None = None
    written_ns: int | None = None


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """One request and the moments its answer arrived.

    arrivals_ns   one stamp per content event, in socket order; events that shared a read share its stamp
    arrivals_shared   of those, how many share the stamp of the one before: as many gaps are 0 because nobody can know
    arrivals_user     of those, how many have our own stamp though the kernel was asked for one
    lag_ns_max, _mean from arrival to read, over the reads with the kernel's stamp; None when there was none
    tls           None: no TLS; whether the server's certificate was checked
    fresh         its connection was made for it
    first_byte_ns the answer's first byte, its head included
    session, turn of a conversation: its number in the cell, and which of its requests this is, from 1 on
    tokens_out    by `tokens_source`: the server's usage; where it sent none, what a tokenizer made of the answer's
                  text after the run; else the content events that came ("tool": an imported result, as the other tool
                  counted). tokens_in: likewise, in the first two cases
    tokenizer     which one counted; tokenizer_stands_in: it is another model's, so that this is an estimate
    failure       None, or a kind: unsent, connect, tls, status, no_first_token, stall, truncated, error_event,
                  malformed, timeout, interrupted, reported (another tool says so); `detail` says what was seen. unsent:
                  it was due, but too many others waited, or it did too long after the load's end: its slot and sent_ns
                  mean nothing
    """

    seq: int
    run_id: str
    cell: str
    warmup: bool
    slot: int
    worker: int
    host: str
    clock: Clock
    stamp_source: StampSource
    due_ns: int
    sent_ns: int
    arrivals_ns: tuple[int, ...]
    done_ns: int | None
    tokens_in: int | None
    tokens_out: int
    tokens_source: TokensSource
    status: int | None
    failure: str | None = None
    detail: str | None = None
    request_id: str | None = None
    phases: Phases | None = None
    arrivals_shared: int | None = None
    arrivals_user: int | None = None
    lag_ns_max: int | None = None
    lag_ns_mean: int | None = None
    tls: Literal["verified", "unverified"] | None = None
    fresh: bool | None = None
    first_byte_ns: int | None = None
    session: int | None = None
    turn: int | None = None
    tokenizer: str | None = None
    tokenizer_stands_in: bool | None = None

    @property
    def ttft_ns(self) -> int | None:
        """Due time to first content: our own lateness counts. None if nothing came."""
        return self.arrivals_ns[0] - self.due_ns if self.arrivals_ns else None

    @property
    def e2e_ns(self) -> int | None:
        """Due time to last content."""
        return self.arrivals_ns[-1] - self.due_ns if self.arrivals_ns else None


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """One KV move: every block of one request from its prefill to its decode worker, all rank pairs together.

    bytes_expected  prompt tokens rounded up to whole blocks x bytes a token x replication by tensor parallelism
    bytes_listed    what the descriptor lists handed to NIXL add up to
    bytes_moved     what NIXL's own telemetry counted; None where the build has none
    pieces          descriptors compared with what was expected of them, head and tail (`pieces_wrong` differed)
    failure         None, or one line
    """

    request_id: str
    prefill_worker: int
    decode_worker: int
    operation: Literal["READ", "WRITE"]
    backend: str
    prompt_tokens: int
    pairs: int
    descriptors: int
    bytes_expected: int
    bytes_listed: int
    bytes_moved: int | None
    posted_ns: int
    transferred_ns: int | None
    post_ns: int  # time spent inside NIXL's post calls
    checked_ns: int  # time spent comparing stamps
    pieces: int
    pieces_wrong: int
    failure: str | None = None


class MetricPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One series of a /metrics that changed between two scrapes, or came, or went.

    time_ns      CLOCK_MONOTONIC of the client just before it asked; realtime_ns is CLOCK_REALTIME then
    done_ns      the answer was whole, or given up
    labels       as evidence/prometheus.py's `labels_text` writes them
    kind         counter, gauge, histogram, summary or unknown
    value        None: the series is gone
    detail       of `kvgauge:up`, which every scrape has: why it is 0, or what could not be read
    """

    run_id: str
    source: str
    time_ns: int
    done_ns: int
    realtime_ns: int
    name: str
    labels: str
    kind: str
    value: float | None
    detail: str | None = None


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """What it cost to connect one pair of agents: the headline is the slowest pair.

    first_excess_ns  first transfer of the pair less the median of its later ones; None until there are later ones
    modelled_ns      of it imitated (a plan's `cold_start`): NIXL had no part in it
    """

    initiator: str
    peer: str
    add_remote_ns: int
    make_connection_ns: int | None  # None: this build's backend has no such call
    first_transfer_ns: int | None = None
    first_excess_ns: int | None = None
    modelled_ns: int = 0

    @property
    def total_ns(self) -> int | None:
        """Everything a first request pays for this pair; None while its excess is not known."""
        if self.first_excess_ns is None:
            return None
        return self.add_remote_ns + (self.make_connection_ns or 0) + self.first_excess_ns + self.modelled_ns

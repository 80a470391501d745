"""The life of a request in the frontend: to prefill, to decode, back to its client. No sockets: senders are given.

READ:   Prefill -> Prefilled -> Decode -> Started -> Tokens ...         (decode pulls, as vLLM's connector does)
WRITE:  Reserve -> Reserved -> Prefill -> Prefilled, Written -> Started -> Tokens ...   (prefill pushes)
"""

import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kvgauge.samples.records import Phases, Transfer
from kvgauge.serve import openai
from kvgauge.serve.http import STREAM_HEAD, Connection, response
from kvgauge.serve.messages import (
    Abort,
    Decode,
    Prefill,
    Prefilled,
    Refused,
    Release,
    Released,
    Reserve,
    Reserved,
    Settled,
    Started,
    Tokens,
    Written,
    called_off,
    encode,
)
from kvgauge.serve.metrics import Metrics
from kvgauge.serve.openai import ApiError, Asked

MAX_REQUESTS = 4096  # in the stack at once; more are told to come back

Send = Callable[[int, bytes], None]


@dataclass(slots=True, kw_only=True)
class Request:
    key: int
    asked: Asked
    client: Connection
    prefill: int
    decode: int
    received_ns: int
    writer: openai.Writer
    created: int
    tokens: list[int] = field(default_factory=list)
    prefilled: Prefilled | None = None
    transfer: Transfer | None = None
    first_ns: int | None = None
    written_ns: int | None = None
    started: bool = False
    sent: int = 0

    def needs(self, role: str, index: int) -> bool:
        """Whether it cannot end without that worker: prefill's part is over once decode has everything."""
        if role == "decode":
            return self.decode == index
        return self.prefill == index and not self.started and not self.sent

    def on_written(self) -> None:
        """Its first token is about to leave."""
        self.written_ns = time.monotonic_ns()


class Router:
    """Knows every request that is in the stack.

    dirty  clients with bytes to flush
    moved  called with each KV move that ended
    """

    def __init__(self, model: str, operation: str, workers: tuple[int, int], send: tuple[Send, Send]) -> None:
        self.model = model
        self.metrics = Metrics(model)
        self.dirty: dict[Connection, None] = {}
        self.moved: list[Transfer] = []
        self._operation = operation
        self._up = {"prefill": list(range(workers[0])), "decode": list(range(workers[1]))}
        self._send_prefill, self._send_decode = send
        self._requests: dict[int, Request] = {}
        self._host = socket.gethostname()
        self._turn = 0

    @property
    def in_flight(self) -> int:
        return len(self._requests)

    @property
    def waiting(self) -> int:
        """Requests without a token yet."""
        return sum(request.first_ns is None for request in self._requests.values())

    def submit(self, client: Connection, asked: Asked, received_ns: int) -> None:
        """raises ApiError 503 when too much is in flight, or a whole side is down."""
        if len(self._requests) >= MAX_REQUESTS:
            raise ApiError(503, f"{MAX_REQUESTS} requests are in flight already; try again later")
        for role, up in self._up.items():
            if not up:
                raise ApiError(503, f"no {role} worker is up; try again later")
        ups = self._up["prefill"], self._up["decode"]
        prefill, decode = ups[0][self._turn % len(ups[0])], ups[1][self._turn // len(ups[0]) % len(ups[1])]
        key = 0
        while key == 0 or key in self._requests:
            key = secrets.randbits(64)
        created = int(time.time())
        request = Request(
            key=key,
            asked=asked,
            client=client,
            prefill=prefill,
            decode=decode,
            received_ns=received_ns,
            writer=openai.Writer(asked, f"{key:016x}", self.model, created),
            created=created,
        )
        self._turn += 1
        self._requests[key] = request
        client.busy = True
        if self._operation == "WRITE":
            reserve = Reserve(key, asked.digest, asked.prompt_tokens, asked.max_tokens, request.prefill)
            self._to_decode(request.decode, encode(reserve))
        else:
            self._to_prefill(request.prefill, encode(Prefill(key, asked.digest, asked.prompt_tokens, request.decode)))

    def down(self, role: str, index: int, how: str) -> None:
        """A worker has ended: send it nothing more, fail what needs it and have the other side give up its blocks."""
        if index not in self._up[role]:
            return
        self._up[role].remove(index)
        for request in [request for request in self._requests.values() if request.needs(role, index)]:
            del self._requests[request.key]
            self._to_decode(request.decode, encode(Abort(request.key)))
            self._to_prefill(request.prefill, encode(Release(request.key)))
            self._fail(request, ApiError(503, f"{how} while it had this request; send it again"))

    def up(self, role: str, index: int) -> None:
        """A worker that was down takes requests again."""
        self._up[role] = sorted({*self._up[role], index})

    def _to_prefill(self, index: int, raw: bytes) -> None:
        if index in self._up["prefill"]:
            self._send_prefill(index, raw)

    def _to_decode(self, index: int, raw: bytes) -> None:
        if index in self._up["decode"]:
            self._send_decode(index, raw)

    def drop(self, client: Connection) -> None:
        """The client has gone: stop what is still being done for it."""
        self.dirty.pop(client, None)
        for request in [request for request in self._requests.values() if request.client is client]:
            del self._requests[request.key]
            self.metrics.counters["kvgauge:request_aborted_total"] += 1
            self._to_decode(request.decode, encode(Abort(request.key)))
            if request.prefilled is None:
                self._to_prefill(request.prefill, encode(Release(request.key)))

    def on_message(self, message: Any, sender: int) -> None:
        """One message of a worker; `sender` is the prefill worker's index where it matters."""
        if isinstance(message, Tokens):
            self._tokens(message)
        elif isinstance(message, Prefilled):
            self._prefilled(message, sender)
        elif isinstance(message, Started):
            self._started(message)
        elif isinstance(message, Reserved):
            self._reserved(message)
        elif isinstance(message, Written | Settled):
            self._to_decode(message.decode_worker, encode(message))
        elif isinstance(message, Refused):
            self._refused(message)
        elif isinstance(message, Released):
            self._release(message.key)

    def _prefilled(self, message: Prefilled, _sender: int) -> None:
        request = self._requests.get(message.key)
        if request is None:
            self._release(message.key)
            return
        request.prefilled = message
        if self._operation == "READ":
            asked = request.asked
            decode = Decode(
                message.key, asked.digest, asked.prompt_tokens, asked.max_tokens, request.prefill, message.blocks
            )
            self._to_decode(request.decode, encode(decode))

    def _reserved(self, message: Reserved) -> None:
        request = self._requests.get(message.key)
        if request is None:
            self._to_decode(message.decode_worker, encode(called_off(message.key, message.decode_worker)))
            return
        asked = request.asked
        prefill = Prefill(message.key, asked.digest, asked.prompt_tokens, request.decode, message.blocks)
        self._to_prefill(request.prefill, encode(prefill))

    def _release(self, key: int) -> None:
        for prefill in self._up["prefill"]:
            self._to_prefill(prefill, encode(Release(key)))

    def _started(self, message: Started) -> None:
        if message.transfer is not None:
            self._observe(message.transfer)
        request = self._requests.get(message.key)
        if request is not None:
            request.started, request.transfer = True, message.transfer

    def _observe(self, transfer: Transfer) -> None:
        self.moved.append(transfer)
        metrics = self.metrics
        metrics.counters["kvgauge:kv_pieces_wrong_total"] += transfer.pieces_wrong
        if transfer.failure is not None or transfer.transferred_ns is None:
            metrics.counters["vllm:nixl_num_failed_transfers_total"] += 1
            return
        metrics.transfer.observe((transfer.transferred_ns - transfer.posted_ns) / 1e9)
        metrics.post.observe(transfer.post_ns / 1e9)
        metrics.moved.observe(transfer.bytes_listed)
        metrics.descriptors.observe(transfer.descriptors)

    def _refused(self, message: Refused) -> None:
        if message.transfer is not None:
            self._observe(message.transfer)
        self._release(message.key)
        request = self._requests.pop(message.key, None)
        if request is None:
            return
        self._fail(request, ApiError(500, f"{'KV transfer failed: ' if message.kv else ''}{message.reason}"))

    def _fail(self, request: Request, error: ApiError) -> None:
        """Tell the client of a request that is not known any more: a status, or an event within its stream."""
        self.metrics.counters["kvgauge:request_failed_total"] += 1
        client = request.client
        begun = request.sent > 0 and request.asked.stream
        client.out.append(openai.error_event(error) if begun else response(error.status, error.body))
        client.busy = False
        self.dirty[client] = None

    def _tokens(self, message: Tokens) -> None:
        """The hot path: a few bytes joined for each token."""
        requests, dirty = self._requests, self.dirty
        ended = set(message.ended)
        for key, token in zip(message.keys, message.tokens, strict=True):
            request = requests.get(key)
            if request is None:
                continue
            request.sent += 1
            if request.first_ns is None:
                self._first_token(request, message.step_ns)
            if not request.asked.stream:
                request.tokens.append(token)
                if key not in ended:
                    continue
            elif key not in ended:
                request.client.out.append(request.writer.token(token))
            else:
                request.client.out.append(request.writer.last(token))
            dirty[request.client] = None
            if key in ended:
                self._end(request, message.step_ns)

    def _first_token(self, request: Request, step_ns: int) -> None:
        request.first_ns = step_ns
        request.client.on_write = request.on_written
        self.metrics.ttft.observe((time.monotonic_ns() - request.received_ns) / 1e9)
        if request.asked.stream:
            request.client.out += [STREAM_HEAD, request.writer.first()]

    def _end(self, request: Request, step_ns: int) -> None:
        del self._requests[request.key]
        client, asked = request.client, request.asked
        extension = self._extension(request)
        if asked.stream:
            client.out.append(request.writer.end(extension))
        else:
            head = {
                "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{request.key:016x}",
                "created": request.created,
                "model": self.model,
            }
            body = openai.whole_answer(asked, request.tokens, head, extension)
            client.out.append(response(200, body))
        client.busy = False
        metrics = self.metrics
        metrics.counters["vllm:request_success_total"] += 1
        metrics.counters["vllm:prompt_tokens_total"] += asked.prompt_tokens
        source = "local_compute" if request.transfer is None else "external_kv_transfer"
        metrics.sources[source] += asked.prompt_tokens
        metrics.counters["vllm:generation_tokens_total"] += asked.max_tokens
        metrics.e2e.observe((step_ns - request.received_ns) / 1e9)
        if asked.max_tokens > 1 and request.first_ns is not None:
            metrics.tpot.observe((step_ns - request.first_ns) / 1e9 / (asked.max_tokens - 1))

    def _extension(self, request: Request) -> bytes:
        prefilled, transfer = request.prefilled, request.transfer
        phases = Phases(
            clock="monotonic",
            host=self._host,
            received_ns=request.received_ns,
            prefill_start_ns=prefilled.start_ns if prefilled else None,
            prefill_end_ns=prefilled.end_ns if prefilled else None,
            posted_ns=transfer.posted_ns if transfer else None,
            transferred_ns=transfer.transferred_ns if transfer else None,
            first_token_ns=request.first_ns,
            written_ns=request.written_ns,
        )
        return msgspec.json.encode({"request_id": f"{request.key:016x}", "phases": phases})

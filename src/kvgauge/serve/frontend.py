"""The frontend process: `python -m kvgauge.serve.frontend`, its FrontendSpec on standard input.

One thread, one epoll over clients and the workers' messages. Tokens that arrive while it is writing share the
next write, so it slows down gracefully: events stay one token each.
"""

import gc
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any

import msgspec
import zmq

from kvgauge.parent import die_with_parent
from kvgauge.serve import openai
from kvgauge.serve.http import BadRequest, Connection, HttpRequest, response
from kvgauge.serve.listener import MAX_CLIENTS, Listener, most_clients
from kvgauge.serve.messages import (
    BEAT_NS,
    Beat,
    Died,
    Down,
    FromParent,
    FrontendSpec,
    Listening,
    Moved,
    Open,
    Stop,
    ToFrontend,
    Up,
    encode,
)
from kvgauge.serve.openai import ApiError
from kvgauge.serve.router import Router
from kvgauge.serve.worker import HIGH_WATER, named_parent

LOOK_AWAY_NS = 100_000_000
READ_BYTES = 256 << 10
PATHS = ("/v1/completions", "/v1/chat/completions")


class Frontend:
    def __init__(self, spec: FrontendSpec) -> None:
        self._spec = spec
        self._listener = Listener(spec.host, spec.port)  # first: it may fail
        self._listen_again_ns: int | None = None
        self._context = zmq.Context(io_threads=1)
        self._control = self._socket(zmq.DEALER)
        self._control.setsockopt(zmq.IDENTITY, b"frontend-0")
        self._control.connect(spec.control)
        self._inbox = self._socket(zmq.PULL)
        self._inbox.bind(spec.inbox)
        self._endpoints = {"prefill": spec.prefill, "decode": spec.decode}
        prefill, decode = ([self._outgoing(endpoint) for endpoint in side] for side in self._endpoints.values())
        self._workers = {"prefill": prefill, "decode": decode}
        self._router = Router(
            spec.model,
            spec.operation,
            (len(prefill), len(decode)),
            (lambda index, raw: prefill[index].send(raw), lambda index, raw: decode[index].send(raw)),
        )
        self._open = False
        self._clients: dict[int, Connection] = {}
        self._most = MAX_CLIENTS
        self._epoll = select.epoll()
        for fd in (self._listener.fileno(), self._inbox.fd, self._control.fd):
            self._epoll.register(fd, select.EPOLLIN)
        self._from_workers = msgspec.msgpack.Decoder(ToFrontend)
        self._from_parent = msgspec.msgpack.Decoder(FromParent)

    def _socket(self, kind: int) -> Any:
        made = self._context.socket(kind)
        made.setsockopt(zmq.LINGER, 200)
        made.set_hwm(HIGH_WATER)
        return made

    def _outgoing(self, endpoint: str) -> Any:
        made = self._socket(zmq.PUSH)
        made.connect(endpoint)
        return made

    def run(self) -> None:
        host, port = self._listener.address()
        shown = f"[{host}]" if ":" in host else host
        self._control.send(encode(Listening(f"http://{shown}:{port}", os.getpid())))
        gc.freeze()  # what is here stays; collections then look at requests only
        self._most = most_clients(sum(map(len, self._workers.values())))
        wait_s = BEAT_NS / 1e9
        beat_ns = 0
        while True:
            events = self._epoll.poll(wait_s)
            now_ns = time.monotonic_ns()
            if now_ns >= beat_ns:
                self._beat()
                beat_ns = now_ns + BEAT_NS
            for fd, mask in events:
                if fd == self._listener.fileno():
                    self._accept(now_ns)
                elif (client := self._clients.get(fd)) is not None:
                    self._serve(client, mask, now_ns)
            if self._read_control():
                return
            more = self._read_inbox()
            self._flush()
            self._listen(now_ns)
            idle_ns = BEAT_NS if self._listen_again_ns is None else LOOK_AWAY_NS
            wait_s = 0.0 if more else idle_ns / 1e9

    def _beat(self) -> None:
        with suppress(zmq.Again):
            self._control.send(encode(Beat()), zmq.NOBLOCK)

    def _read_control(self) -> bool:
        """True when told to stop. zmq's descriptor is edge-triggered, so read until nothing is left."""
        while True:
            try:
                message = self._from_parent.decode(self._control.recv(zmq.NOBLOCK))
            except zmq.Again:
                return False
            if isinstance(message, Stop):
                return True
            if isinstance(message, Open):
                self._open = True
                self._control.send(encode(message))
            elif isinstance(message, Down):
                self._workers[message.role][message.index].close(linger=0)  # with what it never read
                self._router.down(message.role, message.index, message.how)
            elif isinstance(message, Up):
                again = self._outgoing(self._endpoints[message.role][message.index])
                self._workers[message.role][message.index] = again
                self._router.up(message.role, message.index)

    def _read_inbox(self) -> bool:
        """At most 64 messages before clients get their turn. True when more may be waiting."""
        for _ in range(64):
            try:
                raw = self._inbox.recv(zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._router.on_message(self._from_workers.decode(raw), 0)
        return True

    def _flush(self) -> None:
        router = self._router
        for client in list(router.dirty):
            del router.dirty[client]
            self._send(client)
            if not client.busy and client.sock.fileno() >= 0:
                self._next(client, time.monotonic_ns())
        for transfer in router.moved:
            self._control.send(encode(Moved(transfer)))
        router.moved.clear()

    def _send(self, client: Connection) -> None:
        waiting = bool(client.unsent)
        try:
            left = client.flush()
        except OSError:
            self._close(client)
            return
        if left != waiting:
            self._epoll.modify(client.sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if left else 0))
        if not left and client.closing and not client.busy:
            self._close(client)

    def _accept(self, now_ns: int) -> None:
        for sock in self._listener.accept(self._most - len(self._clients), now_ns):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._clients[sock.fileno()] = Connection(sock)
            self._epoll.register(sock.fileno(), select.EPOLLIN)
        if self._listener.stuck:  # who waits keeps the socket ready: look away for a moment
            self._epoll.modify(self._listener.fileno(), 0)
            self._listen_again_ns = now_ns + LOOK_AWAY_NS

    def _listen(self, now_ns: int) -> None:
        self._listener.tidy(now_ns)
        if self._listen_again_ns is not None and now_ns >= self._listen_again_ns:
            self._listen_again_ns = None
            self._epoll.modify(self._listener.fileno(), select.EPOLLIN)

    def _close(self, client: Connection) -> None:
        self._clients.pop(client.sock.fileno(), None)
        client.sock.close()
        self._router.drop(client)

    def _serve(self, client: Connection, mask: int, now_ns: int) -> None:
        if mask & select.EPOLLOUT:
            self._send(client)
        if not mask & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) or client.sock.fileno() < 0:
            return
        try:
            data = client.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(client)
            return
        try:
            client.feed(data)
        except BadRequest as error:
            if client.busy:  # an answer is under way: another one in its middle would break it
                self._close(client)
                return
            message = ApiError(error.status, "cannot read the request")
            client.out.append(response(error.status, message.body, close=True))
            client.closing = True
            self._send(client)
            return
        self._next(client, now_ns)

    def _next(self, client: Connection, now_ns: int) -> None:
        while (request := client.next_request()) is not None:
            client.closing = not request.keep_alive
            try:
                answer = self._answer(client, request, now_ns)
            except ApiError as error:
                answer = response(error.status, error.body)
            if answer is not None:
                client.out.append(answer)
                self._send(client)
                if client.sock.fileno() < 0:
                    return

    def _answer(self, client: Connection, request: HttpRequest, now_ns: int) -> bytes | None:
        """The answer, or None when it will come from the workers. raises ApiError"""
        if request.path in PATHS:
            if request.method != "POST":
                raise ApiError(405, f"{request.path} takes POST, not {request.method}")
            if not self._open:
                raise ApiError(503, "the workers are still starting")
            chat = request.path == PATHS[1]
            asked = openai.read_request(request.body, chat=chat, model=self._spec.model, limit=self._spec.max_tokens)
            self._router.submit(client, asked, now_ns)
            return None
        if request.path in ("/health", "/live"):
            return response(200 if self._open else 503, b"")
        if request.path == "/v1/models":
            model = {
                "id": self._spec.model,
                "object": "model",
                "owned_by": "kvgauge",
                "max_model_len": self._spec.max_tokens,
            }
            return response(200, msgspec.json.encode({"object": "list", "data": [model] if self._open else []}))
        if request.path == "/metrics":
            waiting = self._router.waiting
            self._router.metrics.gauges["vllm:num_requests_waiting"] = float(waiting)
            self._router.metrics.gauges["vllm:num_requests_running"] = float(self._router.in_flight - waiting)
            return response(200, self._router.metrics.text(), b"text/plain; version=0.0.4; charset=utf-8")
        raise ApiError(404, f"there is no {request.path} here; try /v1/completions, /v1/models, /health or /metrics")


def main() -> None:
    die_with_parent(named_parent())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spec = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=FrontendSpec)
    try:
        frontend = Frontend(spec)
    except OSError as error:
        context = zmq.Context()
        control = context.socket(zmq.DEALER)
        control.setsockopt(zmq.IDENTITY, b"frontend-0")
        control.connect(spec.control)
        why = os.strerror(error.errno) if error.errno else str(error)
        control.send(encode(Died(f"cannot listen on {spec.host}:{spec.port}: {why}; choose another address or port")))
        context.destroy(linger=1_000)
        sys.exit(1)
    frontend.run()


if __name__ == "__main__":
    main()

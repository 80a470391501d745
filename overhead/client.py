"""How many server-sent events the load driver takes in on one core, beside a bare reader of the same stream.

    python overhead/client.py [--streams 32] [--tokens 256] [--requests 1500]

A child process floods: it answers every request on a keep-alive connection with a chunked stream, one HTTP chunk and
one `send` for each event (`--per-send` for more), as fast as the socket takes it. Both readers run in this process,
one after the other, against the same child; where the machine has two cores the child gets the one, the readers the
other.

`floor` is epoll, recv, one clock reading and a search for the last chunk: no HTTP, no JSON, no records. `driver` is
the whole of kvgauge.load, JSON and records included. Where the child is the slower side both show its speed: then
the processor seconds tell them apart, and 1 / those seconds is what one core would take.
"""

import argparse
import json
import multiprocessing
import os
import select
import socket
import statistics
import time
from multiprocessing.connection import Connection as Pipe

from kvgauge.load.drive import Driver
from kvgauge.plan.records import Cell
from kvgauge.samples.records import Exchange

LAST_CHUNK = b"0\r\n\r\n"
REQUEST = b"POST /v1/completions HTTP/1.1\r\nHost: flood\r\nContent-Length: 2\r\n\r\n{}"


def answer_bytes(tokens: int) -> bytes:
    """A whole answer of this many content events, and a last one with the usage."""

    def chunk(event: bytes) -> bytes:
        framed = b"data: " + event + b"\n\n"
        return b"%x\r\n%s\r\n" % (len(framed), framed)

    head = {"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1, "model": "flood"}
    content = json.dumps({**head, "choices": [{"index": 0, "text": " word", "logprobs": None, "finish_reason": None}]})
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    last = json.dumps({**head, "choices": [], "usage": usage})
    body = chunk(content.encode()) * tokens + chunk(last.encode()) + chunk(b"[DONE]") + LAST_CHUNK
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" + body


SENDS_PER_TURN = 8


def flood(pipe: Pipe, tokens: int, send_bytes: int, core: int | None, port: int = 0) -> None:
    """The child: one thread, one epoll. A request is whatever ends in `}`. port: shared with other such children"""
    if core is not None:
        os.sched_setaffinity(0, {core})
    answer = memoryview(answer_bytes(tokens))
    listener = socket.create_server(("127.0.0.1", port), backlog=512, reuse_port=True)
    listener.setblocking(False)
    pipe.send(listener.getsockname()[1])
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    peers: dict[int, tuple[socket.socket, memoryview]] = {}
    while True:
        for fd, mask in epoll.poll():
            if fd == listener.fileno():
                sock, _ = listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peers[sock.fileno()] = (sock, answer[:0])
                epoll.register(sock, select.EPOLLIN)
                continue
            sock, left = peers[fd]
            try:
                if mask & ~select.EPOLLOUT:
                    data = sock.recv(65_536)
                    if not data:
                        raise ConnectionResetError
                    if not data.endswith(b"}"):
                        continue
                    left = answer
                for _ in range(SENDS_PER_TURN if left else 0):
                    left = left[sock.send(left[:send_bytes]) :]
            except BlockingIOError:
                pass
            except OSError:
                del peers[fd]
                sock.close()
                continue
            peers[fd] = (sock, left)
            epoll.modify(fd, select.EPOLLOUT if left else select.EPOLLIN)


def read_bare(port: int, streams: int, requests: int, chunks: int) -> tuple[float, float]:
    """(chunks/s, CPU s per 1,000 chunks) of the floor."""
    epoll = select.epoll()
    socks = {}
    for _ in range(streams):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setblocking(False)
        socks[sock.fileno()] = sock
        epoll.register(sock, select.EPOLLIN)
    to_send, to_end = requests, requests
    wall, cpu = time.perf_counter(), time.process_time()
    for sock in socks.values():
        sock.send(REQUEST)
        to_send -= 1
    stamps = []
    while to_end:
        for fd, _ in epoll.poll():
            sock = socks[fd]
            data = sock.recv(65_536)
            stamps.append(time.monotonic_ns())
            if data.endswith(LAST_CHUNK):
                to_end -= 1
                if to_send > 0:
                    sock.send(REQUEST)
                    to_send -= 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    for sock in socks.values():
        sock.close()
    return chunks / wall, cpu * 1e6 / chunks


def read_driver(port: int, streams: int, requests: int, chunks: int) -> tuple[float, float]:
    """The same of the load driver, which must have seen every chunk."""
    cell = Cell(
        name="flood",
        load="closed",
        concurrency=streams,
        requests=requests,
        output_tokens=1,
        warmup_requests=streams,
        prompt="Hello",
    )
    seen: list[int] = []

    def keep(exchange: Exchange) -> None:
        assert exchange.failure is None, exchange.detail
        if not exchange.warmup:
            seen.append(len(exchange.arrivals_ns))

    with Driver(f"http://127.0.0.1:{port}", "flood", host="local", stagger_s=0) as driver:
        wall = time.perf_counter()
        load = driver.run_cell(cell, run_id="flood", seed=1, on_exchange=keep)
        wall = time.perf_counter() - wall
    assert load.completed == requests
    wall -= wall * streams / (requests + streams)  # the warm-up's share
    return (sum(seen) + 2 * requests) / wall, load.cpu_s * 1e6 / chunks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--requests", type=int, default=1_500)
    parser.add_argument("--per-send", type=int, default=1, help="events in each send")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    event_bytes = (len(answer_bytes(1_001)) - len(answer_bytes(1))) // 1_000
    send_bytes = event_bytes * args.per_send
    child = context.Process(
        target=flood, args=(theirs, args.tokens, send_bytes, cores[-1] if len(cores) > 1 else None), daemon=True
    )
    child.start()
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[0]})
    port = ours.recv()
    chunks = args.requests * (args.tokens + 2)
    rows: dict[str, list[tuple[float, float]]] = {"floor": [], "driver": []}
    for _ in range(args.repeats):
        rows["floor"].append(read_bare(port, args.streams, args.requests, chunks))
        rows["driver"].append(read_driver(port, args.streams, args.requests, chunks))
    child.terminate()
    print(f"{args.streams} streams, {args.tokens} tokens, {args.requests} requests; median of {args.repeats}")
    print(f"{'':8} {'chunks/s':>10} {'CPU s per 1,000 chunks':>24} {'= chunks/s of a core':>22}")
    for name, measured in rows.items():
        rate, cpu_ms = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"{name:8} {rate:10,.0f} {cpu_ms / 1e3:24.5f} {1e6 / cpu_ms:22,.0f}")


if __name__ == "__main__":
    main()

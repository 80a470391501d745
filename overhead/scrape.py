"""What scraping /metrics costs the client's stamps.

    python overhead/scrape.py [--rounds 5] [--series 3000] [--streams 16]

A child process answers with a token every 5 ms and serves a /metrics of so many series, half of which change each time.
Cells without scraping, scraping once a second and ten times a second take turns against it; printed is, for each, the
median over rounds of: how late requests left, and how far the gaps between tokens are from 5 ms. All three share the
machine with the child: only the differences say something about scraping.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import tempfile
import time
from itertools import pairwise
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from kvgauge.load.drive import Driver
from kvgauge.plan.records import Cell
from kvgauge.samples.records import Exchange
from kvgauge.scrape.scraper import Scraper, Watching

GAP_NS = 5_000_000
TOKENS = 64
EVENT = b'data: {"choices":[{"index":0,"text":" w","finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":64}}\n\ndata: [DONE]\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def serve(pipe: Pipe, series: int) -> None:
    """The child."""
    asked = 0

    def metrics() -> bytes:
        nonlocal asked
        asked += 1
        lines = [f'vllm:some_metric_{n}_bucket{{model_name="m",le="{n}.5"}} {asked * (n % 2)}' for n in range(series)]
        body = "\n".join(lines).encode() + b"\n"
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"GET"):
                    writer.write(metrics())
                    await writer.drain()
                    break
                length = next(
                    int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length")
                )
                await reader.readexactly(length)
                begin_ns = time.monotonic_ns()
                writer.write(HEAD)
                for number in range(1, TOKENS + 1):
                    await asyncio.sleep((begin_ns + number * GAP_NS - time.monotonic_ns()) / 1e9)
                    writer.write(chunk(EVENT))
                writer.write(chunk(LAST) + b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(peer, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def measure(url: str, interval_s: float | None, streams: int) -> tuple[float, float, float, float]:
    """(mean, largest lateness, mean and p99 distance of a gap from 5 ms), all in us, of one cell of some seconds."""
    exchanges: list[Exchange] = []
    cell = Cell(
        name="c", load="closed", concurrency=streams, requests=streams * 10, output_tokens=TOKENS,
        warmup_requests=streams, input_tokens=8,
    )  # fmt: skip
    watching = Watching(interval_s=interval_s) if interval_s is not None else None
    with tempfile.TemporaryDirectory() as folder, Scraper(Path(folder), "r", watching) as scraper:
        scraper.watch(url)
        with Driver(url, "m", host="h") as driver:
            scraper.mark()
            load = driver.run_cell(
                cell, run_id="r", seed=1, on_exchange=exchanges.append, tick=None, stop=lambda: False
            )
            scraper.mark()
    arrivals = [each.arrivals_ns for each in exchanges if not each.warmup and each.failure is None]
    gaps = sorted(abs(b - a - GAP_NS) / 1e3 for stamps in arrivals for a, b in pairwise(stamps))
    return (
        (load.late_ns_mean or 0) / 1e3,
        (load.late_ns_max or 0) / 1e3,
        statistics.mean(gaps),
        gaps[len(gaps) * 99 // 100],
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--series", type=int, default=3000)
    parser.add_argument("--streams", type=int, default=16)
    args = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.Process(target=serve, args=(theirs, args.series), daemon=True)
    child.start()
    url = f"http://127.0.0.1:{ours.recv()}"
    kinds = {"not scraped": None, "every 1 s": 1.0, "every 0.1 s": 0.1}
    found: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in kinds}
    for _ in range(args.rounds):
        for kind, interval_s in kinds.items():
            found[kind].append(measure(url, interval_s, args.streams))
    child.terminate()
    print("us; median of rounds    late mean   late max   |gap - 5 ms| mean      p99")
    for kind, rows in found.items():
        late, most, mean, p99 = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{kind:20} {late:12.0f} {most:10.0f} {mean:20.0f} {p99:8.0f}")


if __name__ == "__main__":
    main()

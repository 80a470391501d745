"""What several load workers take in that one does not, and that together they lose and repeat nothing.

    python overhead/workers.py [--workers 1,2] [--servers 1] [--streams 32] [--tokens 256] [--requests 1500]

The flood of client.py, from `--servers` processes that share a port, read by kvgauge.load.team with each number of
workers in turn, round after round; samples are written as a run writes them, and the time counts until the last is
handed over. A row is the median of the rounds. After each, every request must stand in the merged samples once, with
every chunk: else the exit code is 1.

More workers only help where the workers, the servers and this process have a core each: what the machine has is said.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from client import answer_bytes, flood

from kvgauge.load.cores import allowed_cores
from kvgauge.load.how_many import HowMany
from kvgauge.load.tally import CellLoad
from kvgauge.load.team import Team
from kvgauge.plan.records import Cell
from kvgauge.samples.files import SampleWriter
from kvgauge.samples.read import load_exchanges


def measure(url: str, cell: Cell, workers: int, tokens: int) -> tuple[float, float, str | None]:
    """(chunks/s until all are records, CPU ms of the busiest worker for 1,000 of its chunks, what is wrong)."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        with (
            SampleWriter(folder / "samples") as writer,
            Team(
                url,
                "flood",
                host="local",
                decide=lambda _: HowMany(workers=workers, why="asked for"),
                folder=folder / "logs",
                stagger_s=0.0,
            ) as team,
        ):
            team.run_cell(  # starts the workers and their connections
                msgspec.structs.replace(cell, requests=cell.concurrency),
                run_id="start",
                seed=1,
                on_exchange=lambda _: None,
            )
            wall_s = time.perf_counter()
            load: CellLoad = team.run_cell(
                cell, run_id="flood", seed=1, on_exchange=writer.add_exchange, tick=writer.flush_due
            )
            wall_s = time.perf_counter() - wall_s
        exchanges = [each for each in load_exchanges(folder / "samples") if not each.warmup]
    wrong = None
    if sorted(each.seq - cell.warmup_requests for each in exchanges) != list(range(cell.requests)):
        wrong = (
            f"{len(exchanges)} requests, of which {len({each.seq for each in exchanges})} differ, for {cell.requests}"
        )
    elif bad := [each for each in exchanges if each.failure or len(each.arrivals_ns) != tokens]:
        wrong = f"request {bad[0].seq} has {len(bad[0].arrivals_ns)} of {tokens} chunks: {bad[0].detail or 'no reason'}"
    wall_s *= cell.requests / (cell.requests + cell.warmup_requests)
    chunks = cell.requests * (tokens + 2)
    return chunks / wall_s, load.cpu_s * 1e6 / (chunks / workers), wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", default="1,2", help="numbers of workers, each a row")
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--requests", type=int, default=1_500)
    parser.add_argument("--per-send", type=int, default=1, help="events in each send")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    numbers = [int(number) for number in args.workers.split(",")]
    event_bytes = (len(answer_bytes(1_001)) - len(answer_bytes(1))) // 1_000
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    children, port = [], 0
    for _ in range(args.servers):
        child = context.Process(
            target=flood, args=(theirs, args.tokens, event_bytes * args.per_send, None, port), daemon=True
        )
        child.start()
        children.append(child)
        port = ours.recv()
    cell = Cell(
        name="flood",
        load="closed",
        concurrency=args.streams,
        requests=args.requests,
        output_tokens=1,
        warmup_requests=args.streams,
        prompt="Hello",
    )
    rows: dict[int, list[tuple[float, float]]] = {number: [] for number in numbers}
    troubles = []
    for _ in range(args.repeats):
        for number in numbers:
            rate, cpu_ms, wrong = measure(f"http://127.0.0.1:{port}", cell, number, args.tokens)
            rows[number].append((rate, cpu_ms))
            troubles += [f"{number} workers: {wrong}"] if wrong else []
            time.sleep(0.1)
    for child in children:
        child.terminate()
    print(
        f"{args.streams} streams, {args.tokens} tokens, {args.requests} requests, {args.servers} servers, "
        f"{allowed_cores()} cores; median of {args.repeats}"
    )
    print(f"{'workers':>8} {'chunks/s':>10} {'of the first':>13} {'CPU ms of the busiest for 1,000 of its chunks':>48}")
    first = None
    for number, measured in rows.items():
        rate, cpu_ms = (statistics.median(column) for column in zip(*measured, strict=True))
        first = first or rate
        print(f"{number:8} {rate:10,.0f} {rate / first:13.2f} {cpu_ms:48.2f}")
    print("\n".join(troubles) or "every request stands in the merged samples once, with every chunk")
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())

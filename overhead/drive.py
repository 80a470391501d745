"""kvgauge's load driver in a process of its own: one closed loop against a URL. fidelity.py starts it.

    python overhead/drive.py URL --streams 8 --requests 80 --warmup 8 --tokens 64 --out FILE

FILE, JSON: processor seconds of the measured part, its chunks, and for each measured request the server's id, sent,
due, first content, last content and end, in ns of CLOCK_MONOTONIC.
"""

import argparse
import time
from pathlib import Path

import msgspec

from kvgauge.load.drive import Driver
from kvgauge.plan.records import Cell
from kvgauge.samples.records import Exchange


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--stagger-s", type=float, default=0.0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    cell = Cell(
        name="fidelity",
        load="closed",
        concurrency=args.streams,
        requests=args.requests,
        output_tokens=args.tokens,
        warmup_requests=args.warmup,
        input_tokens=16,
    )
    kept: list[Exchange] = []
    with Driver(args.url, "pacer", host="local", stagger_s=args.stagger_s) as driver:
        load = driver.run_cell(cell, run_id="fidelity", seed=1, on_exchange=kept.append)
    offset_ns = _realtime_offset_ns()
    rows = []
    for exchange in kept:
        if exchange.failure is not None:
            raise SystemExit(f"request {exchange.seq}: {exchange.failure}: {exchange.detail}")
        if exchange.warmup:
            continue
        arrivals = exchange.arrivals_ns
        times = [exchange.sent_ns, exchange.due_ns, arrivals[0], arrivals[-1], exchange.done_ns or arrivals[-1]]
        back_ns = offset_ns if exchange.clock == "realtime" else 0
        rows.append([exchange.request_id, *(at - back_ns for at in times), len(arrivals)])
    said = {"cpu_s": load.cpu_s, "stamp_source": kept[-1].stamp_source, "requests": rows}
    args.out.write_bytes(msgspec.json.encode(said))


def _realtime_offset_ns() -> int:
    """CLOCK_REALTIME - CLOCK_MONOTONIC: of a hundred readings the one that took the least time."""
    readings = []
    for _ in range(100):
        before = time.monotonic_ns()
        real = time.time_ns()
        after = time.monotonic_ns()
        readings.append((after - before, real - (before + after) // 2))
    return min(readings)[1]


if __name__ == "__main__":
    main()

"""What the embedded stack itself costs: tokens a second without compute or KV, CPU per token, CPU per MiB of KV.

    python overhead/stack.py [--streams 64] [--tokens 128] [--seconds 10]

First with compute time zero and KV transfer off, the client (kvgauge's own load driver) on the same machine: what
the stack can carry at most. The figure to beat is that of Dynamo 1.6.1's frontend + mocker on two cores: 33,000
output tok/s at 64 streams of 128 tokens, three processes, 325 MB. Then with real KV, one request at a time: what a
MiB costs beside a memcpy of the same machine.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np

from kvgauge.builds.install import install
from kvgauge.evidence.machine import read_snapshot, use
from kvgauge.load.drive import Driver
from kvgauge.plan.records import Cell, Run, Test
from kvgauge.target.embedded import EmbeddedTarget, Options

DYNAMO_TOK_S, DYNAMO_MB = 33_000, 325


def the_test(backend: str) -> Test:
    return Test(
        name="overhead",
        backend=backend,
        fabric="tcp",
        build="1.5.0",
        patches="none",
        stand_in=None,
        model="Qwen3-0.6B",
        prefill_tp=1,
        decode_tp=1,
    )


def measure(cell: Cell, options: Options, backend: str):
    """Offer one cell: exchanges, seconds, machine use, moved bytes."""
    test = the_test(backend)
    target = EmbeddedTarget(Path(tempfile.mkdtemp(prefix="kvgauge-overhead-")), install, options)
    exchanges = []
    transfers = []
    try:
        target.prepare(test)
        endpoint = target.start(Run(run_id="o", test=test, repetition=1, order=0, seed=1, cells=(cell,)))
        pids = target.pids()
        with Driver(endpoint.url, endpoint.model, host=platform.node(), stagger_s=0.0) as driver:
            begin = read_snapshot(pids)

            def on_exchange(exchange):
                exchanges.append(exchange)

            def tick():
                transfers.extend(target.phases())

            load = driver.run_cell(cell, run_id="o", seed=1, on_exchange=on_exchange, tick=tick)
        after = read_snapshot(pids)
        time.sleep(0.1)  # the last move's record comes right after its answer
        transfers.extend(target.phases())
    finally:
        target.stop()
    seconds = (load.ended_ns - load.started_ns) / 1e9
    return exchanges, seconds, use(begin, after), transfers


def memcpy_s_per_mib() -> float:
    source = np.ones(64 << 20, dtype=np.uint8)
    destination = np.empty_like(source)
    best = min(_timed(lambda: np.copyto(destination, source)) for _ in range(5))
    return best / 64


def _timed(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()

    requests = max(args.streams, int(DYNAMO_TOK_S * args.seconds / args.tokens))
    cell = Cell(
        name="flood",
        load="closed",
        concurrency=args.streams,
        requests=requests,
        output_tokens=args.tokens,
        warmup_requests=args.streams,
        input_tokens=16,
    )
    show_stack(args, *measure(cell, Options(compute=0, kv=False), "UCX")[:3])
    for backend in ("UCX", "LIBFABRIC"):
        cell = Cell(
            name="kv", load="single", concurrency=1, requests=30, output_tokens=1, warmup_requests=3, input_tokens=512
        )
        show_kv(backend, *measure(cell, Options(compute=0), backend)[2:])


def show_stack(args, exchanges, seconds, machine) -> None:
    measured = [e for e in exchanges if not e.warmup]
    failed = [e for e in exchanges if e.failure]
    tokens = sum(e.tokens_out for e in measured)
    every = sum(e.tokens_out for e in exchanges)  # processor time was spent on the warm-up's tokens too
    servers = {name: cpu for name, cpu in machine.processes_cpu_s.items() if name != "client"}
    server_mb = sum(rss for name, rss in machine.rss_bytes.items() if name != "client") / 1e6
    print(f"machine: {os.cpu_count()} cores, {platform.machine()}, busy {machine.busy:.0%}, steal {machine.steal:.1%}")
    print(f"stack without compute and KV, {args.streams} streams x {args.tokens} tokens, {len(measured)} requests:")
    print(f"  {tokens / seconds:10,.0f} output tok/s (Dynamo 1.6.1: {DYNAMO_TOK_S:,}), {len(failed)} failed")
    print(f"  {sum(len(e.arrivals_ns) for e in measured):10,} events for {tokens:,} tokens")
    for name, cpu_s in machine.processes_cpu_s.items():
        print(f"  {name:10} {1e6 * cpu_s / every:6.2f} us CPU a token, {machine.rss_bytes[name] / 1e6:5.0f} MB")
    server_us = 1e6 * sum(servers.values()) / every
    print(f"  stack      {server_us:6.2f} us CPU a token, {server_mb:5.0f} MB (Dynamo 1.6.1: {DYNAMO_MB})")


def show_kv(backend, machine, transfers) -> None:
    mib = sum(t.bytes_listed for t in transfers) / 2**20
    cpu = {name: s for name, s in machine.processes_cpu_s.items() if name != "client"}
    checked = sum(t.checked_ns for t in transfers) / 1e9
    moved = sum(t.transferred_ns - t.posted_ns for t in transfers) / 1e9
    print(f"KV over {backend}/tcp, 56 MiB a request, one at a time, {len(transfers)} transfers:")
    cpu_us = 1e6 * sum(cpu.values()) / mib
    print(f"  {mib / moved:8,.0f} MiB/s while moving; CPU {cpu_us:,.0f} us a MiB (both sides poll)")
    copy_us = 1e6 * memcpy_s_per_mib()
    print(f"  stamps checked in {1e6 * checked / mib:.1f} us a MiB; memcpy here {copy_us:.0f} us a MiB")


if __name__ == "__main__":
    main()

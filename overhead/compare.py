"""What `kvgauge compare` costs, from its start to its exit: python overhead/compare.py [--runs 10] [--requests 10000]

Two folders are made as `kvgauge run` leaves them, samples and results.json, of two cells; then compared five times.
They are compared by what results.json holds, so that only making them takes longer with more requests.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kvgauge.plan.records import Cell, Plan, Primary, Test
from kvgauge.report.records import RunResult
from kvgauge.report.results import build, write
from kvgauge.samples.files import SampleWriter
from kvgauge.samples.records import Exchange
from kvgauge.stats.cells import cell_metrics

MS, LIMIT_S, TRIES = 1_000_000, 2.0, 5
CELLS = ("512x128-10", "512x128-20")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--requests", type=int, default=10_000, help="of each run, over its two cells")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as top:
        folders = [Path(top, name) for name in ("before", "after")]
        for folder, ttft_ms in zip(folders, (80.0, 76.0), strict=True):
            make(folder, ttft_ms, args.runs, args.requests)
        samples_mb = sum(path.stat().st_size for path in Path(top).rglob("*.parquet")) / 1e6
        before = os.times()
        taken = [once(folders) for _ in range(TRIES)]
        after = os.times()
    cpu_s = (after.children_user + after.children_system - before.children_user - before.children_system) / TRIES
    low, high = min(taken), max(taken)
    print(
        f"2 x {args.runs} runs x {args.requests:,} requests ({samples_mb:.0f} MB of samples): compared in "
        f"{statistics.median(taken):.2f} s, median of {TRIES} ({low:.2f} to {high:.2f}), {cpu_s:.2f} s of a core"
    )
    return 0 if statistics.median(taken) < LIMIT_S else 1


def once(folders: list[Path]) -> float:
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "kvgauge", "compare", *map(str, folders), "--metrics", "all", "--gate", "ttft:5%"],
        capture_output=True,
        check=False,
        timeout=120,
    )
    if ended.returncode not in (0, 1, 4):
        raise SystemExit(ended.stderr.decode())
    return time.monotonic() - began


def make(folder: Path, ttft_ms: float, runs: int, requests: int) -> None:
    rng = random.Random(f"{ttft_ms}")
    cells = tuple(
        Cell(
            name=name,
            load="closed",
            concurrency=int(name.rpartition("-")[2]),
            requests=requests // 2,
            output_tokens=8,
            warmup_requests=0,
            input_tokens=512,
        )
        for name in CELLS
    )
    test = Test(
        name="UCX", backend="UCX", fabric="tcp", build="1.5.0", patches="none", stand_in=None, model="Qwen3-0.6B",
        prefill_tp=1, decode_tp=1,
    )  # fmt: skip
    plan = Plan(
        name="made", source="overhead/compare.py", tests=(test,), cells=cells, repetitions=runs, rehearsal=True,
        primary=Primary(metric="ttft_ms_mean", cell=CELLS[0]),
    )  # fmt: skip
    given = [one for repetition in range(1, runs + 1) for one in run(folder, repetition, ttft_ms, cells, rng)]
    write(build(plan, {"UCX": given}, {"host": "made"}), folder)


def run(folder: Path, repetition: int, ttft_ms: float, cells: tuple[Cell, ...], rng: random.Random) -> list[RunResult]:
    """Its samples on disk, and what they add up to."""
    run_id, found = f"r{repetition}-ucx", []
    level_ms = ttft_ms * rng.lognormvariate(0, 0.02)
    with SampleWriter(folder / "runs" / run_id) as writer:
        for cell in cells:
            asked = [exchange(run_id, cell, seq, level_ms, rng) for seq in range(cell.requests)]
            for each in asked:
                writer.add_exchange(each)
            metrics = cell_metrics(asked, [], asked[0].due_ns, asked[-1].arrivals_ns[-1])
            found.append(
                RunResult(
                    run_id=run_id, repetition=repetition, cell=cell.name, concurrency=cell.concurrency, seed=1,
                    status="valid", reasons=(), metrics=metrics,
                )
            )  # fmt: skip
    return found


def exchange(run_id: str, cell: Cell, seq: int, level_ms: float, rng: random.Random) -> Exchange:
    due_ns = seq * 10 * MS
    first_ns = due_ns + int(MS * level_ms * rng.lognormvariate(0, 0.3))
    return Exchange(
        seq=seq, run_id=run_id, cell=cell.name, warmup=False, slot=0, worker=0, host="made", clock="monotonic",
        stamp_source="user", due_ns=due_ns, sent_ns=due_ns, arrivals_ns=tuple(first_ns + k * 3 * MS for k in range(8)),
        done_ns=None, tokens_in=512, tokens_out=8, tokens_source="usage", status=200,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

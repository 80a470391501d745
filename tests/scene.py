"""Records that several tests start from; each names only what it changes."""

import time
from pathlib import Path

from kvgauge.plan.records import Cell, Run, Test


def make_test(**changes):
    base = {
        "name": "t", "backend": "UCX", "fabric": "tcp", "build": "1.5.0", "patches": "none", "stand_in": None,
        "model": "Qwen3-0.6B", "prefill_tp": 1, "decode_tp": 1,
    }  # fmt: skip
    return Test(**(base | changes))


def make_cell(**changes):
    base = {
        "name": "c", "load": "closed", "concurrency": 2, "requests": 4, "output_tokens": 8, "warmup_requests": 1,
        "input_tokens": 64,
    }  # fmt: skip
    return Cell(**(base | changes))


def make_run(test, *cells):
    return Run(run_id="r1", test=test, repetition=1, order=0, seed=3, cells=cells or (make_cell(),))


def held_blocks(target, seconds=5):
    """Blocks that do not come back within that time, by worker."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        held = {name: r.blocks_total - r.blocks_free for name, r in target._reports().items()}
        if not any(held.values()):
            break
        time.sleep(0.05)
    return {name: count for name, count in held.items() if count}


def children_of(pid):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found

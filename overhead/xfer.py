"""What `kvgauge xfer` costs beside a bare NIXL loop: the same transfers, in turn, and the ratio of their times.

    python overhead/xfer.py [--rounds 12] [--seconds 1] [--backend UCX|LIBFABRIC|both] [--json FILE]

The bare loop is this file's own `--side`: two processes, NIXL's Python API and nothing else. No check, no telemetry, no
message, no clock between two looks, a pause where kvgauge checks: make_prepped_xfer, transfer, check_xfer_state until
it is no longer PROC. Both move the same blocks between the same number of slots, each side held to a core of its own.
In each round both run, the first one changing; the ratio is of the round's medians, its interval over rounds (t, on the
logarithm). The target: an interval that reaches 1.02 or less. Rounds in which either loop was kept off its cores are
left out, and how many were is said; without two quiet rounds there is no interval, and no success. The quickest
transfers stand beside the medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from kvgauge import backends
from kvgauge.builds.install import install
from kvgauge.kv import libraries
from kvgauge.models import MODELS
from kvgauge.target.interfaces import first_outward
from kvgauge.xfer.figures import latency_ns, paired_ratio
from kvgauge.xfer.measure import Pace, measure
from kvgauge.xfer.places import Crew, Here
from kvgauge.xfer.workload import Workload, descriptors, of_model, rows

TARGET = 1.02
PAUSE_S = 0.005  # between batches, as long as kvgauge checks: without it a busy kernel leaves both sides on one core
DISTURBED = 3
MARK = "KVGAUGE-BARE "


def cases() -> tuple[Workload, ...]:
    return (
        Workload(name="1 x 4 KiB", blocks=1, block_bytes=4096),
        Workload(name="64 x 64 KiB", blocks=64, block_bytes=64 << 10),
        of_model(MODELS["Qwen3-0.6B"], tokens=512, tp=1, dtype="bf16"),
    )


# -- the bare loop


def side() -> None:
    """One of the two processes; lines of JSON on standard input and output."""
    spec = json.loads(sys.stdin.readline())
    work = msgspec.convert(spec["work"], Workload)
    api = libraries.load(install("1.5.0"), spec["backend"])
    agent = api.nixl_agent(spec["side"], api.nixl_agent_config(enable_prog_thread=False, backends=[spec["backend"]]))
    memory = np.zeros(work.slots * work.slot_bytes, dtype=np.uint8)
    memory[::4096] = 1
    agent.register_memory([(memory.ctypes.data, memory.nbytes, 0, "")], "DRAM")
    tell({"metadata": agent.get_agent_metadata().hex(), "address": memory.ctypes.data})
    if spec["side"] == "target":
        while not any(b"bye" in notes for notes in agent.get_new_notifs().values()):
            pass
        os._exit(0)
    other = json.loads(sys.stdin.readline())
    peer = agent.add_remote_agent(bytes.fromhex(other["metadata"]))
    agent.make_connection(peer)
    ours = agent.prep_xfer_dlist("NIXL_INIT_AGENT", descriptors(work, memory.ctypes.data, 0, 0), "DRAM")
    theirs = agent.prep_xfer_dlist(peer, descriptors(work, other["address"], 0, 0), "DRAM")
    mine = [rows(work, "initiator", 0, slot) for slot in range(work.slots)]
    there = [rows(work, "target", 0, slot) for slot in range(work.slots)]
    taken, until = [], None
    for number in range(spec["warmup"] + spec["transfers"]):
        slot = number % work.slots
        if slot == 0:
            time.sleep(PAUSE_S)
        began = time.monotonic_ns()
        handle = agent.make_prepped_xfer(work.operation, ours, mine[slot], theirs, there[slot], b"n")
        state = agent.transfer(handle)
        while state == "PROC":
            state = agent.check_xfer_state(handle)
        ended = time.monotonic_ns()
        agent.release_xfer_handle(handle)
        if state != "DONE":
            sys.exit(f"NIXL reports {state}")
        if number >= spec["warmup"]:
            taken.append(ended - began)
            until = until or ended + spec["seconds"] * 1e9
            if ended > until:
                break
    agent.send_notif(peer, b"bye")
    tell({"taken_ns": taken})
    for _ in range(1000):
        agent.get_new_notifs()  # the notification leaves while somebody polls
    os._exit(0)


def tell(what: dict) -> None:
    print(MARK + json.dumps(what), flush=True)  # libraries print lines of their own


def told(child: subprocess.Popen) -> dict:
    for line in child.stdout:
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    raise SystemExit("a side of the bare loop ended without a word")


def bare(work: Workload, backend: str, environment: dict[str, str], pace: Pace) -> dict[str, float]:
    """ns of a transfer of the bare loop."""
    spec = {
        "work": msgspec.to_builtins(work),
        "backend": backend,
        "transfers": pace.transfers,
        "warmup": pace.warmup + 1,
        "seconds": pace.seconds,
    }
    children = []
    try:
        for name in ("target", "initiator"):
            child = subprocess.Popen(
                [sys.executable, __file__, "--side"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={name: os.environ[name] for name in backends.INHERITED if name in os.environ} | environment,
            )
            os.sched_setaffinity(child.pid, {core_of(name)})
            children.append(child)
            child.stdin.write(json.dumps({**spec, "side": name}) + "\n")
            child.stdin.flush()
        target, initiator = children
        theirs = told(target)
        told(initiator)
        initiator.stdin.write(json.dumps(theirs) + "\n")
        initiator.stdin.flush()
        return spread(told(initiator)["taken_ns"])
    finally:
        for child in children:
            child.kill()
            child.wait()


# -- both, in turn


class Pinned(Here):
    """Each side on a core of its own, as the bare loop's are."""

    def start(self, job):
        names = super().start(job)
        for name in names:
            os.sched_setaffinity(self._workers[name].pid, {core_of(job.side)})
        return names


def core_of(name: str) -> int:
    cores = sorted(os.sched_getaffinity(0))
    return cores[0] if name == "initiator" else cores[-1]


def ours(crew: Crew, work: Workload, backend: str, pace: Pace) -> dict[str, float]:
    """ns of a transfer of `kvgauge xfer`."""
    cores = len(os.sched_getaffinity(0))
    found = measure(crew, 1, backend, work, pace, progress_thread=False, threads=0, cores=cores)
    if found.failure is not None or found.blocks_wrong:
        raise SystemExit(f"{work.name}, {backend}: {found.failure or 'blocks were wrong'}")
    return spread(np.concatenate([latency_ns(table) for table in found.batches]))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--transfers", type=int, default=2000)
    parser.add_argument("--backend", choices=("UCX", "LIBFABRIC", "both"), default="both")
    parser.add_argument("--only", default="", help="workloads whose name holds this")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side()
    outward = first_outward()
    environments = {
        backend: backends.worker_environment(backend, "tcp", outward[0] if outward and backend != "UCX" else None)
        for backend in (("UCX", "LIBFABRIC") if args.backend == "both" else (args.backend,))
    }
    pace = Pace(transfers=args.transfers, warmup=10, seconds=args.seconds)
    here = Pinned(install("1.5.0"), environments)
    crew = Crew(here, here)
    found = []
    try:
        for work in [work for work in cases() if args.only in work.name]:
            for backend, environment in environments.items():
                calls = [partial(ours, crew, work, backend, pace), partial(bare, work, backend, environment, pace)]
                pairs = []
                for number in range(args.rounds):
                    turn = 1 if number % 2 else -1
                    pairs.append(tuple([call() for call in calls[::turn]][::turn]))
                found.append((work.name, backend, pairs))
                show(*found[-1])
    finally:
        here.close()
    if args.json:
        named = [{"workload": name, "backend": backend, "ns": pairs} for name, backend, pairs in found]
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(named)))
    return 0 if all(reached(ratio_of(pairs, "median_ns")) for _, _, pairs in found) else 1


def ratio_of(pairs, which: str):
    return paired_ratio([(mine[which], theirs[which]) for mine, theirs in quiet(pairs)])


def quiet(pairs):
    """Rounds in which neither loop was kept off its cores: both medians within DISTURBED times the least of all.

    Two processes that poll on one core take a turn of the scheduler for each transfer, a thousand times as long; which
    of the two loops that hits is chance.
    """
    least = min(side["median_ns"] for pair in pairs for side in pair)
    return [pair for pair in pairs if max(side["median_ns"] for side in pair) <= DISTURBED * least]


def reached(ratio) -> bool:
    return ratio.low is not None and ratio.low <= TARGET


def show(name, backend, pairs) -> None:
    if left := len(pairs) - len(quiet(pairs)):
        print(f"{name:22} {backend:9} {left} of {len(pairs)} rounds disturbed (others had a core): left out")
    if not quiet(pairs):
        return
    pairs = quiet(pairs)
    for which in ("median_ns", "least_ns"):
        ratio = ratio_of(pairs, which)
        mine, theirs = (statistics.median(one[which] for one in side) / 1e3 for side in zip(*pairs, strict=True))
        interval = f"{ratio.low:.3f} to {ratio.high:.3f}" if ratio.low is not None else ratio.reason
        print(
            f"{name:22} {backend:9} {which.removesuffix('_ns'):6} kvgauge {mine:10,.1f} us, bare {theirs:10,.1f} us, "
            f"ratio {ratio.point:.3f} (95 % {interval}, n={ratio.n}): {'' if reached(ratio) else 'NOT '}reached",
            flush=True,
        )


def spread(taken_ns) -> dict[str, float]:
    return {"median_ns": float(np.median(taken_ns)), "least_ns": float(min(taken_ns))}


if __name__ == "__main__":
    sys.exit(main())

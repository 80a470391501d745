"""What gathering and scattering alone take on a GPU, with the kernel of `kvgauge xfer --strategy gathered`.

    python overhead/gather.py [--repeats 50] [--json FILE]

Needs an NVIDIA driver, numpy and kvgauge's own packages; NIXL is not used. One transfer's blocks of each model of the
reference plan go from scattered places into one buffer, and from there into other places of a wiped pool; every byte
of that pool is compared on the CPU afterwards, the space between the blocks too. Times are from before the launch until
an event behind it was seen, and, queued, per launch of many one behind the other. Of a model with ranks, one's share.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from kvgauge.failures import TransferError
from kvgauge.models import MODELS
from kvgauge.xfer.cuda import Device
from kvgauge.xfer.kernel import Kernel
from kvgauge.xfer.workload import Workload, of_model, rows

QUEUED = 20
BLANK = np.uint64(0xEEEEEEEEEEEEEEEE)


def cases() -> tuple[Workload, ...]:
    models = (("Qwen3-0.6B", 512, 1), ("Llama-3.1-8B", 512, 1), ("Llama-3.1-70B", 512, 8))
    named = [of_model(MODELS[name], tokens=tokens, tp=tp, dtype="bf16") for name, tokens, tp in models]
    blocks = [Workload(name=f"{count} x {size} B", blocks=count, block_bytes=size)
              for count, size in ((1, 16), (100, 48), (3, 1 << 24), (16384, 4096))]  # fmt: skip
    return (*named, *blocks)


def measure(gpu: Device, work: Workload, repeats: int) -> dict[str, object]:
    words = work.slot_bytes // 8
    source, sink, buffer = (
        gpu.allocate(2 * work.slot_bytes),
        gpu.allocate(2 * work.slot_bytes),
        gpu.allocate(work.leg_bytes),
    )
    kernel, size = Kernel(gpu), np.uint64(work.block_bytes)
    out_of, into = (rows(work, side, 0, 0) for side in ("initiator", "target"))
    image = np.random.default_rng(1).integers(0, 1 << 63, 2 * words, dtype=np.uint64)
    blank = np.full(2 * words, BLANK, dtype=np.uint64)
    gpu.upload(source, image.ctypes.data, image.nbytes)
    gpu.upload(sink, blank.ctypes.data, blank.nbytes)
    there = kernel.table(np.uint64(source) + out_of.astype(np.uint64) * size)
    here = kernel.table(np.uint64(sink) + into.astype(np.uint64) * size)
    packed = kernel.table(np.uint64(buffer) + np.arange(work.leg_blocks, dtype=np.uint64) * size)
    slot = work.slot_bytes  # the second one: offsets are taken too
    gather = lambda: kernel.start(work.leg_blocks, work.block_bytes, (there, slot), (packed, 0))  # noqa: E731
    scatter = lambda: kernel.start(work.leg_blocks, work.block_bytes, (packed, 0), (here, slot))  # noqa: E731
    found: dict[str, object] = {"name": work.name, "blocks": work.leg_blocks, "block_bytes": work.block_bytes}
    for name, act in (("gather", gather), ("scatter", scatter)):
        found[f"{name}_us"], found[f"{name}_queued_us"] = alone(kernel, act, repeats), queued(kernel, act)
    held = np.empty(2 * words, dtype=np.uint64)
    gpu.download(held.ctypes.data, sink, held.nbytes)
    each = work.block_bytes // 8
    wanted, images = blank.copy().reshape(-1, each), image.reshape(-1, each)
    wanted[into + work.slot_blocks] = images[out_of + work.slot_blocks]
    found["words_wrong"] = int(np.count_nonzero(held != wanted.ravel()))
    kernel.forget_tables()
    for at in (source, sink, buffer):
        gpu.free(at)
    return found


def alone(kernel: Kernel, act: object, repeats: int) -> float:
    taken = []
    for _ in range(repeats + 1):
        began = time.monotonic_ns()
        act()  # type: ignore[operator]
        at_ns, _ = kernel.finish()
        taken.append(at_ns - began)
    return statistics.median(taken[1:]) / 1e3


def queued(kernel: Kernel, act: object) -> float:
    began = time.monotonic_ns()
    for _ in range(QUEUED):
        act()  # type: ignore[operator]
    at_ns, _ = kernel.finish()
    return (at_ns - began) / QUEUED / 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    try:
        gpu = Device(0)
    except TransferError as error:
        print(f"gather: {error}", file=sys.stderr)
        return 3
    found = [measure(gpu, work, args.repeats) for work in cases()]
    print(f"{gpu.name}, driver for CUDA {gpu.driver}; us: one alone, and of {QUEUED} queued")
    for row in found:
        print("{name}: {blocks:,} x {block_bytes:,} B: gather {gather_us:.1f} {gather_queued_us:.1f}, scatter "
              "{scatter_us:.1f} {scatter_queued_us:.1f}; {words_wrong} words wrong".format(**row))  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"gpu": gpu.name, "driver": gpu.driver, "rows": found}, indent=1) + "\n")
    return int(any(row["words_wrong"] for row in found))


if __name__ == "__main__":
    sys.exit(main())

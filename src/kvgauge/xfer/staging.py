"""Gathering and scattering on one side: staging buffers, and what copies between them and the pools."""

import time
from pathlib import Path
from typing import Protocol

import numpy as np

from kvgauge.kv.agent import Agent
from kvgauge.xfer.cuda import Device
from kvgauge.xfer.kernel import Kernel
from kvgauge.xfer.memory import DeviceMemory, HostPool, Pool
from kvgauge.xfer.workload import Side, UInt64, Workload, rows


class Stage(Protocol):
    """The blocks of one pair of agents in this side's pool, and its areas of the staging buffer."""

    def gather(self, slot: int, area: int) -> None:
        """Blocks of this slot to that area, in the order both sides list them; may return before it is done."""

    def scatter(self, slot: int, area: int) -> None: ...

    def finish(self) -> tuple[int, int]:
        """Wait: (moment all that was started is done, ns it may have been done before that)."""


class HostStage:
    """In host memory: one call of numpy for all blocks. words: of the whole pool; staged: of the group's areas"""

    def __init__(self, work: Workload, words: UInt64, first: np.ndarray, staged: UInt64) -> None:
        per_block = work.block_bytes // words.itemsize
        self._blocks = words.reshape(-1, per_block)
        self._areas = staged.reshape(work.areas, work.leg_blocks, per_block)
        self._slots = [first + slot * work.slot_blocks for slot in range(work.slots)]

    def gather(self, slot: int, area: int) -> None:
        # "clip": with "raise" numpy would copy through a buffer of its own
        np.take(self._blocks, self._slots[slot], axis=0, out=self._areas[area], mode="clip")

    def scatter(self, slot: int, area: int) -> None:
        self._blocks[self._slots[slot]] = self._areas[area]

    def finish(self) -> tuple[int, int]:
        return time.monotonic_ns(), 0


class DeviceStage:
    """On a GPU: one launch for all blocks. blocks, staged: tables of addresses, of slot 0 and of area 0"""

    def __init__(self, work: Workload, kernel: Kernel, blocks: int, staged: int) -> None:
        self._kernel, self._blocks, self._staged = kernel, blocks, staged
        self._count, self._block_bytes = work.leg_blocks, work.block_bytes
        self._slot_bytes, self._area_bytes = work.slot_bytes, work.leg_bytes

    def gather(self, slot: int, area: int) -> None:
        blocks, staged = (self._blocks, slot * self._slot_bytes), (self._staged, area * self._area_bytes)
        self._kernel.start(self._count, self._block_bytes, blocks, staged)

    def scatter(self, slot: int, area: int) -> None:
        blocks, staged = (self._blocks, slot * self._slot_bytes), (self._staged, area * self._area_bytes)
        self._kernel.start(self._count, self._block_bytes, staged, blocks)

    def finish(self) -> tuple[int, int]:
        return self._kernel.finish()


class Staging:
    """A staging buffer for each agent of a side, and a kernel for each of its threads. raises TransferError"""

    def __init__(self, work: Workload, side: Side, gpu: Device | None, threads: int) -> None:
        self._work, self._side = work, side
        words = work.staging_words(side)
        self._buffers: list[HostPool | DeviceMemory] = [
            HostPool(words) if gpu is None else DeviceMemory(words, gpu) for _ in range(threads * work.ranks)
        ]
        self._kernels = [] if gpu is None else [Kernel(gpu) for _ in range(threads)]

    def address(self, number: int) -> int:
        """Of the buffer of the side's agent `number`: thread by thread, rank by rank."""
        return self._buffers[number].address

    def register(self, agent: Agent, number: int) -> None:
        buffer = self._buffers[number]
        agent.register(buffer.address, buffer.size_bytes, self._work.memory, buffer.device)

    def renew(self) -> None:
        """Stages made before are not used again."""
        for kernel in self._kernels:
            kernel.forget_tables()

    def stage(self, number: int, pool: Pool, group: int, which: int) -> Stage:
        """group: the other side, as the pool counts them; which: the `pair`"""
        work, buffer = self._work, self._buffers[number]
        first = rows(work, self._side, which, 0).astype(np.int64) + group * work.slots * work.slot_blocks
        group_bytes = work.areas * work.leg_bytes
        if isinstance(buffer, HostPool):
            words = buffer.host().reshape(-1, group_bytes // 8)[group]
            return HostStage(work, pool.host(), first, words)
        kernel = self._kernels[number // work.ranks]
        size = np.uint64(work.block_bytes)
        start = np.uint64(buffer.address + group * group_bytes)
        return DeviceStage(
            work,
            kernel,
            kernel.table(np.uint64(pool.address) + first.astype(np.uint64) * size),
            kernel.table(start + np.arange(work.leg_blocks, dtype=np.uint64) * size),
        )


def clock_name() -> str:
    """Processes with the same name share CLOCK_MONOTONIC: one start of one kernel, one time namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/time').readlink()}"
    except OSError:  # unknown, so shared with nobody
        return ""

"""What `kvgauge xfer` moves: workloads as numbers, and where each of their blocks lies. Pure; workers use it too.

An agent's pool is an array of *slots*, each a whole workload for one pair of agents:

    [group = the other side] [slot] [region = layer x (K, V)] [room blocks] [bytes of a block]

Only `blocks` of the `room` blocks of a region are moved, so that a write that misses its block is seen. One transfer
fills one slot. A transfer is never timed twice into the same slot before that slot was compared byte by byte.

With the strategy `gathered` each agent has a staging buffer beside its pool, of the blocks of one transfer one after
another: [group] [area, as many as are under way at a time] [blocks moved, region by region].
"""

import zlib
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from kvgauge.models import BLOCK_TOKENS, DTYPE_BYTES, Model, heads_per_rank

UInt64 = npt.NDArray[np.uint64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

Operation = Literal["READ", "WRITE"]
Pattern = Literal["scattered", "contiguous"]
Memory = Literal["DRAM", "VRAM"]
Side = Literal["initiator", "target"]
Strategy = Literal["blocks", "gathered"]

WORD_BYTES = 8
UNIT_BYTES = 16  # what a thread of the GPU's gathering kernel copies at a time
SLOTS_MAX = 128
SLOTS_WANTED_BYTES = 512 << 20  # of all slots of one side: enough for a batch, little enough to be filled quickly
POOL_BYTES_MAX = 64 << 30
DESCRIPTORS_MAX = 1 << 24  # of one transfer; NIXL takes 32-bit indices, and lists of them cost memory


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table: what one transfer is, and how many are under way.

    ranks        pairs of agents that share one transfer (tensor parallelism), all in one process a side
    regions      a rank's layers x (K and V), or 1
    blocks       moved in each region
    block_bytes  one descriptor before NIXL merges neighbours
    strategy     blocks: as they lie, a descriptor each; gathered: copied into one staging buffer, moved as one
                 descriptor and put into their places at the other side
    depth        transfers under way at a time, of each thread
    threads      of each initiating process, each with agents of its own
    initiators, targets  processes; one of the two is 1
    """

    name: str
    operation: Operation = "READ"
    pattern: Pattern = "scattered"
    strategy: Strategy = "blocks"
    memory: Memory = "DRAM"
    ranks: int = 1
    regions: int = 1
    blocks: int
    block_bytes: int
    depth: int = 1
    threads: int = 1
    initiators: int = 1
    targets: int = 1

    @property
    def room(self) -> int:
        """Blocks a region has room for."""
        return self.blocks + (max(1, self.blocks // 2) if self.pattern == "scattered" else 1)

    @property
    def slot_blocks(self) -> int:
        return self.regions * self.room

    @property
    def slot_bytes(self) -> int:
        return self.slot_blocks * self.block_bytes

    @property
    def leg_blocks(self) -> int:
        """Moved between one pair of agents."""
        return self.regions * self.blocks

    @property
    def leg_bytes(self) -> int:
        return self.leg_blocks * self.block_bytes

    @property
    def transfer_blocks(self) -> int:
        """Moved by one transfer, over all ranks and targets."""
        return self.targets * self.ranks * self.leg_blocks

    @property
    def descriptors(self) -> int:
        """Listed by one transfer, over all ranks and targets."""
        return self.targets * self.ranks if self.strategy == "gathered" else self.transfer_blocks

    @property
    def transfer_bytes(self) -> int:
        return self.transfer_blocks * self.block_bytes

    @property
    def groups_initiator(self) -> int:
        """Areas in the pool of one initiating agent: one for each target."""
        return self.targets

    @property
    def groups_target(self) -> int:
        """Areas in the pool of one target's agent: one for each thread of each initiator."""
        return self.initiators * self.threads

    @property
    def slots(self) -> int:
        """Transfers of one thread between two checks."""
        agents = self.initiators * self.threads * self.targets * self.ranks  # pairs of them, the same on both sides
        widest = agents * self.slot_bytes
        return max(self.depth, min(SLOTS_MAX, SLOTS_WANTED_BYTES // max(widest, 1)), 1)

    @property
    def pool_words_initiator(self) -> int:
        return self.groups_initiator * self.slots * self.slot_bytes // WORD_BYTES

    @property
    def pool_words_target(self) -> int:
        return self.groups_target * self.slots * self.slot_bytes // WORD_BYTES

    @property
    def areas(self) -> int:
        """Staging areas of one group: a transfer under way needs its own."""
        return min(self.depth, self.slots) if self.strategy == "gathered" else 0

    def staging_words(self, side: Side) -> int:
        """Of one agent's staging buffer; 0 where blocks are moved as they lie."""
        groups = self.groups_initiator if side == "initiator" else self.groups_target
        return groups * self.areas * self.leg_bytes // WORD_BYTES

    @property
    def memory_bytes(self) -> dict[str, int]:
        """All pools and staging buffers of all processes of each side."""
        initiator = self.pool_words_initiator + self.staging_words("initiator")
        target = self.pool_words_target + self.staging_words("target")
        return {
            "initiator": self.initiators * self.threads * self.ranks * initiator * WORD_BYTES,
            "target": self.targets * self.ranks * target * WORD_BYTES,
        }


def refusal(work: Workload) -> str | None:
    """None, or why this workload cannot be run anywhere."""
    if min(work.ranks, work.regions, work.blocks, work.depth, work.threads, work.initiators, work.targets) < 1:
        return "counts must be at least 1"
    if work.block_bytes < WORD_BYTES or work.block_bytes % WORD_BYTES:
        return f"a block of {work.block_bytes} bytes: needed is a multiple of {WORD_BYTES}, so that every word is known"
    if work.leg_blocks > DESCRIPTORS_MAX:
        return f"{work.leg_blocks:,} blocks a pair of agents: at most {DESCRIPTORS_MAX:,}"
    if work.strategy == "gathered" and work.memory == "VRAM" and work.block_bytes % UNIT_BYTES:
        return f"a block of {work.block_bytes} bytes: the GPU gathers units of {UNIT_BYTES} bytes; take a multiple"
    if max(work.ranks, work.threads, work.initiators, work.targets) > 64 or work.depth > 1024:
        return "at most 64 ranks, threads and processes a side, and a depth of 1024"
    if max(work.memory_bytes.values()) > POOL_BYTES_MAX:
        return f"{max(work.memory_bytes.values()) >> 20:,} MiB on one side: at most {POOL_BYTES_MAX >> 20:,}"
    return None


def of_model(
    model: Model, *, tokens: int, tp: int, dtype: str, block_tokens: int = BLOCK_TOKENS, layers: int | None = None
) -> Workload:
    """The paged KV of one prompt, every rank's share: the descriptors a decode worker would list.

    layers  fewer than the model has; None: all
    """
    return Workload(
        name=f"{model.name} {tokens} tok" + (f" TP{tp}" if tp > 1 else "") + (f" {layers} layers" if layers else ""),
        ranks=tp,
        regions=(layers or model.layers) * model.regions_per_layer,
        blocks=-(-tokens // block_tokens),
        block_bytes=block_tokens * heads_per_rank(model, tp) * model.head_dim * DTYPE_BYTES[dtype],
    )


def pair(work: Workload, initiator_group: int, target_group: int) -> int:
    """One number for a pair of agents of one rank, whichever side asks.

    initiator_group  in the initiating agent's pool: the target
    target_group     in the target agent's pool: initiator x threads + thread
    """
    return target_group * work.targets + initiator_group


def moved_blocks(work: Workload, side: Side, number: int) -> Int32:
    """Which of the `room` blocks of a region are moved, in order: a permutation, or the first ones where contiguous.

    side, number  every side of every `pair` has an order of its own, so that NIXL finds few neighbours to merge
    """
    if work.pattern == "contiguous":
        return np.arange(work.blocks, dtype=np.int32)
    seed = zlib.crc32(f"{side}/{number}/{work.room}/{work.blocks}".encode())
    return np.random.default_rng(seed).permutation(work.room)[: work.blocks].astype(np.int32)


def rows(work: Workload, side: Side, number: int, slot: int) -> Int32:
    """Rows of a group's descriptor list that a transfer into or out of `slot` names, layer by layer, K then V.

    number  of the `pair`
    """
    regions = np.arange(work.regions, dtype=np.int32)[:, None] * np.int32(work.room)
    found: Int32 = (regions + moved_blocks(work, side, number)[None, :]).ravel() + np.int32(slot * work.slot_blocks)
    return found


def descriptors(work: Workload, base: int, group: int, device: int) -> UInt64:
    """(address, length, device) of every block of every slot of one group, in the order of the pool."""
    count = work.slots * work.slot_blocks
    listed = np.zeros((count, 3), dtype=np.uint64)
    start = base + group * count * work.block_bytes
    listed[:, 0] = np.uint64(start) + np.arange(count, dtype=np.uint64) * np.uint64(work.block_bytes)
    listed[:, 1] = work.block_bytes
    listed[:, 2] = device
    return listed


def staged(work: Workload, base: int, group: int, device: int) -> UInt64:
    """(address, length, device) of every area of one group of a staging buffer: one descriptor a transfer."""
    listed = np.zeros((work.areas, 3), dtype=np.uint64)
    start = base + group * work.areas * work.leg_bytes
    listed[:, 0] = np.uint64(start) + np.arange(work.areas, dtype=np.uint64) * np.uint64(work.leg_bytes)
    listed[:, 1] = work.leg_bytes
    listed[:, 2] = device
    return listed


def merged(ours: Sequence[int] | Int32, theirs: Sequence[int] | Int32) -> int:
    """Descriptors left when neighbours that are neighbours on both sides become one, as NIXL merges them.

    ours, theirs  rows in the order they are listed; rows that follow one another lie beside one another
    """
    here, there = np.asarray(ours, dtype=np.int64), np.asarray(theirs, dtype=np.int64)
    if len(here) == 0:
        return 0
    return 1 + int(np.count_nonzero((np.diff(here) != 1) | (np.diff(there) != 1)))


def parse_size(text: str) -> int:
    """4096, 4KiB, 64k, 1MiB, 2M: bytes, in powers of 1024. raises ValueError"""
    word = text.strip().lower().removesuffix("ib").removesuffix("b")
    factor = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}.get(word[-1:], 0)
    number = word[:-1] if factor else word
    if not number.isascii() or not number.isdigit() or len(number) > 15:
        raise ValueError(f"expected bytes such as 4096, 64KiB or 1MiB, got {text!r}")
    return int(number) * (factor or 1)


def size_text(size: int) -> str:
    """4 KiB, 1 MiB, 100 B."""
    for unit, width in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << width and size % (1 << width) == 0:
            return f"{size >> width} {unit}"
    return f"{size} B"

"""All tensor-parallel ranks of one worker: a pool and a NIXL agent each, as separate agents as in a real engine."""

import ctypes
import mmap
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvgauge.failures import TransferError
from kvgauge.kv import libraries, stamps
from kvgauge.kv.agent import Agent
from kvgauge.kv.layout import (
    Int32,
    PoolShape,
    Share,
    UInt64,
    heads_of,
    piece_heads,
    shares,
)
from kvgauge.kv.transfer import Mover, RankInfo, WorkerInfo
from kvgauge.models import BLOCK_TOKENS, DTYPE_BYTES, Model
from kvgauge.serve.cold import connect_ns
from kvgauge.serve.messages import Spec

LIVELY_NS = 5_000_000_000  # progress is driven this long for transfers that were given up, so that they may still end
MADV_POPULATE_WRITE = 23  # Linux 5.14; older kernels are touched page by page


def pool_shape(model: Model, spec: Spec) -> PoolShape:
    """The pool of each rank of this worker."""
    group = piece_heads(spec.prefill_tp, spec.decode_tp, model.kv_heads)
    return PoolShape(
        regions=model.layers * model.regions_per_layer,
        blocks=spec.blocks,
        pieces=len(heads_of(0, spec.tp, model.kv_heads)) // group,
        piece_bytes=BLOCK_TOKENS * group * model.head_dim * DTYPE_BYTES[spec.kv_dtype],
    )


@dataclass(slots=True, kw_only=True)
class Pool:
    """Memory of one rank, every page present: a first touch must not be mistaken for transfer time."""

    memory: mmap.mmap
    words: UInt64  # [regions, blocks, pieces, words of a piece]
    address: int


def make_pool(shape: PoolShape) -> Pool:
    """raises TransferError when there is not enough memory."""
    size = shape.size_bytes
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, ValueError) as error:
        raise TransferError(f"no memory for a KV pool of {size >> 20} MiB: {error}") from error
    flat = np.frombuffer(memory, dtype=np.uint64)
    address = flat.ctypes.data
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), MADV_POPULATE_WRITE) != 0:
        flat[:: mmap.PAGESIZE // 8] = 0
    words = flat.reshape(shape.regions, shape.blocks, shape.pieces, shape.piece_bytes // 8)
    return Pool(memory=memory, words=words, address=address)


class Ranks:
    """Pools, agents and the mover of one worker. With `spec.backend` None there is neither memory nor NIXL."""

    def __init__(self, spec: Spec, model: Model) -> None:
        self.spec, self.model = spec, model
        self.shape = pool_shape(model, spec)
        self.shares = shares(spec.prefill_tp, spec.decode_tp, model.kv_heads)
        self.pools: list[Pool] = []
        self.agents: list[Agent] = []
        self.start_ns: dict[str, int] = {}
        if spec.backend is not None:
            self._start(spec, spec.backend)
        bases = [pool.address for pool in self.pools]
        self.mover = Mover(
            self.agents, bases, self.shape, time.monotonic_ns, connect_wait_ns=connect_ns(spec.cold_start)
        )

    def _start(self, spec: Spec, backend: str) -> None:
        assert spec.build is not None
        api = self._timed("load", lambda: libraries.load(spec.build, backend))
        again = f"-again-{spec.generation}" if spec.generation else ""
        for rank in range(spec.tp):
            name = f"{spec.role}-{spec.index}-rank-{rank}{again}"
            agent = self._timed(
                "agents", lambda name=name: Agent(api, name, backend, progress_thread=spec.progress_thread)
            )
            pool = self._timed("pool", lambda: make_pool(self.shape))
            self._timed("register", lambda agent=agent, pool=pool: agent.register(pool.address, self.shape.size_bytes))
            self.agents.append(agent)
            self.pools.append(pool)

    def _timed(self, what: str, work: Any) -> Any:
        began = time.monotonic_ns()
        result = work()
        self.start_ns[what] = self.start_ns.get(what, 0) + time.monotonic_ns() - began
        return result

    @property
    def info(self) -> WorkerInfo:
        return WorkerInfo(
            index=self.spec.index,
            shape=self.shape,
            ranks=tuple(
                RankInfo(metadata=agent.metadata, address=pool.address)
                for agent, pool in zip(self.agents, self.pools, strict=True)
            ),
        )

    def poll(self) -> list[int]:
        """Drive every agent; keys whose peer says it is done, once for each piece."""
        return [int.from_bytes(note, "little") for agent in self.agents for note in agent.poll()]

    def write(self, identity: stamps.Identity, blocks: Int32) -> None:
        """Fill a request's blocks at prefill: every rank, every piece it holds."""
        for rank, pool in enumerate(self.pools):
            for piece in range(self.shape.pieces):
                written = stamps.expected(identity, self.shape.regions, len(blocks), rank, piece)
                stamps.write(pool.words, blocks, piece, written, full=self.spec.full_check)

    def check(self, identity: stamps.Identity, blocks: Int32) -> stamps.Checked:
        """Compare a request's blocks at decode with what each prefill rank must have written."""
        faults: dict[stamps.Fault, int] = {}
        for share in self.shares:
            for kind, count in self._check_share(share, identity, blocks).items():
                faults[kind] = faults.get(kind, 0) + count
        pieces = len(self.shares) * self.shape.regions * len(blocks)
        found = int(self.pools[0].words[0, blocks[0], 0, 3]) if len(blocks) and not faults else None
        return stamps.Checked(pieces=pieces, wrong=sum(faults.values()), faults=faults, digest=found)

    def _check_share(self, share: Share, identity: stamps.Identity, blocks: Int32) -> dict[stamps.Fault, int]:
        wanted = stamps.expected(identity, self.shape.regions, len(blocks), share.prefill_rank, share.prefill_piece)
        pool = self.pools[share.decode_rank].words
        return stamps.check(pool, blocks, share.decode_piece, wanted, full=self.spec.full_check)

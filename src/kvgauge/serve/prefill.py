"""A prefill worker: fills blocks in modelled time, keeps them until decode has them (or writes them itself)."""

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from kvgauge.failures import TransferError
from kvgauge.kv.layout import Int32, from_prefill
from kvgauge.kv.stamps import Identity
from kvgauge.kv.transfer import Move, WorkerInfo
from kvgauge.models import BLOCK_TOKENS
from kvgauge.serve.blocks import BlockTable
from kvgauge.serve.cold import Cold
from kvgauge.serve.compute import GPUS, prefill_ns
from kvgauge.serve.incoming import backend_of
from kvgauge.serve.messages import (
    Peers,
    Prefill,
    Prefilled,
    Release,
    Report,
    Settled,
    Spec,
    ToPrefill,
    Written,
    called_off,
    encode,
)
from kvgauge.serve.ranks import LIVELY_NS, Ranks

ON_TIME_NS = 5_000_000  # later than this after a step is a pause, not the next step
KEEP_TIMEOUTS = 3  # transfer time-outs that blocks are kept for a decode worker that never comes


@dataclass(slots=True)
class Export:
    """Blocks that decode has still to fetch: freed when every piece's notification has come."""

    decode_worker: int
    notes_missing: int
    expires_ns: int


@dataclass(slots=True)
class Batch:
    """What is being computed now."""

    requests: list[Prefill]
    blocks: list[Int32]
    start_ns: int
    end_ns: int


class PrefillWorker:
    def __init__(self, spec: Spec, ranks: Ranks, outbox: Any) -> None:
        self._spec, self._ranks, self._outbox = spec, ranks, outbox
        self._gpu = GPUS[spec.gpu]
        self._cold = Cold(spec.cold_start, spec.compute)
        self._table = BlockTable(spec.blocks, seed=spec.index)
        self._waiting: deque[Prefill] = deque()
        self._batch: Batch | None = None
        self._exports: dict[int, Export] = {}
        self._writes: dict[int, Move] = {}
        self._stuck: dict[int, int] = {}  # WRITEs past their deadline that NIXL has not let go of -> decode worker
        self._arrived_ns: dict[int, int] = {}
        self._lively_until_ns = 0
        self._peers: dict[int, WorkerInfo] = {}
        self._unwanted: set[int] = set()  # of the batch: requests whose decode worker has ended
        self._decoder = msgspec.msgpack.Decoder(ToPrefill)
        self._free_at_ns = 0  # when the modelled GPU is done with what it has
        self._late = 0
        self._late_ns_max = 0
        self._steps = 0
        self._backends: dict[str, int] = {}
        self._notes = len(ranks.shares) if ranks.agents else 0

    def on_peers(self, peers: Peers) -> None:
        before, self._peers = self._peers, {worker.index: worker for worker in peers.workers}
        for index, known in before.items():
            if self._peers.get(index) != known:
                self._lose(index)

    def _lose(self, index: int) -> None:
        """A decode worker has ended: nobody will fetch what it wanted. Its clients are the frontend's to tell."""
        self._ranks.mover.forget(index, time.monotonic_ns())
        for request in [request for request in self._waiting if request.decode_worker == index]:
            self._waiting.remove(request)
            del self._arrived_ns[request.key]
        if self._batch is not None:
            self._unwanted |= {request.key for request in self._batch.requests if request.decode_worker == index}
        for key, export in list(self._exports.items()):
            if export.decode_worker == index and key not in self._writes:
                self._forget(key)

    def on_message(self, raw: bytes) -> None:
        message = self._decoder.decode(raw)
        if isinstance(message, Prefill):
            self._waiting.append(message)
            self._arrived_ns[message.key] = time.monotonic_ns()
        else:
            self._drop(message)

    def _drop(self, release: Release) -> None:
        """Nobody wants the request any more. One that decode waits for, but is not begun, is called off there too."""
        for request in [request for request in self._waiting if request.key == release.key]:
            self._waiting.remove(request)
            self._arrived_ns.pop(request.key, None)
            if request.decode_blocks is not None:
                self._outbox.send(encode(called_off(request.key, request.decode_worker)))
        if release.key not in self._writes and self._exports.pop(release.key, None) is not None:
            self._lively_until_ns = time.monotonic_ns() + LIVELY_NS
            self._free(release.key)  # a WRITE under way still reads its blocks: `_written` frees those

    def turn(self, now_ns: int) -> int | None:
        for key in self._ranks.poll():
            self._note(key)
        if self._batch is not None and now_ns >= self._batch.end_ns:
            self._finish(self._batch)
        if self._batch is None and self._waiting:
            self._begin(now_ns)
        if self._writes or self._stuck:
            for move in self._ranks.mover.progress():
                self._written(move)
            for key in self._ranks.mover.settled():
                decode_worker = self._stuck.pop(key)
                self._table.release(key)
                self._outbox.send(encode(Settled(key, decode_worker)))
        self._expire(now_ns)
        if (self._exports or self._writes or now_ns < self._lively_until_ns) and self._ranks.agents:
            return 0
        return self._batch.end_ns if self._batch is not None else None

    def _begin(self, now_ns: int) -> None:
        """Admit what fits into the pool and into one step, write the blocks while the modelled GPU computes.

        Steps follow an absolute clock: one that finds requests waiting starts when the last ended, unless this worker
        noticed that too late.
        """
        on_time = 0 < now_ns - self._free_at_ns < ON_TIME_NS
        waited = self._arrived_ns[self._waiting[0].key] <= self._free_at_ns
        start_ns = self._free_at_ns if on_time and waited else now_ns
        requests: list[Prefill] = []
        taken: list[Int32] = []
        tokens = 0
        while self._waiting:
            request = self._waiting[0]
            blocks = -(-request.prompt_tokens // BLOCK_TOKENS)
            full = requests and tokens + request.prompt_tokens > self._spec.max_batch_tokens
            if full or self._arrived_ns[request.key] > start_ns or not self._table.can_hold(blocks):
                break
            requests.append(self._waiting.popleft())
            del self._arrived_ns[request.key]
            taken.append(self._table.allocate(request.key, blocks))
            tokens += request.prompt_tokens
        if not requests:
            return
        model, tp = self._ranks.model, self._spec.tp
        lengths = [request.prompt_tokens for request in requests]
        modelled = prefill_ns(model, self._gpu, tp, lengths) * self._spec.slowed
        took_ns = int(modelled * self._spec.compute) + self._cold.prefill_ns()
        self._batch = batch = Batch(requests, taken, start_ns, start_ns + took_ns)
        if self._ranks.agents:
            for request, blocks_of in zip(requests, taken, strict=True):
                self._ranks.write(Identity(nonce=request.key, digest=request.digest), blocks_of)
        self._steps += 1
        over_ns = time.monotonic_ns() - batch.end_ns
        if over_ns > 0:  # filling took longer than the modelled step: KV that is not there cannot be fetched
            batch.end_ns += over_ns
            if self._spec.compute > 0:
                self._late += 1
                self._late_ns_max = max(self._late_ns_max, over_ns)

    def _finish(self, batch: Batch) -> None:
        end_ns = self._free_at_ns = batch.end_ns
        self._batch = None
        expires_ns = end_ns + int(KEEP_TIMEOUTS * self._spec.transfer_timeout_s * 1e9) + self._cold.patience_ns
        for request, blocks in zip(batch.requests, batch.blocks, strict=True):
            if request.key in self._unwanted:
                self._table.release(request.key)
                continue
            if self._notes:
                self._exports[request.key] = Export(request.decode_worker, self._notes, expires_ns)
            self._outbox.send(encode(Prefilled(request.key, blocks.tolist(), batch.start_ns, end_ns)))
            if not self._notes:
                self._table.release(request.key)
            elif request.decode_blocks is not None:
                self._write(request, blocks)
        self._unwanted.clear()

    def _write(self, request: Prefill, blocks: Int32) -> None:
        assert request.decode_blocks is not None
        mover = self._ranks.mover
        try:
            self._reach(request.decode_worker)
        except TransferError as error:
            self._forget(request.key)
            self._outbox.send(encode(called_off(request.key, request.decode_worker, str(error))))
            return
        theirs = np.asarray(request.decode_blocks, dtype=np.int32)
        deadline_ns = time.monotonic_ns() + int(self._spec.transfer_timeout_s * 1e9)
        self._writes[request.key] = mover.begin(
            request.key, request.decode_worker, "WRITE", (blocks, theirs), deadline_ns
        )

    def _reach(self, index: int) -> None:
        """Connect to that decode worker if this is the first time. raises TransferError"""
        peer = self._peers.get(index)
        if peer is None:
            raise TransferError(f"decode-{index} has ended")
        if not self._ranks.mover.connected(index):
            self._ranks.mover.connect(peer, [from_prefill(share) for share in self._ranks.shares])

    def _written(self, move: Move) -> None:
        del self._writes[move.key]
        backend = backend_of(move)
        if move.backends:
            self._backends[backend] = self._backends.get(backend, 0) + 1
        if not move.settled:
            self._stuck[move.key] = move.peer
            self._lively_until_ns = time.monotonic_ns() + LIVELY_NS
        self._forget(move.key)
        self._outbox.send(
            encode(
                Written(
                    move.key,
                    move.peer,
                    move.posted_ns or 0,
                    move.post_ns,
                    move.descriptors,
                    move.bytes_listed,
                    move.bytes_moved,
                    backend,
                    move.failure,
                    move.settled,
                )
            )
        )

    def _note(self, key: int) -> None:
        export = self._exports.get(key)
        if export is None:
            return
        export.notes_missing -= 1
        if export.notes_missing == 0:
            self._forget(key)

    def _forget(self, key: int) -> None:
        self._exports.pop(key, None)
        self._free(key)

    def _free(self, key: int) -> None:
        """Give the blocks back, unless a transfer that never ended may still read them."""
        if key not in self._stuck:
            self._table.release(key)

    def _expire(self, now_ns: int) -> None:
        if self._exports:
            oldest = next(iter(self._exports))
            if self._exports[oldest].expires_ns < now_ns:
                self._forget(oldest)

    def report(self) -> Report:
        return Report(
            self._ranks.mover.connections(),
            self._backends,
            self._table.free,
            self._table.total,
            self._steps,
            self._late,
            self._late_ns_max,
            self._cold.paid,
        )

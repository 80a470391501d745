"""A decode worker: fetches KV, checks every block, then gives each request a token a step, all in one batch."""

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from kvgauge.failures import TransferError
from kvgauge.kv.layout import Int32, from_decode
from kvgauge.kv.stamps import Checked, Identity
from kvgauge.kv.transfer import Move, WorkerInfo
from kvgauge.models import BLOCK_TOKENS
from kvgauge.samples.records import Transfer
from kvgauge.serve.blocks import BlockTable
from kvgauge.serve.cold import Cold
from kvgauge.serve.compute import GPUS, decode_ns
from kvgauge.serve.incoming import Incoming, backend_of, record_of
from kvgauge.serve.messages import (
    Abort,
    Decode,
    Peers,
    Refused,
    Released,
    Report,
    Reserve,
    Reserved,
    Settled,
    Spec,
    Started,
    ToDecode,
    Tokens,
    encode,
)
from kvgauge.serve.ranks import LIVELY_NS, Ranks
from kvgauge.serve.vocabulary import answer

PATIENCE = 3  # transfer time-outs to wait for a WRITE: prefill queues and computes first, and tells its own failures
LOST_GRACE_NS = 1_000_000_000  # what a prefill worker sent before it ended has reached our blocks by then


@dataclass(slots=True)
class Sequence:
    """A request that is being answered."""

    key: int
    tokens: list[int]
    at: int
    context: int
    joined_ns: int


class DecodeWorker:
    def __init__(self, spec: Spec, ranks: Ranks, outbox: Any) -> None:
        self._spec, self._ranks, self._outbox = spec, ranks, outbox
        self._gpu = GPUS[spec.gpu]
        self._cold = Cold(spec.cold_start, spec.compute)
        self._table = BlockTable(spec.blocks, seed=1_000 + spec.index)
        self._waiting: deque[Decode | Reserve] = deque()
        self._incoming: dict[int, Incoming] = {}
        self._joining: list[Sequence] = []
        self._active: dict[int, Sequence] = {}
        self._context = 0
        self._step_end_ns: int | None = None
        self._peers: dict[int, WorkerInfo] = {}
        self._decoder = msgspec.msgpack.Decoder(ToDecode)
        self._stuck: dict[int, int] = {}  # given up, but NIXL has not let go of their blocks -> prefill worker
        self._lost: dict[int, int] = {}  # of those: their prefill worker has ended -> when nothing can write any more
        self._lively_until_ns = 0
        self._steps = self._late = self._late_ns_max = 0
        self._backends: dict[str, int] = {}
        self._admitted = 0

    def on_peers(self, peers: Peers) -> None:
        before, self._peers = self._peers, {worker.index: worker for worker in peers.workers}
        for index, known in before.items():
            if self._peers.get(index) != known:
                self._lose(index)

    def _lose(self, index: int) -> None:
        """A prefill worker has ended. What had arrived goes on; blocks under way are kept until nothing can write
        into them; what was not begun is refused."""
        until_ns = time.monotonic_ns() + LOST_GRACE_NS
        self._ranks.mover.forget(index, until_ns)
        for incoming in self._incoming.values():
            if incoming.request.prefill_worker == index and incoming.move is None:
                incoming.lost = True
                incoming.deadline_ns = min(incoming.deadline_ns, until_ns)
                incoming.late = f"prefill-{index} has ended"
        for request in [request for request in self._waiting if request.prefill_worker == index]:
            self._waiting.remove(request)
            self._refuse(request.key, f"prefill-{index} has ended", None)
        if self._spec.operation == "WRITE":  # of a READ, the mover says when NIXL has let go
            self._lost |= {key: until_ns for key, worker in self._stuck.items() if worker == index}

    def on_message(self, raw: bytes) -> None:
        message = self._decoder.decode(raw)
        if isinstance(message, Decode | Reserve):
            self._waiting.append(message)
        elif isinstance(message, Abort):
            self._abort(message.key)
        elif isinstance(message, Settled):
            self._settled(message.key)
        elif (incoming := self._incoming.get(message.key)) is not None:
            incoming.written = message
            if not message.settled:
                self._keep(incoming)
        elif message.settled:
            self._settled(message.key)  # its word came after we had given up

    def turn(self, now_ns: int) -> int | None:
        for key in self._ranks.poll():
            self._note(key)
        for move in self._ranks.mover.progress():
            self._moved(move)
        for key in self._ranks.mover.settled():
            self._settled(key)
        for key in [key for key, until_ns in self._lost.items() if now_ns > until_ns]:
            self._settled(key)
        self._settle_writes(now_ns)
        self._admit(now_ns)
        if self._step_end_ns is not None and time.monotonic_ns() >= self._step_end_ns:
            self._end_step(self._step_end_ns)
        if self._step_end_ns is None and (self._active or self._joining):
            self._begin_step(time.monotonic_ns())
        if self._incoming or (self._stuck and now_ns < self._lively_until_ns):
            return 0
        return self._step_end_ns

    # -- requests on their way in

    def _admit(self, now_ns: int) -> None:
        """Take requests in order while pool and batch have room: a full pool queues, it never fails."""
        while self._waiting:
            request = self._waiting[0]
            blocks = -(-(request.prompt_tokens + request.max_tokens) // BLOCK_TOKENS)
            running = len(self._active) + len(self._joining) + len(self._incoming)
            if running >= self._spec.max_batch or not self._table.can_hold(blocks):
                return
            self._waiting.popleft()
            if self._ranks.agents and request.prefill_worker not in self._peers:
                self._refuse(request.key, f"prefill-{request.prefill_worker} has ended", None)
                continue
            taken = self._table.allocate(request.key, blocks)
            deadline_ns = now_ns + int(self._spec.transfer_timeout_s * 1e9)
            if not self._ranks.agents:
                self._join(request, request.digest)
                self._outbox.send(encode(Started(request.key, None)))
            elif isinstance(request, Decode) and self._recomputes():
                self._join(request, request.digest)
                self._outbox.send(encode(Released(request.key)))
                self._outbox.send(encode(Started(request.key, None)))
            elif isinstance(request, Decode):
                self._fetch(request, taken, deadline_ns)
            else:
                patience_ns = int(PATIENCE * self._spec.transfer_timeout_s * 1e9) + self._cold.patience_ns
                self._expect(request, taken, now_ns + patience_ns)

    def _recomputes(self) -> bool:
        """A fault that tests ask for: the answer is right, and no KV was moved for it."""
        self._admitted += 1
        return self._spec.recompute_every > 0 and self._admitted % self._spec.recompute_every == 0

    def _fetch(self, request: Decode, taken: Int32, deadline_ns: int) -> None:
        """READ: connect to that prefill worker if this is the first time, then pull."""
        mover = self._ranks.mover
        ours, theirs = taken[: len(request.blocks)], np.asarray(request.blocks, dtype=np.int32)
        peer = self._peers[request.prefill_worker]
        try:
            if not mover.connected(peer.index):
                mover.connect(peer, [from_decode(share) for share in self._ranks.shares])
        except TransferError as error:
            self._refuse(request.key, str(error), None)
            return
        move = mover.begin(request.key, peer.index, "READ", (ours, theirs), deadline_ns)
        self._incoming[request.key] = Incoming(request, ours, move=move, deadline_ns=deadline_ns)

    def _expect(self, request: Reserve, taken: Int32, deadline_ns: int) -> None:
        """WRITE: tell prefill where to put the blocks, then wait for its notifications."""
        ours = taken[: -(-request.prompt_tokens // BLOCK_TOKENS)]
        self._incoming[request.key] = Incoming(
            request, ours, notes_missing=len(self._ranks.shares), deadline_ns=deadline_ns
        )
        self._outbox.send(encode(Reserved(request.key, self._spec.index, ours.tolist())))

    def _note(self, key: int) -> None:
        incoming = self._incoming.get(key)
        if incoming is None:
            return
        incoming.notes_missing -= 1
        if incoming.notes_missing == 0:
            incoming.arrived_ns = time.monotonic_ns()

    def _settle_writes(self, now_ns: int) -> None:
        """WRITE: a request is here when every notification has come and prefill has said what it moved."""
        for key, incoming in list(self._incoming.items()):
            if incoming.move is not None:
                continue
            written = incoming.written
            if written is not None and (incoming.arrived_ns is not None or written.failure is not None):
                del self._incoming[key]
                self._arrived(incoming)
            elif now_ns > incoming.deadline_ns:
                del self._incoming[key]
                if written is None and not incoming.lost:
                    self._stuck[key] = incoming.request.prefill_worker  # it lives: until it says so it may still write
                self._refuse(key, incoming.late, None)

    def _moved(self, move: Move) -> None:
        incoming = self._incoming.pop(move.key)
        if move.backends:
            backend = backend_of(move)
            self._backends[backend] = self._backends.get(backend, 0) + 1
        if not move.settled:
            self._keep(incoming)
        self._arrived(incoming)

    def _arrived(self, incoming: Incoming) -> None:
        """Check every block, then let the request join the batch; wrong blocks fail it."""
        record = record_of(incoming, self._spec, self._ranks)
        key = incoming.request.key
        if incoming.aborted and record.failure is not None:
            self._free(key)
            self._outbox.send(encode(Released(key)))
            return
        if record.failure is not None:
            self._refuse(key, record.failure, record)
            return
        began = time.monotonic_ns()
        identity = Identity(nonce=key, digest=incoming.request.digest)
        checked: Checked = self._ranks.check(identity, incoming.blocks)
        record = msgspec.structs.replace(
            record,
            checked_ns=time.monotonic_ns() - began,
            pieces=checked.pieces,
            pieces_wrong=checked.wrong,
            failure=checked.line if checked.wrong else None,
        )
        if checked.digest is None:
            self._refuse(key, checked.line, record)
        elif incoming.aborted:
            self._table.release(key)
        else:
            self._join(incoming.request, checked.digest)
            self._outbox.send(encode(Started(key, record)))

    def _free(self, key: int) -> None:
        """Give the blocks back, unless a transfer that never ended may still write into them."""
        if key not in self._stuck:
            self._table.release(key)

    def _keep(self, incoming: Incoming) -> None:
        key = incoming.request.key
        self._stuck[key] = incoming.request.prefill_worker
        self._lively_until_ns = time.monotonic_ns() + LIVELY_NS
        if incoming.lost:  # its last words came late, and nobody is left to say more
            self._lost[key] = time.monotonic_ns() + LOST_GRACE_NS

    def _settled(self, key: int) -> None:
        self._stuck.pop(key, None)
        self._lost.pop(key, None)
        self._table.release(key)

    def _refuse(self, key: int, reason: str, record: Transfer | None) -> None:
        self._free(key)
        self._outbox.send(encode(Refused(key, reason, kv=True, transfer=record)))

    def _abort(self, key: int) -> None:
        """The client has gone: stop as soon as no transfer writes into the request's blocks any more."""
        before = len(self._waiting)
        self._waiting = deque(request for request in self._waiting if request.key != key)
        if len(self._waiting) < before:
            self._outbox.send(encode(Released(key)))
        elif (incoming := self._incoming.get(key)) is not None:
            if incoming.move is not None and self._ranks.mover.withdraw(incoming.move):
                del self._incoming[key]
                self._table.release(key)
                self._outbox.send(encode(Released(key)))
            else:
                incoming.aborted = True
        elif (sequence := self._active.pop(key, None)) is not None:
            self._context -= sequence.context + sequence.at
            self._table.release(key)
        elif any(sequence.key == key for sequence in self._joining):
            self._joining = [sequence for sequence in self._joining if sequence.key != key]
            self._table.release(key)

    # -- steps

    def _join(self, request: Decode | Reserve, digest: int) -> None:
        tokens = answer(digest, request.max_tokens)
        self._joining.append(Sequence(request.key, tokens, 0, request.prompt_tokens, time.monotonic_ns()))

    def _begin_step(self, start_ns: int) -> None:
        """A step takes in who had joined when it began: nobody gets a part of a step for nothing."""
        for sequence in [sequence for sequence in self._joining if sequence.joined_ns <= start_ns]:
            self._joining.remove(sequence)
            self._active[sequence.key] = sequence
            self._context += sequence.context
        spec = self._spec
        took_ns = 0
        if spec.compute > 0:
            modelled = decode_ns(self._ranks.model, self._gpu, spec.tp, len(self._active), self._context, spec.kv_dtype)
            took_ns = int(modelled * spec.compute * spec.slowed) + self._cold.decode_ns(len(self._active))
        self._step_end_ns = start_ns + took_ns

    def _end_step(self, end_ns: int) -> None:
        """Send a token for each sequence and start the next step where this one should have ended.

        Steps follow an absolute clock: being late by less than a step does not shift those after it.
        """
        now_ns = time.monotonic_ns()
        keys, tokens, ended = [], [], []
        for key, sequence in self._active.items():
            keys.append(key)
            tokens.append(sequence.tokens[sequence.at])
            sequence.at += 1
            if sequence.at == len(sequence.tokens):
                ended.append(key)
        self._context += len(keys)
        for key in ended:
            sequence = self._active.pop(key)
            self._context -= sequence.context + sequence.at
            self._table.release(key)
        if keys:
            self._outbox.send(encode(Tokens(now_ns, keys, tokens, ended)))
        self._steps += 1
        self._step_end_ns = None
        start_ns = end_ns if self._spec.compute > 0 else now_ns
        if self._active or any(sequence.joined_ns <= start_ns for sequence in self._joining):
            self._begin_step(start_ns)
            self._catch_up(start_ns, now_ns)

    def _catch_up(self, start_ns: int, now_ns: int) -> None:
        """A whole step behind: begin from now, and say so."""
        step_ns = (self._step_end_ns or start_ns) - start_ns
        late_ns = now_ns - start_ns
        if late_ns > max(step_ns, 1) and self._spec.compute > 0:
            self._late += 1
            self._late_ns_max = max(self._late_ns_max, late_ns)
            self._step_end_ns = now_ns + step_ns

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

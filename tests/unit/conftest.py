"""Stand-ins for what the workers of the embedded stack lean on: a clock, an outbox, ranks without NIXL, NIXL itself.

Session fixtures that return classes, so that property tests may make as many as they need.
"""

import ctypes
from collections import deque
from types import SimpleNamespace

import msgspec
import pytest

from kvgauge.failures import TransferError
from kvgauge.kv.layout import PoolShape, shares
from kvgauge.kv.stamps import Checked
from kvgauge.kv.transfer import Move, WorkerInfo
from kvgauge.models import Model
from kvgauge.serve.messages import Spec, ToDecode, ToFrontend, ToPrefill

TINY = Model(
    name="tiny", layers=2, kv_heads=4, head_dim=4, hidden=16, attention_heads=4, parameters=1000,
    parameters_active=1000, max_tp=4, note="small enough to copy in a test",
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny():
    return TINY


@pytest.fixture(scope="session")
def worker_spec():
    def make(role="decode", **changes):
        base = {
            "role": role, "index": 0, "model": "Qwen3-0.6B", "tp": 1, "prefill_tp": 1, "decode_tp": 1,
            "kv_dtype": "bf16", "blocks": 16, "backend": None, "build": None, "progress_thread": False,
            "operation": "READ", "full_check": False, "gpu": "H100", "compute": 0.0, "control": "", "inbox": "",
            "outbox": "", "transfer_timeout_s": 60.0,
        }  # fmt: skip
        return Spec(**(base | changes))

    return make


class Clock:
    """Stands where a module has `time`; moves when the test says so."""

    def __init__(self, now_ns=1_000_000_000):
        self.now_ns = now_ns

    def monotonic_ns(self):
        return self.now_ns

    def monotonic(self):
        return self.now_ns / 1e9


@pytest.fixture(scope="session")
def clock_class():
    return Clock


class Outbox:
    """What a worker sends, decoded as its receiver would."""

    def __init__(self, of=ToFrontend):
        self._decoder = msgspec.msgpack.Decoder(of)
        self.sent = []

    def send(self, raw):
        self.sent.append(self._decoder.decode(raw))

    def of(self, kind):
        return [message for message in self.sent if isinstance(message, kind)]

    def take(self):
        taken, self.sent = self.sent, []
        return taken


@pytest.fixture(scope="session")
def outbox_class():
    return Outbox


@pytest.fixture(scope="session")
def directions():
    """Decoders of what goes to prefill and to decode workers."""
    return SimpleNamespace(prefill=ToPrefill, decode=ToDecode, frontend=ToFrontend)


class FakeMover:
    """Moves end when the test says so."""

    def __init__(self):
        self.peers, self.begun, self.refuses = {}, {}, None
        self._ended, self._settled, self.unposted = [], [], set()

    def connected(self, peer):
        return peer in self.peers

    def connect(self, peer, pairs):
        if self.refuses is not None:
            raise TransferError(self.refuses)
        self.peers[peer.index] = pairs

    def begin(self, key, peer, operation, blocks, deadline_ns):
        move = Move(
            key=key, peer=peer, operation=operation, links=deque(), local_rows=blocks[0], remote_rows=blocks[1],
            notification=b"", deadline_ns=deadline_ns,
        )  # fmt: skip
        self.begun[key] = move
        return move

    def end(self, key, *, failure=None, size=0, posted_ns=5, done_ns=9, settled=True):
        """settled=False: it was given up, and NIXL has not let go of its blocks."""
        move = self.begun.pop(key)
        move.posted_ns, move.done_ns, move.failure = posted_ns, done_ns, failure
        move.bytes_listed = move.bytes_moved = size
        move.settled = settled
        move.descriptors, move.post_ns = 3, 2
        move.backends = set() if failure else {"UCX"}
        self._ended.append(move)

    def withdraw(self, move):
        """What is in `unposted` may be taken back."""
        if move.key not in self.unposted:
            return False
        del self.begun[move.key]
        return True

    def progress(self):
        ended, self._ended = self._ended, []
        return ended

    def settle(self, key):
        self._settled.append(key)

    def settled(self):
        settled, self._settled = self._settled, []
        return settled

    def connections(self):
        return []

    def forget(self, peer, until_ns):
        """As the real one: nothing new goes there; what is under way has until then."""
        self.peers.pop(peer, None)
        for move in self.begun.values():
            if move.peer == peer:
                move.deadline_ns = min(move.deadline_ns, until_ns)


class FakeRanks:
    """Ranks without memory and without NIXL. `outcome`: what a check of blocks finds, None: all well."""

    def __init__(self, spec, model, *, kv):
        self.model = model
        self.shares = shares(spec.prefill_tp, spec.decode_tp, model.kv_heads)
        self.agents = [object()] if kv else []
        self.mover = FakeMover()
        self.notes, self.written, self.checked, self.outcome = [], [], [], None

    def poll(self):
        notes, self.notes = self.notes, []
        return notes

    def write(self, identity, blocks):
        self.written.append((identity, blocks.tolist()))

    def check(self, identity, blocks):
        self.checked.append((identity, blocks.tolist()))
        return self.outcome or Checked(pieces=len(blocks), wrong=0, faults={}, digest=identity.digest)


@pytest.fixture(scope="session")
def ranks_class():
    return FakeRanks


@pytest.fixture(scope="session")
def some_peer():
    def make(index=0):
        shape = PoolShape(regions=1, blocks=4, pieces=1, piece_bytes=64)
        return WorkerInfo(index=index, shape=shape, ranks=())

    return make


class Nixl:
    """An API module as a NIXL wheel has it, whose agents copy this process's memory.

    pending   how often a transfer says PROC before DONE
    fails     called with (agent, method) before each call; what it raises, the call raises
    lags      False: the bytes are there when the transfer is posted; True: when it is DONE
    """

    def __init__(self, *, pending=0, fails=lambda _agent, _method: None, telemetry=True, lags=False):
        self.pending, self.fails, self.telemetry, self.lags = pending, fails, telemetry, lags
        self.agents, self.configs, self.open, self.released = {}, [], [], []
        nixl = self

        class nixl_agent_config:  # noqa: N801 - NIXL's name
            def __init__(self, enable_prog_thread=True, capture_telemetry=False, backends=None):
                nixl.configs.append((enable_prog_thread, capture_telemetry, backends))
                self.backends = backends

        class nixl_agent:  # noqa: N801 - NIXL's name
            def __init__(self, name, config):
                nixl.fails(name, "start")
                self.name, self.backend, self.notes = name, config.backends[0], []
                nixl.agents[name] = self

            def register_memory(self, regions, kind):
                nixl.fails(self.name, "register")
                return regions, kind

            def get_agent_metadata(self):
                return self.name.encode()

            def add_remote_agent(self, metadata):
                nixl.fails(self.name, "add")
                return metadata  # bytes, as the wheels return it

            def make_connection(self, peer):
                nixl.fails(self.name, "make_connection")

            def prep_xfer_dlist(self, peer, descriptors, kind):
                nixl.fails(self.name, "prepare")
                return peer, descriptors

            def make_prepped_xfer(self, operation, local, ours, remote, theirs, note):
                nixl.fails(self.name, "make")
                handle = SimpleNamespace(
                    operation=operation, peer=remote[0], note=note, left=nixl.pending, state="PROC", agent=self,
                    local=local[1][ours], remote=remote[1][theirs],
                )  # fmt: skip
                nixl.open.append(handle)
                return handle

            def transfer(self, handle):
                nixl.fails(self.name, "transfer")
                if not nixl.lags:
                    nixl.copy(handle)
                return "PROC"

            def check_xfer_state(self, handle):
                nixl.fails(self.name, "state")
                if handle.left > 0:
                    handle.left -= 1
                    return "PROC"
                if handle.state == "PROC":
                    handle.state = "DONE"
                    if nixl.lags:
                        nixl.copy(handle)
                    nixl.agents[handle.peer].notes.append((self.name, handle.note))
                return handle.state

            def query_xfer_backend(self, handle):
                nixl.fails(self.name, "query")
                return self.backend

            def get_xfer_telemetry(self, handle):
                if not nixl.telemetry:
                    raise RuntimeError("no telemetry")
                return SimpleNamespace(totalBytes=int(handle.local[:, 1].sum()), descCount=len(handle.local))

            def release_xfer_handle(self, handle):
                nixl.released.append(handle)
                nixl.open.remove(handle)
                nixl.fails(self.name, "release")

            def send_notif(self, peer, note):
                nixl.fails(self.name, "notify")
                nixl.agents[peer if isinstance(peer, str) else peer.decode()].notes.append((self.name, note))

            def get_new_notifs(self):
                nixl.fails(self.name, "poll")
                found, self.notes = self.notes, []
                by_peer = {}
                for peer, note in found:
                    by_peer.setdefault(peer, []).append(note)
                return by_peer

        self.nixl_agent_config, self.nixl_agent = nixl_agent_config, nixl_agent

    def copy(self, handle):
        sides = (handle.local, handle.remote) if handle.operation == "READ" else (handle.remote, handle.local)
        for into, out in zip(*sides, strict=True):
            assert into[1] == out[1]
            ctypes.memmove(int(into[0]), int(out[0]), int(into[1]))


@pytest.fixture(scope="session")
def nixl_class():
    return Nixl


class ByteSocket:
    """A client's socket: takes everything, keeps it."""

    def __init__(self):
        self.sent = b""

    def send(self, data):
        self.sent += data
        return len(data)


@pytest.fixture(scope="session")
def socket_class():
    return ByteSocket


def answer_of(wire):
    """(status, events or body) of one answer; a stream must end with the empty chunk."""
    head, _, rest = wire.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if b"chunked" not in head:
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        assert len(rest) == length
        return status, msgspec.json.decode(rest)
    data = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if int(size, 16) == 0:
            break
        data, rest = data + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    assert rest == b"\r\n"
    return status, [event.removeprefix(b"data: ") for event in data.split(b"\n\n") if event]


@pytest.fixture(scope="session")
def read_answer():
    return answer_of

"""What a load worker is told and what it says, as MessagePack over a socket pair that no other process holds.

    Setup -> Up, then for each cell:
    Offer -> Ready (warmed up) -> Go -> [WaveOver -> Wave]... -> Done

Alive comes at least once a second meanwhile; Enough and Stop may go at any time. The end of the stream ends a worker.
"""

import select
import socket
import struct
import time

import msgspec

from kvgauge.load.shares import Share
from kvgauge.load.tally import OpenOffer
from kvgauge.plan.dataset import DatasetPrompt
from kvgauge.plan.records import Cell
from kvgauge.plan.trace import TraceRequest

FRAME_BYTES_MAX = 1 << 30  # a trace or a data set travels in one piece
READ_BYTES = 1 << 18
LENGTH = struct.Struct("<I")


class Order(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One message, either way."""


class Setup(Order, frozen=True, kw_only=True, tag=True):
    """Once. Headers and the proxy's URL travel here only: a value of `secret` is a key, the URL may hold a password.

    tls  the fields of a Tls
    """

    index: int
    url: str
    model: str
    host: str
    tls: tuple[str | None, bool] | None
    plain: tuple[tuple[str, str], ...]
    secret: tuple[tuple[str, str], ...]
    timeouts_s: dict[str, float | None]
    token_ids: tuple[int, int]
    quick_ack: bool = False
    proxy: str | None = None


class Offer(Order, frozen=True, kw_only=True, tag=True):
    """One cell's share. path: the new file where its exchanges go."""

    cell: Cell
    run_id: str
    seed: int
    share: Share
    path: str
    trace: tuple[TraceRequest, ...] = ()
    dataset: tuple[DatasetPrompt, ...] = ()


class Go(Order, frozen=True, kw_only=True, tag=True):
    """Begin what is measured, at this moment of CLOCK_MONOTONIC."""

    start_ns: int
    stagger_ns: int


class Wave(Order, frozen=True, kw_only=True, tag=True):
    """When the next wave is due; None: there is none."""

    due_ns: int | None


class Enough(Order, frozen=True, kw_only=True, tag=True):
    """Let nothing more become due."""


class Stop(Order, frozen=True, kw_only=True, tag=True):
    """End what is under way."""


class Up(Order, frozen=True, kw_only=True, tag=True):
    """It can take an Offer."""


class Alive(Order, frozen=True, kw_only=True, tag=True):
    """Its loop turns."""


class Ready(Order, frozen=True, kw_only=True, tag=True):
    """Warmed up, connected, the first requests made. typical_ns: of a request, where that is known."""

    typical_ns: int | None


class WaveOver(Order, frozen=True, kw_only=True, tag=True):
    """All its requests of this wave are. ended_ns: the last end; 0 when it had none."""

    ended_ns: int


class Done(Order, frozen=True, kw_only=True, tag=True):
    """The cell is over here, and every exchange is in the file."""

    cpu_s: float
    finished: bool
    clock_steps: int
    open: OpenOffer | None


class Failed(Order, frozen=True, kw_only=True, tag=True):
    """It cannot go on. disk: because its file cannot be written."""

    said: str
    disk: bool = False


ToWorker = Setup | Offer | Go | Wave | Enough | Stop
FromWorker = Up | Alive | Ready | WaveOver | Done | Failed
_encode = msgspec.msgpack.Encoder().encode


class Line:
    """One end of the socket pair. Sending waits, for a bounded time; reading never does."""

    def __init__(self, sock: socket.socket, *, send_timeout_s: float) -> None:
        sock.setblocking(False)
        self._sock, self._pending, self._send_timeout_s = sock, bytearray(), send_timeout_s
        self.ended = False  # the other end is gone

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: Order) -> None:
        """When the other end is gone, nothing happens but that `ended` is True. raises TimeoutError"""
        data = _encode(message)
        left = memoryview(LENGTH.pack(len(data)) + data)
        until_s = time.monotonic() + self._send_timeout_s
        while left and not self.ended:
            try:
                left = left[self._sock.send(left) :]
            except BlockingIOError:
                if not self._writable(until_s - time.monotonic()):
                    raise TimeoutError(f"nothing was read for {self._send_timeout_s:g} s") from None
            except (BrokenPipeError, ConnectionResetError):
                self.ended = True

    def _writable(self, wait_s: float) -> bool:
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        return wait_s > 0 and bool(poll.poll(wait_s * 1e3))

    def frames(self) -> list[bytes]:
        """What came since the last call, whole messages only. raises ValueError for a length beyond all bounds"""
        while not self.ended:
            try:
                data = self._sock.recv(READ_BYTES)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            if not data:
                self.ended = True
            self._pending += data
        return cut(self._pending)

    def close(self) -> None:
        self._sock.close()


def cut(pending: bytearray) -> list[bytes]:
    """Take the whole frames, each after its length, from the beginning of `pending`. raises ValueError"""
    found, at = [], 0
    while len(pending) - at >= LENGTH.size:
        (length,) = LENGTH.unpack_from(pending, at)
        if length > FRAME_BYTES_MAX:
            raise ValueError(f"a frame of {length} bytes; at most {FRAME_BYTES_MAX} are taken")
        if len(pending) - at - LENGTH.size < length:
            break
        found.append(bytes(pending[at + LENGTH.size : at + LENGTH.size + length]))
        at += LENGTH.size + length
    del pending[:at]
    return found

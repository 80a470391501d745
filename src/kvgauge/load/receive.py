"""The socket seam: where bytes come from, with the moment they were read and the kernel's stamp of their arrival."""

import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from kvgauge.failures import LoadError
from kvgauge.load.offset import NO_STAMP, STAMP_BYTES

READ_BYTES = 65_536
SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the socket module does not name it
ANCILLARY_BYTES = socket.CMSG_SPACE(STAMP_BYTES)


class Receiver(Protocol):
    """stamped: arrivals have the kernel's stamp, so that reading later does not falsify them."""

    stamped: bool

    def recv(self) -> tuple[bytes, int, bytes]:
        """What is there: (bytes, when they were read, the kernel's stamp); no bytes at the end of the stream.

        The moment is of the driver's clock. The stamp is the struct timespec of CLOCK_REALTIME as it came, NO_STAMP
        when there is none: offset.py makes a moment of it once the answer has ended.

        raises  BlockingIOError when nothing is there, OSError when the connection is broken
        """


OpenReceiver = Callable[[socket.socket, Callable[[], int]], Receiver]


class PlainReceiver:
    """recv, then read the clock before anything else."""

    __slots__ = ("_clock_ns", "_recv", "stamped")

    def __init__(self, sock: socket.socket, clock_ns: Callable[[], int]) -> None:
        self._recv, self._clock_ns = sock.recv, clock_ns
        self.stamped = False

    def recv(self) -> tuple[bytes, int, bytes]:
        data = self._recv(READ_BYTES)
        return data, self._clock_ns(), NO_STAMP


class StampedReceiver:
    """recvmsg with SO_TIMESTAMPNS: the kernel says when the last segment of each read arrived.

    recvmsg costs 1 us more than recv. recvmsg_into with a kept buffer, and a call through ctypes, cost as much or more
    (docs/stamps.md): the stamp is handed on as it came, and parsed for a whole answer at once.

    raises  OSError where the kernel knows no such stamp
    """

    __slots__ = ("_clock_ns", "_recvmsg", "stamped")

    def __init__(self, sock: socket.socket, clock_ns: Callable[[], int]) -> None:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._recvmsg, self._clock_ns = sock.recvmsg, clock_ns
        self.stamped = True

    def recv(self) -> tuple[bytes, int, bytes]:
        data, ancillary, _, _ = self._recvmsg(READ_BYTES, ANCILLARY_BYTES)
        return data, self._clock_ns(), ancillary[0][2] if ancillary else NO_STAMP


class QuickAckReceiver:
    """Another receiver's reads, each acknowledged at once: a sender that holds small writes back until what it sent
    before is acknowledged (Nagle's algorithm) then goes on. The option does not last, so it is set after every read.
    """

    __slots__ = ("_recv", "_setsockopt", "stamped")

    def __init__(self, sock: socket.socket, receiver: Receiver) -> None:
        self._recv, self._setsockopt = receiver.recv, sock.setsockopt
        self.stamped = receiver.stamped

    def recv(self) -> tuple[bytes, int, bytes]:
        got = self._recv()
        with contextlib.suppress(OSError):  # the connection has just broken: the next read says so
            self._setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return got


def acknowledging(inner: OpenReceiver) -> OpenReceiver:
    """Receivers as `inner` makes them, with every read acknowledged at once.

    raises  LoadError where there is no TCP_QUICKACK
    """
    if not hasattr(socket, "TCP_QUICKACK"):
        raise LoadError("quick acknowledgements need TCP_QUICKACK, which only Linux has: leave quick_ack away")
    return lambda sock, clock_ns: QuickAckReceiver(sock, inner(sock, clock_ns))


def open_receiver(sock: socket.socket, clock_ns: Callable[[], int]) -> Receiver:
    """Kernel stamps where this platform has them, else the moment of the read."""
    if struct.calcsize("@l") == 8 and hasattr(socket, "CMSG_SPACE"):
        try:
            return StampedReceiver(sock, clock_ns)
        except OSError:
            pass
    return PlainReceiver(sock, clock_ns)

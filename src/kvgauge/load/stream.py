"""The socket seam: where bytes come from with the moment they arrived, and what is kept of them.

All that happens between a read and the next: the stamp, httptools' cut of the HTTP framing, two list appends. JSON is
looked at when the answer has ended (answers.py).

What plugs in here later: a Receiver whose stamp is the kernel's (recvmsg with SO_TIMESTAMPNS), and one that decrypts
(ssl.MemoryBIO; it must return all the plaintext it can, because epoll only knows of the socket). `Connection.offer`
is the one place where bytes leave.
"""

import contextlib
import os
import socket
from collections.abc import Callable
from itertools import accumulate
from typing import Literal, Protocol

import httptools

from kvgauge.load.answers import Answer, Cut
from kvgauge.samples.records import Clock, StampSource

READ_BYTES = 65_536
ANSWER_BYTES_MAX = 64 << 20
HEAD_BYTES_MAX = 64 << 10

End = Literal["complete", "closed", "reset", "malformed"]


class Receiver(Protocol):
    def recv(self) -> tuple[bytes, int, Clock, StampSource]:
        """What is there: (bytes, stamp_ns, clock, source); no bytes at the end of the stream.

        raises  BlockingIOError when nothing is there, OSError when the connection is broken
        """


class PlainReceiver:
    """recv, then read the clock before anything else."""

    __slots__ = ("_clock_ns", "_recv")

    def __init__(self, sock: socket.socket, clock_ns: Callable[[], int]) -> None:
        self._recv, self._clock_ns = sock.recv, clock_ns

    def recv(self) -> tuple[bytes, int, Clock, StampSource]:
        data = self._recv(READ_BYTES)
        return data, self._clock_ns(), "monotonic", "user"


OpenReceiver = Callable[[socket.socket, Callable[[], int]], Receiver]


class Incoming:
    """One answer as it comes in.

    pieces       bytes of the body, as httptools hands them over (`on_body` is this list's append)
    stamps_ns    one for each read that brought bytes of the body
    piece_counts how many pieces there were after that read
    end          None while there may be more
    """

    __slots__ = (
        "_extra",
        "_framed",
        "_head_whole",
        "_parser",
        "_pieces_whole",
        "_whole",
        "content_type",
        "end",
        "keep_alive",
        "last_ns",
        "on_body",
        "piece_counts",
        "pieces",
        "problem",
        "received_bytes",
        "stamp_source",
        "stamps_ns",
        "status",
    )

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.on_body = self.pieces.append
        self.stamps_ns: list[int] = []
        self.piece_counts: list[int] = []
        self.received_bytes = 0
        self.last_ns = 0
        self.stamp_source: StampSource = "user"
        self.status: int | None = None
        self.content_type = ""
        self.keep_alive = False
        self.end: End | None = None
        self.problem: str | None = None
        self._head_whole = self._framed = self._whole = self._extra = False
        self._pieces_whole = 0
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def on_message_begin(self) -> None:
        self._extra = self._whole

    def on_header(self, name: bytes, value: bytes) -> None:
        lowered = name.lower()
        if lowered == b"content-type":
            self.content_type = value.decode("latin-1").strip().lower()
        elif lowered in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        if not self._whole and self._parser is not None:
            self.status = self._parser.get_status_code()
            self._head_whole = True

    def on_message_complete(self) -> None:
        if self._whole or self._parser is None or self.status is None:
            return
        if self.status < 200:  # 100 Continue and its like: the answer is still to come
            self.status, self._head_whole, self._framed = None, False, False
            return
        self._whole = True
        self._pieces_whole = len(self.pieces)
        self.keep_alive = self._parser.should_keep_alive()

    def take(self, data: bytes, stamp_ns: int, source: StampSource) -> End | None:
        """One read. Returns how the answer ended, or None while there may be more."""
        if not data:
            return self._closed()
        self.received_bytes += len(data)
        self.last_ns, self.stamp_source = stamp_ns, source
        try:
            self._parser.feed_data(data)  # type: ignore[union-attr]  # set until `end` is
        except httptools.HttpParserError as error:
            self.problem = f"not HTTP: {error}"
        except httptools.HttpParserUpgrade:
            self.problem = "the server switched to another protocol"
        count = len(self.pieces)
        if count != (self.piece_counts[-1] if self.piece_counts else 0):
            self.stamps_ns.append(stamp_ns)
            self.piece_counts.append(count)
        if self._whole:
            self.keep_alive = self.keep_alive and not self._extra and self.problem is None
            return self.finish("complete")
        if self.problem is not None:
            return self.finish("malformed")
        if self.received_bytes > (ANSWER_BYTES_MAX if self._head_whole else HEAD_BYTES_MAX):
            self.problem = f"more than {self.received_bytes:,} bytes without an end"
            return self.finish("malformed")
        return None

    def finish(self, end: End | None) -> End | None:
        """Let go of the parser, which refers back to us."""
        self._parser = None
        self.end = end
        return end

    def answer(self, *, ended_ns: int, cut: Cut | None, detail: str | None) -> Answer:
        """What was kept, as the record that answers.py reads."""
        pieces = self.pieces[: self._pieces_whole] if self._whole else self.pieces
        lengths = [0, *accumulate(map(len, pieces))]
        last = len(pieces)
        return Answer(
            status=self.status,
            content_type=self.content_type,
            body=b"".join(pieces),
            stamps_ns=self.stamps_ns,
            ends=[lengths[min(count, last)] for count in self.piece_counts],
            stamp_source=self.stamp_source,
            ended_ns=ended_ns,
            cut=cut,
            detail=detail,
        )

    def _closed(self) -> End:
        if self._head_whole and not self._framed:  # the close is the end: HTTP/1.0, or no length given
            self._whole, self._pieces_whole = True, len(self.pieces)
            self.finish("complete")
            return "complete"
        self.problem = "the server closed the connection"
        self.finish("closed")
        return "closed"


class Connection:
    """One keep-alive connection, never blocking. The loop that owns it waits for it to be ready.

    connecting  until `connected` was called and did not raise
    incoming    the answer under way; None between answers
    unsent      what the kernel has not taken of the request yet
    sent_ns     taken just before its last byte was handed to the kernel
    """

    __slots__ = ("_clock_ns", "_receiver", "_sock", "address_at", "connecting", "fd", "incoming", "sent_ns", "unsent")

    def __init__(
        self,
        family: socket.AddressFamily,
        address: tuple[str, int] | tuple[str, int, int, int],
        *,
        address_at: int,
        clock_ns: Callable[[], int],
        open_receiver: OpenReceiver = PlainReceiver,
    ) -> None:
        """Begin to connect. raises OSError when that fails at once."""
        self._sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self.fd = self._sock.fileno()
        self.address_at = address_at
        self.connecting = True
        self.incoming: Incoming | None = None
        self.unsent: memoryview | None = None
        self.sent_ns = 0
        self._clock_ns = clock_ns
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._receiver = open_receiver(self._sock, clock_ns)
            with contextlib.suppress(BlockingIOError):  # under way: `connected` hears of the end
                self._sock.connect(address)
        except BaseException:
            self._sock.close()
            raise

    def connected(self) -> None:
        """Call when it is ready to write. raises OSError when the connection was not made."""
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        self.connecting = False

    def ask(self, request: bytes) -> None:
        """Begin a request. raises OSError when the connection is broken."""
        self.incoming = Incoming()
        self.unsent = memoryview(request)
        self.offer()

    def offer(self) -> None:
        """Hand the kernel what it takes of `unsent`. raises OSError when the connection is broken."""
        if self.unsent is None:
            return
        self.sent_ns = self._clock_ns()
        try:
            taken = self._sock.send(self.unsent, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        self.unsent = self.unsent[taken:] if taken < len(self.unsent) else None

    def read(self) -> End | None:
        """Read once. Returns how the answer ended, or None while there may be more."""
        incoming = self.incoming
        try:
            data, stamp_ns, _, source = self._receiver.recv()
        except BlockingIOError:
            return None
        except OSError as error:
            if incoming is None:
                return "reset"
            incoming.problem = f"the connection broke: {error.strerror or error}"
            return incoming.finish("reset")
        if incoming is None:  # nothing was asked: a close, or bytes that belong to nothing
            return "closed"
        return incoming.take(data, stamp_ns, source)

    def done(self) -> None:
        """Forget the answer that has ended, so that the next request can be sent."""
        self.incoming = None

    def close(self) -> None:
        if self.incoming is not None:
            self.incoming.finish(self.incoming.end)
            self.incoming = None
        with contextlib.suppress(OSError):
            self._sock.close()

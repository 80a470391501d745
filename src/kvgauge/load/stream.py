"""One connection and the answer that comes in over it.

All that happens between a read and the next: the stamps, httptools' cut of the HTTP framing, four list appends. JSON
is looked at when the answer has ended (answers.py). `Connection.offer` is the one place where bytes leave.
"""

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Literal

import httptools
import numpy as np

from kvgauge.load.answers import Answer, Cut
from kvgauge.load.offset import NO_STAMP, RealtimeOffset
from kvgauge.load.proxy import Tunnel
from kvgauge.load.receive import OpenReceiver, open_receiver
from kvgauge.load.tls import Session, TlsFailed

ANSWER_BYTES_MAX = 64 << 20
HEAD_BYTES_MAX = 64 << 10

End = Literal["complete", "closed", "reset", "malformed", "tls"]


class Incoming:
    """One answer as it comes in.

    pieces       bytes of the body, as httptools hands them over (`on_body` is this list's append)
    read_ns      when each read returned
    stamps       the kernel's stamp of each read, as it came
    piece_counts how many pieces there were after each read
    end          None while there may be more
    """

    __slots__ = (
        "_extra",
        "_feed",
        "_framed",
        "_head_whole",
        "_parser",
        "_pieces_whole",
        "_whole",
        "content_type",
        "end",
        "keep_alive",
        "on_body",
        "piece_counts",
        "pieces",
        "problem",
        "read_ns",
        "received_bytes",
        "stamps",
        "status",
    )

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.on_body = self.pieces.append
        self.read_ns: list[int] = []
        self.stamps: list[bytes] = []
        self.piece_counts: list[int] = []
        self.received_bytes = 0
        self.status: int | None = None
        self.content_type = ""
        self.keep_alive = False
        self.end: End | None = None
        self.problem: str | None = None
        self._head_whole = self._framed = self._whole = self._extra = False
        self._pieces_whole = 0
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._feed: Callable[[bytes], None] | None = self._parser.feed_data

    @property
    def last_ns(self) -> int:
        """When the last read returned; 0 before the first."""
        return self.read_ns[-1] if self.read_ns else 0

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

    def take(self, data: bytes, read_ns: int, stamp: bytes = NO_STAMP) -> End | None:
        """One read. Returns how the answer ended, or None while there may be more."""
        if not data:
            return self._closed()
        self.received_bytes += len(data)
        try:
            self._feed(data)  # type: ignore[misc]  # set until `end` is
        except httptools.HttpParserError as error:
            self.problem = f"not HTTP: {error}"
        except httptools.HttpParserUpgrade:
            self.problem = "the server switched to another protocol"
        self.read_ns.append(read_ns)
        self.stamps.append(stamp)
        self.piece_counts.append(len(self.pieces))
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
        self._parser = self._feed = None
        self.end = end
        return end

    def answer(self, offset: RealtimeOffset, *, ended_ns: int, cut: Cut | None, detail: str | None) -> Answer:
        """What was kept, as the record that answers.py reads; measure `offset` before."""
        pieces = self._body_pieces()
        lengths = np.zeros(len(pieces) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces)), out=lengths[1:])
        counts = np.minimum(np.array(self.piece_counts, dtype=np.int64), len(pieces))
        stamps_ns = offset.stamps_ns(self.read_ns, self.stamps)
        return Answer(
            status=self.status,
            content_type=self.content_type,
            body=b"".join(pieces),
            stamps_ns=stamps_ns,
            read_ns=self.read_ns,
            ends=lengths[counts].tolist(),
            ended_ns=stamps_ns[-1] if self.end == "complete" and stamps_ns else ended_ns,
            cut=cut,
            detail=detail,
        )

    def body(self) -> bytes:
        """What has come of the answer's body."""
        return b"".join(self._body_pieces())

    def _body_pieces(self) -> list[bytes]:
        return self.pieces[: self._pieces_whole] if self._whole else self.pieces

    def cut_off(self) -> End:
        """The connection ended without a word in TLS: anyone may have cut it, so that is no end of an answer."""
        self.problem = "the server closed the connection without ending the TLS session"
        self.finish("closed")
        return "closed"

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

    connecting  until `advance` has returned True
    shaking     the TCP connection stands, the TLS session does not yet
    incoming    the answer under way; None between answers
    unsent      what the kernel has not taken yet of the request, the handshake, or what asks for a tunnel
    sent_ns     taken just before the request's last byte was handed to the kernel
    """

    __slots__ = (
        "_clock_ns",
        "_receiver",
        "_session",
        "_sock",
        "_tunnel",
        "address_at",
        "connecting",
        "fd",
        "incoming",
        "sent_ns",
        "shaking",
        "unsent",
    )

    def __init__(
        self,
        family: socket.AddressFamily,
        address: tuple[str, int] | tuple[str, int, int, int],
        *,
        address_at: int,
        clock_ns: Callable[[], int],
        open_receiver: OpenReceiver = open_receiver,
        session: Session | None = None,
        tunnel: Tunnel | None = None,
    ) -> None:
        """Begin to connect. raises OSError when that fails at once.

        tunnel  to be made by the proxy at this address, before the session begins
        """
        self._sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self.fd = self._sock.fileno()
        self.address_at = address_at
        self.connecting, self.shaking = True, False
        self.incoming: Incoming | None = None
        self.unsent: memoryview | None = None
        self.sent_ns = 0
        self._clock_ns, self._session, self._tunnel = clock_ns, session, tunnel
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._receiver = open_receiver(self._sock, clock_ns)
            with contextlib.suppress(BlockingIOError):  # under way: `advance` hears of the end
                self._sock.connect(address)
        except BaseException:
            self._sock.close()
            raise

    @property
    def stamped(self) -> bool:
        """Whether the kernel stamps what arrives."""
        return self._receiver.stamped

    def advance(self) -> bool:
        """Call when the socket is ready while `connecting`. True when a request can be sent.

        raises  OSError when the connection was not made or broke, ProxyRefused when the tunnel was not made, TlsFailed
                when the session was not
        """
        if not self.shaking:
            code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            if self._tunnel is not None and not self._tunnelled(self._tunnel):
                return False
            self.shaking = self._session is not None
        if self._session is not None and not self._shaken(self._session):
            return False
        self.connecting = self.shaking = False
        self.sent_ns = 0
        return True

    def ask(self, request: bytes) -> None:
        """Begin a request. raises OSError when the connection is broken, TlsFailed when the session is."""
        self.incoming = Incoming()
        self.unsent = memoryview(request if self._session is None else self._session.encrypt(request))
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
            data, read_ns, stamp = self._receiver.recv()
        except BlockingIOError:
            return None
        except OSError as error:
            if incoming is None:
                return "reset"
            incoming.problem = f"the connection broke: {error.strerror or error}"
            return incoming.finish("reset")
        if self._session is not None:
            return self._take(self._session, data, read_ns, stamp)
        if incoming is None:  # nothing was asked: a close, or bytes that belong to nothing
            return "closed"
        return incoming.take(data, read_ns, stamp)

    def done(self) -> None:
        """Forget the answer that has ended, so that the next request can be sent."""
        self.incoming = None

    def close(self) -> None:
        if self.incoming is not None:
            self.incoming.finish(self.incoming.end)
            self.incoming = None
        with contextlib.suppress(OSError):
            if self._session is not None and not self.connecting and self.unsent is None:
                self._sock.send(self._session.farewell(), socket.MSG_NOSIGNAL)
        with contextlib.suppress(OSError):
            self._sock.close()

    def _tunnelled(self, tunnel: Tunnel) -> bool:
        if not self.sent_ns:
            self.unsent = memoryview(tunnel.request)
        self.offer()
        if self.unsent is not None:
            return False
        with contextlib.suppress(BlockingIOError):
            received, _, _ = self._receiver.recv()
            if tunnel.take(received):
                self._tunnel, self.sent_ns = None, 0
        return self._tunnel is None

    def _shaken(self, session: Session) -> bool:
        self.offer()
        received = b""
        if self.sent_ns:  # not before we have spoken
            with contextlib.suppress(BlockingIOError):
                received, _, _ = self._receiver.recv()
                if not received:
                    raise TlsFailed("the server closed the connection inside the TLS handshake")
        try:
            stands = session.shake(received)
        except TlsFailed:
            with contextlib.suppress(OSError):
                self._sock.send(session.outgoing(), socket.MSG_NOSIGNAL)  # the alert says what we did not like
            raise
        if out := session.outgoing():
            self.unsent = memoryview(bytes(self.unsent or b"") + out)
            self.offer()
        return stands and self.unsent is None

    def _take(self, session: Session, received: bytes, read_ns: int, stamp: bytes) -> End | None:
        """A read of ciphertext, which may hold no byte of the answer, and its end."""
        incoming = self.incoming
        try:
            data = session.decrypt(received) if received else b""
            self._answer_session(session)
        except TlsFailed as error:
            if incoming is None:
                return "closed"
            incoming.problem = str(error)
            return incoming.finish("tls")
        if incoming is None:
            return "closed" if data or session.ended or not received else None  # else a ticket or a new key
        end = incoming.take(data, read_ns, stamp) if data else None
        if session.ended:
            incoming.keep_alive = False
            return end or incoming.take(b"", read_ns)
        return incoming.cut_off() if not received else end

    def _answer_session(self, session: Session) -> None:
        """What TLS itself has to say, once the request has left."""
        if self.unsent is None and (out := session.outgoing()):
            sent_ns, self.unsent = self.sent_ns, memoryview(out)
            with contextlib.suppress(OSError):  # the next read hears of it
                self.offer()
            self.sent_ns = sent_ns

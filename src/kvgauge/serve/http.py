"""One client's connection to the frontend: bytes to requests, answers to bytes, everything bounded."""

import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import httptools

from kvgauge.serve.openai import MAX_BODY_BYTES

MAX_HEADER_BYTES = 64 << 10
MAX_PIPELINED = 32
MAX_UNSENT_BYTES = 4 << 20  # a client that does not read is dropped beyond this

_REASONS = {
    200: b"OK",
    400: b"Bad Request",
    404: b"Not Found",
    405: b"Method Not Allowed",
    413: b"Content Too Large",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
}


@dataclass(slots=True, frozen=True)
class HttpRequest:
    method: str
    path: str
    body: bytes
    keep_alive: bool


class BadRequest(Exception):
    """The bytes are no HTTP request, or too many; `status` to answer with before closing."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(str(status))


class Connection:
    """Socket, parser and unsent bytes of one client. Requests are answered one after another, in order."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_header_bytes",
        "_parser",
        "_path",
        "_requests",
        "busy",
        "closing",
        "on_write",
        "out",
        "sock",
        "unsent",
    )

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._parser = httptools.HttpRequestParser(self)
        self._requests: deque[HttpRequest] = deque()
        self._path = b""
        self._body: list[bytes] = []
        self._body_bytes = self._header_bytes = 0
        self.busy = False  # an answer is under way
        self.closing = False  # close once everything is sent
        self.on_write: Callable[[], None] | None = None  # called once, right before the next bytes are sent
        self.out: list[bytes] = []
        self.unsent = b""

    def feed(self, data: bytes) -> None:
        """raises BadRequest"""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            raise BadRequest(400) from error
        except httptools.HttpParserError as error:
            cause = error.__context__
            raise BadRequest(cause.status if isinstance(cause, BadRequest) else 400) from error

    def next_request(self) -> HttpRequest | None:
        """The next whole request, unless an answer is still under way."""
        return self._requests.popleft() if self._requests and not self.busy else None

    # httptools calls these

    def on_message_begin(self) -> None:
        self._path, self._body, self._body_bytes, self._header_bytes = b"", [], 0, 0

    def on_url(self, url: bytes) -> None:
        self._path += url
        self._count_header(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_header(len(name) + len(value))

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise BadRequest(431)

    def on_body(self, part: bytes) -> None:
        self._body_bytes += len(part)
        if self._body_bytes > MAX_BODY_BYTES:
            raise BadRequest(413)
        self._body.append(part)

    def on_message_complete(self) -> None:
        if len(self._requests) >= MAX_PIPELINED:
            raise BadRequest(400)
        path = self._path.split(b"?", 1)[0].decode("ascii", "replace")
        method = self._parser.get_method().decode("ascii", "replace")
        keep_alive = bool(self._parser.should_keep_alive())
        self._requests.append(HttpRequest(method, path, b"".join(self._body), keep_alive))

    # sending

    def flush(self) -> bool:
        """Send what can be sent. Returns whether bytes are left; raises OSError when the client has gone."""
        data = self.unsent + b"".join(self.out) if self.unsent else b"".join(self.out)
        self.out.clear()
        self.unsent = b""
        if data:
            if self.on_write is not None:
                self.on_write()
                self.on_write = None
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            self.unsent = data[sent:]
            if len(self.unsent) > MAX_UNSENT_BYTES:
                raise ConnectionResetError("the client does not read")
        return bool(self.unsent)


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def response(status: int, body: bytes, content_type: bytes = b"application/json", *, close: bool = False) -> bytes:
    """A whole response."""
    return b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b\r\n%b" % (
        status,
        _REASONS[status],
        content_type,
        len(body),
        b"Connection: close\r\n" if close else b"",
        body,
    )

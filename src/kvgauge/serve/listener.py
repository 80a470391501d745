"""Where clients come in. Those there is no room for are told so at once, also when no file descriptor is left."""

import contextlib
import errno
import os
import resource
import socket
from collections import deque

from kvgauge.serve.http import response
from kvgauge.serve.openai import ApiError

BACKLOG = 1024
MAX_CLIENTS = 8192
SPARE = 16  # descriptors kept for what is neither a client nor a worker
DRAIN_BYTES = 64 << 10
TOLD_MAX = 8  # within SPARE
STAY_NS = 1_000_000_000
FULL = "as many connections are open as this server may have; try again later"
NO_DESCRIPTOR = "this server has no file descriptor left; try again later, or raise its limit (ulimit -n)"
NONE_LEFT = (errno.EMFILE, errno.ENFILE)


def most_clients(workers: int) -> int:
    """Clients that this process may hold beside what it has open now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only
    return max(1, min(MAX_CLIENTS, soft - opened - SPARE - 2 * workers))


class Listener:
    """A listening socket that never lets its backlog spin the loop that waits for it.

    A descriptor is held back: without any other it is given up for a client that is told, and taken back for the next.
    Who was told stays connected for a moment, because a connection closed under a request that is just being sent
    takes the answer with it.

    stuck   not even that is possible: ask again a little later
    raises  OSError when the address cannot be listened on
    """

    def __init__(self, host: str, port: int) -> None:
        self._sock = socket.create_server((host, port), backlog=BACKLOG)
        self._sock.setblocking(False)
        self._reserve: int | None = None
        self._hold_back()
        self._told: deque[tuple[int, socket.socket]] = deque()  # when to close them
        self.stuck = False

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()
        while self._told:
            self._close_one()
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None

    def address(self) -> tuple[str, int]:
        host, port = self._sock.getsockname()[:2]
        return str(host), int(port)

    def accept(self, room: int, now_ns: int) -> list[socket.socket]:
        """Those who wait, at most `room` of them; the others are told that there is none."""
        self.stuck = False
        taken: list[socket.socket] = []
        for _ in range(BACKLOG):
            try:
                sock, spare = self._next()
            except BlockingIOError:
                break
            except ConnectionError:  # that client has gone again
                continue
            except OSError:
                self.stuck = True
                break
            if spare and len(taken) < room:
                taken.append(sock)
                continue
            tell(sock, FULL if spare else NO_DESCRIPTOR)
            self._told.append((now_ns + STAY_NS, sock))
            if len(self._told) > TOLD_MAX:
                self._close_one()
            if not spare:  # looking for the next one would cost this one its connection: epoll tells if it is there
                break
        return taken

    def tidy(self, now_ns: int) -> None:
        """Close the connections of those who were told long enough ago."""
        while self._told and self._told[0][0] <= now_ns:
            self._close_one()
        self._hold_back()

    def _close_one(self) -> None:
        _, sock = self._told.popleft()
        with contextlib.suppress(OSError):
            sock.recv(DRAIN_BYTES)  # with bytes unread, closing would be a reset
        sock.close()

    def _next(self) -> tuple[socket.socket, bool]:
        """Who has waited longest, and whether a descriptor was there for it without giving up what is held back.

        raises  BlockingIOError when nobody waits; OSError when nobody can be accepted at all
        """
        try:
            return self._sock.accept()[0], True
        except OSError as error:
            if error.errno not in NONE_LEFT or not self._give_up():
                raise
        try:
            return self._sock.accept()[0], False
        except OSError:
            self._hold_back()
            raise

    def _give_up(self) -> bool:
        """Free a descriptor: what is held back, else that of the one who was told first."""
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None
        elif self._told:
            self._close_one()
        else:
            return False
        return True

    def _hold_back(self) -> None:
        if self._reserve is None:
            with contextlib.suppress(OSError):
                self._reserve = os.open(os.devnull, os.O_RDONLY)


def tell(sock: socket.socket, why: str) -> None:
    """Say that there is no room, and that nothing follows."""
    with contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.send(response(503, ApiError(503, why).body, close=True))
        sock.shutdown(socket.SHUT_WR)

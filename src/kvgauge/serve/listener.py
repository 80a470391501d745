"""Where clients come in. Those there is no room for are told so at once, also when no file descriptor is left."""

import contextlib
import errno
import os
import resource
import socket

from kvgauge.serve.http import response
from kvgauge.serve.openai import ApiError

BACKLOG = 1024
MAX_CLIENTS = 8192
SPARE = 16  # descriptors kept for what is neither a client nor a worker
DRAIN_BYTES = 64 << 10
NONE_LEFT = (errno.EMFILE, errno.ENFILE)


def most_clients(workers: int) -> int:
    """Clients that this process may hold beside what it has open now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only
    return max(1, min(MAX_CLIENTS, soft - opened - SPARE - 2 * workers))


class Listener:
    """A listening socket that never lets its backlog spin the loop that waits for it.

    A descriptor is held back: without any other it is given up for the moment it takes to accept a client, tell it
    and close it again.

    stuck   not even that is possible: ask again a little later
    raises  OSError when the address cannot be listened on
    """

    def __init__(self, host: str, port: int) -> None:
        self._sock = socket.create_server((host, port), backlog=BACKLOG)
        self._sock.setblocking(False)
        self._reserve: int | None = None
        self._hold_back()
        self.stuck = False

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None

    def address(self) -> tuple[str, int]:
        host, port = self._sock.getsockname()[:2]
        return str(host), int(port)

    def accept(self, room: int) -> list[socket.socket]:
        """Those who wait, at most `room` of them; the others are shed."""
        self.stuck = False
        taken: list[socket.socket] = []
        for _ in range(BACKLOG):
            try:
                sock, told = self._next()
            except BlockingIOError:
                break
            except ConnectionError:  # that client has gone again
                continue
            except OSError:
                self.stuck = True
                break
            if told:
                continue
            if len(taken) < room:
                taken.append(sock)
            else:
                shed(sock, "as many connections are open as this server may have; try again later")
        return taken

    def _next(self) -> tuple[socket.socket, bool]:
        """Who has waited longest, and whether it was shed for want of a descriptor.

        raises  BlockingIOError when nobody waits; OSError when nobody can be accepted at all
        """
        try:
            return self._sock.accept()[0], False
        except OSError as error:
            if error.errno not in NONE_LEFT:
                raise
            self._hold_back()
            if self._reserve is None:
                raise
        os.close(self._reserve)
        self._reserve = None
        try:
            sock, _address = self._sock.accept()
            shed(sock, "this server has no file descriptor left; try again later, or raise its limit (ulimit -n)")
            return sock, True
        finally:
            self._hold_back()

    def _hold_back(self) -> None:
        if self._reserve is None:
            with contextlib.suppress(OSError):
                self._reserve = os.open(os.devnull, os.O_RDONLY)


def shed(sock: socket.socket, why: str) -> None:
    """Tell a client that there is no room for it, and close. What it has sent is read, or it would see a reset."""
    with contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.send(response(503, ApiError(503, why).body, close=True))
        sock.shutdown(socket.SHUT_WR)
        sock.recv(DRAIN_BYTES)
    sock.close()

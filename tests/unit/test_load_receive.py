"""Reads that are acknowledged at once."""

import socket

import pytest

from kvgauge.failures import LoadError
from kvgauge.load.drive import Driver
from kvgauge.load.receive import PlainReceiver, QuickAckReceiver, acknowledging, open_receiver


class Sock:
    def __init__(self, reads, broken=False):
        self.reads, self.set, self.broken = list(reads), [], broken

    def recv(self, _):
        read = self.reads.pop(0)
        if isinstance(read, BaseException):
            raise read
        return read

    def setsockopt(self, *option):
        if self.broken:
            raise OSError(22, "Invalid argument")
        self.set.append(option)


def quick(sock):
    return QuickAckReceiver(sock, PlainReceiver(sock, lambda: 7))


def test_every_read_is_acknowledged_after_its_moment_was_taken():
    sock = Sock([b"a", b"b", b""])
    receiver = quick(sock)
    assert [receiver.recv()[:2] for _ in range(3)] == [(b"a", 7), (b"b", 7), (b"", 7)]
    assert sock.set == [(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)] * 3


def test_what_was_read_is_kept_when_the_connection_breaks_and_nothing_is_set_when_nothing_was_read():
    assert quick(Sock([b"a"], broken=True)).recv()[0] == b"a"
    sock = Sock([BlockingIOError()])
    with pytest.raises(BlockingIOError):
        quick(sock).recv()
    assert sock.set == []


def test_on_real_sockets_arrivals_keep_the_kernels_stamp():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert acknowledging(open_receiver)(ours, lambda: 1).stamped == open_receiver(ours, lambda: 1).stamped


def test_where_there_is_no_such_option_it_is_refused_before_anything_is_sent(monkeypatch):
    monkeypatch.delattr(socket, "TCP_QUICKACK")
    with pytest.raises(LoadError, match="only Linux has"):
        Driver("http://127.0.0.1:1", "m", host="h", quick_ack=True)
    Driver("http://127.0.0.1:1", "m", host="h").close()

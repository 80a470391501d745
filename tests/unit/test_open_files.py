"""File descriptors: what a plan needs, what is allowed, and clients that come when none is left."""

import errno
import os
import resource
import socket

import msgspec
import pytest

from kvgauge.failures import UsageError
from kvgauge.load import open_files
from kvgauge.plan import load_plan
from kvgauge.serve import listener as module
from kvgauge.serve.listener import Listener
from scene import make_cell


@pytest.fixture
def plan():
    return load_plan(None, False, [])


@pytest.fixture
def listener():
    made = Listener("127.0.0.1", 0)
    yield made
    made.close()


def test_a_plan_needs_a_descriptor_for_each_connection_and_some_for_each_worker_and_rank(plan):
    cell = msgspec.structs.replace(plan.cells[0], concurrency=200)
    wide = msgspec.structs.replace(plan, cells=(cell,))
    tp = msgspec.structs.replace(plan.tests[0], prefill_tp=64)
    assert open_files.needed(wide, embedded=False) == 240
    assert open_files.needed(wide, embedded=True) == 248
    assert open_files.needed(msgspec.structs.replace(wide, tests=(tp,)), embedded=True) == 40 + 64 * 16


def test_too_few_descriptors_are_refused_with_what_is_needed_and_what_to_do(plan):
    needed = open_files.needed(plan, embedded=True)
    open_files.refuse_too_few(plan, needed, embedded=True)
    with pytest.raises(UsageError, match=rf"needs {needed} open files .* {needed - 1} are allowed.*ulimit -n {needed}"):
        open_files.refuse_too_few(plan, needed - 1, embedded=True)


def test_the_soft_limit_is_raised_to_the_hard_one_and_never_lowered(monkeypatch):
    limits = [(64, 1000)]
    monkeypatch.setattr(open_files.resource, "getrlimit", lambda _which: limits[-1])
    monkeypatch.setattr(open_files.resource, "setrlimit", lambda _which, pair: limits.append(pair))
    assert open_files.raise_limit() == 1000
    assert limits == [(64, 1000), (1000, 1000)]
    assert open_files.raise_limit() == 1000
    assert len(limits) == 2
    limits.append((64, resource.RLIM_INFINITY))
    assert open_files.raise_limit() == open_files.ENOUGH
    limits.append((10**6, 10**6))
    assert open_files.raise_limit() == 10**6


def test_a_connection_that_found_no_descriptor_says_which_limit_it_met():
    assert "raise its limit (ulimit -n)" in open_files.why(OSError(errno.EMFILE, "Too many open files"))
    assert open_files.why(OSError(errno.ECONNREFUSED, "Connection refused")) == "Connection refused"


class Exhausted:
    """A listening socket while no descriptor is left but those the test gives."""

    def __init__(self, sock):
        self._sock, self.left = sock, 0

    def accept(self):
        if self.left == 0:
            raise OSError(errno.EMFILE, "Too many open files")
        self.left -= 1
        return self._sock.accept()

    def __getattr__(self, name):
        return getattr(self._sock, name)


def told_of(client):
    data = b""
    while more := client.recv(1000):
        data += more
    return data


def test_without_a_descriptor_who_waits_is_told_on_those_held_back_and_can_still_send(listener, monkeypatch):
    clients = [socket.create_connection(listener.address(), 5) for _ in range(3)]
    exhausted = listener._sock = Exhausted(listener._sock)
    close, close_one = os.close, listener._close_one

    def closed(fd):
        close(fd)
        exhausted.left += 1

    def closed_one():
        close_one()
        exhausted.left += 1

    monkeypatch.setattr(module.os, "close", closed)
    monkeypatch.setattr(listener, "_close_one", closed_one)
    monkeypatch.setattr(listener, "_hold_back", lambda: None)
    for _ in clients:
        assert listener.accept(100, 0) == []
        assert not listener.stuck
    assert len(listener._told) == 1
    clients[2].sendall(b"GET / HTTP/1.1\r\n\r\n")
    for client in clients:
        assert b" 503 " in told_of(client)
        client.close()
    monkeypatch.undo()
    listener.tidy(module.STAY_NS)
    assert not listener._told
    assert listener._reserve is not None


def test_those_beyond_the_room_are_told_and_their_connections_do_not_pile_up(listener):
    clients = [socket.create_connection(listener.address(), 5) for _ in range(2 + 3 * module.TOLD_MAX)]
    taken = listener.accept(2, 0)
    assert len(taken) == 2
    assert len(listener._told) == module.TOLD_MAX
    assert all(b"as many connections are open" in told_of(client) for client in clients[2:])
    listener.tidy(module.STAY_NS - 1)
    assert listener._told
    listener.tidy(module.STAY_NS)
    assert not listener._told
    for sock in (*clients, *taken):
        sock.close()


def test_a_listener_with_nothing_held_back_says_that_it_is_stuck_and_recovers(listener, monkeypatch):
    client = socket.create_connection(listener.address(), 5)
    exhausted = listener._sock = Exhausted(listener._sock)
    os.close(listener._reserve)
    listener._reserve = None
    monkeypatch.setattr(listener, "_hold_back", lambda: None)
    assert listener.accept(100, 0) == []
    assert listener.stuck
    exhausted.left = 2
    (taken,) = listener.accept(100, 0)
    assert not listener.stuck
    taken.close()
    client.close()


def test_an_open_load_is_not_refused_for_a_limit_it_may_never_reach(plan):
    cells = (make_cell(load="poisson", rate=5.0, concurrency=1024), make_cell(concurrency=30))
    assert open_files.needed(msgspec.structs.replace(plan, cells=cells), embedded=False) == open_files.OWN + 64

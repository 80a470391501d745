"""Kernel stamps on 127.0.0.1: a client that is late on purpose still reports when things arrived."""

import contextlib
import json
import socket
import threading
import time

import pytest

from kvgauge.load.drive import Driver
from kvgauge.load.loop import PAUSE_NS
from kvgauge.load.offset import NO_STAMP
from kvgauge.load.receive import PlainReceiver, StampedReceiver, open_receiver
from kvgauge.plan.records import Cell

LATE_S = 0.02
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def framed(data):
    return b"%x\r\ndata: %s\n\n\r\n" % (len(data) + 8, data)


def text(word):
    return framed(json.dumps({"choices": [{"text": word}]}).encode())


END = framed(b"[DONE]") + b"0\r\n\r\n"


class Server:
    """Sends each of `parts` at once, `pause_s` apart; left_ns has the moment before each send."""

    def __init__(self, parts, pause_s):
        self._parts, self._pause_s, self.left_ns = parts, pause_s, []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while sock.recv(1 << 16):
                for part in self._parts:
                    self.left_ns.append(time.monotonic_ns())
                    sock.sendall(part)
                    time.sleep(self._pause_s)

    def close(self):
        self._listener.close()


def offer(parts, *, pause_s, requests=1, exchanges=None, **options):
    """(load, exchanges, when each part left)"""
    server, exchanges = Server(parts, pause_s), [] if exchanges is None else exchanges
    cell = Cell(
        name="c", load="single", concurrency=1, requests=requests, output_tokens=3, warmup_requests=0, prompt="Hello"
    )
    with contextlib.closing(server), Driver(server.url, "m", host="here", **options) as driver:
        load = driver.run_cell(cell, run_id="r", seed=1, on_exchange=exchanges.append)
    assert [each.failure for each in exchanges] == [None] * requests
    return load, exchanges, server.left_ns


def late(inner):
    """A receiver that comes to its read 20 ms after epoll called it."""

    class Late(inner):
        def recv(self):
            time.sleep(LATE_S)
            return super().recv()

    return Late


PARTS = (HEAD + text("a"), text("b"), text("c"), END)


def lateness_ns(exchange, left_ns):
    return [at - left for at, left in zip(exchange.arrivals_ns, left_ns, strict=False)]


def test_a_client_that_is_late_still_reports_when_its_tokens_arrived():
    _, [with_kernel], left = offer(PARTS, pause_s=3 * LATE_S, open_receiver=late(StampedReceiver))
    true_ns = lateness_ns(with_kernel, left)
    _, [without], left = offer(PARTS, pause_s=3 * LATE_S, open_receiver=late(PlainReceiver))
    late_ns = lateness_ns(without, left)
    assert (with_kernel.stamp_source, without.stamp_source) == ("kernel", "user")
    assert min(late_ns) >= LATE_S * 1e9
    assert max(true_ns) < min(late_ns) / 4
    assert min(true_ns) > 0, "nothing arrives before it was sent"
    assert with_kernel.lag_ns_mean >= LATE_S * 1e9 * 0.9, "and says how late it was"
    assert with_kernel.lag_ns_max >= with_kernel.lag_ns_mean
    assert (without.lag_ns_max, without.lag_ns_mean, without.arrivals_user) == (None, None, 3)


def test_events_that_share_a_read_share_its_stamp_and_the_record_says_how_many():
    _, [exchange], _ = offer((HEAD, text("a") + text("b") + text("c") + END), pause_s=LATE_S)
    assert len(set(exchange.arrivals_ns)) == 1
    assert exchange.arrivals_shared == 2
    _, [exchange], _ = offer(PARTS, pause_s=LATE_S)
    assert exchange.arrivals_shared == 0


def test_segments_that_wait_together_have_the_stamp_of_the_last():
    """Why smaller reads would not tell them apart: docs/stamps.md."""
    _, [exchange], left = offer(PARTS, pause_s=LATE_S / 10, open_receiver=late(StampedReceiver))
    assert exchange.arrivals_shared == 2
    assert exchange.arrivals_ns[0] > left[2]


def test_a_read_without_a_stamp_has_our_own_and_is_counted():
    class Forgetful(StampedReceiver):
        forgets = True

        def recv(self):
            data, read_ns, stamp = super().recv()
            stamp, Forgetful.forgets = NO_STAMP if Forgetful.forgets else stamp, False
            return data, read_ns, stamp

    _, [exchange], _ = offer(PARTS, pause_s=LATE_S, open_receiver=Forgetful)
    assert (exchange.stamp_source, exchange.arrivals_user, exchange.arrivals_shared) == ("mixed", 1, 0)


def test_after_a_step_of_the_clock_no_wrong_moment_is_recorded():
    """The clock itself stays as it is: the driver is shown one that is set by an hour after the first request."""
    kept, hour_ns = [], 3_600 * 10**9

    def stepped_ns():
        return time.time_ns() + (hour_ns if kept else 0)

    load, exchanges, left = offer(PARTS, pause_s=LATE_S, requests=4, exchanges=kept, realtime_ns=stepped_ns)
    assert load.clock_steps == 1
    assert (exchanges[0].stamp_source, exchanges[-1].stamp_source) == ("kernel", "user")
    for at, exchange in enumerate(exchanges):
        assert all(0 < each < hour_ns / 2 for each in lateness_ns(exchange, left[4 * at :]))


def test_all_moments_of_a_record_are_of_one_clock():
    _, exchanges, left = offer(PARTS, pause_s=0.001, requests=20)
    for exchange, first_left_ns in zip(exchanges, left[::4], strict=True):
        assert exchange.sent_ns < first_left_ns < exchange.arrivals_ns[0]
        assert list(exchange.arrivals_ns) == sorted(exchange.arrivals_ns)


def test_where_the_kernel_has_no_stamps_reads_are_stamped_by_us():
    class Refusing:
        def setsockopt(self, *_):
            raise OSError(92, "Protocol not available")

        def recv(self, _):
            return b"abc"

    assert open_receiver(Refusing(), lambda: 42).recv() == (b"abc", 42, NO_STAMP)


@pytest.mark.parametrize("receiver", [PlainReceiver, StampedReceiver])
def test_a_receiver_tells_nothing_there_from_the_end(receiver):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        reading = receiver(ours, lambda: 42)
        with pytest.raises(BlockingIOError):
            reading.recv()
        theirs.send(b"abc")
        assert reading.recv()[:2] == (b"abc", 42)
        theirs.close()
        assert reading.recv()[0] == b""


@pytest.mark.parametrize("receiver", [PlainReceiver, StampedReceiver])
def test_a_pause_under_flood_is_made_only_where_the_kernel_stamps(monkeypatch, receiver):
    paused = []
    monkeypatch.setattr("kvgauge.load.loop.time.sleep", paused.append)
    monkeypatch.setattr("kvgauge.load.loop.PASSES_MAX", 1)
    _, exchanges, _ = offer((HEAD + text("a") * 20_000 + END,), pause_s=0, open_receiver=receiver)
    assert len(exchanges[0].arrivals_ns) == 20_000
    assert (PAUSE_NS / 1e9 in paused) == (receiver is StampedReceiver)

"""Open loads against a real server on 127.0.0.1: what stalls there must show in the latencies here."""

import contextlib
import json
import random
import threading
import time

import msgspec
import pytest

from integration.test_load_driver import HEAD, WHOLE, Server, send
from kvgauge.load import drive
from kvgauge.load import open as open_load
from kvgauge.load.drive import OPEN_AHEAD, Driver
from kvgauge.load.schedules import schedule
from kvgauge.plan.records import Burst, Until
from kvgauge.plan.trace import parse, summary
from kvgauge.stats.batches import Narrow
from kvgauge.stats.offered import offered_metrics, offered_troubles
from scene import make_cell


def cell(**changes):
    return make_cell(
        **{
            "load": "constant", "rate": 100.0, "concurrency": 64, "requests": 100, "output_tokens": 2,
            "warmup_requests": 2, "input_tokens": None, "prompt": "Hello", **changes,
        }
    )  # fmt: skip


def offer(url, which, *, narrow=None, trace=(), **options):
    exchanges = []

    def on_exchange(exchange):
        exchanges.append(exchange)
        if narrow is not None:
            narrow.add(exchange)

    with Driver(url, "m", host="here", **{"request_timeout_s": 5, **options}) as driver:
        load = driver.run_cell(
            which,
            run_id="r",
            seed=1,
            on_exchange=on_exchange,
            enough=lambda: narrow is not None and narrow.met,
            requests=trace,
        )
    return load, sorted((each for each in exchanges if not each.warmup), key=lambda each: each.seq)


class Stall:
    """Answers at once, but for one stretch of 300 ms in which nobody is answered."""

    def __init__(self, after_s):
        self._after_s, self._began, self._lock = after_s, None, threading.Lock()
        self.from_s = self.to_s = 0.0

    def __call__(self, sock, nth, request):
        now_s = time.monotonic()
        with self._lock:
            if self._began is None:
                self._began = now_s
                self.from_s, self.to_s = now_s + self._after_s, now_s + self._after_s + 0.3
        if self.from_s <= now_s < self.to_s:
            time.sleep(self.to_s - now_s)
        sock.sendall(WHOLE)


def test_an_open_load_shows_a_stall_in_every_request_due_meanwhile_and_a_closed_loop_in_one():
    """Coordinated omission: the closed loop's only slot waits, and asks for nothing that could be late."""
    stall = Stall(0.3)
    with Server(stall) as server:
        load, exchanges = offer(server.url, cell())
    meanwhile = [each for each in exchanges if stall.from_s <= each.due_ns / 1e9 < stall.to_s - 0.02]
    assert len(meanwhile) >= 20
    assert all(each.ttft_ns >= (stall.to_s * 1e9 - each.due_ns) * 0.95 for each in meanwhile)
    assert (load.completed, load.open.given_up) == (100, 0)

    with Server(Stall(0.3)) as server:
        _, closed = offer(server.url, cell(load="closed", rate=None, concurrency=1, requests=10_000, duration_s=1.0))
    assert len(closed) > 100
    assert sum(each.ttft_ns > 100_000_000 for each in closed) == 1


def test_it_shows_too_when_there_are_too_few_slots_and_requests_wait_here():
    stall = Stall(0.3)
    with Server(stall) as server:
        load, exchanges = offer(server.url, cell(concurrency=2))
    meanwhile = [each for each in exchanges if stall.from_s + 0.05 <= each.due_ns / 1e9 < stall.to_s - 0.02]
    assert all(each.ttft_ns >= (stall.to_s * 1e9 - each.due_ns) * 0.95 for each in meanwhile)
    assert load.open.queued >= 15
    assert load.open.under_way_max == 2
    late_ns = [each.sent_ns - each.due_ns for each in meanwhile]
    assert max(late_ns) > 150_000_000
    assert load.open.own_late_ns_mean < 10_000_000, "waiting for a slot is not the client's own lateness"


def test_requests_leave_when_the_schedule_says_and_never_before():
    which = cell(load="poisson", rate=300.0, requests=200)
    with Server(send(WHOLE)) as server:
        load, exchanges = offer(server.url, which)
    offsets = [each.due_ns - load.started_ns for each in exchanges]
    planned = list(schedule(which, seed=1))
    assert offsets == [time_ns - planned[0] for time_ns in planned]
    assert all(each.sent_ns >= each.due_ns for each in exchanges)
    assert [each.seq for each in exchanges] == list(range(2, 202))


def test_a_server_that_is_too_slow_ends_the_load_at_the_bound_and_is_named(monkeypatch):
    monkeypatch.setattr(open_load.OpenLoad.__init__, "__kwdefaults__", {"waiting_max": 20})

    def slowly(sock, nth, request):
        time.sleep(0.2)
        sock.sendall(WHOLE)

    which = cell(rate=200.0, concurrency=2, requests=2000)
    with Server(slowly) as server:
        load, exchanges = offer(server.url, which)
    unsent = [each for each in exchanges if each.failure == "unsent"]
    assert len(unsent) == load.open.given_up > 20
    assert [each.seq for each in exchanges] == list(range(2, 2 + len(exchanges)))
    assert len(exchanges) == load.completed + len(unsent) < 200
    assert [each.due_ns for each in exchanges] == sorted(each.due_ns for each in exchanges)
    assert "The server is saturated: all 2" in offered_troubles(which, load, 1.0)[0]


def test_a_saturated_load_ends_soon_after_its_time_and_says_what_was_never_sent(monkeypatch):
    monkeypatch.setattr(drive, "drain_ns_of", lambda _duration_ns: 200_000_000)

    def slowly(sock, nth, request):
        time.sleep(0.1)
        sock.sendall(WHOLE)

    which = cell(rate=200.0, concurrency=2, requests=1_000_000, duration_s=0.5)
    began = time.monotonic()
    with Server(slowly) as server:
        load, exchanges = offer(server.url, which)
    assert time.monotonic() - began < 4  # sent to the last it would have been 5 s and more
    unsent = [each for each in exchanges if each.failure == "unsent"]
    assert len(exchanges) == 100
    assert len(unsent) == load.open.given_up == 100 - load.completed > 50
    assert [each.seq for each in exchanges] == list(range(2, 102))
    assert not load.interrupted
    assert "were never sent, because" in offered_troubles(which, load, 1.0)[0]


def test_the_clock_ends_a_load_and_what_was_due_is_finished():
    with Server(send(WHOLE)) as server:
        load, exchanges = offer(server.url, cell(duration_s=0.5, requests=1_000_000))
    assert load.completed == len(exchanges) == 50
    assert not load.interrupted
    assert max(each.due_ns for each in exchanges) - load.started_ns == 490_000_000


@pytest.mark.parametrize("shape", [{"load": "closed", "rate": None, "concurrency": 4}, {"rate": 150.0}])
def test_a_known_mean_ends_a_cell_and_what_is_under_way_is_finished(shape):
    narrow = Narrow(Until(metric="e2e_latency_ms_mean", half_width=0.5), first_seq=2)

    drawn = random.Random(1)

    def unevenly(sock, nth, request):
        time.sleep(drawn.uniform(0.005, 0.1))  # by far the most of what varies, whatever the machine is busy with
        sock.sendall(WHOLE)

    with Server(unevenly) as server:
        load, exchanges = offer(server.url, cell(**shape, requests=100_000, duration_s=20.0), narrow=narrow)
    assert load.enough
    assert narrow.met
    assert 100 <= load.offered == load.completed == len(exchanges) < 5000
    assert "reached at" in narrow.outcome().reason


def test_connections_are_made_ahead_kept_and_grow_with_what_is_under_way():
    gate = threading.Event()

    def held(sock, nth, request):
        gate.wait(0.5)
        sock.sendall(WHOLE)

    which = cell(load="burst", rate=None, burst=Burst(size=100, every_s=1.0), requests=100, concurrency=200)
    with Server(held) as server:
        load, _ = offer(server.url, which)
        assert server.most_under_way == 100
        made = server.connections
    assert load.completed == 100
    assert load.open.under_way_max == 100
    assert 100 <= made <= 140, "a burst that is known is prepared for"
    assert load.new_connections == 0
    with Server(held) as server:
        load, _ = offer(server.url, cell(rate=2_000.0, requests=150, concurrency=200))
        assert server.connections <= OPEN_AHEAD + 150
    assert offered_metrics(load)["new_connections"].point == load.new_connections <= 150 - OPEN_AHEAD


def test_a_trace_is_replayed_with_its_lengths_and_its_shared_blocks():
    rows = [(0, 700, 3, [1, 2]), (0, 1024, 4, [1, 3]), (150, 20, 5, []), (400, 600, 6, [1, 2])]
    data = b"\n".join(
        json.dumps({"timestamp": at, "input_length": given, "output_length": wanted, "hash_ids": ids}).encode()
        for at, given, wanted, ids in rows
    )
    trace = parse(data, "t")
    which = cell(
        load="trace", rate=None, trace=summary("t", data, trace), speed_up=2.0, prompt=None, requests=4, concurrency=8
    )
    with Server(send(WHOLE)) as server:
        load, exchanges = offer(server.url, which, trace=trace)
        bodies = [json.loads(each.partition(b"\r\n\r\n")[2]) for each in server.requests]
    assert [round((each.due_ns - load.started_ns) / 1e6) for each in exchanges] == [0, 0, 75, 200]
    sent = {
        body["max_tokens"]: body["prompt"] for body in bodies if body["max_tokens"] < 7 and len(body["prompt"]) != 586
    }
    assert {wanted: len(prompt) for wanted, prompt in sent.items()} == {3: 700, 4: 1024, 5: 20, 6: 600}
    assert sent[3][:512] == sent[4][:512]
    assert sent[6] == sent[3][:600]
    assert sent[4][512:] != sent[3][512:700]


def test_stopping_an_open_load_leaves_it_interrupted():
    def silent(sock, nth, request):
        with contextlib.suppress(OSError):
            sock.recv(1)
        return False

    with Server(silent) as server, Driver(server.url, "m", host="here", request_timeout_s=5) as driver:
        until = time.monotonic() + 0.4
        load = driver.run_cell(
            cell(warmup_requests=0),
            run_id="r",
            seed=1,
            on_exchange=lambda _: None,
            stop=lambda: time.monotonic() > until,
        )
    assert load.interrupted
    assert load.completed == 0


def test_a_server_that_hangs_up_fails_requests_and_the_load_goes_on():
    def now_and_then(sock, nth, request):
        if nth == 3:
            sock.sendall(HEAD)
            return False
        sock.sendall(WHOLE)
        return True

    with Server(now_and_then) as server:
        load, exchanges = offer(server.url, msgspec.structs.replace(cell(), rate=200.0))
    assert load.offered == len(exchanges) == 100
    assert {each.failure for each in exchanges} == {None, "truncated"}

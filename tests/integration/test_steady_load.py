"""Warm-up until steady state over real sockets: one offer, its edges, and what is measured of it."""

import time

import pytest

from integration.test_load_driver import WHOLE, Server
from kvgauge.failures import LoadError
from kvgauge.load.drive import Driver
from kvgauge.plan.records import UntilSteady
from kvgauge.stats import settling
from kvgauge.stats.settling import Settling
from scene import make_cell


def slow_at_first(slow_s, slow=0.12, fast=0.02):
    began = []

    def answer(sock, _nth, _request):
        began.append(time.monotonic())
        time.sleep(slow if began[-1] - began[0] < slow_s else fast)
        sock.sendall(WHOLE)

    return answer


@pytest.fixture
def quick_batches(monkeypatch):
    """Batches a hundred times shorter than they are, so that a test need not wait."""
    monkeypatch.setattr(settling, "WIDTH_NS_MIN", 60_000_000)
    monkeypatch.setattr(settling, "BIN_NS", 20_000_000)
    monkeypatch.setattr(settling, "ASK_NS", 20_000_000)


@pytest.mark.parametrize(
    "load",
    [
        pytest.param({"load": "closed"}, id="closed"),
        pytest.param({"load": "poisson", "rate": 60.0, "concurrency": 32}, id="poisson", marks=pytest.mark.long),
    ],
)
def test_nothing_of_a_slow_start_is_measured_and_the_load_goes_on_to_the_last_measured_end(quick_batches, load):
    cell = make_cell(**({"concurrency": 3, "requests": 60, "warmup_requests": 0, "prompt": "x"} | load),
                     input_tokens=None, steady=UntilSteady(limit_s=2, at_least_s=0.6))  # fmt: skip
    exchanges, steady = [], Settling(cell.steady)

    def on_exchange(exchange):
        exchanges.append(exchange)
        steady.add(exchange)

    with Server(slow_at_first(0.4)) as server, Driver(server.url, "m", host="h") as driver:
        found = driver.run_cell(cell, run_id="r", seed=1, on_exchange=on_exchange, steady=steady)
    measured = [each for each in exchanges if not each.warmup]
    edges = found.edges
    assert (len(measured), found.offered, found.failed) == (60, 60, 0)
    assert len({each.seq for each in exchanges}) == len(exchanges)
    assert found.warmups == len(exchanges) - 60
    assert edges.begin_ns - edges.offered_ns >= 600_000_000
    for each in exchanges:
        inside = edges.begin_ns <= each.due_ns < edges.closed_ns
        assert inside or each.warmup
    straddling = [each for each in exchanges if each.due_ns < edges.begin_ns < each.done_ns]
    assert all(each.warmup for each in straddling)
    last_ns = max(each.done_ns for each in measured)
    surplus = [each for each in exchanges if each.due_ns >= edges.closed_ns]
    assert all(each.warmup for each in surplus)
    assert all(each.due_ns < last_ns + 10_000_000_000 for each in surplus)
    assert found.measured_ns == edges.closed_ns - min(each.due_ns for each in measured)


def test_stopped_in_its_warm_up_nothing_is_measured():
    cell = make_cell(concurrency=2, requests=5, warmup_requests=0, steady=UntilSteady(limit_s=20))
    exchanges, steady = [], Settling(cell.steady)
    until = time.monotonic() + 0.3
    with Server(slow_at_first(9)) as server, Driver(server.url, "m", host="h") as driver:
        found = driver.run_cell(
            cell, run_id="r", seed=1, on_exchange=exchanges.append, steady=steady, stop=lambda: time.monotonic() > until
        )
    assert (found.interrupted, found.offered, found.edges.begin_ns) == (True, 0, None)
    assert all(each.warmup for each in exchanges)
    assert steady.outcome.state == "interrupted"


def test_without_somebody_who_judges_it_such_a_cell_is_refused():
    cell = make_cell(warmup_requests=0, steady=UntilSteady(limit_s=20))
    with Driver("http://127.0.0.1:1", "m", host="h") as driver, pytest.raises(LoadError, match="until steady state"):
        driver.run_cell(cell, run_id="r", seed=1, on_exchange=lambda _: None)

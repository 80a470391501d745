"""A cell shared by real load workers, against a real server: exact counts, one account, and no worker left behind."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from integration.test_load_driver import WHOLE, Server
from kvgauge.failures import SamplesError
from kvgauge.load.drive import Driver
from kvgauge.load.headers import Headers
from kvgauge.load.how_many import HowMany
from kvgauge.load.schedules import schedule
from kvgauge.load.team import Team
from scene import children_of, make_cell

SECRET = "sk-a-key-nobody-shall-see"


def answer(sock, nth, request):
    time.sleep(0.01)
    sock.sendall(WHOLE)


@pytest.fixture
def server():
    with Server(answer) as started:
        yield started


@pytest.fixture
def team(server, tmp_path):
    with Team(
        server.url,
        "m",
        host="here",
        decide=lambda cell: HowMany(workers=min(2, cell.concurrency), why="asked for"),
        folder=tmp_path / "logs",
        headers=Headers((("X-Plain", "said"),), (("Authorization", f"Bearer {SECRET}"),)),
        request_timeout_s=5,
    ) as started:
        yield started
    assert [path for path in (tmp_path / "logs").glob("*") if path.suffix == ".kept" or path.stat().st_size] == []


def cell(**changes):
    return make_cell(**{"output_tokens": 2, "input_tokens": 32, **changes})


def offer(team, which, **options):
    exchanges = []
    load = team.run_cell(which, run_id="r", seed=7, on_exchange=exchanges.append, **options)
    return load, sorted(exchanges, key=lambda each: each.seq)


def running(pids):
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def bodies(server):
    return sorted(request.partition(b"\r\n\r\n")[2] for request in server.requests)


@pytest.mark.parametrize(
    "shape",
    [
        {"load": "closed", "concurrency": 5, "requests": 43, "warmup_requests": 7},
        {"load": "wave", "concurrency": 5, "requests": 15, "warmup_requests": 2},
        {"load": "poisson", "rate": 200.0, "concurrency": 64, "requests": 61, "warmup_requests": 3},
    ],
    ids=lambda shape: shape["load"],
)
def test_two_workers_send_what_one_driver_sends(server, team, shape):
    which = cell(**shape)
    load, exchanges = offer(team, which)
    sent = bodies(server)
    assert [each.seq for each in exchanges] == list(range(which.warmup_requests + which.requests))
    assert {each.worker for each in exchanges} == {0, 1}
    assert {each.failure for each in exchanges} == {None}
    assert (load.offered, load.completed, load.warmups) == (which.requests, which.requests, which.warmup_requests)
    assert (load.workers, load.interrupted, load.lost) == (2, False, None)
    server.requests.clear()
    with Driver(server.url, "m", host="here") as driver:
        driver.run_cell(which, run_id="r", seed=7, on_exchange=lambda _: None)
    assert bodies(server) == sent
    measured = [each for each in exchanges if not each.warmup]
    if which.is_open:
        planned = list(schedule(which, seed=7))
        assert [each.due_ns - load.started_ns for each in measured] == [due_ns - planned[0] for due_ns in planned]
        assert load.open.slots == 64
    else:
        assert {each.slot for each in measured} == set(range(5))
        assert all(each.worker == each.slot % 2 for each in measured)
    if shape["load"] == "wave":
        waves = [measured[at : at + 5] for at in range(0, 15, 5)]
        assert [len({each.due_ns for each in wave}) for wave in waves] == [1, 1, 1]
        for before, after in itertools.pairwise(waves):
            assert max(each.done_ns for each in before) <= after[0].due_ns


def test_workers_are_kept_from_cell_to_cell_and_keys_reach_neither_arguments_nor_environment_nor_disk(
    server, team, tmp_path, monkeypatch
):
    monkeypatch.setenv("MY_KEY", SECRET)
    offer(team, cell(concurrency=4, requests=8, warmup_requests=0))
    first = team.pids
    load, exchanges = offer(team, cell(load="single", concurrency=1, requests=3, warmup_requests=0))
    assert (load.workers, len(exchanges)) == (1, 3)
    offer(team, cell(concurrency=4, requests=8, warmup_requests=0))
    assert team.pids == first
    assert server.connections == 4 + 1
    assert all(f"Bearer {SECRET}".encode() in request for request in server.requests)
    assert all(b"X-Plain: said" in request for request in server.requests)
    for pid in team.pids.values():
        for name in ("cmdline", "environ"):
            assert SECRET.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert not any(SECRET.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_cell_ends_by_the_clock_when_enough_is_known_or_when_it_is_stopped_and_keeps_what_was_answered(team):
    timed, exchanges = offer(team, cell(concurrency=4, requests=100_000, warmup_requests=0, duration_s=0.3))
    assert (timed.interrupted, timed.failed) == (False, 0)
    assert all(each.due_ns - timed.started_ns < 0.3e9 for each in exchanges)
    exchanges = []
    load = team.run_cell(
        cell(concurrency=4, requests=100_000, warmup_requests=0),
        run_id="r",
        seed=1,
        on_exchange=exchanges.append,
        enough=lambda: len(exchanges) >= 50,
    )
    assert (load.enough, load.interrupted, load.failed) == (True, False, 0)
    assert load.offered == len(exchanges) < 100_000
    exchanges, began = [], time.monotonic()
    load = team.run_cell(
        cell(concurrency=4, requests=100_000, warmup_requests=0),
        run_id="r",
        seed=1,
        on_exchange=exchanges.append,
        stop=lambda: len(exchanges) >= 20,
    )
    assert time.monotonic() - began < 20
    assert (load.interrupted, load.lost) == (True, None)
    assert {each.failure for each in exchanges} <= {None, "interrupted"}
    assert load.offered == len(exchanges) >= 20


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, r"load worker 1 was killed by signal 9: \d+ of its 50000 requests are recorded"),
        (signal.SIGSTOP, r"load worker 1 said nothing for 2 s \(it was stopped by a signal\) and was killed"),
    ],
)
def test_a_worker_that_is_lost_is_named_and_only_what_it_had_under_way_is_lost(team, number, said):
    exchanges, hit = [], []
    team._silent_s = 2.0 if number == signal.SIGSTOP else 30.0

    def on_exchange(exchange):
        exchanges.append(exchange)
        if len(exchanges) >= 20 and not hit:
            hit.append(team.pids[1])
            os.kill(hit[0], number)

    load = team.run_cell(
        cell(concurrency=4, requests=100_000, warmup_requests=0), run_id="r", seed=1, on_exchange=on_exchange
    )
    assert re.search(said, load.lost), load.lost
    assert load.interrupted
    for worker in (0, 1):  # nothing is missing before a worker's last
        mine = sorted(each.seq for each in exchanges if each.worker == worker)
        assert len(mine) > 5
        assert len(set(mine)) == len(mine)
    others = [each.seq for each in exchanges if each.worker == 0]
    assert sorted(others) == [seq for seq in range(max(others) + 1) if seq % 4 % 2 == 0]
    assert running(hit) == []
    team._silent_s = 30.0
    load, exchanges = offer(team, cell(concurrency=4, requests=12, warmup_requests=0))  # with a new worker
    assert (load.lost, load.completed, {each.worker for each in exchanges}) == (None, 12, {0, 1})


def test_a_worker_that_cannot_write_ends_the_cell_and_says_why(team, tmp_path):
    offer(team, cell(concurrency=4, requests=4, warmup_requests=0))
    (tmp_path / "logs" / "load-worker-1.2.kept").mkdir()
    with pytest.raises(SamplesError, match=r"load worker 1: load-worker-1\.2\.kept cannot be written"):
        offer(team, cell(concurrency=4, requests=4, warmup_requests=0))
    (tmp_path / "logs" / "load-worker-1.2.kept").rmdir()
    assert team.pids == {}


def test_a_callback_that_raises_leaves_no_worker(team):
    def on_exchange(_):
        raise ZeroDivisionError

    pids = []
    with pytest.raises(ZeroDivisionError):
        team.run_cell(
            cell(concurrency=4, requests=400, warmup_requests=0),
            run_id="r",
            seed=1,
            on_exchange=on_exchange,
            tick=lambda: pids.extend(team.pids.values()),
        )
    assert running(pids) == []


def test_no_worker_outlives_its_conductor_not_even_a_stopped_one(server, tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from kvgauge.load.team import Team; from kvgauge.load.how_many import HowMany; from scene import make_cell\n"
        "with Team(sys.argv[1], 'm', host='h', decide=lambda c: HowMany(workers=2, why=''), folder=Path(sys.argv[2])) as t:\n"
        "    t.run_cell(make_cell(requests=10**6, input_tokens=32), run_id='r', seed=1, on_exchange=lambda e: None,\n"
        "               tick=lambda: print(flush=True))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    conductor = subprocess.Popen(
        [sys.executable, "-c", code, server.url, str(tmp_path)], stdout=subprocess.PIPE, env=env
    )
    conductor.stdout.readline()
    workers = children_of(conductor.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGSTOP)
    conductor.kill()
    conductor.wait(10)
    conductor.stdout.close()
    until = time.monotonic() + 10
    while running(workers) and time.monotonic() < until:
        time.sleep(0.02)
    assert running(workers) == []

"""Several workers' shares of a cell are the cell: every request and slot once, in one worker."""

import argparse
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.cli import workers
from kvgauge.failures import UsageError
from kvgauge.load import cores
from kvgauge.load.arrivals import ClosedLoop
from kvgauge.load.how_many import WORKER_CHUNKS_S, Cores, how_many
from kvgauge.load.kept import Kept, KeptReader, KeptWriter
from kvgauge.load.orders import LENGTH, cut
from kvgauge.load.schedules import schedule
from kvgauge.load.shares import Share
from kvgauge.plan.records import Burst, Plan, Primary, Ramp
from kvgauge.plan.trace import TraceRequest
from scene import make_cell, make_test
from unit.test_stats_client import exchange

MANY = Cores(allowed=64, free=64)
SHAPES = {
    "constant": {"rate": 100.0},
    "poisson": {"rate": 30.0},
    "gamma": {"rate": 50.0, "burstiness": 0.5},
    "ramp": {"ramp": Ramp(from_rate=1, to_rate=20, over_s=4)},
    "burst": {"burst": Burst(size=7, every_s=0.5)},
}


def shares(workers):
    return [Share(index=index, of=workers) for index in range(workers)]


@given(
    load=st.sampled_from(["closed", "wave", "poisson"]),
    slots=st.integers(1, 40),
    requests=st.integers(0, 300),
    data=st.data(),
)
def test_every_request_belongs_to_exactly_one_worker(load, slots, requests, data):
    workers = data.draw(st.integers(1, slots))
    cell = make_cell(load=load, concurrency=slots, requests=requests, rate=5.0 if load == "poisson" else None)
    parts = [share.part(cell) for share in shares(workers)]
    numbers = [[part.number(nth) for nth in range(part.count(requests))] for part in parts]
    assert sorted(itertools.chain(*numbers)) == list(range(requests))
    assert all(mine == sorted(mine) for mine in numbers)


@given(slots=st.integers(1, 60), requests=st.integers(0, 500), data=st.data())
def test_a_closed_cells_workers_send_what_their_slots_would(slots, requests, data):
    workers = data.draw(st.integers(1, slots))
    cell = make_cell(concurrency=slots, requests=requests)
    for share in shares(workers):
        own = {share.slot(nth) for nth in range(share.slots(slots))}
        part = share.part(cell)
        assert {part.number(nth) % slots for nth in range(part.count(requests))} <= own
        assert part.count(requests) == sum(number % slots in own for number in range(requests))
    assert sum(share.slots(slots) for share in shares(workers)) == slots


@pytest.mark.parametrize("load", SHAPES)
@given(
    workers=st.integers(1, 9), requests=st.integers(1, 120), seed=st.integers(0, 99), end=st.sampled_from([None, 1.0])
)
def test_the_workers_schedules_together_are_the_schedule_of_one(load, workers, requests, seed, end):
    cell = make_cell(load=load, concurrency=64, requests=requests, duration_s=end, **SHAPES[load])
    whole = list(schedule(cell, seed=seed))
    together = {}
    for share in shares(workers):
        part = share.part(cell)
        for nth, due_ns in enumerate(itertools.islice(schedule(cell, seed=seed), share.index, None, share.of)):
            together[part.number(nth)] = due_ns
    assert together == dict(enumerate(whole))


def test_a_traces_requests_are_shared_without_loss():
    trace = tuple(TraceRequest(at_ns=n * n, input_tokens=5, output_tokens=1, hash_ids=()) for n in range(20))
    cell = make_cell(load="trace", concurrency=8, requests=20, input_tokens=None, trace="given", speed_up=2.0)
    times = [list(itertools.islice(schedule(cell, seed=1, trace=trace), index, None, 3)) for index in range(3)]
    assert sorted(itertools.chain(*times)) == [round(each.at_ns / 2) for each in trace]


def test_more_workers_than_slots_are_refused():
    with pytest.raises(ValueError, match="3 workers for 2 slots"):
        Share(index=0, of=3).part(make_cell(concurrency=2))
    with pytest.raises(ValueError, match="2 workers for 1 slots"):
        Share(index=0, of=2).part(make_cell(load="single", concurrency=1))


def test_slots_of_two_workers_begin_when_those_of_one_would():
    together = []
    for share in shares(2):
        loop = ClosedLoop(slots=share.slots(5), requests=50, start_ns=100, stagger_ns=50, among=(5, share.slot))
        together += [(share.slot(due.slot), due.due_ns) for due in loop.first()]
    assert sorted(together) == [
        (due.slot, due.due_ns) for due in ClosedLoop(slots=5, requests=50, start_ns=100, stagger_ns=50).first()
    ]


# How many


def test_one_worker_offers_what_one_core_easily_takes():
    chosen = how_many(make_cell(concurrency=20), "auto", MANY)
    assert (chosen.workers, "auto: about 4,000 chunks/s from 20 streams" in chosen.why) == (1, True)


def test_a_load_of_many_chunks_gets_as_many_workers_as_it_needs():
    cell = make_cell(load="poisson", rate=1_000.0, concurrency=4096, output_tokens=128)
    assert how_many(cell, "auto", MANY).workers == -(-128_000 // WORKER_CHUNKS_S)


@pytest.mark.parametrize(("cores", "workers"), [(Cores(allowed=4, free=3), 3), (Cores(allowed=1, free=1), 1)])
def test_there_are_never_more_workers_than_free_cores_and_it_is_said(cores, workers):
    chosen = how_many(make_cell(concurrency=1000), "auto", cores)
    assert chosen.workers == workers
    assert f"10 would be needed, and there are {cores.free} of {cores.allowed} cores free" in chosen.why


def test_workers_that_were_the_bottleneck_are_doubled():
    chosen = how_many(make_cell(concurrency=8), "auto", MANY, too_few=2)
    assert (chosen.workers, "2 were the bottleneck in an earlier run" in chosen.why) == (4, True)


def test_a_worker_needs_a_slot():
    assert how_many(make_cell(load="single", concurrency=1), 4, MANY).workers == 1
    assert how_many(make_cell(concurrency=3), 4, MANY).why == "4 asked for; a worker needs a slot, and there are 3"
    assert how_many(make_cell(concurrency=3), 2, MANY).workers == 2


# Frames and files


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 30))
def test_frames_do_not_depend_on_where_they_were_cut(bodies, chunk):
    wire = b"".join(LENGTH.pack(len(body)) + body for body in bodies)
    pending, got = bytearray(), []
    for at in range(0, len(wire), chunk):
        pending += wire[at : at + chunk]
        got += cut(pending)
    assert got == bodies
    assert not pending


def test_a_frame_beyond_all_bounds_is_refused():
    with pytest.raises(ValueError, match="at most"):
        cut(bytearray(b"\xff\xff\xff\xff"))


def test_what_a_killed_worker_wrote_is_read_up_to_its_last_whole_frame(tmp_path):
    path = tmp_path / "w.kept"
    reader = KeptReader(path)
    assert reader.take() == []
    writer = KeptWriter(path)
    for seq in range(3):
        writer.add(Kept(exchange(seq), sent=True, fresh=False))
    writer.flush()
    writer.add(Kept(exchange(3), sent=False, fresh=True))
    writer.flush()
    writer.close()
    path.write_bytes(path.read_bytes()[:-1])  # it died while it wrote
    assert [(kept.exchange, kept.sent) for kept in reader.take()] == [(exchange(seq), True) for seq in range(3)]
    assert reader.take() == []


# The flag


def asked(text):
    parser = argparse.ArgumentParser()
    workers.add_flags(parser)
    return argparse.Namespace(url="http://h:1", **vars(parser.parse_args(["--workers", text] if text else [])))


def plan(load_workers=1):
    cell = make_cell()
    primary = Primary(metric="ttft_ms_mean", cell=cell.name)
    return Plan(
        name="p", source="s", tests=(make_test(),), cells=(cell,), repetitions=1, primary=primary,
        load_workers=load_workers,
    )  # fmt: skip


def test_without_a_word_this_process_offers_every_cell():
    assert workers.workers_of(asked(""), plan()) == (1, None)
    assert workers.workers_of(asked("1"), plan("auto")) == (1, None)


def test_the_flag_goes_before_the_plan(monkeypatch):
    monkeypatch.setattr(cores, "allowed_cores", lambda: 4)
    wanted, decide = workers.workers_of(asked("3"), plan(2))
    assert (wanted, decide(make_cell(concurrency=9), 0).workers) == (3, 3)
    wanted, decide = workers.workers_of(asked(""), plan(2))
    assert (wanted, decide(make_cell(concurrency=9), 0).workers) == (2, 2)


def test_more_workers_than_cores_are_refused(monkeypatch):
    monkeypatch.setattr(cores, "allowed_cores", lambda: 4)
    with pytest.raises(UsageError, match=r"5 load workers, and kvgauge may use 4 cores here.* at most 4, or for auto"):
        workers.workers_of(asked("5"), plan())


def test_auto_leaves_an_embedded_target_its_cores(monkeypatch):
    monkeypatch.setattr(cores, "LOOK_S", 0.01)
    monkeypatch.setattr(cores, "allowed_cores", lambda: 64)
    monkeypatch.setattr(cores, "idle_cores", lambda before, after, ours: 64.0)
    args = asked("auto")
    _, decide = workers.workers_of(args, plan())
    assert "64 of 64 cores free" in decide(make_cell(concurrency=4000, output_tokens=2), 40).why
    args.url = None
    _, decide = workers.workers_of(args, plan())
    assert "61 of 64 cores free" in decide(make_cell(concurrency=4000, output_tokens=2), 40).why


def test_cores_are_free_as_far_as_they_idled():
    before = (
        "cpu  9 9 9 9 9 9 9 9\ncpu0 100 0 0 100 0 0 0 0 0 0\ncpu1 0 0 0 50 50 0 0 0\ncpu2 7 0 0 0 0 0 0 0\nintr 5\n"
    )
    after = (
        "cpu  9 9 9 9 9 9 9 9\ncpu0 110 0 0 130 0 0 0 0 0 0\ncpu1 0 0 0 60 60 0 0 0\ncpu2 47 0 0 0 0 0 0 0\nintr 5\n"
    )
    assert cores.idle_cores(before, after, {0, 1}) == pytest.approx(0.75 + 1)
    assert cores.idle_cores(before, after, {0, 1, 2}) == pytest.approx(0.75 + 1 + 0)
    assert cores.idle_cores(before, after, {7}) == 1
    seen = cores.look()
    assert 1 <= seen.free <= seen.allowed


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "²"])
def test_other_words_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        asked(text)
    assert "expected a number of processes, or auto" in capsys.readouterr().err

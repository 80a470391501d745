"""Conductor and workers together, in threads, over a NIXL that copies this process's memory: right and wrong ones."""

import threading
import time

import msgspec
import numpy as np
import pytest

from fake_cuda import FakeCuda
from kvgauge.builds.records import Build
from kvgauge.failures import TargetError, TransferError
from kvgauge.xfer import answers, staging
from kvgauge.xfer import measure as measuring
from kvgauge.xfer import worker as working
from kvgauge.xfer.cuda import Device
from kvgauge.xfer.figures import row_of
from kvgauge.xfer.loop import COLUMNS
from kvgauge.xfer.measure import ORDER, Pace, measure
from kvgauge.xfer.messages import Failed, Step, WorkerSpec
from kvgauge.xfer.places import Crew, Here
from kvgauge.xfer.workload import Workload

BUILD = Build(name="fake", version="1.5.0", folder="", module="nixl", preload=(), libcuda="", sha256={})
PACE = Pace(transfers=9, warmup=2, seconds=5, timeout_s=2.0)


class Threads(Here):
    """This process: each worker is a thread. dies: names of workers that end without a word"""

    def __init__(self, dies=()):
        super().__init__(BUILD, {"UCX": {}})
        self.dies, self.running, self.ended = dies, [], None

    def start(self, job):
        names = []
        for index in range(job.count):
            names.append(f"{job.side}-{index}")
            spec = WorkerSpec(
                side=job.side, index=index, work=job.work, backend=job.backend, build=self.build,
                parent=self._endpoint, timeout_s=job.timeout_s, yielding=True,
            )  # fmt: skip
            thread = threading.Thread(target=self.live, args=(spec, names[-1]), daemon=True)
            thread.start()
            self.running.append(thread)
        return names

    def live(self, spec, name):
        worker = working.Worker(spec)
        try:
            worker.say(worker.start())
            if name in self.dies:
                self.ended = f"{name} was killed by signal 9; its last lines: (none)"
            else:
                worker.serve()
        except TransferError as error:
            worker.say(Failed(str(error)))
        worker.close()

    def trouble(self):
        return self.ended

    def end(self):
        until = time.monotonic() + 20
        while any(thread.is_alive() for thread in self.running) and time.monotonic() < until:
            for side in ("initiator", "target"):  # again: one that had not connected yet was not told
                for index in range(4):
                    self.say(f"{side}-{index}", working.Bye())
            self.running[0].join(0.02)
        assert not any(thread.is_alive() for thread in self.running)
        self.running = []
        return {"initiator-0": "a line\n"}


@pytest.fixture
def conducted(monkeypatch, nixl_class):
    """measure(work, nixl): the real conductor and the real workers; every limit is quick."""
    monkeypatch.setattr(measuring, "LIMIT_S", 0.002)
    monkeypatch.setattr(measuring, "GRACE_S", 1.0)
    made = []

    def go(work, nixl=None, *, dies=(), pace=PACE):
        api = nixl or nixl_class(pending=2)
        monkeypatch.setattr(working.libraries, "load", lambda _build, _backend: api)
        place = Threads(dies)
        made.append(place)
        return measure(Crew(place, place), 3, "UCX", work, pace, progress_thread=False, threads=0, cores=2)

    yield go
    for place in made:
        place.close()


WORK = Workload(name="w", regions=2, blocks=3, block_bytes=64)


@pytest.mark.parametrize("strategy", ["blocks", "gathered"])
@pytest.mark.parametrize("operation", ["READ", "WRITE"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pattern": "contiguous"},
        {"depth": 3},
        {"threads": 2},
        {"ranks": 2, "depth": 2},
        {"initiators": 2},
        {"targets": 2},
        {"initiators": 2, "threads": 2, "ranks": 2},
        {"targets": 3, "threads": 2, "ranks": 2},
    ],
)
def test_every_shape_of_row_is_measured_and_every_byte_of_it_is_right(conducted, operation, strategy, changes):
    work = msgspec.structs.replace(WORK, operation=operation, strategy=strategy, **changes)
    found = conducted(work)
    assert found.failure is None
    assert found.again_failure is None
    lanes = work.initiators * work.threads
    assert sum(len(table) for table in found.batches) == 9 * lanes
    transfers = lanes * (1 + 2 + 9 + 1)  # the first, warm-up, measured, and the one after connecting again
    assert found.blocks_checked == transfers * work.transfer_blocks
    assert (found.blocks_wrong, found.outside) == (0, 0)
    assert found.nixl_bytes == work.transfer_bytes
    assert found.merged == work.descriptors
    assert found.backends == {"UCX"}
    assert sum(len(one.add_ns) for one in found.connected) == lanes * work.targets * work.ranks
    assert found.copy.size_bytes > 0
    assert found.stream.reason is None
    assert found.stream.size_bytes > 0
    row = row_of([found], (1, 5, 0))
    assert row.valid
    assert row.integrity.right


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
@pytest.mark.parametrize("changes", [{}, {"threads": 2, "depth": 2}, {"strategy": "gathered"},
                                     {"strategy": "gathered", "threads": 2, "depth": 3, "ranks": 2}])  # fmt: skip
def test_gpu_memory_goes_the_same_way(conducted, monkeypatch, nixl_class, operation, changes):
    cuda, kinds = FakeCuda(), []
    monkeypatch.setattr(working, "Device", lambda number: Device(number, lambda _name: cuda))
    nixl = nixl_class(pending=1)
    plain = nixl.nixl_agent.register_memory

    def register(self, regions, kind):
        kinds.append((kind, regions[0][2]))
        return plain(self, regions, kind)

    nixl.nixl_agent.register_memory = register
    found = conducted(msgspec.structs.replace(WORK, operation=operation, memory="VRAM", **changes), nixl)
    assert (found.failure, found.again_failure, found.blocks_wrong, found.outside) == (None, None, 0, 0)
    assert set(kinds) == {("VRAM", 0)}
    assert found.gpu == "Fake H100 (10), driver for CUDA 13.2"
    assert found.copy.size_bytes > 0
    assert "cuMemcpyDtoD_v2" in cuda.calls
    assert ("cuLaunchKernel" in cuda.calls) is (changes.get("strategy") == "gathered")


def test_a_transport_that_cannot_reach_gpu_memory_says_what_it_needs(conducted, monkeypatch, nixl_class):
    def fails(_agent, asked):
        if asked == "register":
            raise RuntimeError("NIXL_ERR_NOT_FOUND")

    monkeypatch.setattr(working, "Device", lambda number: Device(number, lambda _name: FakeCuda()))
    found = conducted(msgspec.structs.replace(WORK, memory="VRAM"), nixl_class(fails=fails))
    assert "NIXL_ERR_NOT_FOUND; does this transport reach GPU memory?" in found.failure


def test_a_gpu_that_is_not_there_is_a_failure_of_the_row_with_what_to_do(conducted, monkeypatch):
    def missing(_name):
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(working, "Device", lambda number: Device(number, missing))
    found = conducted(msgspec.structs.replace(WORK, memory="VRAM"))
    assert "needs an NVIDIA GPU" in found.failure
    assert "--memory dram" in found.failure


def test_records_say_round_batch_and_whether_they_count(conducted):
    found = conducted(WORK)
    table = np.concatenate(found.records)
    assert table.shape == (13, len(ORDER))
    assert set(table[:, 0].tolist()) == {3}
    assert table[:, ORDER.index("measured")].sum() == 9
    assert (table[:, ORDER.index("wrong_blocks")] == 0).all()
    assert (table[:, ORDER.index("done_ns")] > table[:, ORDER.index("begun_ns")]).all()


GATHERED = msgspec.structs.replace(WORK, strategy="gathered", depth=2)


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
def test_a_gathered_transfer_is_one_descriptor_and_its_parts_are_inside_what_the_whole_takes(conducted, operation):
    found = conducted(msgspec.structs.replace(GATHERED, operation=operation))
    assert found.failure is None
    assert (found.merged, found.nixl_bytes) == (1, WORK.transfer_bytes)
    table = np.concatenate(found.batches)
    columns = {name: table[:, number] for number, name in enumerate(COLUMNS)}
    latency = columns["done_ns"] - columns["begun_ns"]
    moved = columns["moved_ns"] - columns["posted_ns"]
    made = columns["prepare_ns"] if operation == "WRITE" else 0  # READ: made ready while the answer is awaited
    parts = columns["gather_ns"] + moved + columns["scatter_ns"] + columns["signal_ns"] + made
    assert min(columns["gather_ns"].min(), columns["scatter_ns"].min(), moved.min()) > 0
    if operation == "READ":
        assert (parts == latency).all()
    else:  # posting begins a moment after gathering has ended
        assert (abs(parts - latency) < latency).all()
    row = row_of([found], (1, 5, 0))
    assert row.valid
    assert row.figures["gather_us_mean"].point > 0


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
def test_a_block_scattered_into_another_place_is_found(conducted, monkeypatch, operation):
    plain = staging.HostStage.scatter

    def wrongly(self, slot, area):
        self._areas[area][[0, 1]] = self._areas[area][[1, 0]]
        plain(self, slot, area)

    monkeypatch.setattr(staging.HostStage, "scatter", wrongly)
    found = conducted(msgspec.structs.replace(GATHERED, operation=operation))
    assert found.kinds == {"misplaced": 2 * 13}
    assert not row_of([found], (1, 5, 0)).valid


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
def test_blocks_gathered_too_late_are_found(conducted, monkeypatch, operation):
    monkeypatch.setattr(staging.HostStage, "gather", lambda _self, _slot, _area: None)
    found = conducted(msgspec.structs.replace(GATHERED, operation=operation))
    assert found.blocks_wrong == found.blocks_checked
    assert set(found.kinds) == {"zero"}


@pytest.mark.parametrize(("operation", "said"), [("READ", "gathered"), ("WRITE", "put the blocks into their places")])
def test_a_target_that_never_answers_ends_the_row_at_its_limit(conducted, monkeypatch, operation, said):
    monkeypatch.setattr(answers.Answers, "answer", lambda _self, _heard: [])
    found = conducted(msgspec.structs.replace(GATHERED, operation=operation), pace=Pace(timeout_s=0.3))
    assert f"a gathered {operation} past its time limit of 0.3 s" in found.failure
    assert f"the target has not said that it has {said}" in found.failure


@pytest.mark.parametrize("method", ["notify", "register", "prepare", "make", "transfer"])
def test_whatever_nixl_refuses_of_a_gathered_transfer_is_said(conducted, nixl_class, method):
    def fails(agent, asked):
        if asked == method:
            raise RuntimeError("NIXL_ERR_BACKEND")

    assert "NIXL_ERR_BACKEND" in conducted(GATHERED, nixl_class(fails=fails)).failure


def breaking(nixl, how, *, after=0):
    """Let the fake's copies be wrong from the n-th on."""
    plain, count = nixl.copy, [0]

    def copy(handle):
        count[0] += 1
        if count[0] > after:
            how(handle, plain)
        else:
            plain(handle)

    nixl.copy = copy
    return nixl


def without_last(handle, plain):
    plain(type(handle)(**{**vars(handle), "local": handle.local[:-1], "remote": handle.remote[:-1]}))


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
def test_a_block_that_never_came_is_counted_named_and_makes_the_row_invalid(conducted, nixl_class, operation):
    work = msgspec.structs.replace(WORK, operation=operation)
    found = conducted(work, breaking(nixl_class(), without_last, after=4))
    assert found.failure is None
    assert found.blocks_wrong == 13 - 4
    row = row_of([found], (1, 5, 0))
    assert not row.valid
    assert f"9 of {found.blocks_checked} blocks wrong" in row.against[0]
    table = np.concatenate(found.records)
    assert table[:, ORDER.index("wrong_blocks")].tolist().count(1) == 9


def test_a_write_beside_its_block_is_found(conducted, nixl_class):
    def beside(handle, plain):
        plain(handle)
        moved = handle.local.copy()
        moved[:, 0] += 64
        handle.local[:] = moved
        plain(handle)

    found = conducted(WORK, breaking(nixl_class(), beside))
    assert found.blocks_wrong + found.outside > 0
    assert not row_of([found], (1, 5, 0)).valid


def test_a_transfer_that_hangs_ends_at_its_limit_with_a_reason(conducted, nixl_class):
    began = time.monotonic()
    found = conducted(WORK, nixl_class(pending=10**9), pace=Pace(timeout_s=0.3))
    assert "READ past its time limit of 0.3 s" in found.failure
    assert "initiator-0" in found.failure
    assert found.batches == []
    assert time.monotonic() - began < 20


def test_a_notification_that_never_comes_is_a_failure(conducted, nixl_class):
    nixl = nixl_class()
    started = nixl.nixl_agent.get_new_notifs
    nixl.nixl_agent.get_new_notifs = lambda self: started(self) and {}
    found = conducted(WORK, nixl, pace=Pace(timeout_s=0.3))
    assert "DONE at the initiator, but 0 of 1 notifications came" in found.failure


@pytest.mark.parametrize("method", ["start", "register", "add", "make_connection", "prepare", "make", "transfer"])
def test_whatever_nixl_refuses_is_said_with_who_and_when(conducted, nixl_class, method):
    def fails(agent, asked):
        if asked == method and agent.startswith("initiator"):
            raise RuntimeError("NIXL_ERR_BACKEND")

    found = conducted(WORK, nixl_class(fails=fails))
    assert found.failure.startswith("initiator-0, ")
    assert "NIXL_ERR_BACKEND" in found.failure


def test_a_worker_that_is_killed_is_named(conducted):
    found = conducted(WORK, dies=("target-0",), pace=Pace(timeout_s=1.0))
    assert found.failure.startswith("target-0 was killed by signal 9")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (("initiator-0", "target-0"), "initiator-0, starting: NIXL_ERR_NOT_FOUND"),
        (("initiator-0",), "target-0 ended with exit code 0; then initiator-0, starting: NIXL_ERR_NOT_FOUND"),
    ],
)
def test_an_end_comes_before_the_reason_of_the_other_side_unless_it_has_a_reason_of_its_own(said, expected):
    class Ended:
        """A place whose target has ended; what workers said is still on its way."""

        def __init__(self):
            self.left = [(name, Failed("NIXL_ERR_NOT_FOUND")) for name in said]

        def hear(self, _wait_s):
            return self.left.pop(0) if self.left else None

        def trouble(self):
            return "target-0 ended with exit code 0"

    place = Ended()
    with pytest.raises(TargetError) as caught:
        Crew(place, place).wait(["initiator-0", "target-0"], Step, 5)
    assert str(caught.value) == expected


def test_numbers_stand_when_only_connecting_again_fails(conducted, nixl_class):
    def fails(agent, asked):
        if asked == "start" and agent.endswith("-again"):
            raise RuntimeError("NIXL_ERR_BACKEND")

    found = conducted(WORK, nixl_class(fails=fails))
    assert found.failure is None
    assert "NIXL_ERR_BACKEND" in found.again_failure
    row = row_of([found], (1, 5, 0))
    assert row.valid
    assert "NIXL_ERR_BACKEND" in row.figures["connect_warm_ms"].reason


def test_another_backend_than_was_asked_for_makes_a_row_invalid(conducted, nixl_class):
    nixl = nixl_class()
    nixl.nixl_agent.query_xfer_backend = lambda _self, _handle: "LIBFABRIC"
    row = row_of([conducted(WORK, nixl)], (1, 5, 0))
    assert row.against == ("NIXL says LIBFABRIC carried transfers that UCX was asked for",)


def test_bytes_that_do_not_add_up_make_a_row_invalid(conducted, nixl_class):
    nixl = nixl_class()
    nixl.nixl_agent.get_xfer_telemetry = lambda _self, _handle: type("T", (), {"totalBytes": 8, "descCount": 1})
    row = row_of([conducted(WORK, nixl)], (1, 5, 0))
    assert row.against == (f"NIXL counted 8 bytes of a transfer of {WORK.transfer_bytes}",)

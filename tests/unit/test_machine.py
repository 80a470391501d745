"""What /proc and nvidia-smi say, from files that the test writes; and once from this machine's own."""

import os
import stat

import pytest

from kvgauge.evidence import machine
from kvgauge.evidence.facts import Missing
from kvgauge.evidence.machine import Snapshot, Ticks
from kvgauge.evidence.tree import Tree

STAT = "cpu  {} 0 0 {} 0 0 0 {} 0 0\ncpu0 1 2 3\n"
NET = "Inter-|   Receive\n face |bytes\n    lo: 700 1 0\n  eth0: 50 1 0\n"


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """Write a file that the module then reads instead of the machine's."""

    def write(path, text):
        made = tmp_path / path.lstrip("/")
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(text)

    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / str(path).lstrip("/"))
    write("/proc/stat", STAT.format(10, 80, 10))
    return write


def write_process(proc, pid, *, user, system, pages):
    words = ["S", *["0"] * 10, str(user), str(system), *["0"] * 20]
    proc(f"/proc/{pid}/stat", f"{pid} (a (strange) name) {' '.join(words)}\n")
    proc(f"/proc/{pid}/statm", f"999 {pages} 1 1 0 1 0\n")


def a_snapshot(busy=0, idle=0, steal=0, wire=None, cpu_s=None, rss=None):
    return Snapshot(
        ticks=Ticks(busy=busy, idle=idle, steal=steal), wire_bytes=wire, cpu_s=cpu_s or {}, rss_bytes=rss or {}
    )


def test_processor_time_and_memory_of_each_process_are_read_whatever_its_name_holds(proc):
    write_process(proc, 7, user=150, system=50, pages=3)
    seen = machine.read_snapshot({"decode-0": 7})
    assert seen.cpu_s == {"decode-0": 200 / machine.TICKS_A_SECOND}
    assert seen.rss_bytes == {"decode-0": 3 * machine.PAGE_BYTES}
    assert seen.ticks == Ticks(busy=10, idle=80, steal=10)


def test_a_process_that_has_ended_is_left_out(proc):
    write_process(proc, 7, user=1, system=1, pages=1)
    proc("/proc/8/stat", "")
    proc("/proc/8/statm", "")
    seen = machine.read_snapshot({"decode-0": 7, "prefill-0": 8, "frontend": 9})
    assert set(seen.cpu_s) == set(seen.rss_bytes) == {"decode-0"}


def test_bytes_on_the_wire_that_cannot_be_read_are_missing_and_not_zero(proc):
    nothing = machine.read_snapshot({})
    assert nothing.wire_bytes is None
    gone = machine.wire_bytes(nothing, a_snapshot(wire=5))
    assert isinstance(gone, Missing)
    assert "/proc" in gone.reason
    assert isinstance(machine.wire_bytes(a_snapshot(wire=5), nothing), Missing)
    assert machine.wire_bytes(a_snapshot(wire=5), a_snapshot(wire=30)) == 25


def test_bytes_on_the_wire_are_added_over_interfaces(proc):
    proc("/proc/net/dev", NET)
    proc("/proc/self/net/dev", NET)
    assert machine.read_snapshot({}).wire_bytes == 750


def test_use_is_what_happened_between_two_looks():
    before = a_snapshot(busy=100, idle=900, steal=0, cpu_s={"client": 1.0})
    after = a_snapshot(busy=150, idle=940, steal=10, cpu_s={"client": 1.5, "decode-0": 0.25}, rss={"client": 9})
    used = machine.use(before, after)
    assert (used.busy, used.steal) == (0.5, 0.1)
    assert used.processes_cpu_s == {"client": 0.5, "decode-0": 0.25}
    assert used.rss_bytes == {"client": 9}
    assert used.cores == os.cpu_count()


def test_two_looks_within_one_tick_are_no_use_at_all():
    assert machine.use(a_snapshot(), a_snapshot()).busy == 0.0


@pytest.mark.parametrize(
    ("limit", "used", "available"),
    [(None, None, 4 << 30), ("max", "5", 4 << 30), (str(2 << 30), str(1 << 30), 1 << 30), (str(9 << 30), "0", 4 << 30),
     (str(1 << 30), str(2 << 30), 0)],
)  # fmt: skip
def test_available_memory_is_bounded_by_the_cgroup_where_there_is_one(tmp_path, proc, limit, used, available):
    proc("/proc/meminfo", f"MemTotal: 1 kB\nMemAvailable: {4 << 20} kB\n")
    if limit is not None:
        proc("/proc/self/cgroup", "0::/\n")
        proc("/proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
        proc("/sys/fs/cgroup/memory.max", limit + "\n")
        proc("/sys/fs/cgroup/memory.current", used + "\n")
    assert machine.read_available_memory(Tree(tmp_path)) == available


def nvidia_smi(tmp_path, monkeypatch, script):
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)


def test_memory_is_added_over_gpus(tmp_path, monkeypatch):
    nvidia_smi(tmp_path, monkeypatch, "echo 0, NVIDIA H100, 570.1, 1024, 81559; echo 1, NVIDIA H100, 570.1, 512, 81559")
    assert machine.read_gpu_memory() == 1536 << 20


@pytest.mark.parametrize("script", ["exit 9", "echo '0, NVIDIA H100, 570.1, [N/A], 81559'"])
def test_a_driver_that_does_not_answer_is_missing_with_what_it_said(tmp_path, monkeypatch, script):
    nvidia_smi(tmp_path, monkeypatch, script)
    found = machine.read_gpu_memory()
    assert isinstance(found, Missing)
    assert found.reason.startswith("nvidia-smi gave no memory: ")


def test_a_machine_without_a_driver_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no NVIDIA driver" in machine.read_gpu_memory().reason


def test_this_machine_can_be_read():
    before = machine.read_snapshot(machine.own_pid())
    sum(range(200_000))
    after = machine.read_snapshot(machine.own_pid())
    assert set(after.cpu_s) == {"client"}
    assert after.rss_bytes["client"] > 1 << 20
    assert after.ticks.total >= before.ticks.total
    assert machine.read_available_memory() > 0


def test_bytes_on_the_wire_may_be_those_of_one_interface_where_a_process_runs(proc):
    proc("/proc/7/net/dev", NET)
    proc("/proc/8/net/dev", "  veth1: 20 1 0\n")
    wires = (machine.Wire(pid=7, interface="eth0"), machine.Wire(pid=8, interface="veth1"))
    assert machine.read_snapshot({}, wires).wire_bytes == 70
    assert machine.read_snapshot({}, (machine.Wire(pid=9),)).wire_bytes is None

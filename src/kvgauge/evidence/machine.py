"""What the machine did while a run lasted: processor time, steal, memory, bytes on network interfaces.

`parse_*` are pure; `read_*` are the thin edge that opens /proc.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kvgauge.evidence import nvml
from kvgauge.evidence.cgroups import Cgroups
from kvgauge.evidence.facts import MachineUse, Missing
from kvgauge.evidence.proc import meminfo
from kvgauge.evidence.tree import Tree

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Ticks(msgspec.Struct, frozen=True, kw_only=True):
    """Processor time of all cores since boot, in ticks."""

    busy: int
    idle: int
    steal: int

    @property
    def total(self) -> int:
        return self.busy + self.idle + self.steal


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the machine."""

    ticks: Ticks
    wire_bytes: int | None
    cpu_s: dict[str, float]
    rss_bytes: dict[str, int]


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """Which network interfaces are counted.

    pid        of a process in the network namespace that is meant; None: this process's own
    interface  that one alone; None: all of them
    """

    pid: int | None = None
    interface: str | None = None


def parse_stat(text: str) -> Ticks:
    """First line of /proc/stat: user nice system idle iowait irq softirq steal guest guest_nice."""
    values = [int(word) for word in text.split("\n", 1)[0].split()[1:9]]
    user, nice, system, idle, iowait, irq, softirq, steal = values
    return Ticks(busy=user + nice + system + irq + softirq, idle=idle + iowait, steal=steal)


def parse_net_dev(text: str, interface: str | None = None) -> int:
    """Received bytes over all interfaces in /proc/net/dev, or over one."""
    rows = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return sum(int(row[1].split()[0]) for row in rows if interface in (None, row[0].strip()))


def read_snapshot(pids: dict[str, int], wires: Sequence[Wire] = (Wire(),)) -> Snapshot:
    """pids   process name -> pid; one that has ended is left out"""
    cpu_s, rss_bytes = {}, {}
    for name, pid in pids.items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
        cpu_s[name] = (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND
        rss_bytes[name] = pages * PAGE_BYTES
    return Snapshot(
        ticks=parse_stat(Path("/proc/stat").read_text()),
        wire_bytes=_read_wires(wires),
        cpu_s=cpu_s,
        rss_bytes=rss_bytes,
    )


def _read_wires(wires: Sequence[Wire]) -> int | None:
    try:
        return sum(
            parse_net_dev(Path(f"/proc/{wire.pid or 'self'}/net/dev").read_text(), wire.interface) for wire in wires
        )
    except (OSError, ValueError, IndexError):
        return None


def use(before: Snapshot, after: Snapshot) -> MachineUse:
    """What happened between two looks."""
    total = max(1, after.ticks.total - before.ticks.total)
    return MachineUse(
        busy=(after.ticks.busy - before.ticks.busy) / total,
        steal=(after.ticks.steal - before.ticks.steal) / total,
        cores=os.cpu_count() or 1,
        processes_cpu_s={name: round(s - before.cpu_s.get(name, 0.0), 3) for name, s in after.cpu_s.items()},
        rss_bytes=after.rss_bytes,
    )


def wire_bytes(before: Snapshot, after: Snapshot) -> int | Missing:
    """Bytes received on all interfaces between two looks: other traffic included, so a lower bound check only."""
    if before.wire_bytes is None or after.wire_bytes is None:
        return Missing(reason="/proc/net/dev cannot be read here")
    return after.wire_bytes - before.wire_bytes


def own_pid() -> dict[str, int]:
    """This process, as `client`."""
    return {"client": os.getpid()}


def read_gpu_memory() -> int | Missing:
    """Memory in use on all GPUs, as nvidia-smi says."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Missing(reason="no NVIDIA driver (nvidia-smi) on this machine")
    try:
        done = subprocess.run(
            [tool, f"--query-gpu={','.join(nvml.QUERY)}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Missing(reason=f"nvidia-smi gave no memory: {str(error)[:120]}")
    used = [gpu.memory_used_bytes for gpu in nvml.gpus(done.stdout.splitlines())]
    known = [count for count in used if count is not None]
    if not known or len(known) < len(used):
        return Missing(reason=f"nvidia-smi gave no memory: {done.stdout.strip()[:120]!r}")
    return sum(known)


def read_available_memory(tree: Tree | None = None) -> int:
    """Bytes that can be taken without swapping (MemAvailable), bounded by this process's cgroup where it has one."""
    tree = tree or Tree()
    available = meminfo(tree.text("/proc/meminfo") or "").get("MemAvailable", 0)
    limit, used = Cgroups(tree).memory()
    return available if limit is None else min(available, max(0, limit - used))

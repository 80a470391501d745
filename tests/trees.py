"""Copies of /proc, /sys, /dev and /etc as machines have them, made by hand; and libraries that are headers only."""

import struct
from pathlib import Path

MIB, GIB = 1 << 20, 1 << 30

STATUS = "Name:\tkvgauge\nCapEff:\t{caps}\nCpus_allowed_list:\t{cpus}\n"
LIMITS = (
    "Limit                     Soft Limit           Hard Limit           Units     \n"
    "Max processes             96365                96365                processes \n"
    "Max open files            {files}                {files}              files     \n"
    "Max locked memory         {memlock}              {memlock}              bytes     \n"
)


class Machine:
    """Writes files below a folder that a Tree then takes for the root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, files: dict[str, object]) -> "Machine":
        for path, text in files.items():
            made = self.root / path.lstrip("/")
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(f"{text}\n")
        return self

    def link(self, path: str, target: str) -> None:
        made = self.root / path.lstrip("/")
        made.parent.mkdir(parents=True, exist_ok=True)
        made.symlink_to(target)

    def interface(self, name: str, *, flags: int = 0x1043, mtu: int = 1500) -> None:
        own = f"/sys/class/net/{name}"
        self.write({f"{own}/flags": hex(flags), f"{own}/mtu": mtu})

    def rdma(self, name: str, driver: str, link: str, state: str = "4: ACTIVE", **files: object) -> None:
        own = f"/sys/class/infiniband/{name}"
        self.write({f"{own}/ports/1/state": state, f"{own}/ports/1/link_layer": link})
        self.link(f"{own}/device/driver", f"../../bus/pci/drivers/{driver}")
        self.write({f"{own}/{path}": text for path, text in files.items()})


def laptop(
    root: Path, *, cores: int = 8, memory: int = 16 * GIB, memlock: object = 8 * MIB, files: object = 1_048_576
) -> Machine:
    """No GPU, no RDMA, wireless."""
    machine = Machine(root)
    cpus = f"0-{cores - 1}"
    machine.write(
        {
            "/proc/meminfo": f"MemTotal: {memory >> 10} kB\nMemAvailable: {(memory // 2) >> 10} kB\nSwapTotal: 0 kB\n"
            "SwapFree: 0 kB\nHugePages_Total: 0\nHugePages_Free: 0\nHugepagesize: 2048 kB",
            "/proc/self/limits": LIMITS.format(memlock=memlock, files=files),
            "/proc/self/status": STATUS.format(caps="0000000000000000", cpus=cpus),
            "/proc/self/cgroup": "0::/user.slice/session.scope",
            "/proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate",
            "/proc/cpuinfo": "processor: 0\nflags\t: fpu tsc\n",
            "/proc/modules": "nvme 1 0 - Live 0x0",
            "/proc/sys/kernel/osrelease": "6.8.0-45-generic",
            "/proc/sys/net/ipv4/ip_local_port_range": "32768\t60999",
            "/sys/devices/system/cpu/online": cpus,
            "/sys/devices/system/node/online": "0",
            "/sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
            "/sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc hpet acpi_pm",
            "/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
        }
    )
    for core in range(min(cores, 4)):
        machine.write({f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor": "powersave"})
    machine.interface("lo", flags=0x49)
    machine.interface("wlp1s0")
    machine.write({"/sys/class/net/wlp1s0/wireless/x": ""})
    return machine


def efa_p5(root: Path, *, devices: int = 32, uverbs: int = 32, **laptop_like: object) -> Machine:
    """A p5: 32 EFA devices, eight H100, 192 cores, 2 TiB."""
    machine = laptop(root, **({"cores": 192, "memory": 2048 * GIB, "memlock": "unlimited"} | laptop_like))
    for index in range(devices):
        machine.rdma(f"rdmap{index}s0", "efa", "Unspecified", **{"device/vendor": "0x1d0f", "device/p2p": "NVIDIA"})
        machine.write({f"/sys/class/infiniband/rdmap{index}s0/ports/1/hw_counters/tx_bytes": 0})
    for index in range(uverbs):
        machine.write({f"/dev/infiniband/uverbs{index}": ""})
    gpus(machine, "NVIDIA H100 80GB HBM3", 8)
    machine.write(
        {
            "/proc/modules": "efa 1 0 - Live 0x0\nnvidia 1 0 - Live 0x0\ngdrdrv 1 0 - Live 0x0\nib_uverbs 1 0 - Live 0x0",
            "/sys/devices/system/node/online": "0-1",
            "/opt/amazon/efa_installed_packages": "# EFA installer version: 1.48.0\n# Debug packages installed: no",
        }
    )
    machine.interface("eth0")
    return machine


def infiniband(root: Path, **laptop_like: object) -> Machine:
    """Eight ConnectX-7, one of them down, eight H100, no peer memory module."""
    machine = laptop(root, **({"cores": 128, "memory": 2048 * GIB, "memlock": "unlimited"} | laptop_like))
    for index in range(8):
        machine.rdma(f"mlx5_{index}", "mlx5_core", "InfiniBand", "1: DOWN" if index == 7 else "4: ACTIVE")
        machine.write({f"/dev/infiniband/uverbs{index}": ""})
    gpus(machine, "NVIDIA H100 80GB HBM3", 8)
    machine.interface("eth0")
    return machine


def gpus(
    machine: Machine, model: str, count: int, *, module: str = "NVIDIA UNIX x86_64 Kernel Module  570.86.15  x"
) -> None:
    machine.write({"/proc/driver/nvidia/version": f"NVRM version: {module}"})
    for index in range(count):
        machine.write({f"/proc/driver/nvidia/gpus/0000:{index:02}:00.0/information": f"Model: \t\t {model}"})
        machine.write({f"/dev/nvidia{index}": ""})


def pod_v2(machine: Machine, *, limit: int, used: int = 1 * GIB, quota: str = "400000 100000") -> Machine:
    """The same machine seen from a pod with a cgroup namespace: its own cgroup is the root."""
    return machine.write(
        {
            "/proc/self/cgroup": "0::/",
            "/sys/fs/cgroup/memory.max": limit,
            "/sys/fs/cgroup/memory.current": used,
            "/sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {used // 2}",
            "/sys/fs/cgroup/cpu.max": quota,
            "/sys/fs/cgroup/cpu.stat": "nr_periods 10\nnr_throttled 3",
            "/sys/fs/cgroup/pids.max": 1000,
            "/sys/fs/cgroup/pids.current": 900,
        }
    )


def pod_v1(machine: Machine, *, limit: int, used: int = 1 * GIB, cores: float = 2) -> Machine:
    """The same from a pod without one: /proc names the host's path, the mount shows the pod's folder at its root."""
    own = "/kubepods/burstable/pod17/abc"
    memory, cpu = "/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu,cpuacct"
    return machine.write(
        {
            "/proc/self/cgroup": f"9:memory:{own}\n8:cpu,cpuacct:{own}\n0::{own}",
            "/proc/self/mountinfo": f"35 31 0:32 {own} {memory} rw - cgroup cgroup rw,memory\n"
            f"36 31 0:33 {own} {cpu} rw - cgroup cgroup rw,cpu,cpuacct",
            f"{memory}/memory.limit_in_bytes": limit,
            f"{memory}/memory.usage_in_bytes": used,
            f"{memory}/memory.stat": "total_inactive_file 0",
            f"{cpu}/cpu.cfs_quota_us": int(cores * 100_000),
            f"{cpu}/cpu.cfs_period_us": 100_000,
        }
    )


def library(
    path: Path,
    *,
    needed: tuple[str, ...] = (),
    versions: dict[str, tuple[str, ...]] | None = None,
    defines: tuple[str, ...] = (),
    paths: str = "",
    runpath: bool = True,
) -> Path:
    """A 64-bit x86-64 shared object of headers, .dynamic, .dynstr and version sections: nothing that could run."""
    strings = bytearray(b"\0")

    def put(name: str) -> int:
        at = len(strings)
        strings.extend(name.encode() + b"\0")
        return at

    dynamic = b"".join(struct.pack("<qQ", 1, put(name)) for name in needed)
    dynamic += struct.pack("<qQ", 14, put(path.name))
    if paths:
        dynamic += struct.pack("<qQ", 29 if runpath else 15, put(paths))
    dynamic += struct.pack("<qQ", 0, 0)
    wanted = b""
    for index, (file, names) in enumerate((versions or {}).items(), start=1):
        size = 16 + 16 * len(names)
        wanted += struct.pack("<HHIII", 1, len(names), put(file), 16, 0 if index == len(versions or {}) else size)
        for count, name in enumerate(names, start=1):
            wanted += struct.pack("<IHHII", 0, 0, 2, put(name), 0 if count == len(names) else 16)
    defined = b""
    for index, name in enumerate((path.name, *defines), start=1):
        last = index == len(defines) + 1
        defined += struct.pack("<HHHHIII", 1, 1 if index == 1 else 0, index, 1, 0, 20, 0 if last else 28)
        defined += struct.pack("<II", put(name), 0)
    parts = [(3, bytes(strings)), (6, dynamic)]
    parts += [(0x6FFFFFFE, wanted)] if wanted else []
    parts += [(0x6FFFFFFD, defined)] if defines else []
    at, body, headers = 64, b"", [struct.pack("<IIQQQQIIQQ", *[0] * 10)]
    for kind, data in parts:
        headers.append(struct.pack("<IIQQQQIIQQ", 0, kind, 0, 0, at + len(body), len(data), 1, 0, 1, 0))
        body += data + b"\0" * (-len(data) % 8)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = struct.pack("<16sHHIQQQIHHHHHH", ident, 3, 62, 1, 0, 0, 64 + len(body), 0, 64, 56, 0, 64, len(headers), 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + body + b"".join(headers))
    return path

"""Memory, limits, processor and place, read below a root."""

from kvgauge.doctor.records import Limits, Memory, Place, Processor
from kvgauge.evidence import proc
from kvgauge.evidence.cgroups import Cgroups
from kvgauge.evidence.tree import Tree

_CPUS = "/sys/devices/system/cpu"
_CLOCK = "/sys/devices/system/clocksource/clocksource0"


def memory(tree: Tree, cgroups: Cgroups, shm: tuple[int, int] | None) -> Memory:
    """shm  (bytes, bytes free) of /dev/shm; None where it cannot be asked"""
    said = proc.meminfo(tree.text("/proc/meminfo") or "")
    limit, used = cgroups.memory()
    page = said.get("Hugepagesize", 2 << 20)
    return Memory(
        total=said.get("MemTotal"),
        available=said.get("MemAvailable"),
        limit=limit,
        limit_used=used,
        swap_total=said.get("SwapTotal", 0),
        swap_free=said.get("SwapFree", 0),
        huge_page=page,
        huge_total=said.get("HugePages_Total", 0),
        huge_free=said.get("HugePages_Free", 0),
        huge_limit=cgroups.huge_limit(page),
        transparent_huge=proc.chosen(tree.text("/sys/kernel/mm/transparent_hugepage/enabled") or ""),
        shm=shm[0] if shm else None,
        shm_free=shm[1] if shm else None,
    )


def limits(tree: Tree, cgroups: Cgroups) -> Limits:
    said = proc.limits(tree.text("/proc/self/limits") or "")
    status = proc.status(tree.text("/proc/self/status") or "")
    most, now = cgroups.pids()
    locked, files = said.get("Max locked memory"), said.get("Max open files")
    return Limits(
        read=locked is not None and files is not None,
        memlock_soft=locked[0] if locked else None,
        memlock_hard=locked[1] if locked else None,
        files_soft=files[0] if files else None,
        files_hard=files[1] if files else None,
        may_lock=proc.may_lock(status.get("CapEff", "")),
        pids_max=most,
        pids_used=now,
    )


def processor(tree: Tree, cgroups: Cgroups) -> Processor:
    """Without what has to be watched for a while."""
    status = proc.status(tree.text("/proc/self/status") or "")
    governors = {
        word
        for name in tree.names(_CPUS)
        if name.startswith("cpu") and name[3:].isdecimal()
        if (word := tree.word(f"{_CPUS}/{name}/cpufreq/scaling_governor")) is not None
    }
    nodes = tree.text("/sys/devices/system/node/online")
    return Processor(
        online=proc.cores(tree.text(f"{_CPUS}/online") or ""),
        allowed=proc.cores(status.get("Cpus_allowed_list", "")),
        quota=cgroups.quota(),
        clock=tree.word(f"{_CLOCK}/current_clocksource"),
        clocks=tuple((tree.text(f"{_CLOCK}/available_clocksource") or "").split()),
        governors=tuple(sorted(governors)),
        nodes=proc.cores(nodes) if nodes else 0,
    )


def place(tree: Tree, variables: dict[str, str]) -> Place:
    return Place(
        kernel=tree.word("/proc/sys/kernel/osrelease"),
        container=_container(tree, variables),
        hypervisor=_hypervisor(tree),
        ptrace_scope=tree.number("/proc/sys/kernel/yama/ptrace_scope"),
    )


def _container(tree: Tree, variables: dict[str, str]) -> str | None:
    if "KUBERNETES_SERVICE_HOST" in variables or tree.exists("/var/run/secrets/kubernetes.io"):
        return "a Kubernetes pod"
    if tree.exists("/.dockerenv"):
        return "a Docker container"
    if tree.exists("/run/.containerenv"):
        return "a Podman container"
    own = tree.text("/proc/self/cgroup") or ""
    return "a container" if any(word in own for word in ("kubepods", "docker", "containerd", "lxc")) else None


def _hypervisor(tree: Tree) -> str | None:
    """As DMI or Xen name it, or that it has no name; None without a sign of one."""
    vendor, product = tree.word("/sys/class/dmi/id/sys_vendor"), tree.word("/sys/class/dmi/id/product_name")
    kind = tree.word("/sys/hypervisor/type")
    head = (tree.text("/proc/cpuinfo") or "").split("\n\n", 1)[0]
    flags = next((line for line in head.splitlines() if line.startswith("flags")), "")
    if "hypervisor" not in flags.split() and kind is None:
        return None
    return " ".join(word for word in (vendor, product) if word) or kind or "of an unnamed kind"

"""Memory, shared memory, huge pages, swap and what may be locked, against what transports take. Pure."""

from collections.abc import Iterator

from kvgauge.doctor.needs import Needs
from kvgauge.doctor.records import Facts, Finding, Level, Memory
from kvgauge.failures import TargetError
from kvgauge.target.pools import pool_blocks

GIB = 1 << 30
MIB = 1 << 20
EFA_DEVICES, EFA_TOO_LITTLE, EFA_ENOUGH = 32, 64 * GIB, 128 * GIB
ENDPOINT_HUGE_BYTES = 110 * MIB
SHM_ENGINE = GIB
SHM_DOCKER = 64 * MIB
DISK_LEAST = GIB
_OFF = ("0", "off", "false", "no", "n")


def size(count: int | None) -> str:
    """Bytes as people say them."""
    if count is None:
        return "unlimited"
    for unit, step in (("GiB", GIB), ("MiB", MIB), ("KiB", 1024)):
        if count >= step:
            shown = count / step
            return f"{shown:.0f} {unit}" if shown >= 100 or shown == int(shown) else f"{shown:.1f} {unit}"
    return f"{count} B"


def judge(facts: Facts, needs: Needs) -> Iterator[Finding]:
    yield from _whole(facts, needs)
    yield from _pools(facts.memory, needs)
    yield from _shm(facts, needs)
    yield from _huge(facts, needs)
    yield from _quiet(facts.memory)
    yield from _memlock(facts, needs)
    for folder, free in facts.disk_free.items():
        if free < DISK_LEAST:
            yield Finding(
                key="memory.disk",
                level="warning",
                area="memory",
                seen=f"{size(free)} of disk free for {folder}",
                needed=f"{size(DISK_LEAST)}: a NIXL build takes 220 MB, samples about 100 MB a long plan",
                remedy="make room, or point XDG_CACHE_HOME and --out elsewhere",
                source="statvfs",
            )


def _whole(facts: Facts, needs: Needs) -> Iterator[Finding]:
    """What 32 EFA devices cost, when libfabric is to open them all."""
    memory, devices = facts.memory, facts.fabrics.of("efa")
    whole, takable = memory.whole, memory.takable
    if whole is None or takable is None:
        return
    whose = "this cgroup (the pod's limit)" if memory.limit is not None and memory.limit == whole else "this machine"
    has = f"{size(takable)} of {size(whole)} can be taken in {whose}"
    wants = ("LIBFABRIC", "efa") in needs.asked
    per_device = EFA_ENOUGH // EFA_DEVICES
    if not wants or not devices:
        yield Finding(key="memory.available", level="ok", area="memory", seen=has, source="/proc/meminfo, cgroup")
        return
    count = len(devices)
    enough = min(EFA_ENOUGH, count * per_device)
    level: Level = "ok" if whole >= enough else "warning"
    if count >= EFA_DEVICES and whole <= EFA_TOO_LITTLE:
        level = "problem"
    guessed = "" if count >= EFA_DEVICES else " (taken in proportion from the 32 of a p5: a guess)"
    yield Finding(
        key="memory.efa",
        level=level,
        area="memory",
        seen=f"{has}; {count} EFA devices, all of which NIXL's LIBFABRIC opens",
        needed="" if level == "ok" else f"{size(enough)} for {count} devices{guessed}; 64 GiB with 32 were OOM-killed",
        remedy=""
        if level == "ok"
        else f"set resources.limits.memory of the pod to {size(enough)}, or give it fewer devices "
        "(vpc.amazonaws.com/efa: 4); NIXL reads no NIXL_LIBFABRIC_MAX_RAILS",
        source="docs/doctor.md, memory of EFA devices; ai-dynamo/nixl#1161",
    )


def _pools(memory: Memory, needs: Needs) -> Iterator[Finding]:
    """The KV pools of each test that kvgauge's own workers run."""
    if needs.plan is None or memory.takable is None:
        return
    notes: dict[str, tuple[Level, list[str]]] = {}
    fitting = 0
    for test in needs.embedded:
        try:
            _, note = pool_blocks(test, needs.plan.cells, memory.takable)
        except TargetError as error:
            notes.setdefault(str(error), ("problem", []))[1].append(test.name)
            continue
        if note is None:
            fitting += 1
        else:
            notes.setdefault(note, ("warning", []))[1].append(test.name)
    for text, (level, tests) in notes.items():
        yield Finding(
            key="memory.pools",
            level=level,
            area="memory",
            seen=f"{', '.join(tests)}: {text}",
            needed="pools that hold every request that is under way at a time",
            remedy="raise the pod's memory limit, end what else takes memory, or lower concurrency or prompt length",
            source="docs/compute.md",
        )
    if fitting:
        seen = f"the KV pools of {fitting} of {len(needs.embedded)} tests fit into {size(memory.takable)}"
        yield Finding(key="memory.pools", level="ok", area="memory", seen=seen, source="/proc/meminfo, cgroup")


def _shm(facts: Facts, needs: Needs) -> Iterator[Finding]:
    memory = facts.memory
    if not needs.engines and "shm" not in needs.fabrics:
        return  # kvgauge's own workers over tcp keep nothing there
    if memory.shm is None or memory.shm_free is None:
        yield Finding(
            key="memory.shm",
            level="problem" if "shm" in needs.fabrics else "warning",
            area="memory",
            seen="there is no /dev/shm",
            needed="a tmpfs: UCX's shared memory transport, NCCL and PyTorch keep their segments there",
            remedy="mount one (emptyDir with medium: Memory at /dev/shm; --shm-size or --ipc=host of docker)",
            source="statvfs /dev/shm",
        )
        return
    level: Level = "ok" if memory.shm_free >= SHM_ENGINE else "warning"
    tight = "; 64 MiB is what a container gets when nobody asks" if memory.shm <= SHM_DOCKER else ""
    yield Finding(
        key="memory.shm",
        level=level,
        area="memory",
        seen=f"shared memory (/dev/shm): {size(memory.shm_free)} free of {size(memory.shm)}{tight}",
        needed="" if level == "ok" else "1 GiB or more for an engine with tensor parallelism (PyTorch, NCCL, UCX sm)",
        remedy="" if level == "ok" else "--ipc=host or --shm-size=10g of docker; emptyDir with medium: Memory in a pod",
        source="docs.vllm.ai, Using Docker",
    )


def _huge(facts: Facts, needs: Needs) -> Iterator[Finding]:
    """libfabric's EFA provider keeps its buffers in huge pages unless told otherwise."""
    memory, variables = facts.memory, facts.variables
    devices = len(facts.fabrics.of("efa"))
    if ("LIBFABRIC", "efa") not in needs.asked or not devices:
        return
    asked = variables.get("FI_EFA_USE_HUGE_PAGE", "").lower()
    source = "fi_efa(7); 110 MB an endpoint: bottlerocket-core-kit#141, from AWS's efa-config"
    free = memory.huge_free * memory.huge_page
    if memory.huge_limit is not None:
        free = min(free, memory.huge_limit)
    wanted = devices * ENDPOINT_HUGE_BYTES
    has = f"{size(free)} of huge pages free"
    off = asked in _OFF if asked else variables.get("FI_EFA_FORK_SAFE", "").lower() not in ("", *_OFF)
    if off or free >= wanted:
        how = "the EFA provider was told to use none" if off else f"enough for {size(wanted)} of endpoint buffers"
        yield Finding(key="memory.huge", level="ok", area="memory", seen=f"{has}; {how}", source=source)
        return
    yield Finding(
        key="memory.huge",
        level="warning" if asked else "note",
        area="memory",
        seen=f"{has}{'; FI_EFA_USE_HUGE_PAGE=' + asked if asked else ''}",
        needed=f"about {size(wanted)} for each process that opens all devices, or none at all: fork() fails when "
        "they run out",
        remedy="FI_EFA_USE_HUGE_PAGE=0, or hugepages-2Mi in the pod's limits and vm.nr_hugepages on the host",
        source=source,
    )


def _quiet(memory: Memory) -> Iterator[Finding]:
    used = memory.swap_total - memory.swap_free
    if memory.swap_total:
        yield Finding(
            key="memory.swap",
            level="warning" if used > GIB else "note",
            area="memory",
            seen=f"swap is on: {size(used)} of {size(memory.swap_total)} in use",
            needed="none, while latencies are measured: a page that has to come back takes milliseconds",
            remedy="swapoff -a for the time of a run, or keep an eye on si/so of vmstat",
            source="/proc/meminfo",
        )
    if memory.transparent_huge == "always":
        yield Finding(
            key="memory.transparent_huge",
            level="note",
            area="memory",
            seen="transparent huge pages: always",
            needed="madvise gives steadier latencies: compaction stalls whoever touches new memory",
            remedy="echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, the same on every host compared",
            source="/sys/kernel/mm/transparent_hugepage/enabled; kernel.org, transhuge.html",
        )


def _memlock(facts: Facts, needs: Needs) -> Iterator[Finding]:
    limits = facts.limits
    if not limits.read:
        return
    source = "/proc/self/limits; awsome-distributed-ai#647 (-12 Cannot allocate memory)"
    hard = f" (hard {size(limits.memlock_hard)})" if limits.memlock_hard != limits.memlock_soft else ""
    has = f"ulimit -l: {size(limits.memlock_soft)}{hard}"
    if limits.memlock_soft is None or limits.may_lock:
        why = "" if limits.memlock_soft is None else ", which does not bind: this process has CAP_IPC_LOCK"
        yield Finding(key="limits.memlock", level="ok", area="limits", seen=f"{has}{why}", source=source)
        return
    rdma = needs.rdma
    yield Finding(
        key="limits.memlock",
        level="problem" if rdma else "note",
        area="limits",
        seen=has,
        needed=f"unlimited, to register KV pools with {' and '.join(rdma)} devices"
        if rdma
        else "unlimited, should this run over EFA or InfiniBand; tcp does not mind",
        remedy="ulimit -l unlimited before the engine starts (LimitMEMLOCK=infinity of a service, --ulimit memlock=-1 "
        "of docker, IPC_LOCK in the pod's securityContext.capabilities.add)",
        source=source,
    )

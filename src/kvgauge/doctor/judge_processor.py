"""Limits on files and processes, clock, cores, steal, governor, where this runs. Pure."""

from collections.abc import Iterator

from kvgauge.doctor.needs import Needs
from kvgauge.doctor.records import Facts, Finding, Level

FILES_ENGINE = 4096
PIDS_LEAST = 512
STEAL_NOTE, STEAL_WARNING = 0.01, 0.05
CLOCK_SLOW_NS = 500  # a system call instead of reading a register
GOOD_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page")  # read without a system call
SLOW_GOVERNORS = ("powersave", "conservative", "ondemand", "schedutil", "userspace")


def judge(facts: Facts, needs: Needs) -> Iterator[Finding]:
    yield from _files(facts, needs)
    yield from _pids(facts)
    yield from _clock(facts)
    yield from _cores(facts, needs)
    yield from _stolen(facts)
    yield from _governor(facts)
    yield from _nodes(facts)
    yield from _place(facts, needs)


def _files(facts: Facts, needs: Needs) -> Iterator[Finding]:
    limits = facts.limits
    if not limits.read:
        return
    wanted = needs.files
    has = f"ulimit -n: {_count(limits.files_soft)} (hard {_count(limits.files_hard)})"
    hard = limits.files_hard
    if wanted is not None and hard is not None and hard < wanted:
        level: Level = "problem"
    elif needs.engines and limits.files_soft is not None and limits.files_soft < FILES_ENGINE:
        level = "warning"
    else:
        level = "ok"
    least = max(wanted or 0, FILES_ENGINE if needs.engines else 0)
    what = f"{wanted} for this plan in one process" if wanted else "each connection and each device's endpoint is one"
    yield Finding(
        key="limits.files",
        level=level,
        area="limits",
        seen=has,
        needed="" if level == "ok" else f"{least}: {what}; kvgauge raises its own soft limit, engines do not all",
        remedy="" if level == "ok" else f"ulimit -n {least} (LimitNOFILE= of a service, --ulimit nofile= of docker)",
        source="/proc/self/limits",
    )


def _count(limit: int | None) -> str:
    return "unlimited" if limit is None else f"{limit:,}"


def _pids(facts: Facts) -> Iterator[Finding]:
    most, now = facts.limits.pids_max, facts.limits.pids_used
    if most is None or most - (now or 0) >= PIDS_LEAST:
        return
    yield Finding(
        key="limits.pids",
        level="warning",
        area="limits",
        seen=f"this cgroup may have {most:,} processes and threads and has {now or 0:,}",
        needed=f"{PIDS_LEAST} more: progress threads, NCCL and OpenMP each start theirs",
        remedy="raise podPidsLimit of the kubelet, or --pids-limit of docker",
        source="pids.max of the cgroup",
    )


def _clock(facts: Facts) -> Iterator[Finding]:
    processor = facts.processor
    if processor.clock is None:
        return
    took = "" if processor.clock_read_ns is None else f"; a reading takes {processor.clock_read_ns} ns"
    slow = processor.clock_read_ns is not None and processor.clock_read_ns > CLOCK_SLOW_NS
    odd = processor.clock not in GOOD_CLOCKS
    level: Level = "warning" if slow else "note" if odd else "ok"
    other = "tsc" if "tsc" in processor.clocks else None
    yield Finding(
        key="processor.clock",
        level=level,
        area="processor",
        seen=f"clock source {processor.clock}{took}",
        needed="" if level == "ok" else "one that is read without a system call (tsc): every stamp costs a reading",
        remedy=""
        if level == "ok"
        else "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource"
        if other and processor.clock != "tsc"
        else "this machine offers no tsc: compare only runs of one machine, and look at overhead/ for what it costs",
        source="/sys/devices/system/clocksource/clocksource0; timed here",
    )


def _cores(facts: Facts, needs: Needs) -> Iterator[Finding]:
    processor = facts.processor
    if processor.usable is None:
        return
    bound = []
    if processor.allowed is not None and processor.online is not None and processor.allowed < processor.online:
        bound.append(f"affinity allows {processor.allowed} of {processor.online}")
    if processor.quota is not None:
        bound.append(f"the cgroup's quota is {processor.quota:g}")
    has = f"{processor.usable:g} cores{' (' + ', '.join(bound) + ')' if bound else ''}"
    free = processor.free
    if free is not None:
        has += f", {free:.1f} of them idle over {processor.watched_s:.1f} s"
    wanted = needs.cores
    short = processor.usable < wanted or (free is not None and free < wanted / 2)
    spins = "; each progress thread spins on one" if wanted > 2 else ""
    yield Finding(
        key="processor.cores",
        level="warning" if short else "ok",
        area="processor",
        seen=has,
        needed=f"{wanted:g} that are mostly idle: client and stack would share what is left{spins}" if short else "",
        remedy="end what else runs, raise the pod's cpu limit, or run the client on another host (--url)"
        if short
        else "",
        source="/proc/stat, /proc/self/status, cpu.max or cpu.cfs_quota_us of the cgroup",
    )
    if processor.throttled:
        yield Finding(
            key="processor.throttled",
            level="warning",
            area="processor",
            seen=f"the cgroup was held back {processor.throttled} times within {processor.watched_s:.1f} s",
            needed="none: each is a pause of up to 100 ms that looks like latency",
            remedy="raise the pod's cpu limit, or take it away and keep the request",
            source="cpu.stat of the cgroup",
        )


def _stolen(facts: Facts) -> Iterator[Finding]:
    steal = facts.processor.steal
    if steal is None:
        return
    level: Level = "warning" if steal > STEAL_WARNING else "note" if steal > STEAL_NOTE else "ok"
    yield Finding(
        key="processor.steal",
        level=level,
        area="processor",
        seen=f"steal {steal:.1%} over {facts.processor.watched_s:.1f} s",
        needed="" if level == "ok" else "none: the hypervisor gave that time to others, and latencies hold it",
        remedy="" if level == "ok" else "a dedicated host or another hour; repeat runs until intervals are narrow",
        source="/proc/stat",
    )


def _governor(facts: Facts) -> Iterator[Finding]:
    governors = facts.processor.governors
    if not governors:
        return
    slow = [name for name in governors if name in SLOW_GOVERNORS]
    yield Finding(
        key="processor.governor",
        level="note" if slow else "ok",
        area="processor",
        seen=f"CPU frequency governor: {', '.join(governors)}",
        needed="performance: a core that slows down when idle answers the next request late" if slow else "",
        remedy="cpupower frequency-set -g performance, the same on every host compared" if slow else "",
        source="/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
    )


def _nodes(facts: Facts) -> Iterator[Finding]:
    nodes = facts.processor.nodes
    if nodes is None:
        return
    if nodes == 0:
        yield Finding(
            key="processor.numa",
            level="note",
            area="processor",
            seen="the kernel shows no NUMA node (/sys/devices/system/node)",
            needed="one at least for LIBFABRIC of NIXL 1.0.0, which asks libnuma: it was seen to abort without",
            remedy="take another NIXL for LIBFABRIC, or mount /sys into the container",
            source="vllm-project/vllm#39521",
        )
    elif nodes > 1:
        yield Finding(
            key="processor.numa",
            level="note",
            area="processor",
            seen=f"{nodes} NUMA nodes",
            needed="client, workers and NICs on fixed nodes, or figures vary with where the kernel put them",
            remedy="numactl --cpunodebind=N --membind=N for both sides, the same in every run",
            source="/sys/devices/system/node/online",
        )


def _place(facts: Facts, needs: Needs) -> Iterator[Finding]:
    place = facts.place
    where = [name for name in (place.container, place.hypervisor and f"a virtual machine ({place.hypervisor})") if name]
    release = f"Linux {place.kernel}" if place.kernel else "Linux"
    yield Finding(
        key="processor.place",
        level="ok",
        area="processor",
        seen=f"{release}, {' in '.join(where) if where else 'no sign of a container or a virtual machine'}",
        source="/sys/class/dmi/id, /proc/cpuinfo, /proc/self/cgroup",
    )
    if place.ptrace_scope and "shm" in needs.fabrics:
        yield Finding(
            key="processor.ptrace",
            level="warning",
            area="processor",
            seen=f"kernel.yama.ptrace_scope is {place.ptrace_scope}",
            needed="0, or CAP_SYS_PTRACE: UCX's cma reads the other process's memory",
            remedy="sysctl kernel.yama.ptrace_scope=0, or SYS_PTRACE in the container's capabilities",
            source="/proc/sys/kernel/yama/ptrace_scope; ptrace(2)",
        )

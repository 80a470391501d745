"""RDMA devices, GPUs and GPUDirect: what is here, and what a fabric lacks. Pure."""

from collections.abc import Iterator

from kvgauge.doctor.needs import Needs
from kvgauge.doctor.records import Facts, Finding, NotLooked

PEER_MODULES = ("nvidia_peermem", "nv_peer_mem")
DMABUF_SINCE = (5, 12)
_IB = "/sys/class/infiniband"


def judge(facts: Facts, needs: Needs) -> Iterator[Finding]:
    yield from _devices(facts, needs)
    yield from _opened(facts, needs)
    yield from _libraries(facts, needs)
    yield from _libfabric(facts)
    yield from _gpus(facts, needs)
    yield from _in_use(facts)
    yield from _direct(facts, needs)


def not_looked(facts: Facts, needs: Needs) -> Iterator[NotLooked]:
    """What no file here tells."""
    if facts.fabrics.devices or needs.rdma:
        yield NotLooked(
            what="the other host: its device count, libfabric and security group",
            why="only this machine is read; run `kvgauge doctor` there too: device counts must match",
        )
    if facts.gpus.there:
        yield NotLooked(
            what="whether GPU memory really crosses the NIC by itself (PCIe ACS, IOMMU, a VM's switches)",
            why="only a transfer of GPU memory shows it; a broken one answers with garbage (ai-dynamo/dynamo#12463)",
        )


def _devices(facts: Facts, needs: Needs) -> Iterator[Finding]:
    fabrics = facts.fabrics
    kinds = sorted({device.kind for device in fabrics.devices})
    for kind in kinds:
        devices = fabrics.of(kind)
        down = [device.name for device in devices if not device.active]
        link = ", ".join(sorted({device.link for device in devices if device.link and device.link != "Unspecified"}))
        wanted = (kind == "efa" and "efa" in needs.fabrics) or (kind != "efa" and "ib" in needs.fabrics)
        yield Finding(
            key=f"fabric.{kind}",
            level="ok" if not down else "problem" if wanted and len(down) == len(devices) else "warning",
            area="fabric",
            seen=f"{_some(len(devices), f'{kind} device')}: {_listed([device.name for device in devices])}"
            f"{f' ({link})' if link else ''}{f'; not active: {_listed(down)}' if down else ''}",
            needed="every port ACTIVE" if down else "",
            remedy="ibstat and the switch for InfiniBand; for EFA, `modinfo efa` and the instance's interfaces"
            if down
            else "",
            source=_IB,
        )
    for fabric, kind, how in (
        ("efa", "efa", "an instance type with EFA, its interfaces of type efa, and the efa kernel module"),
        ("ib", "mlx5", "an InfiniBand or RoCE adapter and its kernel module (mlx5_ib)"),
    ):
        others = [device for device in fabrics.devices if device.kind != "efa"] if fabric == "ib" else fabrics.of(kind)
        if others:
            continue
        asked = fabric in needs.fabrics
        instead = "set fabric: tcp in the plan" if needs.plan else "unset the variable that asks for it"
        if asked or (needs.plan is None and not kinds and fabric == "efa"):
            yield Finding(
                key=f"fabric.{fabric}_missing",
                level="problem" if asked else "note",
                area="fabric",
                seen=f"no {fabric.upper()} device"
                if asked
                else "no EFA, InfiniBand or RoCE device: both backends can only use tcp",
                needed=how if asked else "one, for figures that say something about EFA or InfiniBand",
                remedy=f"run where there is one (a pod needs {_resource(fabric)}), or {instead}"
                if asked
                else "nothing for a rehearsal; results say that they do not transfer",
                source=_IB,
            )


def _resource(fabric: str) -> str:
    return "vpc.amazonaws.com/efa in its limits" if fabric == "efa" else "rdma/<resource> of the RDMA device plugin"


def _opened(facts: Facts, needs: Needs) -> Iterator[Finding]:
    """sysfs shows the host's devices in many containers; opening them takes /dev/infiniband."""
    fabrics = facts.fabrics
    if not fabrics.devices:
        return
    have, there = len(fabrics.uverbs), len(fabrics.devices)
    if have >= there:
        seen = f"{_some(have, 'device')} in /dev/infiniband can be opened"
        yield Finding(key="fabric.uverbs", level="ok", area="fabric", seen=seen, source="/dev/infiniband")
    elif have == 0:
        yield Finding(
            key="fabric.uverbs",
            level="problem" if needs.rdma else "warning",
            area="fabric",
            seen=f"sysfs lists {_some(there, 'RDMA device')}, /dev/infiniband holds none of them",
            needed="/dev/infiniband/uverbs*: without them libfabric and UCX fall back to TCP and say little about it",
            remedy="ask for them in the pod's limits (vpc.amazonaws.com/efa: N, or rdma/...); --device=/dev/infiniband "
            "of docker; modprobe ib_uverbs on the host",
            source="ai-dynamo/nixl#2205; /dev/infiniband",
        )
    else:
        yield Finding(
            key="fabric.uverbs",
            level="note",
            area="fabric",
            seen=f"{have} of {there} RDMA devices can be opened here",
            needed="the same number on both sides: NIXL's LIBFABRIC pairs rails one to one",
            remedy="give prefill and decode pods the same vpc.amazonaws.com/efa",
            source="/dev/infiniband; NVIDIA/TensorRT-LLM#10024 (rail count mismatch)",
        )
    if fabrics.of("efa") and not any(device.counters for device in fabrics.of("efa")):
        yield Finding(
            key="fabric.efa_counters",
            level="note",
            area="fabric",
            seen="no EFA counters here (ports/1/hw_counters)",
            needed="rdma_read_bytes or rdma_write_bytes rising, as a proof of RDMA",
            remedy="read them on the host during a run; else the provider's handshake lines are the proof "
            "(FI_LOG_LEVEL=info FI_LOG_PROV=efa)",
            source=f"{_IB}/*/ports/1/hw_counters",
        )


def _libraries(facts: Facts, needs: Needs) -> Iterator[Finding]:
    fabrics = facts.fabrics
    wanted = [
        (fabric, name)
        for fabric, names in (("efa", ("libibverbs.so.1", "libefa.so.1")), ("ib", ("libibverbs.so.1", "libmlx5.so.1")))
        if fabric in needs.fabrics
        for name in names
    ]
    missing = list(dict.fromkeys(name for _, name in wanted if name not in fabrics.libraries))
    if missing:
        yield Finding(
            key="fabric.rdma_core",
            level="warning",
            area="fabric",
            seen=f"the loader finds no {' and no '.join(missing)}",
            needed="rdma-core in this container: a wheel may bring its own, packages of libfabric and UCX do not",
            remedy="install rdma-core (libibverbs1 ibverbs-providers), or the EFA installer with --skip-kmod",
            source="ld.so(8) search",
        )
    elif wanted:
        seen = f"rdma-core: {', '.join(dict.fromkeys(name for _, name in wanted))}"
        yield Finding(key="fabric.rdma_core", level="ok", area="fabric", seen=seen, source="ld.so(8) search")
    if fabrics.efa_installer is not None:
        seen = f"EFA installer {fabrics.efa_installer}"
        yield Finding(
            key="fabric.efa_installer",
            level="ok",
            area="fabric",
            seen=seen,
            source="/opt/amazon/efa_installed_packages",
        )


def _libfabric(facts: Facts) -> Iterator[Finding]:
    """Which one engines get, where several lie about."""
    found = facts.fabrics.libfabrics
    if not found:
        return
    shown = [f"{path} ({offers or 'no symbol versions'})" for path, offers in found]
    several = len({offers for _, offers in found}) > 1
    yield Finding(
        key="fabric.libfabric",
        level="note" if several else "ok",
        area="fabric",
        seen=f"libfabric: the loader takes {shown[0]}{'; also there: ' + ', '.join(shown[1:]) if shown[1:] else ''}",
        needed="the one that NIXL's plugin was built for, first" if several else "",
        remedy="put its folder first in LD_LIBRARY_PATH or /etc/ld.so.conf.d (EFA: /opt/amazon/efa/lib64)"
        if several
        else "",
        source="ld.so(8) search; libfabric.map.in",
    )


def _gpus(facts: Facts, needs: Needs) -> Iterator[Finding]:
    gpus = facts.gpus
    if not gpus.there:
        asked = "cuda" in needs.fabrics
        if needs.plan is not None and not asked:
            return
        yield Finding(
            key="gpu.none",
            level="problem" if asked else "note",
            area="gpu",
            seen="no NVIDIA GPU (no /dev/nvidia0, nothing in /proc/driver/nvidia)",
            needed="one, for fabric cuda" if asked else "one, for KV in GPU memory; kvgauge's own stack models compute",
            remedy="run where there is one; in a container: --gpus all, or nvidia.com/gpu in the pod's limits"
            if asked
            else "nothing for a rehearsal",
            source="/dev, /proc/driver/nvidia",
        )
        return
    names = list(gpus.names) or [line.split(",")[0] for line in (gpus.tool or "").splitlines()]
    kinds = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or f"{gpus.nodes} GPUs"
    if gpus.nodes == 0:
        yield Finding(
            key="gpu.nodes",
            level="warning",
            area="gpu",
            seen=f"the driver lists {kinds}, this container has no /dev/nvidia0",
            needed="the device files: an engine finds no GPU without them",
            remedy="--gpus all of docker, nvidia.com/gpu in the pod's limits",
            source="/dev, /proc/driver/nvidia/gpus",
        )
    elif gpus.libcuda is None:
        yield Finding(
            key="gpu.libcuda",
            level="problem",
            area="gpu",
            seen=f"{kinds}, and the loader finds no libcuda.so.1",
            needed="the driver's library: NIXL's LIBFABRIC plugin links to it, UCX needs it for GPU memory",
            remedy="use the NVIDIA container runtime with NVIDIA_DRIVER_CAPABILITIES=compute,utility",
            source="ld.so(8) search",
        )
    else:
        driver = f", driver {gpus.driver}{' (open kernel module)' if gpus.open_module else ''}" if gpus.driver else ""
        yield Finding(
            key="gpu.found", level="ok", area="gpu", seen=f"{kinds}{driver}", source="/proc/driver/nvidia, nvidia-smi"
        )


def _in_use(facts: Facts) -> Iterator[Finding]:
    """Memory that other processes hold, as nvidia-smi says: name, driver, used, total of each GPU."""
    busy = []
    for index, line in enumerate((facts.gpus.tool or "").splitlines()):
        cells = [cell.strip().removesuffix(" MiB") for cell in line.split(",")]
        if len(cells) == 4 and cells[2].isdecimal() and cells[3].isdecimal() and int(cells[2]) * 10 > int(cells[3]):
            busy.append(f"GPU {index}: {int(cells[2]):,} of {int(cells[3]):,} MiB")
    if busy:
        yield Finding(
            key="gpu.in_use",
            level="note",
            area="gpu",
            seen=f"memory of {_some(len(busy), 'GPU')} is in use already ({', '.join(busy[:8])})",
            needed="it free, where an engine is to start: Qwen3-0.6B took about 69 GB of one (model and KV pool)",
            remedy="end what holds it, or lower gpu_memory_utilization",
            source="nvidia-smi",
        )


def _direct(facts: Facts, needs: Needs) -> Iterator[Finding]:
    """GPUDirect RDMA: peer memory modules, or dmabuf of an open driver on a new kernel."""
    fabrics, gpus = facts.fabrics, facts.gpus
    if not gpus.there:
        return
    if not fabrics.devices:
        if needs.engines:
            yield Finding(
                key="gpu.libfabric_tcp",
                level="note",
                area="gpu",
                seen="GPUs, and no RDMA device: LIBFABRIC over tcp cannot register GPU memory",
                needed="an RDMA device, or KV in host memory: NIXL says NIXL_ERR_NOT_FOUND otherwise",
                remedy="kv_buffer_device: cpu (vLLM), or UCX",
                source="docs/gpu.md",
            )
        return
    dmabuf = gpus.open_module and facts.place.kernel_release >= DMABUF_SINCE
    efa = fabrics.of("efa")
    if efa:
        named = sorted({device.p2p for device in efa if device.p2p})
        ways = named or (["efa_nv_peermem"] if "efa_nv_peermem" in fabrics.modules else [])
    else:
        ways = [module for module in PEER_MODULES if module in fabrics.modules]
    ways += ["dmabuf (open kernel module)"] if dmabuf else []
    source = "/proc/modules, /sys/module, /sys/class/infiniband/*/device/p2p, /proc/driver/nvidia/version"
    if ways:
        yield Finding(
            key="gpu.direct", level="ok", area="gpu", seen=f"GPUDirect RDMA by {', '.join(ways)}", source=source
        )
    else:
        yield Finding(
            key="gpu.direct",
            level="warning",
            area="gpu",
            seen="no sign of GPUDirect RDMA: no peer memory module, no EFA p2p provider, no open NVIDIA kernel module",
            needed="one of them: else NIXL says `retrying without FI_HMEM` and register_memory of VRAM fails, or UCX "
            "copies through the host",
            remedy="modprobe efa_nv_peermem (EFA)"
            if efa
            else "modprobe nvidia_peermem, or the open kernel module with Linux 5.12 or later",
            source=source,
        )
    if "gdrdrv" not in fabrics.modules:
        yield Finding(
            key="gpu.gdrcopy",
            level="note",
            area="gpu",
            seen="no gdrdrv module: gdrcopy is not there",
            needed="it, for the latency of small messages from GPU memory",
            remedy="install gdrcopy on the host and mount /dev/gdrdrv; UCX and libfabric work without it",
            source="/proc/modules; ai-dynamo/nixl README",
        )
    if facts.place.hypervisor and not efa:
        yield Finding(
            key="gpu.vm",
            level="note",
            area="gpu",
            seen=f"a virtual machine ({facts.place.hypervisor}) with GPUs and RDMA adapters",
            needed="peer-to-peer access that the hypervisor passes on: one delivered garbage with HTTP 200",
            remedy="compare greedy answers with those of an aggregated deployment before believing any figure",
            source="ai-dynamo/dynamo#12463",
        )


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _listed(names: list[str]) -> str:
    """All of a few, else the first and the last."""
    return ", ".join(names) if len(names) <= 4 else f"{names[0]} ... {names[-1]}"

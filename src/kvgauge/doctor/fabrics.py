"""RDMA devices, GPUs and network interfaces, read below a root."""

import re
from collections.abc import Callable

from kvgauge.doctor.records import Fabrics, Gpus, Interface, Network, RdmaDevice
from kvgauge.evidence import proc
from kvgauge.evidence.tree import Tree
from kvgauge.target.interfaces import IFF_LOOPBACK, IFF_RUNNING, IFF_UP

EFA_VENDOR = 0x1D0F  # Amazon, as PCI knows it
LOOKED_FOR = ("libibverbs.so.1", "libefa.so.1", "libmlx5.so.1", "librdmacm.so.1", "libgdrapi.so.2")
MODULES = ("efa", "efa_nv_peermem", "nvidia_peermem", "nv_peer_mem", "gdrdrv", "nvidia", "ib_uverbs", "mlx5_ib")
_IB = "/sys/class/infiniband"
_INSTALLER = re.compile(r"EFA installer version:\s*(\S+)")


def fabrics(tree: Tree, find: Callable[[str], str | None]) -> Fabrics:
    """find  where the loader finds a library"""
    loaded = proc.modules(tree.text("/proc/modules") or "")
    installer = _INSTALLER.search(tree.text("/opt/amazon/efa_installed_packages") or "")
    return Fabrics(
        devices=tuple(_device(tree, name) for name in tree.names(_IB)),
        uverbs=tuple(name for name in tree.names("/dev/infiniband") if name.startswith("uverbs")),
        libraries={name: path for name in LOOKED_FOR if (path := find(name)) is not None},
        modules=frozenset(name for name in MODULES if name in loaded or tree.exists(f"/sys/module/{name}")),
        efa_installer=installer[1] if installer else None,
    )


def _device(tree: Tree, name: str) -> RdmaDevice:
    own = f"{_IB}/{name}"
    driver = tree.link(f"{own}/device/driver") or ""
    kind = "efa" if driver == "efa" or tree.number(f"{own}/device/vendor") == EFA_VENDOR else ""
    if not kind:
        kind = "mlx5" if driver.startswith("mlx5") or name.startswith("mlx5") else driver or name.rstrip("0123456789_")
    ports = tree.names(f"{own}/ports")
    states = [tree.word(f"{own}/ports/{port}/state") or "" for port in ports]
    p2p = tree.word(f"{own}/device/p2p") or tree.word(f"{own}/device/gdr")
    return RdmaDevice(
        name=name,
        kind=kind,
        link=next((tree.word(f"{own}/ports/{port}/link_layer") or "" for port in ports), ""),
        active=any("ACTIVE" in state for state in states) or not ports,
        p2p=p2p if p2p and p2p.lower() not in ("none", "0", "unknown") else None,
        counters=any(tree.exists(f"{own}/ports/{port}/hw_counters/tx_bytes") for port in ports),
    )


def gpus(tree: Tree, libcuda: str | None) -> Gpus:
    version = tree.text("/proc/driver/nvidia/version") or ""
    number = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", version)
    names = []
    for device in tree.names("/proc/driver/nvidia/gpus"):
        model = proc.status(tree.text(f"/proc/driver/nvidia/gpus/{device}/information") or "").get("Model")
        names.append(model or device)
    return Gpus(
        names=tuple(names),
        nodes=sum(bool(re.fullmatch(r"nvidia\d+", name)) for name in tree.names("/dev")),
        driver=number[1] if number else None,
        open_module="Open Kernel Module" in version,
        libcuda=libcuda,
    )


def network(tree: Tree, seen: dict[str, tuple[int, str | None]], bound: str | None) -> Network:
    """seen   interface -> (flags, IPv4 address), asked of the kernel: /sys may show another network namespace's
    bound  the one kvgauge would choose
    """
    return Network(
        interfaces=tuple(_interface(tree, name, flags, address) for name, (flags, address) in seen.items()),
        bound=bound,
        ports=proc.port_range(tree.text("/proc/sys/net/ipv4/ip_local_port_range") or ""),
    )


def _interface(tree: Tree, name: str, flags: int, address: str | None) -> Interface:
    own = f"/sys/class/net/{name}"
    speed = tree.number(f"{own}/speed")
    return Interface(
        name=name,
        up=bool(flags & IFF_UP and flags & (IFF_RUNNING | IFF_LOOPBACK)),
        loopback=bool(flags & IFF_LOOPBACK),
        address=address,
        mtu=tree.number(f"{own}/mtu"),
        speed_mbit=speed if speed and speed > 0 else None,
        wireless=tree.exists(f"{own}/wireless") or tree.exists(f"{own}/phy80211"),
    )

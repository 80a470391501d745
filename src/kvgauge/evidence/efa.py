"""EFA's hardware counters in sysfs, before and after. `moved` is pure; `read_ports` is the thin edge.

/sys/class/infiniband/<device>/ports/<n>/hw_counters/<name>: decimals that only grow, names as in the kernel's
drivers/infiniband/hw/efa/efa_verbs.c. They count every user of the device, headers included: at least what was
asked about, perhaps more. Pods usually have no such folder; then it is to be read on the host.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

ROOT = Path("/sys/class/infiniband")
AMAZON = "0x1d0f"
DEVICES_MAX = 256
COUNTERS = (
    "tx_bytes", "rx_bytes", "send_bytes", "recv_bytes", "rdma_read_bytes", "rdma_read_resp_bytes", "rdma_write_bytes",
    "rdma_write_recv_bytes", "retrans_bytes", "rx_drops", "rdma_read_wr_err", "rdma_write_wr_err",
    "retrans_timeout_events", "impaired_remote_conn_events", "unresponsive_remote_events",
)  # fmt: skip
TROUBLES = ("rx_drops", "rdma_read_wr_err", "rdma_write_wr_err", "retrans_timeout_events",
            "impaired_remote_conn_events", "unresponsive_remote_events")  # fmt: skip

Ports = Mapping[str, Mapping[str, int]]  # "rdmap79s0/1" -> counter -> value


class EfaMoved(msgspec.Struct, frozen=True, kw_only=True):
    """What all EFA ports of this host counted between two looks.

    totals   counter -> growth over all ports that were there both times; a counter no port has is left out
    rails    ports whose bytes grew
    resets   counters that fell: the device was reset, and its growth is not known
    """

    totals: dict[str, int]
    rails: tuple[str, ...]
    resets: tuple[str, ...]

    @property
    def wire_bytes(self) -> int | None:
        """The larger direction: either holds the KV cache once, whichever side runs here. None: not counted."""
        ways = [self.totals[name] for name in ("tx_bytes", "rx_bytes") if name in self.totals]
        return max(ways) if ways else None

    @property
    def rdma_bytes(self) -> int | None:
        """By RDMA alone, as the initiator or as the peer; messages of UCX's SRD transport are not among them."""
        names = ("rdma_read_bytes", "rdma_write_bytes", "rdma_read_resp_bytes", "rdma_write_recv_bytes")
        ways = [self.totals[name] for name in names if name in self.totals]
        return max(ways) if ways else None


def moved(before: Ports, after: Ports) -> EfaMoved:
    totals: dict[str, int] = {}
    rails, resets = [], []
    for port, now in after.items():
        if port not in before:
            continue
        grown = 0
        for name, value in now.items():
            if name not in before[port]:
                continue
            growth = value - before[port][name]
            if growth < 0:
                resets.append(f"{port} {name}")
                continue
            totals[name] = totals.get(name, 0) + growth
            grown += growth if name in ("tx_bytes", "rx_bytes") else 0
        if grown:
            rails.append(port)
    return EfaMoved(totals=totals, rails=tuple(rails), resets=tuple(resets))


def read_ports(root: Path = ROOT) -> dict[str, dict[str, int]]:
    """Every EFA port here; empty where there is none or it cannot be read."""
    found: dict[str, dict[str, int]] = {}
    try:
        devices = sorted(root.iterdir())[:DEVICES_MAX]
    except OSError:
        return found
    for device in devices:
        if _text(device / "device" / "vendor") != AMAZON:
            continue
        for folder in sorted(device.glob("ports/*/hw_counters"))[:8]:
            values = {name: int(text) for name in COUNTERS if (text := _text(folder / name)).isdecimal()}
            if values:
                found[f"{device.name}/{folder.parent.name}"] = values
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")[:64].strip()
    except OSError:
        return ""

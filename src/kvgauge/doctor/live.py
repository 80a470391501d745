"""What only the running kernel tells: interfaces, free space, a second of watching, what a clock reading costs."""

import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from kvgauge.doctor.records import Processor
from kvgauge.evidence.cgroups import Cgroups
from kvgauge.evidence.machine import parse_stat
from kvgauge.evidence.tree import Tree
from kvgauge.target.interfaces import SIOCGIFADDR, SIOCGIFFLAGS, first_outward

WATCH_S = 0.8
CLOCK_READINGS = 2000
CLOCK_BATCHES = 5


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """The machine over `watched_s`: shares of all cores; None: /proc/stat could not be read."""

    busy: float | None = None
    steal: float | None = None
    throttled: int = 0
    watched_s: float = 0.0


def watch(tree: Tree, cgroups: Cgroups, sleep: Callable[[float], None] = time.sleep) -> Watched:
    """Look twice, WATCH_S apart, doing nothing meanwhile."""
    before, held = tree.text("/proc/stat"), cgroups.throttled()
    began_ns = time.monotonic_ns()
    sleep(WATCH_S)
    after, watched_s = tree.text("/proc/stat"), (time.monotonic_ns() - began_ns) / 1e9
    throttled = cgroups.throttled() - held
    try:
        first, last = parse_stat(before or ""), parse_stat(after or "")
    except ValueError:
        return Watched(throttled=throttled, watched_s=watched_s)
    total = last.total - first.total
    if total <= 0:  # a copy of a /proc does not move
        return Watched(throttled=throttled, watched_s=watched_s)
    return Watched(
        busy=(last.busy - first.busy) / total,
        steal=(last.steal - first.steal) / total,
        throttled=throttled,
        watched_s=watched_s,
    )


def with_watched(processor: Processor, watched: Watched, clock_read_ns: int | None) -> Processor:
    return msgspec.structs.replace(
        processor,
        busy=watched.busy,
        steal=watched.steal,
        throttled=watched.throttled,
        watched_s=watched.watched_s,
        clock_read_ns=clock_read_ns,
    )


def clock_read_ns() -> int:
    """What one reading of CLOCK_MONOTONIC takes from Python: the least of a few averages."""
    read, least = time.monotonic_ns, None
    for _ in range(CLOCK_BATCHES):
        began = read()
        for _ in range(CLOCK_READINGS):
            read()
        took = (read() - began) // CLOCK_READINGS
        least = took if least is None else min(least, took)
    return least or 0


def interfaces() -> dict[str, tuple[int, str | None]]:
    """Interface of this network namespace -> (its flags, its first IPv4 address)."""
    found: dict[str, tuple[int, str | None]] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _index, name in socket.if_nameindex():
            asked = struct.pack("256s", name.encode()[:15])
            try:
                flags = struct.unpack("H", fcntl.ioctl(probe, SIOCGIFFLAGS, asked)[16:18])[0]
            except OSError:
                continue  # gone meanwhile
            try:
                address = socket.inet_ntoa(fcntl.ioctl(probe, SIOCGIFADDR, asked)[20:24])
            except OSError:
                address = None
            found[name] = (flags, address)
    return found


def outward() -> str | None:
    """The interface kvgauge would give LIBFABRIC's tcp provider."""
    try:
        found = first_outward()
    except OSError:
        return None
    return found[0] if found else None


def space(path: str) -> tuple[int, int] | None:
    """(bytes, bytes free) of the file system a path lies on; None where it cannot be asked."""
    try:
        said = os.statvfs(path)
    except OSError:
        return None
    return said.f_frsize * said.f_blocks, said.f_frsize * said.f_bavail


def disk_free(folders: Iterable[Path]) -> dict[str, int]:
    """Bytes free where each folder lies or would be made."""
    found = {}
    for folder in folders:
        there = next((parent for parent in (folder, *folder.parents) if parent.exists()), None)
        if there is not None and (asked := space(str(there))) is not None:
            found["the current folder" if folder == Path() else str(folder)] = asked[1]
    return found

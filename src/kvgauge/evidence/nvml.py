"""What NVML says of the GPUs of a host, in the words of `nvidia-smi --query-gpu=... --format=csv`. Pure.

nvidia-smi --query-gpu=index,name,driver_version,memory.used,memory.total --format=csv,noheader,nounits
nvidia-smi nvlink --status
"""

import csv
import re
from collections.abc import Iterable

import msgspec

QUERY = ("index", "name", "driver_version", "memory.used", "memory.total")
GPUS_MAX = 256
_GPU = re.compile(r"GPU (\d+): ")
_LINK = re.compile(r"Link \d+: ([\d.]+) GB/s")


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """None: the driver does not say ([N/A])."""

    index: int
    name: str
    driver: str
    memory_used_bytes: int | None
    memory_total_bytes: int | None


def gpus(lines: Iterable[str]) -> list[Gpu]:
    """Rows of QUERY; rows that are none are left out."""
    found: list[Gpu] = []
    for line in lines:
        try:
            cells = [cell.strip() for cell in next(csv.reader([line]), [])]
        except csv.Error:
            continue
        if len(cells) == len(QUERY) and cells[0].isdecimal() and len(cells[0]) < 5 and len(found) < GPUS_MAX:
            used, total = (int(cell) << 20 if cell.isdecimal() and len(cell) < 12 else None for cell in cells[3:])
            found.append(
                Gpu(
                    index=int(cells[0]),
                    name=cells[1][:80],
                    driver=cells[2][:40],
                    memory_used_bytes=used,
                    memory_total_bytes=total,
                )
            )
    return found


def active_nvlinks(lines: Iterable[str]) -> dict[int, int]:
    """GPU index -> links that are up. UCX's cuda_ipc reads (GET) only where there is one."""
    found: dict[int, int] = {}
    at: int | None = None
    for line in lines:
        if (match := _GPU.match(line)) and len(match[1]) < 5 and len(found) < GPUS_MAX:
            at = int(match[1])
            found.setdefault(at, 0)
        elif at is not None and _LINK.search(line):
            found[at] += 1
    return found

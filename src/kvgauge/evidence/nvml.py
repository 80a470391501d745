"""What NVML says of the GPUs of a host, in the words of `nvidia-smi --query-gpu=... --format=csv`. Pure.

nvidia-smi --query-gpu=index,name,driver_version,memory.used,memory.total --format=csv,noheader,nounits
"""

import csv
from collections.abc import Iterable

import msgspec

QUERY = ("index", "name", "driver_version", "memory.used", "memory.total")
GPUS_MAX = 256


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

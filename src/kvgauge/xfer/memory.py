"""The pool of one agent, in host or in GPU memory, every page present before it is registered."""

import ctypes
import mmap
from typing import Protocol

import numpy as np

from kvgauge.failures import TransferError
from kvgauge.xfer.cuda import Device
from kvgauge.xfer.workload import WORD_BYTES, UInt64

MADV_POPULATE_WRITE = 23  # Linux 5.14; older kernels are touched page by page

GPU_HINT = (
    "; does this transport reach GPU memory? libfabric needs a provider with FI_HMEM (efa has it, tcp has not), "
    "UCX needs its CUDA transports (--fabric cuda, or any)"
)


class Pool(Protocol):
    """address, size_bytes, device: as NIXL is told them."""

    address: int
    size_bytes: int
    device: int

    def host(self) -> UInt64:
        """The words to look at or to change; for GPU memory a copy, as it was after all work on the device."""

    def store(self, words: UInt64) -> None:
        """Put `host()`'s words back after changing them."""


class HostPool:
    """Anonymous private memory. raises TransferError when there is not enough"""

    def __init__(self, words: int) -> None:
        self.size_bytes, self.device = words * WORD_BYTES, 0
        try:
            self._memory = mmap.mmap(-1, self.size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError) as error:
            raise TransferError(f"no memory for a pool of {self.size_bytes >> 20:,} MiB: {error}") from error
        self._words: UInt64 = np.frombuffer(self._memory, dtype=np.uint64)
        self.address = self._words.ctypes.data
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.madvise(ctypes.c_void_p(self.address), ctypes.c_size_t(self.size_bytes), MADV_POPULATE_WRITE) != 0:
            self._words[:: mmap.PAGESIZE // WORD_BYTES] = 0

    def host(self) -> UInt64:
        return self._words

    def store(self, words: UInt64) -> None:
        """Nothing to do: `host` gave the memory itself."""


class DevicePool:
    """Memory of a GPU, with a host copy of the same size to fill and check it by."""

    def __init__(self, words: int, device: Device) -> None:
        self.size_bytes, self.device = words * WORD_BYTES, device.number
        self._gpu = device
        self.address = device.allocate(self.size_bytes)
        self._words: UInt64 = np.zeros(words, dtype=np.uint64)

    def host(self) -> UInt64:
        self._gpu.download(self._words.ctypes.data, self.address, self.size_bytes)
        return self._words

    def store(self, words: UInt64) -> None:
        self._gpu.upload(self.address, words.ctypes.data, self.size_bytes)


class DeviceMemory:
    """Memory of a GPU that nobody looks at: a staging buffer. raises TransferError"""

    def __init__(self, words: int, device: Device) -> None:
        self.size_bytes, self.device = words * WORD_BYTES, device.number
        self.address = device.allocate(self.size_bytes)


def make_pool(words: int, device: Device | None) -> Pool:
    """raises TransferError"""
    return HostPool(words) if device is None else DevicePool(words, device)

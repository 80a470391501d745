"""GPU memory through the CUDA driver API (libcuda.so.1) by ctypes: only a driver is needed, no torch, no toolkit.

Names and numbers: NVIDIA, CUDA Driver API reference, versions 11 to 13 (the _v2 entry points are those cuda.h names).
"""

import ctypes
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from kvgauge.failures import TransferError

LIBRARY = "libcuda.so.1"
CODES = {  # CUresult, of those that tell what to do next
    1: "CUDA_ERROR_INVALID_VALUE",
    2: "CUDA_ERROR_OUT_OF_MEMORY",
    3: "CUDA_ERROR_NOT_INITIALIZED",
    100: "CUDA_ERROR_NO_DEVICE",
    101: "CUDA_ERROR_INVALID_DEVICE",
    201: "CUDA_ERROR_INVALID_CONTEXT",
    209: "CUDA_ERROR_NO_BINARY_FOR_GPU",
    218: "CUDA_ERROR_INVALID_PTX",
    222: "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    700: "CUDA_ERROR_ILLEGAL_ADDRESS",
    801: "CUDA_ERROR_NOT_SUPPORTED",
    802: "CUDA_ERROR_SYSTEM_NOT_READY",
    803: "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    999: "CUDA_ERROR_UNKNOWN",
}
_INT, _SIZE, _ADDRESS, _POINTER = ctypes.c_int, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_void_p
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDriverGetVersion": (_POINTER,),
    "cuDeviceGetCount": (_POINTER,),
    "cuDeviceGet": (_POINTER, _INT),
    "cuDeviceGetName": (_POINTER, _INT, _INT),
    "cuDevicePrimaryCtxRetain": (_POINTER, _INT),
    "cuCtxSetCurrent": (_POINTER,),
    "cuCtxSynchronize": (),
    "cuMemGetInfo_v2": (_POINTER, _POINTER),
    "cuMemAlloc_v2": (_POINTER, _SIZE),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemcpyHtoD_v2": (_ADDRESS, _POINTER, _SIZE),
    "cuMemcpyDtoH_v2": (_POINTER, _ADDRESS, _SIZE),
    "cuMemcpyDtoD_v2": (_ADDRESS, _ADDRESS, _SIZE),
    "cuStreamCreate": (_POINTER, ctypes.c_uint),
    "cuModuleLoadData": (_POINTER, ctypes.c_char_p),
    "cuModuleGetFunction": (_POINTER, _POINTER, ctypes.c_char_p),
    "cuEventCreate": (_POINTER, ctypes.c_uint),
    "cuEventRecord": (_POINTER, _POINTER),
    "cuEventQuery": (_POINTER,),
    "cuLaunchKernel": (_POINTER, *7 * (ctypes.c_uint,), _POINTER, _POINTER, _POINTER),
}


def require(load: Callable[[str], Any] = ctypes.CDLL) -> Any:
    """The driver's library. raises TransferError where there is none"""
    try:
        return load(LIBRARY)
    except OSError as error:
        raise TransferError(
            f"memory VRAM needs an NVIDIA GPU and its driver, and {LIBRARY} does not load here ({error}); "
            "use --memory dram, or run on a machine with a GPU"
        ) from None


def load_runtime(preload: Sequence[str]) -> None:
    """Open the CUDA runtime for all: UCX's hooks for GPU memory link to it, and the wheel of NIXL does not bring it.

    preload  files of the build, of which the runtime is one; without it UCX still asks the driver for each address
    """
    for path in preload:
        if "libcudart.so" in path:
            with suppress(OSError):
                ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)


class Device:
    """One GPU, with its primary context, which NIXL's transports use too.

    number  as CUDA counts the devices this process may see (CUDA_VISIBLE_DEVICES)
    raises  TransferError with what is missing
    """

    def __init__(self, number: int, load: Callable[[str], Any] = ctypes.CDLL) -> None:
        self.number = number
        self._cuda = require(load)
        self.call("cuInit", 0)
        count = ctypes.c_int(0)
        self.call("cuDeviceGetCount", ctypes.byref(count))
        if not 0 <= number < count.value:
            raise TransferError(
                f"there is no GPU {number}: CUDA sees {count.value} here, numbered from 0; see --device"
            )
        handle = ctypes.c_int(0)
        self.call("cuDeviceGet", ctypes.byref(handle), number)
        name = ctypes.create_string_buffer(128)
        self.call("cuDeviceGetName", name, len(name), handle.value)
        self.name = name.value.decode("utf-8", "replace")
        self._context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), handle.value)
        self.enter()

    def enter(self) -> None:
        """Make the context current in the calling thread: each thread that touches the memory must."""
        self.call("cuCtxSetCurrent", self._context)

    @property
    def driver(self) -> str:
        """The newest CUDA this driver speaks, as 13.0."""
        version = ctypes.c_int(0)
        self.call("cuDriverGetVersion", ctypes.byref(version))
        return f"{version.value // 1000}.{version.value % 1000 // 10}"

    def allocate(self, size_bytes: int) -> int:
        """Address of new device memory. raises TransferError, with what is free where it is too little"""
        address = ctypes.c_uint64(0)
        code = self.function("cuMemAlloc_v2")(ctypes.byref(address), size_bytes)
        if code == 2:
            free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
            self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
            raise TransferError(
                f"GPU {self.number} ({self.name}) has no room for {size_bytes >> 20:,} MiB: {free.value >> 20:,} of "
                f"{total.value >> 20:,} MiB are free; end what uses it, or take fewer tokens or a smaller depth"
            )
        self._judge("cuMemAlloc_v2", code)
        return address.value

    def free(self, address: int) -> None:
        self.call("cuMemFree_v2", address)

    def upload(self, address: int, host: int, size_bytes: int) -> None:
        """Host memory to the device; returns when it is there."""
        self.call("cuMemcpyHtoD_v2", address, host, size_bytes)
        self.call("cuCtxSynchronize")

    def download(self, host: int, address: int, size_bytes: int) -> None:
        """Device memory to the host, once everything before it on the device is done."""
        self.call("cuCtxSynchronize")
        self.call("cuMemcpyDtoH_v2", host, address, size_bytes)

    def copy(self, into: int, out_of: int, size_bytes: int) -> None:
        """Device to device; may return before it is done: `finish` waits."""
        self.call("cuMemcpyDtoD_v2", into, out_of, size_bytes)

    def finish(self) -> None:
        """Return when everything asked of the device is done."""
        self.call("cuCtxSynchronize")

    def function(self, name: str) -> Any:
        """A call of the driver. raises TransferError when it has none of this name"""
        try:
            function = getattr(self._cuda, name)
        except AttributeError:
            raise TransferError(
                f"{LIBRARY} has no {name}: its driver is too old (CUDA 11 or newer is needed)"
            ) from None
        function.argtypes, function.restype = SIGNATURES[name], ctypes.c_int
        return function

    def call(self, name: str, *arguments: Any) -> None:
        """raises TransferError, with the call and what the driver said"""
        self._judge(name, self.function(name)(*arguments))

    def _judge(self, name: str, code: int) -> None:
        if code == 0:
            return
        word = CODES.get(code, f"error {code}")
        hint = {
            100: "; no GPU can be seen from here (is one passed into this container?)",
            802: "; the GPU's fabric manager may not run",
            803: "; the driver's library and its kernel module are of different versions",
        }.get(code, "")
        raise TransferError(f"{name} on GPU {self.number}: {word}{hint}")

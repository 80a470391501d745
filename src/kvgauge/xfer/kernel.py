"""Blocks between a pool and a staging buffer by a kernel: one launch, whatever the number of blocks.

PTX is what the driver compiles itself, so no toolkit is needed. NVIDIA, PTX ISA, 7.0; CUDA Driver API, Execution
Control.
"""

import ctypes
import time

from kvgauge.failures import TransferError
from kvgauge.xfer.cuda import Device
from kvgauge.xfer.workload import UNIT_BYTES, UInt64

THREADS = 512
CTA_UNITS = 4 * THREADS  # of a block, to one thread block; larger KV blocks are shared by several
SHARES_MAX = 1024
NOT_READY = 600

# Copies block blockIdx.x of units of 16 bytes from p_from[i] + p_skip to p_into[i] + p_past.
PTX = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry move_blocks(.param .u64 p_from, .param .u64 p_skip, .param .u64 p_into, .param .u64 p_past,
                            .param .u32 p_units)
{
    .reg .pred %p<2>;
    .reg .b32 %r<12>;
    .reg .b64 %rd<12>;
    ld.param.u64 %rd1, [p_from];
    ld.param.u64 %rd2, [p_skip];
    ld.param.u64 %rd3, [p_into];
    ld.param.u64 %rd4, [p_past];
    ld.param.u32 %r1, [p_units];
    mov.u32 %r2, %ctaid.x;
    mul.wide.u32 %rd5, %r2, 8;
    add.u64 %rd6, %rd1, %rd5;
    ld.global.u64 %rd7, [%rd6];
    add.u64 %rd7, %rd7, %rd2;
    add.u64 %rd6, %rd3, %rd5;
    ld.global.u64 %rd8, [%rd6];
    add.u64 %rd8, %rd8, %rd4;
    mov.u32 %r2, %ctaid.y;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.u32 %r5, %r2, %r3, %r4;
    mov.u32 %r2, %nctaid.y;
    mul.lo.u32 %r6, %r2, %r3;
NEXT:
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra DONE;
    mul.wide.u32 %rd9, %r5, 16;
    add.u64 %rd10, %rd7, %rd9;
    add.u64 %rd11, %rd8, %rd9;
    ld.global.v4.u32 {%r7, %r8, %r9, %r10}, [%rd10];
    st.global.v4.u32 [%rd11], {%r7, %r8, %r9, %r10};
    add.u32 %r5, %r5, %r6;
    bra NEXT;
DONE:
    ret;
}
\0"""


class Kernel:
    """The loaded kernel, a stream and an event of one thread. raises TransferError"""

    def __init__(self, gpu: Device) -> None:
        self._gpu = gpu
        self._stream, module, self._entry, self._event = (ctypes.c_void_p() for _ in range(4))
        gpu.enter()
        gpu.call("cuStreamCreate", ctypes.byref(self._stream), 1)  # 1: does not wait for the default stream
        gpu.call("cuModuleLoadData", ctypes.byref(module), PTX)
        gpu.call("cuModuleGetFunction", ctypes.byref(self._entry), module, b"move_blocks")
        gpu.call("cuEventCreate", ctypes.byref(self._event), 2)  # 2: without a time stamp, which costs
        self._query = gpu.function("cuEventQuery")
        self._tables: list[int] = []

    def table(self, addresses: UInt64) -> int:
        """Addresses where the kernel reads them."""
        at = self._gpu.allocate(addresses.nbytes)
        self._gpu.upload(at, addresses.ctypes.data, addresses.nbytes)
        self._tables.append(at)
        return at

    def forget_tables(self) -> None:
        for at in self._tables:
            self._gpu.free(at)
        self._tables = []

    def start(self, count: int, block_bytes: int, out_of: tuple[int, int], into: tuple[int, int]) -> None:
        """out_of, into  (table, bytes to add to each of its addresses)"""
        units = block_bytes // UNIT_BYTES
        values = (
            *(ctypes.c_uint64(value) for value in (*out_of, *into)),
            ctypes.c_uint32(units),
        )
        told = (ctypes.c_void_p * 5)(*(ctypes.addressof(value) for value in values))
        shares = max(1, min(SHARES_MAX, -(-units // CTA_UNITS)))
        self._gpu.call("cuLaunchKernel", self._entry, count, shares, 1, THREADS, 1, 1, 0, self._stream, told, None)

    def finish(self) -> tuple[int, int]:
        """Wait for what was started: (when it was seen to be over, ns since the look before)."""
        self._gpu.call("cuEventRecord", self._event, self._stream)
        before = time.monotonic_ns()
        while True:
            code = self._query(self._event)
            now = time.monotonic_ns()
            if code != NOT_READY:
                break
            before = now
        if code:
            raise TransferError(f"gathering or scattering on GPU {self._gpu.number} failed: CUDA error {code}")
        return now, now - before

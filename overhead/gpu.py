"""The KV of one prompt between two processes on one GPU: what moves it how fast. Every byte is checked.

    python overhead/gpu.py [--cases NAME,...] [--repeats 20] [--limit 60] [--list] [--json FILE]

Needs an NVIDIA driver, numpy and one NIXL wheel (nixl-cu12 or nixl-cu13; before 1.4 its import needs torch); CUDA's
toolkit and kvgauge itself are not needed. The source (prefill) holds the blocks, the sink (decode) gets them; each is a
process of its own, both poll. Each repetition has the bytes in another order, and the sink's memory is wiped before it.
Every byte of every repetition is checked on the GPU (a check that first has to find every unit of the wiped memory
wrong), after the last one all of the sink's memory on the CPU too. Times are of CLOCK_MONOTONIC, which both processes
share: from just before the first call to when the sink can use the bytes.

The source runs a kernel just before, as a prefill would have: its context is the current one. Two processes on one GPU
take turns, and a turn costs about 0.1 ms, which two GPUs would not; cases whose name begins with mps share it through
NVIDIA's MPS daemon, started here for them alone (no setting of the GPU is changed) and ended with them.

A case that hangs is killed at its limit, and both processes with it; the next one starts afresh.
"""

import argparse
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

KIB, MIB = 1 << 10, 1 << 20
QWEN = (1792, 32 * KIB)  # 512 tokens of Qwen3-0.6B in blocks of 16: 28 layers x K and V x 32 blocks
WORKSHOP = {"UCX_TLS": "tcp,cuda_copy,cuda_ipc,sm,self", "UCX_NET_DEVICES": "all"}
LOUD = {"UCX_PROTO_EMULATION_ENABLE": "n"}
GET = {"UCX_CUDA_IPC_ENABLE_GET_ZCOPY": "on"}

# What moves a block of 16-byte units from src[i] to dst[i], one CUDA block each: gathers, scatters or both at once.
PTX = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry move_blocks(.param .u64 p_src, .param .u64 p_dst, .param .u32 p_units)
{
    .reg .pred %p<3>;
    .reg .b32 %r<16>;
    .reg .b64 %rd<16>;
    ld.param.u64 %rd1, [p_src];
    ld.param.u64 %rd2, [p_dst];
    ld.param.u32 %r1, [p_units];
    mov.u32 %r2, %ctaid.x;
    mul.wide.u32 %rd3, %r2, 8;
    add.u64 %rd4, %rd1, %rd3;
    add.u64 %rd5, %rd2, %rd3;
    ld.global.u64 %rd6, [%rd4];
    ld.global.u64 %rd7, [%rd5];
    mov.u32 %r3, %tid.x;
    mov.u32 %r4, %ntid.x;
NEXT:
    setp.ge.u32 %p1, %r3, %r1;
    @%p1 bra DONE;
    mul.wide.u32 %rd8, %r3, 16;
    add.u64 %rd9, %rd6, %rd8;
    add.u64 %rd10, %rd7, %rd8;
    ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%rd9];
    st.global.v4.u32 [%rd10], {%r5, %r6, %r7, %r8};
    add.u32 %r3, %r3, %r4;
    bra NEXT;
DONE:
    ret;
}
.visible .entry count_differences(.param .u64 p_want, .param .u64 p_found, .param .u32 p_units, .param .u64 p_total)
{
    .reg .pred %p<3>;
    .reg .b32 %r<20>;
    .reg .b64 %rd<16>;
    ld.param.u64 %rd1, [p_want];
    ld.param.u64 %rd2, [p_found];
    ld.param.u32 %r1, [p_units];
    ld.param.u64 %rd11, [p_total];
    mov.u32 %r2, %ctaid.x;
    mul.wide.u32 %rd3, %r2, 8;
    add.u64 %rd4, %rd1, %rd3;
    add.u64 %rd5, %rd2, %rd3;
    ld.global.u64 %rd6, [%rd4];
    ld.global.u64 %rd7, [%rd5];
    mov.u32 %r3, %tid.x;
    mov.u32 %r4, %ntid.x;
    mov.u32 %r14, 0;
NEXT:
    setp.ge.u32 %p1, %r3, %r1;
    @%p1 bra DONE;
    mul.wide.u32 %rd8, %r3, 16;
    add.u64 %rd9, %rd6, %rd8;
    add.u64 %rd10, %rd7, %rd8;
    ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%rd9];
    ld.global.v4.u32 {%r9, %r10, %r11, %r12}, [%rd10];
    xor.b32 %r5, %r5, %r9;
    xor.b32 %r6, %r6, %r10;
    xor.b32 %r7, %r7, %r11;
    xor.b32 %r8, %r8, %r12;
    or.b32 %r5, %r5, %r6;
    or.b32 %r7, %r7, %r8;
    or.b32 %r5, %r5, %r7;
    setp.ne.u32 %p2, %r5, 0;
    @%p2 add.u32 %r14, %r14, 1;
    add.u32 %r3, %r3, %r4;
    bra NEXT;
DONE:
    red.global.add.u32 [%rd11], %r14;
    ret;
}
\0"""


class Cuda:
    """The few calls of the driver that are needed."""

    def __init__(self) -> None:
        self.lib = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        name = ctypes.create_string_buffer(100)
        self.call("cuDeviceGetName", name, 100, device)
        self.name = name.value.decode()
        self.stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(self.stream), 1)
        module, self.kernel, self.compare = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), PTX)
        self.call("cuModuleGetFunction", ctypes.byref(self.kernel), module, b"move_blocks")
        self.call("cuModuleGetFunction", ctypes.byref(self.compare), module, b"count_differences")
        self.total = self.allocate(4096)

    def call(self, name: str, *args: object) -> None:
        code = getattr(self.lib, name)(*args)
        if code:
            text = ctypes.c_char_p()
            self.lib.cuGetErrorName(code, ctypes.byref(text))
            raise RuntimeError(f"{name}: {(text.value or b'?').decode()}")

    def allocate(self, size: int) -> int:
        at = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(size))
        return at.value

    def upload(self, at: int, data: np.ndarray) -> None:
        self.call(
            "cuMemcpyHtoD_v2", ctypes.c_uint64(at), ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.nbytes)
        )

    def download(self, at: int, into: np.ndarray) -> None:
        self.call(
            "cuMemcpyDtoH_v2", ctypes.c_void_p(into.ctypes.data), ctypes.c_uint64(at), ctypes.c_size_t(into.nbytes)
        )

    def copy(self, to: int, at: int, size: int) -> None:
        self.call("cuMemcpyDtoDAsync_v2", ctypes.c_uint64(to), ctypes.c_uint64(at), ctypes.c_size_t(size), self.stream)

    def table(self, addresses: np.ndarray) -> int:
        at = self.allocate(addresses.nbytes)
        self.upload(at, addresses.astype(np.uint64))
        return at

    def move(self, src: int, dst: int, count: int, block_bytes: int) -> None:
        self._launch(self.kernel, count, src, dst, block_bytes // 16)

    def differences(self, want: int, found: int, count: int, block_bytes: int) -> int:
        """How many of the blocks' units of 16 bytes differ."""
        self.wipe(self.total, 4, 0)
        self._launch(self.compare, count, want, found, block_bytes // 16, self.total)
        self.synchronize()
        counted = np.zeros(1, dtype=np.uint32)
        self.download(self.total, counted)
        return int(counted[0])

    def wipe(self, at: int, size: int, byte: int) -> None:
        self.call("cuMemsetD8Async", ctypes.c_uint64(at), ctypes.c_ubyte(byte), ctypes.c_size_t(size), self.stream)

    def _launch(self, kernel: ctypes.c_void_p, count: int, src: int, dst: int, units: int, total: int = 0) -> None:
        values = ctypes.c_uint64(src), ctypes.c_uint64(dst), ctypes.c_uint32(units), ctypes.c_uint64(total)
        parameters = (ctypes.c_void_p * 4)(*(ctypes.cast(ctypes.pointer(v), ctypes.c_void_p) for v in values))
        self.call("cuLaunchKernel", kernel, count, 1, 1, 512, 1, 1, 0, self.stream, parameters, None)

    def event(self) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self.call("cuEventCreate", ctypes.byref(made), 2)
        return made

    def record(self, event: ctypes.c_void_p) -> None:
        self.call("cuEventRecord", event, self.stream)

    def wait(self, event: ctypes.c_void_p) -> None:
        while code := self.lib.cuEventQuery(event):
            if code != 600:  # not ready
                raise RuntimeError(f"cuEventQuery: {code}")

    def synchronize(self) -> None:
        self.call("cuStreamSynchronize", self.stream)

    def export(self, at: int) -> bytes:
        handle = (ctypes.c_char * 64)()
        self.call("cuIpcGetMemHandle", handle, ctypes.c_uint64(at))
        return bytes(handle.raw)

    def open(self, handle: bytes) -> int:
        class Handle(ctypes.Structure):
            _fields_ = (("reserved", ctypes.c_char * 64),)

        held, at = Handle(), ctypes.c_uint64()
        ctypes.memmove(ctypes.byref(held), handle, 64)
        self.lib.cuIpcOpenMemHandle_v2.argtypes = [ctypes.c_void_p, Handle, ctypes.c_uint]
        self.call("cuIpcOpenMemHandle_v2", ctypes.byref(at), held, 1)
        return at.value


class Line:
    """The other process: JSON both ways. Bounded by the case's limit."""

    def __init__(self, fd: int) -> None:
        self.socket = socket.socket(fileno=fd)

    def send(self, **what: object) -> None:
        data = json.dumps(what).encode()
        self.socket.sendall(struct.pack("<I", len(data)) + data)

    def hear(self) -> dict:
        (size,) = struct.unpack("<I", self._exactly(4))
        return json.loads(self._exactly(size))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise SystemExit("the other process has gone")
            data += part
        return data

    def waiting(self) -> bool:
        return bool(select.select([self.socket], [], [], 0)[0])


def pattern(seed: int, size: int) -> np.ndarray:
    """A 64-bit word for each place, no two alike."""
    words = np.arange(size // 8, dtype=np.uint64)
    words *= np.uint64(0x9E3779B97F4A7C15)
    words += np.uint64((seed + 1) * 0x632BE59BD9B4E019 & (1 << 64) - 1)
    return words.view(np.uint8)


class Side:
    """One process: its memory, its agent, its blocks."""

    def __init__(self, case: dict, role: str, line: Line) -> None:
        self.case, self.role, self.line = case, role, line
        self.count, self.block = case["shape"]
        self.size, self.vram = self.count * self.block, case["memory"] == "VRAM"
        self.cuda = Cuda() if self.vram else None
        scattered = case["layout"] == "scattered"
        places = 2 * self.count if scattered else self.count
        self.pool_bytes = places * self.block
        if self.vram:
            self.pool, self.staged = self.cuda.allocate(self.pool_bytes), self.cuda.allocate(self.size)
        else:
            self.arrays = [np.zeros(size + 4096, dtype=np.uint8) for size in (self.pool_bytes, self.size)]
            self.pool, self.staged = (-(-a.ctypes.data // 4096) * 4096 for a in self.arrays)
        chosen = np.arange(self.count)
        if scattered:
            chosen = np.random.default_rng(7 if role == "source" else 8).permutation(places)[: self.count]
        self.chosen = chosen
        self.addresses = (self.pool + chosen.astype(np.uint64) * np.uint64(self.block)).astype(np.uint64)
        self.chunks = np.array_split(np.arange(self.count), case.get("chunks", 1))
        self.hello: dict = {"pool": self.pool, "addresses": self.addresses.tolist(), "staged": self.staged}
        self.gathers = case["strategy"] == "gather"
        if self.vram:
            self.table = self.cuda.table(self.addresses)
            self.truth = self.cuda.allocate(self.size)
            self.cuda.upload(self.truth, pattern(0, self.size))
            self.turns = self.cuda.table(
                np.tile(self.truth + np.arange(self.count, dtype=np.uint64) * np.uint64(self.block), 2)
            )
            self.stage = self.cuda.table(self.staged + np.arange(self.count, dtype=np.uint64) * np.uint64(self.block))
            self.hello["handle"] = self.cuda.export(self.pool).hex()
        if case["strategy"] != "kernel":
            self._start_agent()

    def _start_agent(self) -> None:
        for name in ("nixl_cu13", "nixl_cu12", "nixl"):
            try:
                api = importlib.import_module(f"{name}._api")
                break
            except ImportError:
                continue
        else:
            raise SystemExit("no NIXL wheel: install nixl-cu13 or nixl-cu12 (and torch, for releases before 1.4)")
        made = api.nixl_agent_config(enable_prog_thread=self.case["progress_thread"], backends=[self.case["backend"]])
        self.agent = api.nixl_agent(self.role, made)
        kind = self.case["memory"]
        for at, size in ((self.pool, self.pool_bytes), (self.staged, self.size)):
            self.agent.register_memory([(at, size, 0, "")], kind)
        self.hello["metadata"] = self.agent.get_agent_metadata().hex()

    def meet(self) -> None:
        self.line.send(**self.hello)
        other = self.line.hear()
        if self.case["strategy"] == "kernel":
            if self.role == "source":
                mapped = self.cuda.open(bytes.fromhex(other["handle"]))
                far = [address - other["pool"] + mapped for address in other["addresses"]]
                self.far_table = self.cuda.table(np.array(far, dtype=np.uint64))
            return
        name = self.agent.add_remote_agent(bytes.fromhex(other["metadata"]))
        self.peer = name.decode() if isinstance(name, bytes) else name
        kind = self.case["memory"]
        if self.gathers:
            mine = [(self.staged + int(c[0]) * self.block, len(c) * self.block, 0) for c in self.chunks]
            theirs = [(other["staged"] + int(c[0]) * self.block, len(c) * self.block, 0) for c in self.chunks]
        else:
            mine = [(int(a), self.block, 0) for a in self.addresses]
            theirs = [(int(a), self.block, 0) for a in other["addresses"]]
        self.local = self.agent.prep_xfer_dlist("NIXL_INIT_AGENT", np.array(mine, dtype=np.uint64), kind)
        self.remote = self.agent.prep_xfer_dlist(self.peer, np.array(theirs, dtype=np.uint64), kind)
        if self.gathers:  # the staged buffer's transfers are always the same: made once, posted each time
            self.events = [self.cuda.event() for _ in self.chunks]
            self.made = [self.make(self.case["operation"], [at], str(at).encode()) for at in range(len(self.chunks))]

    def fill(self, repeat: int) -> None:
        """The source's blocks hold the pattern, moved on by a block each time; the sink's memory holds none of it.

        On a GPU by a kernel: the processor's caches stay as they would be while serving.
        """
        if self.vram:
            if self.role == "source":
                self.cuda.move(self.turns + 8 * (repeat % self.count), self.table, self.count, self.block)
            else:
                self.cuda.wipe(self.pool, self.pool_bytes, 0xEE)
            self.cuda.wipe(self.staged, self.size, 0xEE)
            self.cuda.synchronize()
            return
        pool = np.full(self.pool_bytes, 0xEE, dtype=np.uint8)
        if self.role == "source":
            pool.reshape(-1, self.block)[self.chosen] = self.blocks(repeat)
        ctypes.memmove(self.pool, pool.ctypes.data, pool.nbytes)

    def blocks(self, repeat: int) -> np.ndarray:
        return np.roll(pattern(0, self.size).reshape(self.count, self.block), -(repeat % self.count), axis=0)

    def wrong(self, repeat: int, *, whole: bool) -> int:
        """Units of 16 bytes that are not as the source had them; whole: the memory between the blocks too."""
        if self.vram and not whole:
            want = self.turns + 8 * (repeat % self.count)
            return self.cuda.differences(want, self.table, self.count, self.block)
        pool = np.empty(self.pool_bytes, dtype=np.uint8)
        if self.vram:
            self.cuda.download(self.pool, pool)
        else:
            ctypes.memmove(pool.ctypes.data, self.pool, pool.nbytes)
        if not whole:
            return int(
                np.count_nonzero(
                    (self.blocks(repeat) != pool.reshape(-1, self.block)[self.chosen]).reshape(-1, 16).any(axis=1)
                )
            )
        want = np.full(self.pool_bytes, 0xEE, dtype=np.uint8)
        want.reshape(-1, self.block)[self.chosen] = self.blocks(repeat)
        return int(np.count_nonzero((want != pool).reshape(-1, 16).any(axis=1)))

    def make(self, operation: str, rows: list[int], note: bytes) -> object:
        note = note if operation == "WRITE" else b""
        return self.agent.make_prepped_xfer(operation, self.local, rows, self.remote, rows, note)

    def post(self, handle: object) -> object:
        if self.agent.transfer(handle) == "ERR":
            raise RuntimeError("the transfer failed when posted")
        return handle

    def finish(self, handles: list[object]) -> None:
        left = list(handles)
        while left:
            state = self.agent.check_xfer_state(left[0])
            if state == "ERR":
                raise RuntimeError("the transfer failed")
            if state == "DONE":
                done = left.pop(0)
                if not self.gathers:
                    self.agent.release_xfer_handle(done)

    def warm(self) -> None:
        if self.cuda:
            self.cuda.move(self.stage, self.stage, 1, self.block)  # a block onto itself
            self.cuda.synchronize()

    def serve_until(self) -> dict:
        """Drive our side of the peer's transfers until it says that it is done."""
        while not self.line.waiting():
            if hasattr(self, "agent"):
                self.agent.get_new_notifs()
        return self.line.hear()

    def notes(self) -> list[bytes]:
        return [note for heard in self.agent.get_new_notifs().values() for note in heard]


def source_write(side: Side) -> dict:
    side.warm()
    began = time.monotonic_ns()
    handle = side.post(side.make("WRITE", list(range(side.count)), b"0"))
    posted = time.monotonic_ns()
    side.finish([handle])
    return {"began": began, "posted": posted, "done": time.monotonic_ns()}


def source_gather(side: Side) -> dict:
    side.warm()
    began, handles = time.monotonic_ns(), []
    for at, rows in enumerate(side.chunks):
        offset = 8 * int(rows[0])
        side.cuda.move(side.table + offset, side.stage + offset, len(rows), side.block)
        side.cuda.record(side.events[at])
    for at in range(len(side.chunks)):
        side.cuda.wait(side.events[at])
        gathered = time.monotonic_ns()
        handles.append(side.post(side.made[at]))
    posted = time.monotonic_ns()
    side.finish(handles)
    return {"began": began, "gathered": gathered, "posted": posted, "done": time.monotonic_ns()}


def source_kernel(side: Side) -> dict:
    side.warm()
    began = time.monotonic_ns()
    side.cuda.move(side.table, side.far_table, side.count, side.block)
    side.cuda.synchronize()
    return {"began": began, "done": time.monotonic_ns()}


def sink_notes(side: Side) -> dict:
    """Wait for every chunk's note, put each chunk in its place, and say when all could be used."""
    left, heard = set(range(len(side.chunks) if side.gathers else 1)), 0
    while left:
        for note in side.notes():
            at = int(note)
            left.discard(at)
            if side.gathers:
                rows = side.chunks[at]
                offset = 8 * int(rows[0])
                heard = time.monotonic_ns()
                side.cuda.move(side.stage + offset, side.table + offset, len(rows), side.block)
    if side.gathers:
        side.cuda.record(side.events[0])
        side.cuda.wait(side.events[0])
    return {"usable": time.monotonic_ns(), "heard": heard}


def source_stage(side: Side) -> dict:
    """Gather, then tell the sink that it can read."""
    side.warm()
    began = time.monotonic_ns()
    side.cuda.move(side.table, side.stage, side.count, side.block)
    side.cuda.record(side.events[0])
    side.cuda.wait(side.events[0])
    gathered = time.monotonic_ns()
    side.agent.send_notif(side.peer, b"staged")
    return {"began": began, "gathered": gathered}


def sink_gathered(side: Side) -> dict:
    while not side.notes():
        pass
    heard = time.monotonic_ns()
    side.finish([side.post(side.made[0])])
    done = time.monotonic_ns()
    side.cuda.move(side.stage, side.table, side.count, side.block)
    side.cuda.record(side.events[0])
    side.cuda.wait(side.events[0])
    return {"heard": heard, "done": done, "usable": time.monotonic_ns()}


def sink_read(side: Side) -> dict:
    began = time.monotonic_ns()
    handle = side.post(side.make("READ", list(range(side.count)), b""))
    posted = time.monotonic_ns()
    side.finish([handle])
    return {"began": began, "posted": posted, "usable": time.monotonic_ns()}


def sink(side: Side, repeats: int) -> None:
    results = []
    for repeat in range(repeats):
        side.fill(repeat)
        if repeat == 0 and side.wrong(0, whole=False) != side.size // 16:
            raise SystemExit("the check does not see that memory is wrong: no figure of it can be believed")
        side.line.send(ready=repeat)
        assert side.line.hear()["ready"] == repeat
        if side.case["operation"] == "READ":
            mine = sink_gathered(side) if side.gathers else sink_read(side)
            side.line.send(over=repeat)
            theirs = side.line.hear()
        elif side.case["strategy"] == "kernel":
            theirs = side.line.hear()
            mine = {"usable": theirs["done"]}
        else:
            mine = sink_notes(side)
            theirs = side.serve_until()
        times = {**theirs, **mine}
        began = times.pop("began")
        results.append(
            {k: v - began for k, v in times.items() if v} | {"wrong": side.wrong(repeat, whole=repeat == repeats - 1)}
        )
    print(json.dumps({"device": side.cuda.name if side.cuda else "CPU", "repeats": results}))


def source(side: Side, repeats: int) -> None:
    for repeat in range(repeats):
        side.fill(repeat)
        side.line.send(ready=repeat)
        assert side.line.hear()["ready"] == repeat
        if side.case["operation"] == "READ":
            times = source_stage(side) if side.gathers else side.warm()
            side.serve_until()
            side.line.send(**(times or {}))
        else:
            act = {"kernel": source_kernel, "gather": source_gather, "direct": source_write}[side.case["strategy"]]
            side.line.send(**act(side))


def child(text: str) -> None:
    what = json.loads(text)
    line = Line(what["fd"])
    side = Side(what["case"], what["role"], line)
    side.meet()
    {"source": source, "sink": sink}[what["role"]](side, what["repeats"])
    if what["role"] == "sink":
        line.send(end=True)
        line.hear()
    else:
        side.serve_until()
        line.send(end=True)
    sys.stdout.flush()
    os._exit(0)  # an agent's end is not what is measured, and may take long


def run_case(name: str, case: dict, repeats: int, limit_s: float, logs: Path | None, mps: dict[str, str]) -> dict:
    ends = socket.socketpair()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("UCX_", "NIXL_", "FI_"))} | case["env"]
    if case["mps"]:
        env |= mps
    started = []
    files = []
    for role, end in zip(("source", "sink"), ends, strict=True):
        what = {"fd": end.fileno(), "case": case, "role": role, "repeats": repeats}
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - read after both have ended
        command = [sys.executable, __file__, "--child", json.dumps(what)]
        started.append(
            subprocess.Popen(command, env=env, stdout=out, stderr=err, pass_fds=[end.fileno()], start_new_session=True)
        )
        files.append((out, err))
    for end in ends:
        end.close()
    deadline, problem = time.monotonic() + limit_s, None
    while any(p.poll() is None for p in started) and not problem:
        if time.monotonic() > deadline:
            problem = f"killed after {limit_s:.0f} s"
        if any(p.poll() not in (None, 0) for p in started):
            problem = "a process failed"
            time.sleep(1)
        time.sleep(0.02)
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    texts = []
    for out, err in files:
        for file in (out, err):
            file.seek(0)
        texts.append((out.read().decode(errors="replace"), err.read().decode(errors="replace")))
    if logs:
        for role, (out, err) in zip(("source", "sink"), texts, strict=True):
            (logs / f"{name}.{role}.txt").write_text((out + "\n" + err)[-200_000:])
    answers = [line for line in texts[1][0].splitlines() if line.startswith('{"device"')]
    if not answers:
        said = [
            line
            for _, err in texts
            for line in err.strip().splitlines()
            if "Error" in line or "error" in line or "ERR" in line
        ]
        return {"case": name, "problem": problem or "no result", "said": said[-4:]}
    found = json.loads(answers[0])
    warm = found["repeats"][1:]
    usable = sorted(r["usable"] for r in warm)
    result = {
        "case": name,
        "device": found["device"],
        **{
            k: case[k]
            for k in ("backend", "memory", "operation", "strategy", "layout", "shape", "progress_thread", "mps", "env")
        },
        "chunks": case.get("chunks", 1),
        "bytes": case["shape"][0] * case["shape"][1],
        "repeats": len(warm),
        "wrong_units": sum(r["wrong"] for r in found["repeats"]),
        "first_ns": found["repeats"][0]["usable"],
        "usable_ns": {"p50": statistics.median(usable), "min": usable[0], "max": usable[-1]},
        "parts_p50_ns": {
            k: statistics.median(r[k] for r in warm) for k in warm[0] if k not in ("usable", "wrong") and k in warm[-1]
        },
        "all_usable_ns": [r["usable"] for r in warm],
    }
    if problem:
        result["problem"] = problem
    return result


def cases() -> dict[str, dict]:
    made: dict[str, dict] = {}

    def add(name: str, operation: str = "WRITE", strategy: str = "direct", shape: tuple = QWEN, **more: object) -> None:
        layout = "scattered" if shape == QWEN else "contiguous"
        made[name] = {
            "backend": "UCX", "memory": "VRAM", "operation": operation, "strategy": strategy, "shape": shape,
            "layout": layout, "progress_thread": False, "mps": name.startswith("mps-"), "env": {}, **more,
        }  # fmt: skip

    add("floor-kernel", strategy="kernel")
    for chunks in (1, 2, 4):
        add(f"gather-{chunks}", strategy="gather", chunks=chunks)
    add("gather-1-thread", strategy="gather", progress_thread=True)
    add("write")
    add("write-thread", progress_thread=True)
    add("write-workshop", env=WORKSHOP)
    add("read", "READ")
    add("read-workshop", "READ", env=WORKSHOP)
    add("read-loud", "READ", env=LOUD)
    add("write-loud", env=LOUD)
    for name, shape in (("4k", (1, 4 * KIB)), ("56m", (1, 56 * MIB)), ("64x1m", (64, MIB)), ("4x64m", (4, 64 * MIB))):
        add(f"write-{name}", shape=shape)
        add(f"read-{name}", "READ", shape=shape)
    for operation in ("READ", "WRITE"):
        add(f"dram-{operation.lower()}", operation, memory="DRAM")
    add("read-info", "READ", env={"UCX_PROTO_INFO": "y"})
    add("write-info", env={"UCX_PROTO_INFO": "y"})
    add("libfabric-vram", backend="LIBFABRIC")
    add("read-get", "READ", env=GET)
    add("read-get-gather", "READ", strategy="gather", env=GET)
    add("read-get-loud", "READ", env=GET | LOUD)
    for name, shape in (("4k", (1, 4 * KIB)), ("56m", (1, 56 * MIB)), ("64x1m", (64, MIB)), ("4x64m", (4, 64 * MIB))):
        add(f"read-get-{name}", "READ", shape=shape, env=GET)
    add("mps-floor-kernel", strategy="kernel")
    for chunks in (1, 2, 4, 8):
        add(f"mps-gather-{chunks}", strategy="gather", chunks=chunks)
    add("mps-write")
    add("mps-write-56m", shape=(1, 56 * MIB))
    add("mps-read-get", "READ", env=GET)
    add("mps-read-get-56m", "READ", shape=(1, 56 * MIB), env=GET)
    add("mps-read-get-gather", "READ", strategy="gather", env=GET)
    return made


def device_copy() -> dict:
    cuda, size = Cuda(), 56 * MIB
    at, to = cuda.allocate(size), cuda.allocate(size)
    cuda.copy(to, at, size)
    cuda.synchronize()
    times = []
    for _ in range(20):
        began = time.monotonic_ns()
        cuda.copy(to, at, size)
        cuda.synchronize()
        times.append(time.monotonic_ns() - began)
    count, block = QWEN
    places = np.random.default_rng(3).permutation(count).astype(np.uint64) * np.uint64(block)
    scattered, staged = cuda.table(at + places), cuda.table(to + np.arange(count, dtype=np.uint64) * np.uint64(block))
    return {
        "device": cuda.name,
        "one_56m_ns": statistics.median(times),
        "copies_ns": queued(cuda, lambda: cuda.copy(to, at, size)),
        "gathers_ns": queued(cuda, lambda: cuda.move(scattered, staged, count, block)),
        "scatters_ns": queued(cuda, lambda: cuda.move(staged, scattered, count, block)),
    }


def queued(cuda: Cuda, act: Callable[[], None]) -> float:
    """ns each, of 50 queued one after the other."""
    act()
    cuda.synchronize()
    began = time.monotonic_ns()
    for _ in range(50):
        act()
    cuda.synchronize()
    return (time.monotonic_ns() - began) / 50


class Mps:
    """NVIDIA's MPS daemon in a folder of its own. Without it `env` is empty and `problem` says why."""

    def __init__(self, folder: Path) -> None:
        self.env = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipe"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "log")}
        for path in self.env.values():
            Path(path).mkdir()
        self._control("-d")

    def end(self) -> None:
        self._control(said="quit\n")

    def _control(self, *arguments: str, said: str = "") -> None:
        command = ["nvidia-cuda-mps-control", *arguments]
        subprocess.run(command, env=os.environ | self.env, input=said, text=True, timeout=30, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", help="names, comma-separated; default: all but those that begin with read-get")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--limit", type=float, default=60, help="seconds a case may take")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
    known = cases()
    if args.list:
        print("\n".join(known))
        return 0
    wanted = args.cases.split(",") if args.cases else [name for name in known if not name.startswith("read-get")]
    if unknown := set(wanted) - set(known):
        print(f"gpu: no case is called {', '.join(sorted(unknown))}; --list shows them", file=sys.stderr)
        return 2
    results: list[dict] = []
    if any(known[name]["memory"] == "VRAM" for name in wanted):
        code = f"import sys, json; sys.path.insert(0, {str(Path(__file__).parent)!r}); import gpu; "
        command = [sys.executable, "-c", code + "print(json.dumps(gpu.device_copy()))"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            print(f"gpu: no usable GPU: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return 3
        limits = json.loads(done.stdout)
        results.append({"case": "device-copy", **limits})
        print(
            f"{limits['device']}, 56 MiB: one copy {limits['one_56m_ns'] / 1e6:.3f} ms; queued, each: "
            + ", ".join(f"{what} {limits[what + '_ns'] / 1e6:.3f} ms" for what in ("copies", "gathers", "scatters")),
            flush=True,
        )
    print(f"{'case':20} {'p50 ms':>9} {'min':>9} {'max':>9} {'first':>9} {'GB/s':>8} {'wrong':>6}  parts, p50 ms")
    with tempfile.TemporaryDirectory() as folder:
        mps = None
        try:
            for name in wanted:
                if known[name]["mps"] and mps is None:
                    mps = Mps(Path(folder))
                env = mps.env if mps else {}
                results.append(run_case(name, known[name], args.repeats + 1, args.limit, args.logs, env))
                print(row(results[-1]), flush=True)
                if args.json:
                    args.json.write_text(json.dumps(results, indent=1))
        except FileNotFoundError as error:
            print(f"gpu: cases that begin with mps need {error.filename}", file=sys.stderr)
            return 3
        finally:
            if mps:
                with suppress(subprocess.SubprocessError):
                    mps.end()
    return int(any(result.get("wrong_units") for result in results))


def row(result: dict) -> str:
    if "usable_ns" not in result:
        return f"{result['case']:20} {result['problem']}: {' | '.join(result['said'])[:300]}"
    t = {k: v / 1e6 for k, v in result["usable_ns"].items()}
    parts = " ".join(f"{k} {v / 1e6:.3f}" for k, v in result["parts_p50_ns"].items())
    return (
        f"{result['case']:20} {t['p50']:9.3f} {t['min']:9.3f} {t['max']:9.3f} {result['first_ns'] / 1e6:9.3f} "
        f"{result['bytes'] / result['usable_ns']['p50']:8.1f} {result['wrong_units']:6}  {parts}"
    )


if __name__ == "__main__":
    sys.exit(main())

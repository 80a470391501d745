"""A libcuda that is not there: its device memory is memory of this process."""

import ctypes

from kvgauge.xfer.cuda import SIGNATURES


class FakeCuda:
    """A libcuda whose device memory is host memory. fails: name -> code; lacks: names it does not have."""

    def __init__(self, *, devices=2, fails=None, lacks=()):
        self.devices, self.fails, self.lacks = devices, fails or {}, lacks
        self.calls, self.memory, self.functions = [], {}, {}

    def __getattr__(self, name):
        if name not in SIGNATURES or name in self.lacks:
            raise AttributeError(name)
        if name not in self.functions:

            def function(*arguments):
                declared = self.functions[name].argtypes
                assert len(arguments) == len(declared), name
                for argument, kind in zip(arguments, declared, strict=True):
                    kind.from_param(argument)  # what a real library would refuse, this refuses
                self.calls.append(name)
                return self.fails.get(name, 0) or getattr(self, f"do_{name}", lambda *_: 0)(*arguments) or 0

            self.functions[name] = function
        return self.functions[name]

    def do_cuDeviceGetCount(self, count):
        count._obj.value = self.devices

    def do_cuDeviceGet(self, handle, number):
        handle._obj.value = number + 10

    def do_cuDeviceGetName(self, name, size, handle):
        assert size == 128
        name.value = f"Fake H100 ({handle})".encode()

    def do_cuDevicePrimaryCtxRetain(self, context, handle):
        context._obj.value = 7000 + handle

    def do_cuDriverGetVersion(self, version):
        version._obj.value = 13020

    def do_cuMemGetInfo_v2(self, free, total):
        free._obj.value, total._obj.value = 5 << 20, 80 << 30

    def do_cuMemAlloc_v2(self, address, size):
        block = ctypes.create_string_buffer(size)
        address._obj.value = ctypes.addressof(block)
        self.memory[address._obj.value] = block

    def do_cuMemFree_v2(self, address):
        del self.memory[address]

    def do_cuMemcpyHtoD_v2(self, into, out_of, size):
        ctypes.memmove(into, out_of, size)

    def do_cuMemcpyDtoH_v2(self, into, out_of, size):
        ctypes.memmove(into, out_of, size)

    def do_cuMemcpyDtoD_v2(self, into, out_of, size):
        ctypes.memmove(into, out_of, size)

    def do_cuStreamCreate(self, stream, flags):
        stream._obj.value = 500 + len(self.calls)

    def do_cuModuleLoadData(self, module, text):
        assert text.endswith(b"}\n\0")
        module._obj.value = 600

    def do_cuModuleGetFunction(self, function, module, name):
        assert name == b"move_blocks"
        function._obj.value = 700

    def do_cuEventCreate(self, event, flags):
        event._obj.value = 800 + len(self.calls)

    def do_cuEventQuery(self, event):
        """Not ready at every other look, so that waiting is waited for."""
        self.looks = getattr(self, "looks", 0) + 1
        return 600 * (self.looks % 2)

    def do_cuLaunchKernel(self, function, count, shares, z, threads, y, w, shared, stream, told, extra):
        """What the kernel does: block i of units of 16 bytes from table one, with its offset, to table two."""
        kinds = (*4 * (ctypes.c_uint64,), ctypes.c_uint32)
        out_of, skip, into, past, units = (kind.from_address(at).value for kind, at in zip(kinds, told, strict=True))
        assert (z, y, w, shared, extra) == (1, 1, 1, 0, None)
        assert 1 <= shares <= 65_535
        sources, places = ((ctypes.c_uint64 * count).from_address(table) for table in (out_of, into))
        for source, place in zip(sources, places, strict=True):
            ctypes.memmove(place + past, source + skip, units * 16)

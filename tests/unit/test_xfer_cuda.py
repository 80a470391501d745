"""GPU memory through a libcuda that is not there: the calls that are made, and every way they can fail."""

import numpy as np
import pytest

from fake_cuda import FakeCuda
from kvgauge.failures import TransferError
from kvgauge.xfer.cuda import Device, load_runtime
from kvgauge.xfer.limits import device_copy
from kvgauge.xfer.memory import DevicePool


def test_a_device_is_opened_named_and_its_context_made_current():
    cuda = FakeCuda()
    device = Device(1, lambda _name: cuda)
    assert device.name == "Fake H100 (11)"
    assert device.driver == "13.2"
    assert cuda.calls[-2:] == ["cuCtxSetCurrent", "cuDriverGetVersion"]


def test_a_pool_on_the_device_gives_back_what_was_stored():
    device = Device(0, lambda _name: FakeCuda())
    pool = DevicePool(1000, device)
    words = pool.host()
    assert not words.any()
    words[:] = np.arange(1000)
    pool.store(words)
    words[:] = 0
    assert pool.host().tolist() == list(range(1000))
    assert (pool.size_bytes, pool.device) == (8000, 0)


def test_a_copy_from_the_device_waits_for_all_work_on_it_before():
    cuda = FakeCuda()
    pool = DevicePool(8, Device(0, lambda _name: cuda))
    pool.host()
    assert cuda.calls[-2:] == ["cuCtxSynchronize", "cuMemcpyDtoH_v2"]


def test_the_copy_that_is_a_limit_is_waited_for_and_its_memory_given_back():
    cuda = FakeCuda()
    done, took_ns = device_copy(Device(0, lambda _name: cuda), 4096, 0.001)
    assert done % (8 * 4096) == 0
    assert took_ns >= 1_000_000
    assert cuda.memory == {}


def missing(_name):
    raise OSError("libcuda.so.1: cannot open shared object file")


@pytest.mark.parametrize(
    ("load", "number", "said"),
    [
        (missing, 0, "needs an NVIDIA GPU and its driver.*use --memory dram"),
        (lambda _name: FakeCuda(fails={"cuInit": 100}), 0, "CUDA_ERROR_NO_DEVICE; no GPU can be seen from here"),
        (lambda _name: FakeCuda(fails={"cuInit": 803}), 0, "different versions"),
        (lambda _name: FakeCuda(fails={"cuInit": 12345}), 0, "cuInit on GPU 0: error 12345"),
        (lambda _name: FakeCuda(devices=0), 0, "no GPU 0: CUDA sees 0"),
        (lambda _name: FakeCuda(devices=2), 2, "no GPU 2: CUDA sees 2 here, numbered from 0"),
        (lambda _name: FakeCuda(), -1, "no GPU -1"),
        (lambda _name: FakeCuda(lacks=("cuDevicePrimaryCtxRetain",)), 0, "driver is too old"),
    ],
)
def test_what_is_missing_is_said_with_what_to_do(load, number, said):
    with pytest.raises(TransferError, match=said):
        Device(number, load)


def test_a_device_that_is_full_says_how_much_is_free():
    device = Device(0, lambda _name: FakeCuda(fails={"cuMemAlloc_v2": 2}))
    with pytest.raises(TransferError, match=r"no room for 1,024 MiB: 5 of 81,920 MiB are free"):
        DevicePool(128 << 20, device)


def test_an_error_of_a_copy_names_the_call():
    device = Device(0, lambda _name: FakeCuda(fails={"cuMemcpyHtoD_v2": 700}))
    with pytest.raises(TransferError, match="cuMemcpyHtoD_v2 on GPU 0: CUDA_ERROR_ILLEGAL_ADDRESS"):
        device.upload(1, 2, 3)


def test_a_runtime_library_that_does_not_load_stops_nothing(tmp_path):
    broken = tmp_path / "libcudart.so.12"
    broken.write_bytes(b"no library")
    load_runtime([str(broken), str(tmp_path / "libhwloc.so.15")])

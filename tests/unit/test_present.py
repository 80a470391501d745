"""An NVIDIA GPU on PCI, which changes what NIXL accepts; and what workers are told then."""

import pytest

from kvgauge.backends import worker_environment
from kvgauge.builds.present import nvidia_gpu


@pytest.mark.parametrize(
    ("vendor", "kind", "there"),
    [
        ("0x10de", "0x030200", True),
        ("0x10de", "0x030000", True),
        ("0x10de", "0x040300", False),
        ("0x1af4", "0x030000", False),
    ],
)
def test_a_gpu_is_a_display_controller_of_nvidias(tmp_path, vendor, kind, there):
    device = tmp_path / "sys/bus/pci/devices/0000:00:06.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    (tmp_path / "sys/bus/pci/devices/0000:00:07.0").mkdir()
    assert nvidia_gpu(tmp_path) is there


def test_where_there_is_no_list_there_is_no_gpu(tmp_path):
    assert nvidia_gpu(tmp_path) is False


def test_ucx_is_given_its_cuda_transport_where_there_is_a_gpu():
    assert worker_environment("UCX", "tcp", None)["UCX_TLS"] == "tcp,self"
    assert worker_environment("UCX", "tcp", None, gpu=True)["UCX_TLS"] == "tcp,self,cuda_copy"
    assert worker_environment("LIBFABRIC", "tcp", None, gpu=True) == worker_environment("LIBFABRIC", "tcp", None)

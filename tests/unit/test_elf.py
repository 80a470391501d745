"""The stand-in libcuda: readable by our own reader, loadable by the real loader, honest in what it returns."""

import ctypes
import platform
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.builds import elf

NAMES = ["cuInit", "cuPointerGetAttributes", "cuMemGetAddressRange_v2"]


def test_the_loader_finds_every_symbol_and_each_says_there_is_no_device(tmp_path):
    path = tmp_path / "libstand-in.so.1"
    path.write_bytes(elf.stand_in("libstand-in.so.1", NAMES, platform.machine()))
    library = ctypes.CDLL(str(path))
    assert [getattr(library, name)() for name in NAMES] == [elf.CUDA_ERROR_NO_DEVICE] * len(NAMES)


def test_a_symbol_that_was_not_asked_for_is_not_there(tmp_path):
    path = tmp_path / "libother.so.1"
    path.write_bytes(elf.stand_in("libother.so.1", NAMES, platform.machine()))
    with pytest.raises(AttributeError):
        _ = ctypes.CDLL(str(path)).cuCtxCreate


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 62), ("aarch64", 183)])
def test_the_header_names_the_machine(machine, number):
    image = elf.stand_in("libcuda.so.1", NAMES, machine)
    assert image[:6] == b"\x7fELF\x02\x01"
    assert int.from_bytes(image[18:20], "little") == number


def test_an_unknown_machine_is_refused_by_name():
    with pytest.raises(ValueError, match="riscv64"):
        elf.stand_in("libcuda.so.1", NAMES, "riscv64")


def test_undefined_symbols_of_a_real_library_are_found():
    import _ctypes

    found = elf.undefined_symbols(Path(_ctypes.__file__).read_bytes())
    assert "PyErr_SetString" in found


def test_a_defined_symbol_is_not_reported_as_missing(tmp_path):
    path = tmp_path / "lib.so"
    path.write_bytes(elf.stand_in("lib.so", NAMES, "x86_64"))
    assert elf.undefined_cuda_symbols([path]) == frozenset()


@given(st.binary(max_size=400))
def test_random_bytes_are_refused_and_never_crash(data):
    try:
        elf.undefined_symbols(b"\x7fELF\x02\x01" + data)
    except elf.NotAnElfFile:
        pass


def test_a_cut_off_library_is_refused(tmp_path):
    import _ctypes

    image = Path(_ctypes.__file__).read_bytes()
    with pytest.raises(elf.NotAnElfFile):
        elf.undefined_symbols(image[: len(image) // 2])

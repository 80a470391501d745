"""Putting one build into this process: what is loaded before it, and what is said when it cannot be."""

import ctypes
import importlib.util
import platform
import sys

import pytest

from kvgauge.builds import elf
from kvgauge.builds.records import Build
from kvgauge.failures import BuildError
from kvgauge.kv import libraries


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A build whose API module can be imported; the process forgets it afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"nixl_of_a_test_{tmp_path.name}"
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_api.py").write_text("nixl_agent = nixl_agent_config = object\n")
    for module in (name, f"{name}._api", "torch"):
        monkeypatch.setitem(sys.modules, module, None)
        del sys.modules[module]

    def make(version="1.5.0", **changes):
        base = {
            "name": version, "version": version, "folder": str(tmp_path), "module": name, "preload": (),
            "libcuda": str(tmp_path / "libcuda.so.1"), "sha256": {},
        }  # fmt: skip
        return Build(**(base | changes))

    yield make
    for module in (name, f"{name}._api"):
        sys.modules.pop(module, None)


def library(folder, name):
    path = folder / name
    path.write_bytes(elf.stand_in(name, ["kvgauge_of_a_test"], platform.machine()))
    return str(path)


def test_the_builds_own_api_is_loaded_from_its_folder(build, tmp_path):
    api = libraries.load(build(), "UCX")
    assert hasattr(api, "nixl_agent_config")
    assert api.__file__.startswith(str(tmp_path))


def test_a_build_that_does_not_load_is_named_with_the_reason(build):
    with pytest.raises(BuildError, match=r"NIXL 1.5.0 does not load: No module named 'nixl_of_nowhere'"):
        libraries.load(build(module="nixl_of_nowhere"), "UCX")


def loaded(monkeypatch, *, refuse=()):
    """What is loaded from now on, in order; nothing really is."""
    seen = []

    def fake(path, mode):
        assert mode == ctypes.RTLD_GLOBAL
        if path in refuse:
            raise OSError(f"{path}: cannot open shared object file")
        seen.append(path)

    monkeypatch.setattr(libraries.ctypes, "CDLL", fake)
    return seen


@pytest.mark.parametrize(
    ("version", "backend", "expected"),
    [
        ("1.5.0", "UCX", []),
        ("1.5.0", "LIBFABRIC", ["libcuda.so.1", "a", "b"]),
        ("0.9.0", "UCX", ["libcuda.so.1", "a", "b"]),
    ],
)
def test_what_a_plugin_links_to_is_loaded_first_where_it_is_needed(build, monkeypatch, version, backend, expected):
    seen = loaded(monkeypatch)
    libraries.load(build(version, preload=("a", "b")), backend)
    assert seen == expected


def test_the_stand_in_for_libcuda_is_loaded_only_where_there_is_no_driver(build, monkeypatch):
    made = build(preload=("a",))
    seen = loaded(monkeypatch, refuse=("libcuda.so.1",))
    libraries.preload(made)
    assert seen == [made.libcuda, "a"]


def test_a_library_that_does_not_load_is_named_with_the_build(build, monkeypatch):
    loaded(monkeypatch, refuse=("libfabric.so.1",))
    with pytest.raises(BuildError, match=r"NIXL 1.5.0 needs libfabric.so.1, which does not load: .*cannot open"):
        libraries.preload(build(preload=("libfabric.so.1",)))


def test_names_of_a_preloaded_library_resolve_for_those_that_come_after_it(build, tmp_path):
    libraries.preload(
        build(
            preload=(library(tmp_path, "libfabric-of-a-test.so.1"),),
            libcuda=library(tmp_path, "libcuda-of-a-test.so.1"),
        )
    )
    assert ctypes.CDLL(None).kvgauge_of_a_test() == elf.CUDA_ERROR_NO_DEVICE


@pytest.mark.parametrize(("version", "stands_in"), [("1.3.2", True), ("1.4.0", False)])
def test_older_wheels_get_a_stand_in_for_torch_where_it_is_not_installed(build, monkeypatch, version, stands_in):
    find = importlib.util.find_spec
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    libraries.load(build(version), "UCX")
    assert ("torch" in sys.modules) is stands_in
    if stands_in:
        assert not isinstance(object(), sys.modules["torch"].Tensor)

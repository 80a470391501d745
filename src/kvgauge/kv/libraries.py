"""Puts one NIXL build into this process: import path, libraries it needs, stand-ins where a driver is missing.

Runs in workers only; a process loads one build in its life.
"""

import ctypes
import importlib
import importlib.util
import os
import sys
import types
from typing import Any

from kvgauge.builds.records import Build
from kvgauge.failures import BuildError

NEEDS_TORCH_BELOW = (1, 4)  # older wheels import torch at the top, for isinstance checks only


def load(build: Build, backend: str) -> Any:
    """The build's Python API module (nixl_agent, nixl_agent_config).

    backend  LIBFABRIC needs its libraries in the process before the plugin is opened
    raises   BuildError, naming what is missing
    """
    if build.plugin_dir is not None and os.environ.get("NIXL_PLUGIN_DIR") != build.plugin_dir:
        raise BuildError(
            f"build {build.name} takes its plugins from {build.plugin_dir}, but this worker was started with "
            f"NIXL_PLUGIN_DIR={os.environ.get('NIXL_PLUGIN_DIR')!r}: another build would have run under its name"
        )
    if backend == "LIBFABRIC" or build.release < (1, 0):
        preload(build)
    for needing, paths in build.plugin_needs.items():
        if needing == backend or build.release < (1, 0):  # older NIXL opens every plugin it finds
            for path in paths:
                _load(path, build)
    if build.release < NEEDS_TORCH_BELOW and importlib.util.find_spec("torch") is None:
        stand_in = types.ModuleType("torch")
        stand_in.Tensor = type("Tensor", (), {})  # type: ignore[attr-defined]
        sys.modules["torch"] = stand_in
    sys.path.insert(0, build.folder)
    try:
        return importlib.import_module(f"{build.module}._api")
    except ImportError as error:
        raise BuildError(f"NIXL {build.name} does not load: {error}") from error


def preload(build: Build) -> None:
    """Load what the plugin links to, globally, so that its names resolve whatever the library path says."""
    if not _loads("libcuda.so.1"):
        _load(build.libcuda, build)
    for path in build.preload:
        _load(path, build)


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _load(path: str, build: Build) -> None:
    try:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise BuildError(f"NIXL {build.name} needs {path}, which does not load: {error}") from error

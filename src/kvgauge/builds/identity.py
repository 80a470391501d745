"""Which files make a build what it is, and their hashes. A version says little: patched builds share it."""

import hashlib
from pathlib import Path


def hashes(folder: Path, module: str, libfabric: Path | None) -> dict[str, str]:
    """sha256 (hex) by role of what an unpacked wheel holds; a file that is not there has no role.

    module     top-level package of the wheel: its name is in those of the library folders
    libfabric  the one its LIBFABRIC plugin will get
    """
    patterns = {
        "plugin_ucx": f".{module}.mesonpy.libs/plugins/libplugin_UCX.so",
        "plugin_libfabric": f".{module}.mesonpy.libs/plugins/libplugin_LIBFABRIC.so",
        "libnixl": f".{module}.mesonpy.libs/libnixl.so",
        "ucx": f"{module}.libs/libucp-*.so*",
    }
    found = {role: next(iter(sorted(folder.glob(pattern))), None) for role, pattern in patterns.items()}
    found["libfabric"] = libfabric
    return {role: sha256_of(path) for role, path in found.items() if path is not None}


def sha256_of(path: Path) -> str:
    """Hex. raises OSError"""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_of_text(text: str) -> str:
    """Hex."""
    return hashlib.sha256(text.encode()).hexdigest()

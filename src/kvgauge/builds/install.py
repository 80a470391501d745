"""Installs published NIXL builds, each into a folder of its own, never into kvgauge's environment.

A build is put together under a temporary name and renamed when whole, so a killed install leaves nothing
that looks finished. Hashes come from kvgauge's own pins; which index serves the files is the machine's setting.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kvgauge.builds import elf, pins
from kvgauge.builds.records import Build
from kvgauge.failures import BuildError

MODULE = "nixl_cu12"
INSTALL_TIMEOUT_S = 900
_DESCRIPTION = "kvgauge-build.json"
_FORMAT = 1  # raise when what is written beside a build changes: older folders are then made anew


def cache_folder() -> Path:
    """Where builds are kept: $XDG_CACHE_HOME/kvgauge/builds, by default below ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "kvgauge" / "builds"


def installed(version: str) -> Build | None:
    """The build, if it is there and whole."""
    try:
        raw = (_place(f"nixl-{version}") / _DESCRIPTION).read_bytes()
        return msgspec.json.decode(raw, type=Build)
    except (OSError, msgspec.DecodeError):
        return None


def install(version: str, say: Callable[[str], None] = lambda _line: None) -> Build:
    """Install one published version, or find it installed.

    say     is told what takes long
    raises  BuildError
    """
    if version not in pins.known_versions():
        raise BuildError(f"NIXL {version} is not a published build kvgauge knows: {', '.join(pins.known_versions())}")
    with _locked():
        found = installed(version)
        if found is not None:
            return found
        libraries = _place("libraries")
        if not libraries.exists():
            say("installing libfabric, hwloc and the CUDA runtime library (27 MB)")
            _fill(libraries, pins.LIBRARIES, "--prefix", lambda _folder: None)
        say(f"installing NIXL {version} (about 220 MB)")
        folder = _place(f"nixl-{version}")
        _fill(folder, pins.lock(version), "--target", lambda made: _describe(version, made, folder, libraries))
        found = installed(version)
        if found is None:
            raise BuildError(f"NIXL {version} was installed into {folder} but cannot be read back; remove that folder")
        return found


def _place(name: str) -> Path:
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}-f{_FORMAT}"
    return cache_folder() / f"{name}-{tag}"


@contextmanager
def _locked() -> Iterator[None]:
    """One install at a time, whoever runs it; the kernel frees the lock of a killed one."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "lock").open("w")
    except OSError as error:
        raise BuildError(
            f"cannot write to {folder}: {error.strerror}. Set XDG_CACHE_HOME to a writable folder"
        ) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _fill(folder: Path, requirements: Path, how: str, describe: Callable[[Path], None]) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _install_into(made, requirements, how)
        describe(made)
        made.chmod(0o755)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _install_into(folder: Path, requirements: Path, how: str) -> None:
    """By pip of this interpreter, else by uv: whichever is there.

    how  --target for packages; --prefix where a wheel's data folder is wanted too (pip's --target drops its lib/)
    """
    options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", how, str(folder), "-r", str(requirements)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--ignore-installed"]
    commands = [[*pip, *options]]
    if uv := shutil.which("uv"):
        commands.append([uv, "pip", "install", "-q", "--python", sys.executable, *options])
    last = ""
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            last = f"no end after {INSTALL_TIMEOUT_S} s"
            continue
        if done.returncode == 0:
            return
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    raise BuildError(
        f"cannot install {requirements.stem}: {last}. "
        "Needed: pip in this environment or uv on the PATH, a package index, and about 300 MB of disk"
    )


def _describe(version: str, made: Path, final: Path, libraries: Path) -> None:
    """Write the stand-in libcuda and what identifies the build."""
    shared = [path for path in made.rglob("*.so*") if path.is_file()]
    symbols = elf.undefined_cuda_symbols(shared)
    stand_in = made / "kvgauge-stand-in" / "libcuda.so.1"
    stand_in.parent.mkdir()
    try:
        stand_in.write_bytes(elf.stand_in("libcuda.so.1", symbols, platform.machine()))
    except ValueError as error:
        raise BuildError(f"{error}; NIXL wheels exist for x86_64 and aarch64") from error
    preload = tuple(_library(libraries, name) for name in ("libcudart.so.12", "libhwloc.so.15", "libfabric.so.1"))
    build = Build(
        name=version,
        version=version,
        folder=str(final),
        module=MODULE,
        preload=tuple(str(path) for path in preload),
        libcuda=str(final / "kvgauge-stand-in" / "libcuda.so.1"),
        sha256=_hashes(made, preload[-1]),
    )
    (made / _DESCRIPTION).write_bytes(msgspec.json.format(msgspec.json.encode(build)))


def _library(folder: Path, name: str) -> Path:
    found = next(iter(sorted(folder.rglob(name))), None)
    if found is None:
        raise BuildError(f"{name} is missing in {folder}; remove that folder and install again")
    return found


def _hashes(folder: Path, libfabric: Path) -> dict[str, str]:
    patterns = {
        "plugin_ucx": f".{MODULE}.mesonpy.libs/plugins/libplugin_UCX.so",
        "plugin_libfabric": f".{MODULE}.mesonpy.libs/plugins/libplugin_LIBFABRIC.so",
        "libnixl": f".{MODULE}.mesonpy.libs/libnixl.so",
        "ucx": f"{MODULE}.libs/libucp-*.so*",
    }
    found = {role: next(iter(sorted(folder.glob(pattern))), None) for role, pattern in patterns.items()}
    found["libfabric"] = libfabric
    return {role: _sha256(path) for role, path in found.items() if path is not None}


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

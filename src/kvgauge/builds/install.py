"""Installs published NIXL builds, each into a folder of its own, never into kvgauge's environment.

A build is put together under a temporary name and renamed when whole, so a killed install leaves nothing
that looks finished. Hashes come from kvgauge's own pins; which index serves the files is the machine's setting.
"""

import fcntl
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

from kvgauge.builds import elf, identity, pins
from kvgauge.builds.records import Build
from kvgauge.failures import BuildError

MODULE = "nixl_cu12"
INSTALL_TIMEOUT_S = 900
DESCRIPTION = "kvgauge-build.json"
STAND_IN = Path("kvgauge-stand-in") / "libcuda.so.1"
_FORMAT = 1  # raise when what is written beside a build changes: older folders are then made anew


def cache_folder() -> Path:
    """Where builds are kept: $XDG_CACHE_HOME/kvgauge/builds, by default below ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "kvgauge" / "builds"


def installed(version: str) -> Build | None:
    """The build, if it is there and whole."""
    return read_description(place(f"nixl-{version}"))


def install(version: str, say: Callable[[str], None] = lambda _line: None) -> Build:
    """Install one published version, or find it installed.

    say     is told what takes long
    raises  BuildError
    """
    if version not in pins.known_versions():
        raise BuildError(f"NIXL {version} is not a published build kvgauge knows: {', '.join(pins.known_versions())}")
    with locked():
        found = installed(version)
        if found is not None:
            _refuse_changed(found)
            return found
        libraries = install_libraries(say)
        say(f"installing NIXL {version} (about 220 MB)")
        folder = place(f"nixl-{version}")
        _fill(folder, pins.lock(version), "--target", lambda made: _describe(version, made, folder, libraries))
        found = installed(version)
        if found is None:
            raise BuildError(f"NIXL {version} was installed into {folder} but cannot be read back; remove that folder")
        return found


def _refuse_changed(build: Build) -> None:
    """A patched plugin dropped into the folder must not run under the release's name and hash. raises BuildError"""
    libfabric = next((Path(path) for path in build.preload if path.endswith("libfabric.so.1")), None)
    try:
        now = identity.hashes(Path(build.folder), build.module, libfabric)
    except OSError as error:
        raise BuildError(
            f"NIXL {build.name} cannot be read: {error}; remove {build.folder} to install it anew"
        ) from error
    changed = sorted(role for role in build.sha256.keys() | now.keys() if build.sha256.get(role) != now.get(role))
    if changed:
        raise BuildError(
            f"{', '.join(changed)} of NIXL {build.name} in {build.folder} changed since it was installed. Name a "
            f"patched plugin in the plan instead, with build: {{plugin_dir: DIR, core: {build.name}}}; remove the "
            "folder to install the release anew"
        )


def install_libraries(say: Callable[[str], None]) -> Path:
    """The folder of libfabric, hwloc and the CUDA runtime; installed if it is not there. Call it `locked`."""
    libraries = place("libraries")
    if not libraries.exists():
        say("installing libfabric, hwloc and the CUDA runtime library (27 MB)")
        _fill(libraries, pins.LIBRARIES, "--prefix", lambda _folder: None)
    return libraries


def place(name: str) -> Path:
    """The folder of that name, for this Python and machine."""
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}-f{_FORMAT}"
    return cache_folder() / f"{name}-{tag}"


@contextmanager
def locked() -> Iterator[None]:
    """One install at a time, whoever runs it; the kernel frees the lock of a killed one. raises BuildError"""
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


def fill(folder: Path, work: Callable[[Path], None]) -> None:
    """Make `folder` anew: `work` puts it together under another name, and it is renamed when whole."""
    if folder.exists():
        shutil.rmtree(folder)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        work(made)
        made.chmod(0o755)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _fill(folder: Path, requirements: Path, how: str, describe: Callable[[Path], None]) -> None:
    def work(made: Path) -> None:
        _install_into(made, requirements, how)
        describe(made)

    fill(folder, work)


def _install_into(folder: Path, requirements: Path, how: str) -> None:
    """how  --target for packages; --prefix where a wheel's data folder is wanted too (pip's --target drops its lib/)"""
    pinned = ["--require-hashes", "--only-binary", ":all:", how, str(folder), "-r", str(requirements)]
    run_installer(pinned, requirements.stem)


def run_installer(options: list[str], what: str) -> None:
    """`install --no-deps` by pip of this interpreter, else by uv: whichever is there.

    raises  BuildError with the last line of what went wrong
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--ignore-installed"]
    commands = [[*pip, "--no-deps", *options]]
    if uv := shutil.which("uv"):
        commands.append([uv, "pip", "install", "-q", "--python", sys.executable, "--no-deps", *options])
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
        f"cannot install {what}: {last}. "
        "Needed: pip in this environment or uv on the PATH, a package index, and about 300 MB of disk"
    )


def _describe(version: str, made: Path, final: Path, libraries: Path) -> None:
    """Write the stand-in libcuda and what identifies the build."""
    write_stand_in(made, [path for path in made.rglob("*.so*") if path.is_file()])
    write_description(
        made,
        Build(
            name=version,
            version=version,
            folder=str(final),
            module=MODULE,
            preload=preloads(libraries),
            libcuda=str(final / STAND_IN),
            sha256=identity.hashes(made, MODULE, library(libraries, "libfabric.so.1")),
        ),
    )


def write_stand_in(folder: Path, shared: list[Path]) -> None:
    """A libcuda with every name these libraries want of one. raises BuildError for an unknown machine"""
    stand_in = folder / STAND_IN
    stand_in.parent.mkdir()
    try:
        symbols = elf.undefined_cuda_symbols(shared)
        stand_in.write_bytes(elf.stand_in("libcuda.so.1", symbols, platform.machine()))
    except ValueError as error:
        raise BuildError(f"{error}; NIXL wheels exist for x86_64 and aarch64") from error


def preloads(libraries: Path) -> tuple[str, ...]:
    """What the LIBFABRIC plugin links to and no NIXL wheel brings, in the order they are loaded."""
    names = ("libcudart.so.12", "libhwloc.so.15", "libfabric.so.1")
    return tuple(str(library(libraries, name)) for name in names)


def library(folder: Path, name: str) -> Path:
    """The file of that name somewhere below. raises BuildError"""
    found = next(iter(sorted(folder.rglob(name))), None)
    if found is None:
        raise BuildError(f"{name} is missing in {folder}; remove that folder and install again")
    return found


def write_description(folder: Path, build: Build) -> None:
    (folder / DESCRIPTION).write_bytes(msgspec.json.format(msgspec.json.encode(build)))


def read_description(folder: Path) -> Build | None:
    """The build described there, if there is one and it is whole."""
    try:
        return msgspec.json.decode((folder / DESCRIPTION).read_bytes(), type=Build)
    except (OSError, msgspec.DecodeError):
        return None

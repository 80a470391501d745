"""Builds of the user's own: a wheel file, or a folder of NIXL plugins with the core that opens them.

Both are described beside the published builds in the cache; a wheel is unpacked there, plugins and core stay where
they lie. A folder in the cache is named by the hashes of what it describes, so a changed file is another build.
"""

import re
import subprocess
import sysconfig
from collections.abc import Callable, Mapping
from importlib.metadata import PathDistribution
from pathlib import Path

import msgspec

from kvgauge.builds import identity, pins
from kvgauge.builds.install import (
    STAND_IN,
    cache_folder,
    fill,
    install,
    install_libraries,
    library,
    locked,
    place,
    preloads,
    read_description,
    run_installer,
    write_description,
    write_stand_in,
)
from kvgauge.builds.records import Build, BuildSource
from kvgauge.builds.verdicts import BACKENDS
from kvgauge.failures import BuildError

MODULES = ("nixl_cu12", "nixl_cu13", "nixl")  # packages NIXL was ever published as
LDD_TIMEOUT_S = 20
_RELEASE = re.compile(r"\d+(?:\.\d+)*")
_RESOLVED = re.compile(r"^\s*(\S+) => (not found|/.+?)(?: \(0x[0-9a-f]+\))?$", re.MULTILINE)

Say = Callable[[str], None]


def _silent(_line: str) -> None:
    pass


def find(name: str, source: BuildSource | None = None, say: Say = _silent) -> Build:
    """The build a test names: the published version `name`, or the user's own that `source` describes.

    raises BuildError
    """
    if source is None:
        return install(name, say)
    if source.wheel is not None:
        return from_wheel(Path(source.wheel).expanduser(), name, say)
    assert source.plugin_dir is not None
    assert source.core is not None
    return from_plugins(Path(source.plugin_dir).expanduser(), source.core, name, say)


def finder(sources: Mapping[str, BuildSource | None], say: Say = _silent) -> Callable[[str], Build]:
    """What the embedded target asks for builds: a function of a test's `build`, each looked up once.

    sources  test.build -> test.build_source, of all tests
    """
    found: dict[str, Build] = {}

    def look_up(name: str) -> Build:
        if name not in found:
            found[name] = find(name, sources.get(name), say)
        return found[name]

    return look_up


def from_wheel(wheel: Path, name: str, say: Say = _silent) -> Build:
    """Unpack a wheel into the cache, or find it there: by the sha256 of the file, so a rebuilt wheel is another.

    raises BuildError
    """
    if not wheel.is_file():
        raise BuildError(f"there is no wheel {wheel}; name a file that ends in .whl")
    digest = identity.sha256_of(wheel)
    with locked():
        folder = place(f"wheel-{digest[:16]}")
        found = read_description(folder)
        if found is None:
            libraries = install_libraries(say)
            say(f"unpacking {wheel.name} (sha256 {digest[:12]})")
            fill(folder, lambda made: _unpack(wheel, made, folder, libraries))
            found = read_description(folder)
    if found is None:
        raise BuildError(f"{wheel.name} was unpacked into {folder} but cannot be read back; remove that folder")
    return msgspec.structs.replace(found, name=name)


def _unpack(wheel: Path, made: Path, final: Path, libraries: Path) -> None:
    run_installer(["--no-index", "--target", str(made), str(wheel.resolve())], wheel.name)
    module = _module(made)
    write_stand_in(made, [path for path in made.rglob("*.so*") if path.is_file()])
    build = Build(
        name=wheel.name,
        version=_version(made, module),
        folder=str(final),
        module=module,
        preload=preloads(libraries),
        libcuda=str(final / STAND_IN),
        sha256=identity.hashes(made, module, library(libraries, "libfabric.so.1")),
    )
    _require(build, f"{wheel.name} holds no")
    write_description(made, build)


def from_plugins(plugin_dir: Path, core: str, name: str, say: Say = _silent) -> Build:
    """Describe a folder of plugins with the core that opens them. Nothing of either is copied.

    core    a published version, or a folder that holds the package nixl_cu12, nixl_cu13 or nixl
    raises  BuildError
    """
    plugins = {backend: plugin_dir / f"libplugin_{backend}.so" for backend in BACKENDS}
    plugins = {backend: path.resolve() for backend, path in plugins.items() if path.is_file()}
    if not plugins:
        raise BuildError(f"{plugin_dir} holds neither libplugin_UCX.so nor libplugin_LIBFABRIC.so: name NIXL's folder")
    base = install(core, say) if core in pins.known_versions() else _core(Path(core).expanduser(), say)
    needs = {backend: _needs(path, base) for backend, path in plugins.items()}
    fabric = next((path for path in needs.get("LIBFABRIC", ()) if Path(path).name.startswith("libfabric.so")), None)
    preload = (*base.preload[:-1], fabric or base.preload[-1])  # libfabric is the last of them
    ucx = next((path for path in needs.get("UCX", ()) if Path(path).name.startswith("libucp")), None)
    files = {f"plugin_{backend.lower()}": path for backend, path in plugins.items()}
    files |= {"libfabric": Path(preload[-1])} if "LIBFABRIC" in plugins else {}
    files |= {"ucx": Path(ucx)} if ucx else {}
    build = msgspec.structs.replace(
        base,
        name=name,
        preload=preload,
        sha256={"libnixl": base.sha256["libnixl"], **{role: identity.sha256_of(path) for role, path in files.items()}},
        plugin_dir=str(plugin_dir.resolve()),
        plugin_needs={
            backend: tuple(path for path in paths if path not in preload) for backend, paths in needs.items()
        },
    )
    return _with_stand_in(build, list(plugins.values()))


def _with_stand_in(build: Build, plugins: list[Path]) -> Build:
    """The build with a libcuda for its own plugins: they may want more of it than the core's do."""
    key = identity.sha256_of_text(f"{build.identity} {build.plugin_dir} {build.folder}")
    folder = place(f"plugins-{key[:16]}")
    build = msgspec.structs.replace(build, libcuda=str(folder / STAND_IN))
    with locked():
        if (found := read_description(folder)) is None or msgspec.structs.replace(found, name=build.name) != build:
            core = Path(build.folder).glob(f".{build.module}.mesonpy.libs/**/*.so*")

            def work(made: Path) -> None:
                write_stand_in(made, [*(path for path in core if path.is_file()), *plugins])
                write_description(made, build)

            fill(folder, work)
    return build


def _core(folder: Path, say: Say) -> Build:
    """A core that is installed somewhere: seen through links in the cache, so that nothing else of that folder is."""
    if not folder.is_dir():
        raise BuildError(
            f"core {folder} is neither a published version ({', '.join(pins.known_versions())}) nor a folder that "
            f"holds one of the packages {', '.join(MODULES)}"
        )
    module = _module(folder)
    sha256 = identity.hashes(folder, module, None)
    with locked():
        libraries = install_libraries(say)
        libfabric = library(libraries, "libfabric.so.1")
        seen = place(f"core-{identity.sha256_of_text(str(folder.resolve()) + repr(sorted(sha256.items())))[:16]}")
        build = Build(
            name=str(folder),
            version=_version(folder, module),
            folder=str(seen),
            module=module,
            preload=preloads(libraries),
            libcuda=str(seen / STAND_IN),
            sha256=sha256 | {"libfabric": identity.sha256_of(libfabric)},
        )
        _require(build, f"{folder} holds no", roles=("libnixl",))
        if not seen.exists():
            fill(seen, lambda made: _link(folder, module, made))
    return build


def _link(folder: Path, module: str, made: Path) -> None:
    for part in (module, f".{module}.mesonpy.libs", f"{module}.libs"):
        if (folder / part).exists():
            (made / part).symlink_to((folder / part).resolve())


def _needs(plugin: Path, core: Build) -> tuple[str, ...]:
    """What the plugin links to and the loader would not find alone: beside it, then in the core's folders.

    Also the libfabric or UCX that the loader does find, since they belong to the build.
    raises  BuildError where the system has no ldd
    """
    try:
        done = subprocess.run(["ldd", str(plugin)], capture_output=True, text=True, timeout=LDD_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"cannot ask ldd what {plugin} links to: {error}") from error
    too_old = {Path(line.split(": version")[0]).name for line in done.stderr.splitlines() if ": version" in line}
    folders = [plugin.parent, *(Path(core.folder) / part for part in _library_folders(core.module))]
    needs = []
    for name, found in _RESOLVED.findall(done.stdout):
        lies = next((str(folder / name) for folder in folders if (folder / name).is_file()), None)
        if lies is not None:
            needs.append(lies)
        elif found != "not found" and name.startswith(("libfabric.so", "libucp")) and Path(found).name not in too_old:
            needs.append(found)
    return tuple(needs)


def _library_folders(module: str) -> tuple[str, str]:
    return f".{module}.mesonpy.libs", f"{module}.libs"


def _module(folder: Path) -> str:
    """The NIXL package that lies there and fits this Python. raises BuildError"""
    suffixes = (sysconfig.get_config_var("EXT_SUFFIX"), ".abi3.so")
    for module in MODULES:
        bindings = [path.name for path in (folder / module).glob("_bindings*.so")]
        if not bindings:
            continue
        if not any(name == f"_bindings{suffix}" for name in bindings for suffix in suffixes):
            raise BuildError(
                f"{folder / module} is built for another Python ({', '.join(bindings)}); this one needs "
                f"_bindings{suffixes[0]}: run kvgauge with that Python, or take the wheel for this one"
            )
        return module
    raise BuildError(f"{folder} holds no NIXL package: none of {', '.join(MODULES)} with _bindings*.so in it")


def _version(folder: Path, module: str) -> str:
    """As the package's metadata says it, its numbers only (1.5.0 for 1.5.0+patched). raises BuildError"""
    for info in sorted(folder.glob(f"{module}-*.dist-info")):
        stated = PathDistribution(info).metadata["Version"]  # None where there is no such file or line
        if found := _RELEASE.match(stated or ""):
            return found.group()
    raise BuildError(f"{folder} does not say which NIXL it is: {module}-*.dist-info is missing")


def _require(build: Build, message: str, roles: tuple[str, ...] = ("libnixl", "plugin_ucx")) -> None:
    missing = [role for role in roles if role not in build.sha256]
    if missing:
        raise BuildError(f"{message} {' and no '.join(missing)} that could identify it: is it a NIXL wheel?")


def found_in_cache() -> list[Build]:
    """The user's own builds that were described before and are still as they were then."""
    suffix = place("").name.lstrip("-")
    folders = sorted(cache_folder().glob(f"*-{suffix}"))
    builds = [read_description(folder) for folder in folders if folder.name.startswith(("wheel-", "plugins-"))]
    return [build for build in builds if build is not None and _unchanged(build)]


def _unchanged(build: Build) -> bool:
    if build.plugin_dir is None:
        return Path(build.folder).is_dir()
    plugins = {role: digest for role, digest in build.sha256.items() if role.startswith("plugin_")}
    try:
        return all(
            identity.sha256_of(Path(build.plugin_dir) / f"libplugin_{role.removeprefix('plugin_').upper()}.so")
            == digest
            for role, digest in plugins.items()
        )
    except OSError:
        return False

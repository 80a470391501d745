"""Which NIXL builds lie here, which plugins they bring, and what those lack: read, not imported."""

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from kvgauge.builds import identity
from kvgauge.builds.install import installed, place, read_description, write_stand_in
from kvgauge.builds.own import MODULES
from kvgauge.builds.pins import NOTES, known_versions
from kvgauge.builds.records import Build, BuildSource
from kvgauge.builds.verdicts import BACKENDS, said
from kvgauge.doctor.attempts import Try
from kvgauge.doctor.loader import Loader, Resolved, highest
from kvgauge.doctor.records import FoundBuild, NotLooked, Plugin
from kvgauge.failures import BuildError

# Where an installed NIXL puts its plugins: prefixes of its README, CI and Dynamo's images.
PREFIXES = ("/usr/local/nixl", "/opt/nixl", "/opt/nvidia/nvda_nixl")
_BELOW = ("lib64/plugins", "lib/plugins", "lib/x86_64-linux-gnu/plugins", "lib/aarch64-linux-gnu/plugins")
_TRANSPORTS = {  # module of UCX -> what it carries; openucx/ucx, src/uct
    "libuct_cma": ("cma",),
    "libuct_knem": ("knem",),
    "libuct_xpmem": ("xpmem",),
    "libuct_cuda": ("cuda_copy", "cuda_ipc"),
    "libuct_cuda_gdrcopy": ("gdr_copy",),
    "libuct_ib": ("rc_verbs", "ud_verbs"),
    "libuct_ib_mlx5": ("rc_mlx5", "dc_mlx5", "ud_mlx5", "gga_mlx5"),
    "libuct_ib_mlx5_gda": ("rc_gda",),
    "libuct_ib_efa": ("srd",),
    "libuct_rocm": ("rocm_copy", "rocm_ipc"),
    "libuct_ze": ("ze_copy",),
}
_ALWAYS = ("tcp", "self", "posix", "sysv")


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A build that was found, and how each of its plugins would be opened."""

    build: FoundBuild
    tries: dict[str, Try]  # by backend


def published(loader: Loader, names: Iterable[str], variables: Mapping[str, str]) -> Iterator[Candidate]:
    """Builds of kvgauge's cache. variables: the environment of a worker of ours"""
    for version in names:
        if (build := installed(version)) is not None:
            yield _ours(loader, build, "published", variables, NOTES.get(version, ""))


def own(
    loader: Loader, sources: Mapping[str, BuildSource], variables: Mapping[str, str], scratch: Path
) -> tuple[list[Candidate], list[NotLooked]]:
    """Builds that a plan names. Nothing is installed: what is not there yet is not looked at."""
    found: list[Candidate] = []
    missing: list[NotLooked] = []
    for name, source in sources.items():
        try:
            build = _described(name, source, scratch)
        except (OSError, BuildError) as error:
            missing.append(NotLooked(what=f"build {name}", why=str(error), needed=True))
            continue
        if build is None:
            why = (
                "its core or its wheel is not in the cache yet: `kvgauge builds hash` with the same names puts it there"
            )
            missing.append(NotLooked(what=f"build {name}", why=why))
        else:
            found.append(_ours(loader, build, "yours", variables, ""))
    return found, missing


def _described(name: str, source: BuildSource, scratch: Path) -> Build | None:
    """raises OSError, BuildError"""
    if source.wheel is not None:
        digest = identity.sha256_of(Path(source.wheel).expanduser())
        found = read_description(place(f"wheel-{digest[:16]}"))
        return msgspec.structs.replace(found, name=name) if found else None
    assert source.plugin_dir is not None
    assert source.core is not None
    folder = Path(source.plugin_dir).expanduser()
    if not any((folder / f"libplugin_{backend}.so").is_file() for backend in BACKENDS):
        raise BuildError(f"{folder} holds neither libplugin_UCX.so nor libplugin_LIBFABRIC.so")
    core = installed(source.core) if source.core in known_versions() else _core(Path(source.core).expanduser())
    if core is None:
        return None
    made = Path(tempfile.mkdtemp(dir=scratch))
    plugins = list(folder.glob("libplugin_*.so"))
    shared = [path for part in _libraries(Path(core.folder), core.module) for path in part.glob("*.so*")]
    write_stand_in(made, [path for path in (*plugins, *shared) if path.is_file()])
    stand_in = next(made.rglob("libcuda.so.1"))
    return msgspec.structs.replace(core, name=name, plugin_dir=str(folder), libcuda=str(stand_in))


def _core(folder: Path) -> Build | None:
    """A core that is no published version: what kvgauge would preload beside it comes from a published build."""
    module = next((module for module in MODULES if (folder / module).is_dir()), None)
    if module is None:
        raise BuildError(f"core {folder} holds none of the packages {', '.join(MODULES)}")
    like = next((build for version in reversed(known_versions()) if (build := installed(version)) is not None), None)
    return msgspec.structs.replace(like, folder=str(folder), module=module) if like else None


def _ours(
    loader: Loader, build: Build, origin: Literal["published", "yours"], variables: Mapping[str, str], note: str
) -> Candidate:
    folder = Path(build.folder)
    lies = Path(build.plugin_dir) if build.plugin_dir else folder / f".{build.module}.mesonpy.libs" / "plugins"
    beside = [lies, *_libraries(folder, build.module)] if build.plugin_dir else []
    fabric = lies / "libfabric.so.1"
    preload = list(build.preload)
    if build.plugin_dir and fabric.is_file():  # one beside the plugins takes the place of kvgauge's
        preload[-1] = str(fabric)
    found = _look(loader, lies, preload, beside, build.libcuda, variables)
    return _candidate(build.name, build.version, origin, lies, found, note, {b: said(build, b) for b in BACKENDS})


def environments(loader: Loader, sites: Sequence[Path], variables: Mapping[str, str]) -> Iterator[Candidate]:
    """NIXL as engines here would find it: in Python environments, bundled by TensorRT-LLM, installed by hand, and
    what NIXL_PLUGIN_DIR names.

    variables  what such an engine would run with
    """
    cores: list[Path] = []
    for site in sites:
        beside = sorted(site.glob("nvidia/*/lib"))  # torch has loaded these before NIXL opens a plugin
        for module in MODULES:
            plugins = site / f".{module}.mesonpy.libs" / "plugins"
            if plugins.is_dir():
                cores += _libraries(site, module)
                found = _look(loader, plugins, [], beside, None, variables)
                yield _candidate(f"{module} in {site}", _version(site, module), "environment", plugins, found)
        bundled = site / "tensorrt_llm" / "libs" / "nixl" / "plugins"
        if bundled.is_dir():
            found = _look(loader, bundled, [], [bundled.parent, *beside], None, variables)
            yield _candidate(f"TensorRT-LLM's own in {site}", None, "environment", bundled, found)
    for prefix in PREFIXES:
        for below in _BELOW:
            folder = loader.path(f"{prefix}/{below}")
            if folder.is_dir():
                found = _look(loader, folder, [], [folder.parent], None, variables)
                yield _candidate(str(folder), None, "environment", folder, found)
    if named := variables.get("NIXL_PLUGIN_DIR"):
        folder = Path(named)
        found = _look(loader, folder, [], [folder, *cores], None, variables)
        yield _candidate(f"NIXL_PLUGIN_DIR={named}", None, "environment", folder, found)


def _look(
    loader: Loader, folder: Path, preload: list[str], beside: Sequence[Path], libcuda: str | None,
    variables: Mapping[str, str],
) -> list[tuple[Plugin, Try, Resolved]]:  # fmt: skip
    found = []
    stand_in = [] if libcuda is None or loader.find("libcuda.so.1") is not None else [Path(libcuda)]
    for backend in BACKENDS:
        path = folder / f"libplugin_{backend}.so"
        if not path.is_file():
            continue
        # our own builds load their libraries before a LIBFABRIC plugin, and before any of NIXL < 1.0, which opens all
        resolved = loader.resolve(path, [*map(Path, preload), *stand_in], beside)
        fabric = resolved.found.get("libfabric.so.1")
        links, offering = loader.links(path), loader.links(fabric) if fabric else None
        plugin = Plugin(
            backend=backend,
            path=str(path),
            missing=tuple(
                soname if needing == path.name else f"{soname} (for {needing})"
                for soname, needing in resolved.missing.items()
            ),
            too_old=tuple(resolved.old),
            libfabric=str(fabric) if fabric and backend == "LIBFABRIC" else None,
            wants=highest(links.versions.get("libfabric.so.1", ())) if links else None,
            offers=highest(offering.defines) if offering else None,
        )
        first = (*preload, *map(str, resolved.by_hand))
        found.append(
            (plugin, Try(plugin=str(path), preload=first, stand_in=libcuda, variables=dict(variables)), resolved)
        )
    return found


def _candidate(
    name: str, version: str | None, origin: Literal["published", "yours", "environment"], folder: Path,
    found: list[tuple[Plugin, Try, Resolved]], note: str = "", verdicts: dict[str, str] | None = None,
) -> Candidate:  # fmt: skip
    ucx = next((resolved for plugin, _, resolved in found if plugin.backend == "UCX"), None)
    build = FoundBuild(
        name=name,
        version=version,
        origin=origin,
        folder=str(folder),
        plugins=tuple(plugin for plugin, _, _ in found),
        transports=transports(ucx) if ucx else frozenset(),
        verdicts=verdicts or {},
        note=note,
    )
    return Candidate(build=build, tries={plugin.backend: attempt for plugin, attempt, _ in found})


def transports(ucx: Resolved) -> frozenset[str]:
    """What this UCX can carry, by the modules in the folder `ucx` beside it; empty where it was not found."""
    library = next((path for soname, path in ucx.found.items() if soname.startswith("libucp")), None)
    if library is None:
        return frozenset()
    modules = {path.name.partition(".so")[0] for path in (library.parent / "ucx").glob("libuct_*.so*")}
    modules = {re.sub(r"-[0-9a-f]{8}$", "", name) for name in modules}
    carried = {transport for name in modules for transport in _TRANSPORTS.get(name, ())}
    if "libuct_ib" in modules and "libuct_ib_mlx5" not in modules:  # one module held both before UCX 1.18
        carried |= set(_TRANSPORTS["libuct_ib_mlx5"])
    return frozenset(carried | set(_ALWAYS))


def _libraries(folder: Path, module: str) -> list[Path]:
    return [folder / f".{module}.mesonpy.libs", folder / f"{module}.libs"]


def _version(site: Path, module: str) -> str | None:
    names = (path.name for path in site.glob(f"{module}-*.dist-info"))
    return next((name.removesuffix(".dist-info").rpartition("-")[2] for name in names), None)

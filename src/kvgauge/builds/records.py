"""Which NIXL: where it lies and what identifies it. Sent to workers, so it imports nothing but msgspec."""

import hashlib

import msgspec


class BuildSource(msgspec.Struct, frozen=True, kw_only=True):
    """A build of the user's own, as a plan or the command line names it: a wheel, or a plugin folder with its core.

    wheel       path of a wheel file
    plugin_dir  folder of libplugin_*.so files
    core        what loads those plugins: a published version, or a folder that holds the Python package
    """

    wheel: str | None = None
    plugin_dir: str | None = None
    core: str | None = None

    @property
    def label(self) -> str:
        """What tables and a test's `build` call it; the same for the same source only."""
        return f"wheel {self.wheel}" if self.wheel is not None else f"{self.plugin_dir} with core {self.core}"


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """One installed NIXL build.

    folder        goes on the worker's import path
    module        top-level package of the wheel
    preload       libraries to load globally before the LIBFABRIC plugin is opened, in order
    libcuda       stand-in, loaded only where no real libcuda.so.1 loads
    sha256        role (plugin_ucx, plugin_libfabric, libnixl, ucx, libfabric) -> hash of that file
    plugin_dir    the plugins NIXL opens instead of the core's own; None: the core's own
    plugin_needs  backend -> libraries of the core or beside the plugins which that plugin of `plugin_dir` links to
    """

    name: str
    version: str
    folder: str
    module: str
    preload: tuple[str, ...]
    libcuda: str
    sha256: dict[str, str]
    plugin_dir: str | None = None
    plugin_needs: dict[str, tuple[str, ...]] = {}

    @property
    def release(self) -> tuple[int, ...]:
        """Version as numbers, for "since 1.4.0" questions."""
        return tuple(int(part) for part in self.version.split("."))

    @property
    def identity(self) -> str:
        """One hash (sha256, hex) over the hashes of all files that matter: two builds that share it are one."""
        listed = "\n".join(f"{role} {digest}" for role, digest in sorted(self.sha256.items()))
        return hashlib.sha256(listed.encode()).hexdigest()

"""Which NIXL: where it lies and what identifies it. Sent to workers, so it imports nothing but msgspec."""

import msgspec


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """One installed NIXL build.

    folder      goes on the worker's import path
    module      top-level package of the wheel
    preload     libraries to load globally before the LIBFABRIC plugin is opened, in order
    libcuda     stand-in, loaded only where no real libcuda.so.1 loads
    sha256      role (plugin_ucx, plugin_libfabric, libnixl, ucx, libfabric) -> hash of that file
    """

    name: str
    version: str
    folder: str
    module: str
    preload: tuple[str, ...]
    libcuda: str
    sha256: dict[str, str]

    @property
    def release(self) -> tuple[int, ...]:
        """Version as numbers, for "since 1.4.0" questions."""
        return tuple(int(part) for part in self.version.split("."))

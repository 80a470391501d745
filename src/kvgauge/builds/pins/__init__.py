"""Hashes of every published NIXL build, and of the libraries LIBFABRIC needs beside it.

Renewed by requirements/builds.sh; read here, never imported by workers.
"""

from pathlib import Path

_HERE = Path(__file__).parent

# Which published builds do what over tcp without a GPU was established by moving checked blocks:
# `kvgauge builds test --all` repeats it; docs/builds.md holds the table.
_WRONG = "LIBFABRIC over tcp reports DONE for blocks that are wrong"
NOTES = {
    **dict.fromkeys(("0.7.1", "0.8.0", "0.9.0", "0.10.0", "0.10.1"), _WRONG),
    "1.5.1": "LIBFABRIC needs libfabric with FABRIC_1.10, which no published wheel brings",
}


def known_versions() -> tuple[str, ...]:
    """Published versions that can be installed with hashes, oldest first."""
    names = (path.name.removeprefix("nixl-").removesuffix(".lock") for path in _HERE.glob("nixl-*.lock"))
    return tuple(sorted(names, key=lambda version: tuple(int(part) for part in version.split("."))))


def lock(version: str) -> Path:
    """The requirements file that pins one version."""
    return _HERE / f"nixl-{version}.lock"


LIBRARIES = _HERE / "libraries.lock"

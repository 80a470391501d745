"""Where the dynamic loader would find a library, and what a plugin then lacks: ld.so(8), without loading anything."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from kvgauge.builds.elf import NotAnElfFile
from kvgauge.builds.links import Links, read_links
from kvgauge.evidence.tree import Tree

LIBRARIES_MAX = 400
INCLUDES_MAX = 8
_X86, _ARM = 62, 183
_DEFAULTS = ("/lib64", "/usr/lib64", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu",
             "/usr/lib/aarch64-linux-gnu", "/lib", "/usr/lib")  # fmt: skip


class Loader:
    """The search of one environment.

    library_path  LD_LIBRARY_PATH of the process that is meant
    """

    def __init__(self, tree: Tree, library_path: str = "") -> None:
        self._tree = tree
        self._root = str(tree.root).rstrip("/")
        self._seen: dict[Path, Links | None] = {}
        self._asked = [folder for folder in library_path.split(":") if folder]
        self._configured = [*_configured(tree, "/etc/ld.so.conf"), *_DEFAULTS]

    def path(self, path: str) -> Path:
        """Below the root that is looked at."""
        return self._tree.path(path)

    def find(self, soname: str, machine: int | None = None) -> Path | None:
        """The first file of that name, built for that machine where one is given."""
        return self._first(soname, [*self._asked, *self._configured], machine)

    def all(self, soname: str) -> list[Path]:
        """Every different file of that name on the search path, in its order."""
        found: dict[Path, Path] = {}
        for folder in [*self._asked, *self._configured]:
            path = self._tree.path(folder) / soname
            if _is_file(path):
                found.setdefault(path.resolve(), path)
        return list(found.values())

    def links(self, path: Path) -> Links | None:
        """None for what is not a library."""
        if path not in self._seen:
            try:
                self._seen[path] = read_links(path)
            except (OSError, NotAnElfFile):
                self._seen[path] = None
        return self._seen[path]

    def resolve(self, start: Path, loaded: Iterable[Path] = (), beside: Sequence[Path] = ()) -> "Resolved":
        """Follow everything a library links to.

        loaded  what is in the process before: its sonames are found there
        beside  folders whose libraries are loaded by hand where the search finds none
        """
        found: dict[str, Path] = {}
        for path in loaded:
            links = self.links(path)
            found[(links.soname if links else None) or path.name] = path
        missing: dict[str, str] = {}
        old: list[str] = []
        by_hand: list[Path] = []
        waiting, followed = [start], set[Path]()
        while waiting and len(followed) < LIBRARIES_MAX:
            path = waiting.pop(0)
            links = self.links(path)
            if path in followed or links is None:
                continue
            followed.add(path)
            for soname in links.needed:
                if soname not in found:
                    lies = self._search(soname, path, links)
                    if lies is None and (lies := _beside(soname, beside)) is not None:
                        by_hand.append(lies)
                    if lies is None:
                        missing.setdefault(soname, path.name)
                        continue
                    found[soname] = lies
                waiting.append(found[soname])
            old += self._too_old(path, links, found)
        return Resolved(found, missing, list(dict.fromkeys(old)), by_hand[::-1])

    def _too_old(self, path: Path, links: Links, found: dict[str, Path]) -> list[str]:
        old = []
        for soname, versions in links.versions.items():
            offering = self.links(found[soname]) if soname in found else None
            if offering is None or not offering.defines:
                continue
            lacking = [version for version in versions if version not in offering.defines]
            if lacking:
                old.append(f"{soname} ({found[soname]}) has no {', '.join(lacking)}, which {path.name} needs")
        return old

    def _search(self, soname: str, needing: Path, links: Links) -> Path | None:
        origin = os.path.realpath(needing.parent)
        own = [re.sub(r"\$\{?ORIGIN\}?", lambda _match: origin, folder) for folder in links.paths]
        folders = [*own, *self._asked] if links.early else [*self._asked, *own]
        return self._first(soname, [*folders, *self._configured], links.machine, own=frozenset(own))

    def _first(
        self, soname: str, folders: Iterable[str], machine: int | None, own: frozenset[str] = frozenset()
    ) -> Path | None:
        for folder in folders:
            # a plugin's own folders are real already; all others lie below the root
            at = f"{folder}/{soname}" if folder in own else f"{self._root}{folder}/{soname}"
            if not os.path.isfile(at):  # noqa: PTH113 - asked thousands of times
                continue
            path = Path(at)
            if machine is None or (links := self.links(path)) is None or links.machine == machine:
                return path
        return None


class Resolved:
    """What following a library found.

    found    soname -> path;  missing: soname -> who needs it;  old: sentences about libraries
    by_hand  what the loader would not find, and has to be loaded before: what is needed by another first
    """

    def __init__(self, found: dict[str, Path], missing: dict[str, str], old: list[str], by_hand: list[Path]) -> None:
        self.found, self.missing, self.old, self.by_hand = found, missing, old, by_hand


def highest(versions: Iterable[str], stem: str = "FABRIC_") -> str | None:
    """The highest of FABRIC_1.2, FABRIC_1.10; None where there is none."""
    numbered = [v for v in versions if re.fullmatch(rf"{stem}\d+(\.\d+)*", v)]
    return max(numbered, key=lambda v: tuple(int(part) for part in v.removeprefix(stem).split(".")), default=None)


def _configured(tree: Tree, path: str, depth: int = 0) -> list[str]:
    """Folders of ld.so.conf and what it includes, in order."""
    folders: list[str] = []
    for line in (tree.text(path) or "").splitlines():
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if words[0] != "include":
            folders += [word for word in words if word.startswith("/")]
        elif depth < INCLUDES_MAX:
            for pattern in words[1:]:
                full = pattern if pattern.startswith("/") else f"{path.rpartition('/')[0]}/{pattern}"
                folder, _, names = full.rpartition("/")
                matching = [name for name in tree.names(folder) if Path(name).match(names)]
                for name in matching:
                    folders += _configured(tree, f"{folder}/{name}", depth + 1)
    return folders


def _beside(soname: str, folders: Iterable[Path]) -> Path | None:
    return next((folder / soname for folder in folders if _is_file(folder / soname)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False

"""The limits of this process's cgroup and of those above it: a pod's, not the host's. cgroups(7), v1 and v2."""

from collections.abc import Iterable, Iterator

from kvgauge.evidence.proc import keyed
from kvgauge.evidence.tree import Tree

UNLIMITED_FROM = 1 << 60  # v1 writes "no limit" as the largest page-aligned number
DEPTH_MAX = 32


class Cgroups:
    """Where each controller's files of this process lie, nearest first.

    In a container without a cgroup namespace /proc/self/cgroup names the host's path, while the mount shows the
    container's own folder at its root: what the mount says its root is, is taken off.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._v2: list[str] = []
        self._v1: dict[str, list[str]] = {}
        mounts = list(_mounts(tree.text("/proc/self/mountinfo") or ""))
        for line in (tree.text("/proc/self/cgroup") or "").splitlines():
            parts = line.split(":", 2)
            if len(parts) != 3:
                continue
            for root, point, kind, options in mounts:
                if kind == "cgroup2" and parts[0] == "0" and not parts[1]:
                    self._v2 = _upwards(point, root, parts[2])
                elif kind == "cgroup":
                    for controller in set(parts[1].split(",")) & options:
                        self._v1[controller] = _upwards(point, root, parts[2])

    def memory(self) -> tuple[int | None, int]:
        """(limit, used without page cache that can be dropped) in bytes, of the tightest; (None, 0) without a limit."""
        found: list[tuple[int, int]] = []
        for folder in self._v2:
            limit = self._limit(f"{folder}/memory.max")
            if limit is not None:
                used = self._tree.number(f"{folder}/memory.current") or 0
                found.append((limit, max(0, used - self._stat(folder, "inactive_file"))))
        for folder in self._v1.get("memory", ()):
            limit = self._limit(f"{folder}/memory.limit_in_bytes")
            if limit is not None:
                used = self._tree.number(f"{folder}/memory.usage_in_bytes") or 0
                found.append((limit, max(0, used - self._stat(folder, "total_inactive_file"))))
        return min(found, key=lambda pair: pair[0] - pair[1], default=(None, 0))

    def huge_limit(self, page_bytes: int) -> int | None:
        """Bytes of huge pages of the default size this cgroup may hold."""
        size = f"{page_bytes >> 20}MB" if page_bytes < 1 << 30 else f"{page_bytes >> 30}GB"
        files = [f"{folder}/hugetlb.{size}.max" for folder in self._v2]
        files += [f"{folder}/hugetlb.{size}.limit_in_bytes" for folder in self._v1.get("hugetlb", ())]
        return self._least(files)

    def quota(self) -> float | None:
        """Cores' worth of time this cgroup may use; None: as many as there are."""
        found = []
        for folder in self._v2:
            words = (self._tree.text(f"{folder}/cpu.max") or "").split()
            if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
                found.append(int(words[0]) / int(words[1]))
        for folder in self._v1.get("cpu", ()):
            quota = self._tree.number(f"{folder}/cpu.cfs_quota_us")
            period = self._tree.number(f"{folder}/cpu.cfs_period_us")
            if quota is not None and period and quota > 0:
                found.append(quota / period)
        return min(found, default=None)

    def throttled(self) -> int:
        """How often this cgroup was held back since it was made."""
        folders = [*self._v2[:1], *self._v1.get("cpu", [])[:1]]
        return max(
            (keyed(self._tree.text(f"{folder}/cpu.stat") or "").get("nr_throttled", 0) for folder in folders), default=0
        )

    def pids(self) -> tuple[int | None, int | None]:
        """(most, now) processes and threads, of the cgroup with the fewest left."""
        found: list[tuple[int, int]] = []
        for folder in [*self._v2, *self._v1.get("pids", ())]:
            most = self._limit(f"{folder}/pids.max")
            if most is not None:
                found.append((most, self._tree.number(f"{folder}/pids.current") or 0))
        return min(found, key=lambda pair: pair[0] - pair[1], default=(None, None))

    def _least(self, files: Iterable[str]) -> int | None:
        return min((limit for file in files if (limit := self._limit(file)) is not None), default=None)

    def _limit(self, path: str) -> int | None:
        number = self._tree.number(path)
        return number if number is not None and number < UNLIMITED_FROM else None

    def _stat(self, folder: str, name: str) -> int:
        return keyed(self._tree.text(f"{folder}/memory.stat") or "").get(name, 0)


def _mounts(text: str) -> Iterator[tuple[str, str, str, set[str]]]:
    """(root, mount point, kind, options) of the cgroup lines of /proc/self/mountinfo. proc(5)"""
    for line in text.splitlines():
        own, _, of_kind = line.partition(" - ")
        words, kind = own.split(), of_kind.split()
        if len(words) >= 5 and len(kind) >= 3 and kind[0] in ("cgroup", "cgroup2"):
            yield words[3], words[4], kind[0], set(kind[2].split(","))


def _upwards(point: str, root: str, path: str) -> list[str]:
    """The folders from this process's cgroup up to the mount point."""
    if root != "/" and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]
    elif root != "/":
        path = ""  # the mount shows another part of the hierarchy: its root is the nearest that can be seen
    parts = [part for part in path.split("/") if part and part != ".."]
    point = point.rstrip("/")
    return ["/".join([point, *parts[:count]]) for count in range(min(len(parts), DEPTH_MAX), -1, -1)]

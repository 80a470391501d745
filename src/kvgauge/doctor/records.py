"""What a look at a machine finds: facts as they were read, and findings as they were judged."""

from typing import Literal

import msgspec

Level = Literal["problem", "warning", "note", "ok"]
LEVELS: tuple[Level, ...] = ("problem", "warning", "note", "ok")
Area = Literal["memory", "limits", "processor", "fabric", "gpu", "builds", "variables", "network"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was judged.

    key     stable, for scripts: "limits.memlock"
    level   problem: it will go wrong; warning: it may, or spoils figures; note: worth knowing; ok: looked at, fine
    needed  what was wanted instead; empty when ok
    remedy  what to do next; empty when ok
    source  the file that was read, or the document or issue the judgement rests on
    """

    key: str
    level: Level
    area: Area
    seen: str
    needed: str = ""
    remedy: str = ""
    source: str = ""


class NotLooked(msgspec.Struct, frozen=True, kw_only=True):
    """What could not be seen here, and why. `needed`: what was asked for depends on it."""

    what: str
    why: str
    needed: bool = False


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """Everything found, the worst first."""

    looked_for: str
    findings: tuple[Finding, ...]
    not_looked: tuple[NotLooked, ...]

    @property
    def exit_code(self) -> int:
        """0 nothing would go wrong; 1 a problem; 3 something that was needed could not be looked at."""
        if any(finding.level == "problem" for finding in self.findings):
            return 1
        return 3 if any(missing.needed for missing in self.not_looked) else 0


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes. The limit is the smallest of this process's cgroup and those above it; None: unlimited or not seen."""

    total: int | None = None
    available: int | None = None
    limit: int | None = None
    limit_used: int = 0  # without page cache that can be dropped
    swap_total: int = 0
    swap_free: int = 0
    huge_page: int = 2 << 20
    huge_total: int = 0  # pages
    huge_free: int = 0  # pages
    huge_limit: int | None = None
    transparent_huge: str | None = None  # always, madvise, never
    shm: int | None = None
    shm_free: int | None = None

    @property
    def takable(self) -> int | None:
        """What can still be taken: of the machine or of the cgroup, whichever is less."""
        if self.limit is None:
            return self.available
        left = max(0, self.limit - self.limit_used)
        return left if self.available is None else min(left, self.available)

    @property
    def whole(self) -> int | None:
        """All that this pod or machine may ever use."""
        if self.limit is None or self.total is None:
            return self.limit if self.total is None else self.total
        return min(self.limit, self.total)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of this process; None is unlimited. `may_lock`: CAP_IPC_LOCK, before which memlock does not count."""

    read: bool = False
    memlock_soft: int | None = None
    memlock_hard: int | None = None
    files_soft: int | None = None
    files_hard: int | None = None
    may_lock: bool = False
    pids_max: int | None = None
    pids_used: int | None = None


class Processor(msgspec.Struct, frozen=True, kw_only=True):
    """allowed   cores this process may run on (affinity, cpuset);  quota: cores its cgroup may use at a time
    busy, steal  shares of all cores (0..1) over the second that was watched; None: not seen
    throttled    times the cgroup was held back meanwhile
    """

    online: int | None = None
    allowed: int | None = None
    quota: float | None = None
    busy: float | None = None
    steal: float | None = None
    throttled: int = 0
    watched_s: float = 0.0
    clock: str | None = None
    clocks: tuple[str, ...] = ()
    clock_read_ns: int | None = None
    governors: tuple[str, ...] = ()
    nodes: int | None = None

    @property
    def usable(self) -> float | None:
        """Cores that may be used at a time."""
        known = [float(n) for n in (self.allowed or self.online, self.quota) if n is not None]
        return min(known, default=None)

    @property
    def free(self) -> float | None:
        """Cores that were idle, of those that may be used; a bound: who used which is not known."""
        if self.usable is None or self.busy is None or self.steal is None or self.online is None:
            return None
        idle = self.online * (1 - self.busy - self.steal)
        return max(0.0, min(self.usable, idle))


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where this is: container and hypervisor, None where no sign of one was seen."""

    kernel: str | None = None
    container: str | None = None
    hypervisor: str | None = None
    ptrace_scope: int | None = None

    @property
    def kernel_release(self) -> tuple[int, int]:
        """(6, 18) of 6.18.44-aws; (0, 0) where it is not known."""
        parts = (self.kernel or "").split(".")
        digits = [part for part in parts[:2] if part.isdigit()]
        return (int(digits[0]), int(digits[1])) if len(digits) == 2 else (0, 0)


class RdmaDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One of /sys/class/infiniband. kind: efa, mlx5, or the driver's name.

    p2p       the provider of GPU memory the EFA driver names; None: it names none
    counters  whether EFA's hw_counters can be read
    """

    name: str
    kind: str
    link: str = ""  # InfiniBand, Ethernet, Unspecified
    active: bool = True
    p2p: str | None = None
    counters: bool = False


class Fabrics(msgspec.Struct, frozen=True, kw_only=True):
    """devices  as sysfs lists them (the host's, in many pods);  uverbs: what this process can open
    libraries  of those that were looked for, where the loader finds them
    modules    of those that were looked for, which the kernel has
    libfabrics each libfabric.so.1 the loader could take, in its order, and the highest FABRIC_1.x it offers
    """

    devices: tuple[RdmaDevice, ...] = ()
    uverbs: tuple[str, ...] = ()
    libraries: dict[str, str] = {}
    modules: frozenset[str] = frozenset()
    efa_installer: str | None = None
    libfabrics: tuple[tuple[str, str | None], ...] = ()

    def of(self, kind: str) -> list[RdmaDevice]:
        """The devices of one kind."""
        return [device for device in self.devices if device.kind == kind]


class Gpus(msgspec.Struct, frozen=True, kw_only=True):
    """names    as the driver lists them in /proc;  nodes: /dev/nvidia<n> this process has
    libcuda  where the loader finds it
    """

    names: tuple[str, ...] = ()
    nodes: int = 0
    driver: str | None = None
    open_module: bool = False
    libcuda: str | None = None
    tool: str | None = None  # what nvidia-smi said, one line a GPU

    @property
    def there(self) -> bool:
        """Whether engines find a GPU here."""
        return bool(self.nodes or self.names)


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """One network interface; address: its first IPv4 one."""

    name: str
    up: bool
    loopback: bool = False
    address: str | None = None
    mtu: int | None = None
    speed_mbit: int | None = None
    wireless: bool = False


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """bound  the interface LIBFABRIC's tcp provider would get from kvgauge;  ports: the ephemeral range"""

    interfaces: tuple[Interface, ...] = ()
    bound: str | None = None
    ports: tuple[int, int] | None = None


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """What became of opening a plugin in a process of its own. ended: opened, refused, crashed, no end."""

    ended: Literal["opened", "refused", "crashed", "no end"]
    detail: str = ""
    libfabric: str | None = None
    ucx: str | None = None


class Plugin(msgspec.Struct, frozen=True, kw_only=True):
    """One libplugin_*.so as its headers and the loader's search say; `attempt` is the proof, where it was made.

    missing  sonames found nowhere
    too_old  "libfabric.so.1 (/usr/lib/...) has no FABRIC_1.10"
    offers   highest FABRIC_1.x of the libfabric it would get;  wants: highest it asks for
    """

    backend: str
    path: str
    missing: tuple[str, ...] = ()
    too_old: tuple[str, ...] = ()
    libfabric: str | None = None
    wants: str | None = None
    offers: str | None = None
    attempt: Attempt | None = None

    @property
    def loads(self) -> bool | None:
        """None: not known."""
        if self.attempt is not None and self.attempt.ended != "no end":
            return self.attempt.ended == "opened"
        return False if self.missing or self.too_old else None


class FoundBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A NIXL that lies here.

    origin      published (kvgauge's cache), yours (a plan's), environment (a Python environment, an install, a folder
                that NIXL_PLUGIN_DIR names)
    transports  of UCX: those its modules carry
    verdicts    backend -> what `kvgauge builds test` found
    """

    name: str
    version: str | None
    origin: Literal["published", "yours", "environment"]
    folder: str
    plugins: tuple[Plugin, ...] = ()
    transports: frozenset[str] = frozenset()
    verdicts: dict[str, str] = {}
    note: str = ""

    def plugin(self, backend: str) -> Plugin | None:
        """The plugin of that backend."""
        return next((plugin for plugin in self.plugins if plugin.backend == backend), None)


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was read. variables: only those a transport reads, so nothing secret."""

    memory: Memory = Memory()
    limits: Limits = Limits()
    processor: Processor = Processor()
    place: Place = Place()
    fabrics: Fabrics = Fabrics()
    gpus: Gpus = Gpus()
    network: Network = Network()
    builds: tuple[FoundBuild, ...] = ()
    variables: dict[str, str] = {}
    disk_free: dict[str, int] = {}  # folder -> bytes
    not_looked: tuple[NotLooked, ...] = ()

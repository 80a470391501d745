"""Variables of this shell that transports and engines read, do not read, or read against each other. Pure.

kvgauge's own workers inherit none of them (backends.INHERITED), so for a plan over tcp they are notes.
"""

from collections.abc import Iterator, Mapping

from kvgauge.doctor import judge_transports
from kvgauge.doctor.needs import Needs
from kvgauge.doctor.records import Facts, Finding, Level
from kvgauge.switch.table import CONFLICT_10024, PAST_NIXL
from kvgauge.switch.variables import NOBODY, VARIABLES, efa_reads, nixl_reads

PREFIXES = (
    "UCX_",
    "FI_",
    "NIXL_",
    "TRTLLM_NIXL_",
    "TRTLLM_USE_",
    "DYN_KVBM_NIXL_",
    "SGLANG_DISAGGREGATION_NIXL_",
    "VLLM_NIXL_",
)
OTHERS = ("LD_LIBRARY_PATH", "LD_PRELOAD", "KUBERNETES_SERVICE_HOST", "RDMAV_FORK_SAFE", "IBV_FORK_SAFE")
SECRETIVE = ("ENDPOINT", "TOKEN", "PASSWORD", "KEY")

LOUD = {
    "FI_LOG_LEVEL": ("debug", "trace"),
    "UCX_LOG_LEVEL": ("debug", "trace", "req", "data", "async", "func", "poll"),
    "NIXL_LOG_LEVEL": ("debug", "trace"),
}
FORK_SAFE_UNTIL = (5, 13)
_YES, _NO = ("1", "on", "true", "yes", "y"), ("0", "off", "false", "no", "n")


def kept(variables: Mapping[str, str]) -> dict[str, str]:
    """Those that are looked at; none that may hold a secret."""
    return {
        name: value
        for name, value in variables.items()
        if (name.startswith(PREFIXES) or name in OTHERS) and not any(word in name for word in SECRETIVE)
    }


def judge(facts: Facts, needs: Needs) -> Iterator[Finding]:
    """All rules; where only kvgauge's own workers are meant, nothing worse than a note."""
    count = 0
    rules = (_unread, _engine_choice, _provider, _efa, _interfaces, _loud, _loading, judge_transports.judge)
    for rule in rules:
        for finding in rule(facts, needs):
            count += 1
            yield finding if needs.engines else _mild(finding)
    names = [name for name in facts.variables if name.startswith(PREFIXES)]
    if not count:
        seen = (
            f"{len(names)} variables of NIXL, UCX and libfabric are set: {', '.join(sorted(names))}"
            if names
            else ("no variable of NIXL, UCX or libfabric is set")
        )
        yield Finding(key="variables.none", level="ok", area="variables", seen=seen, source="the environment")


def _mild(finding: Finding) -> Finding:
    return Finding(
        key=finding.key,
        level="note",
        area=finding.area,
        seen=f"{finding.seen}; kvgauge's own workers do not inherit it",
        needed=finding.needed,
        remedy=finding.remedy,
        source=finding.source,
    )


def _finding(key: str, level: Level, seen: str, needed: str, remedy: str, source: str) -> Finding:
    return Finding(
        key=f"variables.{key}", level=level, area="variables", seen=seen, needed=needed, remedy=remedy, source=source
    )


def _unread(facts: Facts, _needs: Needs) -> Iterator[Finding]:
    for name, value in sorted(facts.variables.items()):
        known = VARIABLES.get(name)
        if known is not None and known.reader == NOBODY:
            yield _finding(
                "unread",
                "warning",
                f"{name}={value} is read by nobody: {known.says}",
                "one that something reads, for what it is meant to do",
                known.instead,
                known.source,
            )
        elif known is not None and known.idle:
            yield _finding(
                "idle",
                "note",
                f"{name}={value} has no effect: {known.says}",
                "nothing: it neither helps nor harms",
                "unset it, so that nobody counts on it",
                known.source,
            )
        elif name.startswith("FI_EFA_") and not efa_reads(name):
            yield _finding(
                "unread",
                "warning",
                f"{name}={value}: libfabric's EFA provider reads no such variable",
                "a name of fi_efa(7)",
                "unset it, or correct its name",
                "ofiwg/libfabric prov/efa/src/efa_env.c",
            )
        elif name.startswith("NIXL_") and not nixl_reads(name):
            yield _finding(
                "unread",
                "note",
                f"{name}={value}: no NIXL kvgauge knows reads it",
                "a name NIXL reads",
                "unset it, or correct its name; LIBFABRIC takes num_threads, split_batch_size, post_queue_size and "
                "max_bw_per_dram_seg only",
                "ai-dynamo/nixl main 8770b655a",
            )


def _engine_choice(facts: Facts, _needs: Needs) -> Iterator[Finding]:
    variables = facts.variables
    chosen = variables.get("TRTLLM_NIXL_KVCACHE_BACKEND")
    if chosen is not None and chosen not in ("UCX", "LIBFABRIC"):
        yield _finding(
            "trtllm_backend",
            "warning",
            f"TRTLLM_NIXL_KVCACHE_BACKEND={chosen}: TensorRT-LLM falls back to UCX",
            "UCX or LIBFABRIC, in capitals",
            "correct it",
            "TensorRT-LLM: Unsupported NIXL backend: %s, fallback to UCX",
        )
    yield from _sglang_choice(variables)
    yield from _past_nixl(variables)
    thought = variables.get("NIXL_BACKEND")
    if thought and chosen == "LIBFABRIC":
        says, source = CONFLICT_10024
        yield _finding("backend_conflict", "warning", f"NIXL_BACKEND={thought}: {says}",
                       "TRTLLM_NIXL_KVCACHE_BACKEND alone", "unset NIXL_BACKEND", source)  # fmt: skip
    elif chosen and thought and chosen != thought:
        yield _finding(
            "backend_conflict",
            "warning",
            f"NIXL_BACKEND={thought} and TRTLLM_NIXL_KVCACHE_BACKEND={chosen}",
            "one answer: TensorRT-LLM uses the second",
            "unset NIXL_BACKEND",
            "docs/decisions/0002",
        )
    if variables.get("NIXL_TELEMETRY_ENABLE", "").lower() in _NO:
        yield _finding(
            "telemetry",
            "note",
            "NIXL_TELEMETRY_ENABLE says no, which overrides capture_telemetry=True",
            "yes, for NIXL's own transfer times (vllm:nixl_* metrics)",
            "unset it",
            "NIXL 1.5.1's own warning",
        )


def _sglang_choice(variables: Mapping[str, str]) -> Iterator[Finding]:
    name = "SGLANG_DISAGGREGATION_NIXL_BACKEND"
    value = variables.get(name, "UCX")
    if value.upper() in ("UCX", "LIBFABRIC") and value != value.upper():
        yield _finding(
            "sglang_backend",
            "warning",
            f"{name}={value}: NIXL has no plugin of that name, and goes on without it",
            "UCX or LIBFABRIC, in capitals",
            "correct it",
            "SGLang: NIXL backend not found",
        )


def _past_nixl(variables: Mapping[str, str]) -> Iterator[Finding]:
    """Variables of TensorRT-LLM with which the NIXL backend decides nothing."""
    past = [name for name in PAST_NIXL if variables.get(name) == "1"]
    chosen = variables.get("TRTLLM_NIXL_KVCACHE_BACKEND")
    if past and chosen and variables.get("TRTLLM_USE_NIXL_KVCACHE") != "1":
        yield _finding(
            "past_nixl",
            "warning",
            f"{past[0]}=1 and TRTLLM_NIXL_KVCACHE_BACKEND={chosen}",
            "one answer: with cache_transceiver_config.backend DEFAULT the first goes past NIXL, whose backend then "
            "decides nothing",
            f"unset {past[0]}",
            VARIABLES[past[0]].source,
        )


def _provider(facts: Facts, needs: Needs) -> Iterator[Finding]:
    said = facts.variables.get("FI_PROVIDER")
    if said is None:
        return
    names = said.removeprefix("^").split(",")
    has_efa = ("efa" in names) != said.startswith("^")
    if "efa" in needs.fabrics and "LIBFABRIC" in needs.backends and not has_efa:
        yield _finding(
            "provider",
            "problem",
            f"FI_PROVIDER={said} keeps libfabric from its EFA provider",
            "efa, for LIBFABRIC over efa",
            "unset it, or FI_PROVIDER=efa",
            "fabric(7), FI_PROVIDER",
        )
    elif "efa" in names and not said.startswith("^") and not facts.fabrics.of("efa"):
        yield _finding(
            "provider",
            "warning",
            f"FI_PROVIDER={said}, and there is no EFA device",
            "a provider that has a device here",
            "unset it (NIXL tries cxi, efa, tcp, sockets in turn), or run where there is EFA",
            "fabric(7), FI_PROVIDER",
        )


def _efa(facts: Facts, needs: Needs) -> Iterator[Finding]:
    variables, efa = facts.variables, "efa" in needs.fabrics
    fork = variables.get("FI_EFA_FORK_SAFE", "").lower() in _YES
    if fork and variables.get("FI_EFA_USE_HUGE_PAGE", "").lower() in _YES:
        yield _finding(
            "fork_huge",
            "warning",
            "FI_EFA_FORK_SAFE=1 and FI_EFA_USE_HUGE_PAGE=1",
            "one of them: memory backed by huge pages and fork support do not go together",
            "FI_EFA_USE_HUGE_PAGE=0",
            "fi_efa(7)",
        )
    elif fork and facts.place.kernel_release >= FORK_SAFE_UNTIL:
        yield _finding(
            "fork",
            "note",
            f"FI_EFA_FORK_SAFE=1 has no use on Linux {facts.place.kernel}",
            "a kernel before 5.13: newer ones copy registered pages at fork",
            "unset it",
            "ofiwg/libfabric prov/efa/src/efa_env.c",
        )
    if efa and variables.get("FI_EFA_USE_DEVICE_RDMA", "").lower() in _NO:
        yield _finding(
            "device_rdma",
            "warning",
            "FI_EFA_USE_DEVICE_RDMA=0: reads and writes are emulated by sends",
            "1, or unset: the device's own RDMA",
            "unset it",
            "fi_efa(7)",
        )
    shm = variables.get("FI_EFA_ENABLE_SHM_TRANSFER", "").lower()
    if ("LIBFABRIC", "efa") in needs.asked and facts.gpus.there and shm not in _NO:
        yield _finding(
            "efa_shm",
            "warning",
            f"FI_EFA_ENABLE_SHM_TRANSFER is {shm or 'not set (on)'}, and there are GPUs",
            "0: its shared memory provider was seen to break the registration of GPU memory",
            "FI_EFA_ENABLE_SHM_TRANSFER=0",
            "Dynamo, TensorRT-LLM KV cache transfer",
        )
    off = variables.get("FI_MR_CACHE_MONITOR", "").lower() == "disabled"
    if off and variables.get("FI_EFA_MR_CACHE_ENABLE", "").lower() in _YES:
        yield _finding(
            "mr_cache",
            "warning",
            "FI_MR_CACHE_MONITOR=disabled and FI_EFA_MR_CACHE_ENABLE=1",
            "a monitor for a cache of registrations",
            "unset one of them",
            "fi_mr(3), fi_efa(7)",
        )


def _interfaces(facts: Facts, needs: Needs) -> Iterator[Finding]:
    variables = facts.variables
    devices = {device.name for device in facts.fabrics.devices}
    interfaces = {interface.name: interface for interface in facts.network.interfaces}
    named = variables.get("FI_TCP_IFACE")
    if named is not None and ((interface := interfaces.get(named)) is None or interface.loopback or not interface.up):
        why = (
            "refused by libfabric's tcp provider"
            if interface and interface.loopback
            else "not an interface that is up here"
        )
        yield _finding(
            "tcp_iface",
            "warning",
            f"FI_TCP_IFACE={named} is {why}",
            "another interface with an address",
            f"one of {', '.join(_up(facts)) or 'none here'}",
            "ofiwg/libfabric prov/tcp; fi_enable: Bad file descriptor",
        )
    wanted = [name for name in variables.get("FI_EFA_IFACE", "").split(",") if name not in ("", "all")]
    if absent := [name for name in wanted if name not in devices]:
        yield _finding(
            "efa_iface",
            "problem" if "efa" in needs.fabrics else "warning",
            f"FI_EFA_IFACE names {', '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not here",
            "names of /sys/class/infiniband",
            "correct it, or unset it for all devices",
            "fi_efa(7)",
        )
    wanted = [name.partition(":")[0] for name in variables.get("UCX_NET_DEVICES", "").split(",") if name]
    absent = [name for name in wanted if name not in ("all", *devices, *interfaces) and not name.startswith("^")]
    if absent:
        yield _finding(
            "net_devices",
            "warning",
            f"UCX_NET_DEVICES names {', '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not here",
            "names of /sys/class/infiniband (mlx5_0:1) or of interfaces (eth0)",
            "correct it, or UCX_NET_DEVICES=all",
            "UCX: network device is not available",
        )


def _up(facts: Facts) -> list[str]:
    return [each.name for each in facts.network.interfaces if each.up and not each.loopback and each.address]


def _loud(facts: Facts, _needs: Needs) -> Iterator[Finding]:
    for name, loud in LOUD.items():
        value = facts.variables.get(name, "")
        if value.lower() in loud:
            yield _finding(
                "log_level",
                "warning",
                f"{name}={value}",
                "info at most while anything is timed: FI_LOG_LEVEL=debug was seen to take 12 GB/s down to 0.35",
                f"unset {name}; prove the transport in a run of its own",
                "anyscale/ray-serve-llm-perf-examples README",
            )


def _loading(facts: Facts, _needs: Needs) -> Iterator[Finding]:
    """What changes which libraries and plugins are taken."""
    if preload := facts.variables.get("LD_PRELOAD"):
        yield _finding(
            "preload",
            "note",
            f"LD_PRELOAD={preload}",
            "nothing that brings a UCX, libfabric or allocator of its own",
            "unset it unless you know why it is there",
            "ld.so(8)",
        )
    named = facts.variables.get("NIXL_PLUGIN_DIR")
    cores = [
        build
        for build in facts.builds
        if build.origin == "environment" and not build.name.startswith("NIXL_PLUGIN_DIR")
    ]
    others = [build.folder for build in cores if named and build.folder != named.rstrip("/")]
    if named and others:
        yield _finding(
            "plugin_dir",
            "warning" if len(others) == len(cores) else "note",
            f"NIXL_PLUGIN_DIR={named} replaces the plugins in {', '.join(others)}",
            "plugins of the same NIXL as the core that opens them: TensorRT-LLM bundles its own",
            "unset it, or check that both are one build (`kvgauge builds test --plugin-dir DIR --core DIR`)",
            "Dynamo, TensorRT-LLM KV cache transfer",
        )

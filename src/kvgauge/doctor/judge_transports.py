"""UCX_TLS: what it names, what this UCX and this machine have, and where it leads to emulation. Pure."""

from collections.abc import Iterator

from kvgauge.doctor.needs import Needs
from kvgauge.doctor.records import Facts, Finding, Level
from kvgauge.switch.transports import BETWEEN_HOSTS, DATAGRAM, KNOWN, RDMA, expand

_UCX_DOC = "openucx/ucx src/ucp/core/ucp_context.c"


def judge(facts: Facts, needs: Needs) -> Iterator[Finding]:
    if needs.engines:
        yield from _emulation(facts, needs)
    value = facts.variables.get("UCX_TLS")
    if value is None:
        yield from _defaults(facts, needs)
        return
    words, names, excluded = expand(value)
    if excluded or "all" in words:
        yield from _defaults(facts, needs)
        return
    said = f"UCX_TLS={value}"
    yield from _unknown(facts, said, words)
    yield from _no_device(facts, said, words)
    yield from _slow(facts, needs, said, names)
    yield from _gpu_memory(facts, said, names)


def _finding(key: str, level: Level, seen: str, needed: str, remedy: str, source: str) -> Finding:
    return Finding(
        key=f"variables.ucx_{key}",
        level=level,
        area="variables",
        seen=seen,
        needed=needed,
        remedy=remedy,
        source=source,
    )


def _unknown(facts: Facts, said: str, words: list[str]) -> Iterator[Finding]:
    unknown = [word for word in words if not expand(word)[1] <= KNOWN]
    if unknown:
        yield _finding(
            "unknown",
            "warning",
            f"{said}: UCX knows no transport {', '.join(unknown)}",
            "names of `ucx_info -d`: UCX goes on without it as long as one other is there",
            "correct it",
            _UCX_DOC,
        )
    for build in facts.builds:
        if build.origin == "published" or not build.transports:
            continue
        lacking = [word for word in words if word not in unknown and not expand(word)[1] & build.transports]
        if lacking:
            yield _finding(
                "module",
                "warning",
                f"{said}: the UCX of {build.name} has no module for {', '.join(lacking)}",
                "a UCX built with it: what is named and not there is left out with one line of warning",
                "take it off the list, or install a UCX that has it",
                "libuct_*.so beside that libucp",
            )


def _no_device(facts: Facts, said: str, words: list[str]) -> Iterator[Finding]:
    """Names that no device here can carry: UCX leaves them out as long as one other is left."""
    efa = bool(facts.fabrics.of("efa"))
    adapters = any(device.kind != "efa" for device in facts.fabrics.devices)
    possible = {"srd", "ud_verbs"} if efa else set()
    possible |= (RDMA - {"srd"}) if adapters else set()
    of_word = {word: expand(word)[1] for word in words}
    absent = [word for word, names in of_word.items() if names and names <= RDMA and not names & possible]
    if not absent:
        return
    left = frozenset().union(*of_word.values()) & (possible | {"tcp"})
    fallback = "; UCX falls back to tcp and says so in one WARN line" if left == {"tcp"} else ""
    nothing = "nothing: NIXL raises NIXL_ERR_BACKEND"
    yield _finding(
        "no_device",
        "warning",
        f"{said}: no device here does {', '.join(absent)}{' (EFA has no RC)' if efa else ''}; left between hosts: "
        f"{_listed(left) or nothing}{fallback}",
        "srd on EFA, rc or dc on an InfiniBand or RoCE adapter",
        "UCX_TLS=srd,cuda_copy,cuda_ipc,sm,self on EFA" if efa else "run where there is one, or take it off the list",
        "docs/doctor.md, UCX_TLS; UCX 1.23: transport 'srd' is not available",
    )


def _slow(facts: Facts, needs: Needs, said: str, names: frozenset[str]) -> Iterator[Finding]:
    efa = bool(facts.fabrics.of("efa"))
    rdma = {("UCX", "efa"), ("UCX", "ib")} & set(needs.asked)
    asked = bool(rdma) and needs.plan is not None
    if not names & BETWEEN_HOSTS:
        yield _finding(
            "no_network",
            "warning",
            f"{said} names nothing that reaches another host",
            "one of tcp, srd, rc, ud, dc",
            "add one; without, NIXL raises NIXL_ERR_BACKEND",
            "docs/doctor.md, UCX_TLS",
        )
    elif (rdma or facts.fabrics.devices) and not names & RDMA:
        yield _finding(
            "tcp_only",
            "problem" if asked else "warning",
            f"{said} leaves only tcp between hosts, "
            + (
                f"and {' and '.join(sorted(fabric for _, fabric in rdma))} is asked for"
                if rdma
                else "and there are RDMA devices"
            ),
            "srd on EFA, rc on InfiniBand: a comparison with LIBFABRIC is one with TCP otherwise",
            "unset it, or srd (EFA), rc (InfiniBand) in place of tcp: UCX_TLS=srd,cuda_copy,cuda_ipc,sm,self",
            "docs/doctor.md, UCX on EFA",
        )
    elif efa and names & DATAGRAM and "srd" not in names:
        yield _finding(
            "ud",
            "problem" if asked else "warning",
            f"{said} uses EFA by ud_verbs",
            "srd: ud was measured at 178 MB/s where srd gave 10-12 GB/s",
            "UCX_TLS=srd,cuda_copy,cuda_ipc,sm,self",
            "anyscale/ray-serve-llm-perf-examples DEBUGGING.md",
        )


def _gpu_memory(facts: Facts, said: str, names: frozenset[str]) -> Iterator[Finding]:
    if not facts.gpus.there:
        return
    if "cuda_copy" not in names:
        yield _finding(
            "cuda",
            "warning",
            f"{said} has no cuda_copy, and there are GPUs",
            "cuda_copy and cuda_ipc: without them UCX cannot touch GPU memory",
            "add cuda_copy,cuda_ipc",
            _UCX_DOC,
        )


def _emulation(facts: Facts, needs: Needs) -> Iterator[Finding]:
    """READ of GPU memory with neither RDMA nor cuda_ipc to carry it."""
    gpus, told = facts.gpus, facts.variables.get("UCX_CUDA_IPC_ENABLE_GET_ZCOPY", "").lower()
    if not gpus.there or facts.fabrics.devices or told in ("on", "yes", "y", "1"):
        return
    count = max(len(gpus.names), gpus.nodes)
    yield _finding(
        "emulation",
        "warning" if count == 1 or "cuda" in needs.fabrics else "note",
        f"{count} GPU{'' if count == 1 else 's'}, no RDMA device, UCX_CUDA_IPC_ENABLE_GET_ZCOPY not on: without an "
        "active NVLink, UCX's READ of GPU memory is emulated in software over tcp",
        "cuda_ipc for READ too: on an H100 the KV of 512 tokens took 165 ms, DONE and right, where WRITE took 11 to 15",
        "UCX_CUDA_IPC_ENABLE_GET_ZCOPY=on on both sides; UCX_PROTO_EMULATION_ENABLE=n lets emulation fail at once",
        "docs/gpu.md; openucx/ucx#10950",
    )


def _listed(names: frozenset[str] | set[str]) -> str:
    return ", ".join(sorted(names))


def _defaults(facts: Facts, needs: Needs) -> Iterator[Finding]:
    """No list: UCX chooses. Only what NIXL itself sets is worth a word."""
    rdma = [device for device in facts.fabrics.devices if device.active]
    if "UCX" in needs.backends and needs.rdma and len(rdma) > 2 and "UCX_MAX_RMA_RAILS" not in facts.variables:
        yield _finding(
            "rails",
            "note",
            f"UCX_MAX_RMA_RAILS is not set: NIXL makes it 2, and there are {len(rdma)} devices",
            "as many as LIBFABRIC uses for a GPU (4 on a p5), for a fair comparison",
            "UCX_MAX_RMA_RAILS=4",
            "ai-dynamo/nixl src/plugins/ucx/ucx_utils.cpp",
        )

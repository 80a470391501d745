"""What a switch sets and removes for one framework, backend and fabric. Pure lookups over `table`."""

import json
from dataclasses import dataclass

from kvgauge.failures import UsageError
from kvgauge.switch import table
from kvgauge.switch.amounts import over_ucx
from kvgauge.switch.variables import VARIABLES, efa_reads, nixl_reads


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """Something to know. level: contradiction (exit code 1 of a check), warning or note."""

    level: str
    about: str
    says: str
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the worker of `engine` must be told.

    environment  variables to set
    removed      variables that must not be there
    misleading   variables that name a backend to somebody else, or to nobody: taken out of a manifest where they stand
    arguments    flag and value that must stand on the command line, for vLLM and SGLang
    config       what the engine's YAML must hold, for TensorRT-LLM
    """

    engine: str
    backend: str
    fabric: str
    profile: str
    environment: dict[str, str]
    removed: tuple[str, ...]
    misleading: tuple[str, ...]
    arguments: tuple[str, ...]
    config: dict[str, dict[str, str]]
    remarks: tuple[Remark, ...]


def engine_of(framework: str) -> str:
    """raises UsageError for plain `dynamo`, which runs any of the three"""
    if framework == "dynamo":
        raise UsageError("dynamo runs one of three engines: say dynamo-vllm, dynamo-trtllm or dynamo-sglang")
    return framework.removeprefix("dynamo-")


def fabric_of(backend: str, fabric: str | None, profile: str) -> str:
    """The fabric asked for, or the one the reference profile was deployed on.

    raises UsageError  where none is known, or where the backend has no way over it
    """
    if fabric is None:
        if profile != "reference":
            raise UsageError("which network? say --fabric efa, ib or tcp (the reference profile knows its own)")
        return table.REFERENCE_FABRIC[backend]
    if (backend, fabric) == ("LIBFABRIC", "ib"):
        raise UsageError(table.NO_LIBFABRIC_IB)
    if (backend, profile, fabric) == ("LIBFABRIC", "reference", "tcp"):
        raise UsageError(
            "the reference profile of LIBFABRIC is FI_PROVIDER=efa; over tcp take --profile minimal, or --fabric efa"
        )
    return fabric


def wanted(
    engine: str, backend: str, fabric: str | None, profile: str = "minimal", *, net_devices: str | None = None
) -> Wanted:
    """raises UsageError, see `fabric_of`"""
    fabric = fabric_of(backend, fabric, profile)
    other = "LIBFABRIC" if backend == "UCX" else "UCX"
    own = table.REFERENCE[backend] if profile == "reference" else table.MINIMAL[backend, fabric]
    environment = dict(own)
    if net_devices is not None:
        if backend != "UCX":
            raise UsageError("--net-devices sets UCX_NET_DEVICES, which LIBFABRIC does not read")
        if not net_devices.strip():
            raise UsageError("--net-devices names no device; say, for example, mlx5_0:1, or leave it out")
        environment["UCX_NET_DEVICES"] = net_devices
    if profile == "reference":
        removed = [name for name in table.REFERENCE[other] if name not in own]
    else:
        removed = [v.name for v in VARIABLES.values() if v.side == other or (not v.reader and v.name not in own)]
    selector = table.SELECTORS.get(engine)
    if selector is not None and selector not in removed:  # reference UCX leaves TensorRT-LLM its default, which is UCX
        environment[selector] = backend
    if engine == "trtllm":
        past: tuple[str, ...] = table.PAST_NIXL if backend == "LIBFABRIC" else table.PAST_NIXL[1:]
        past += ("TRTLLM_DISAGG_ENABLE_INFLIGHT_CANCEL",) if backend == "LIBFABRIC" else ()
        removed += [name for name in past if name not in removed]
    naming = (*table.UNREAD_NAMES, *table.SELECTORS.values())
    arguments: tuple[str, ...] = ()
    config: dict[str, dict[str, str]] = {}
    if engine == "vllm":
        arguments = (table.VLLM_FLAG, vllm_config(backend))
    elif engine == "sglang":
        arguments = (table.SGLANG_FLAG, "nixl")
    else:
        config = {"cache_transceiver_config": {"backend": "NIXL"}}
    return Wanted(
        engine=engine,
        backend=backend,
        fabric=fabric,
        profile=profile,
        environment=environment,
        removed=tuple(removed),
        misleading=tuple(name for name in naming if name not in environment and name not in removed),
        arguments=arguments,
        config=config,
        remarks=tuple(_remarks(engine, backend, fabric, profile, environment)),
    )


def vllm_config(backend: str) -> str:
    return json.dumps(
        {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_connector_extra_config": {"backends": [backend]}},
        separators=(",", ":"),
    )


def _remarks(engine: str, backend: str, fabric: str, profile: str, environment: dict[str, str]) -> list[Remark]:
    remarks = [remark for name in environment for remark in about(name, engine)]
    if backend == "UCX":
        carried = over_ucx(environment.get("UCX_TLS"), environment.get("UCX_NET_DEVICES"))
        if carried.fabric == "tcp" and (fabric != "tcp" or profile == "reference"):
            remarks.append(
                Remark(
                    level="warning",
                    about="UCX_TLS",
                    says=f'this "UCX" profile is in truth TCP: {carried.says}'
                    + ("" if fabric == "tcp" else f", not {fabric}; --profile minimal has {fabric}"),
                    source="Dynamo TensorRT-LLM kv-cache-transfer page: srd/rdmap* in the log is what proves EFA",
                )
            )
    if engine == "trtllm" and "NIXL_BACKEND" in environment and backend == "LIBFABRIC":
        remarks.append(
            Remark(level="warning", about="NIXL_BACKEND", says=table.CONFLICT_10024[0], source=table.CONFLICT_10024[1])
        )
    says, source = table.ON_PAIR.get((backend, fabric), ("", ""))
    if says and not (backend == "UCX" and profile == "reference"):
        remarks.append(Remark(level="note", about=f"{backend} over {fabric}", says=says, source=source))
    if engine == "trtllm":
        remarks.append(
            Remark(
                level="note",
                about="cache_transceiver_config",
                says="backend must be NIXL (or DEFAULT) in the engine's YAML: UCX, MPI and MOONCAKE there go past NIXL",
                source=table.TRTLLM_SOURCE,
            )
        )
    remarks.append(
        Remark(
            level="note",
            about="FI_*" if backend == "UCX" else "UCX_*",
            says="whatever else in the worker uses "
            + ("libfabric (NCCL's aws-ofi-nccl) loses these too" if backend == "UCX" else "UCX (MPI) loses these too"),
        )
    )
    return remarks


def about(name: str, engine: str | None) -> list[Remark]:
    """That nobody reads this variable, that this engine does not, or that it has no effect; else nothing."""
    known = VARIABLES.get(name)
    if known is None:
        return _unknown(name)
    if not known.reader:
        says = f"nobody reads it: {known.says}"
    elif engine in table.NAMES and known.reader in table.NAMES.values() and known.reader != table.NAMES[engine]:
        says = f"{known.reader} reads it, {table.NAMES[engine]} does not"
    elif known.idle:
        says = f"{known.reader} reads it, without effect: {known.says}"
    else:
        return []
    return [Remark(level="note", about=name, says=says, source=known.source)]


def _unknown(name: str) -> list[Remark]:
    """A name that begins as NIXL's or the EFA provider's and is none of theirs."""
    if name.startswith("FI_EFA_") and not efa_reads(name):
        says = "libfabric's EFA provider reads no such variable: a misspelling?"
        return [Remark(level="note", about=name, says=says, source="ofiwg/libfabric prov/efa/src/efa_env.c")]
    if name.startswith("NIXL_") and not nixl_reads(name):
        says = "no NIXL that kvgauge knows reads it: a misspelling?"
        return [Remark(level="note", about=name, says=says, source="NIXL 8770b655")]
    return []

"""What settings amount to: the backend that runs, the fabric it takes, and what in them does nothing or contradicts.

Pure. Settings come from a manifest (`settings_of`) or are given, for example the environment of a process.
"""

import contextlib
from dataclasses import dataclass

import yaml

from kvgauge.switch import table
from kvgauge.switch.amounts import Carried, over_libfabric, over_ucx
from kvgauge.switch.arguments import backends_named, role_of, set_in_shell, transceiver, values
from kvgauge.switch.places import Manifest, Place, Variables, get, text_at
from kvgauge.switch.profiles import Remark, about
from kvgauge.switch.variables import VARIABLES

BEYOND = "(from elsewhere)"
EFA_DEVICE = "vpc.amazonaws.com/efa"
_NO = ("0", "off", "false", "no", "n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one worker is told.

    environment  known values; BEYOND for a value that only the cluster knows
    named        backends that its command line names, see `backends_named`
    command_line False where only variables are known
    """

    where: str
    engine: str | None
    environment: dict[str, str]
    named: list[str] | None = None
    transceiver: str | None = None
    devices: tuple[str, ...] = ()
    outside: tuple[tuple[str, str], ...] = ()
    role: str | None = None
    command_line: bool = True
    ib_device: bool = False  # SGLang's --disaggregation-ib-device, which Mooncake alone reads


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """What settings amount to. backend: UCX, LIBFABRIC, or what moves the KV instead; None where unknown."""

    settings: Settings
    backend: str | None
    because: str
    carried: Carried | None
    remarks: tuple[Remark, ...]

    @property
    def clean(self) -> str:
        """What a file is said to be before a switch: its backend, MIXED where another is named beside it, or OTHER."""
        if self.backend is None or any(r.level == "contradiction" and r.about in _NAMING for r in self.remarks):
            return "MIXED"
        return self.backend if self.backend in table.BACKENDS else "OTHER"


_NAMING = (*table.UNREAD_NAMES, *table.SELECTORS.values(), *table.PAST_NIXL, "backends")


def settings_of(manifest: Manifest, place: Place, engine: str | None) -> Settings:
    environment: dict[str, str] = {}
    for kind, name in place.outside:
        data = get(manifest.config_maps.get(name), "data") if kind == "ConfigMap" else None
        for key, value in getattr(data, "value", []):
            if is_known(str(key.value)):
                environment[str(key.value)] = str(value.value)
    for variables in reversed(place.variables):  # the first list wins
        environment |= known(variables)
    for word in place.words:
        name, equals, value = word.text.partition("=")
        if equals and is_known(name) and set_in_shell((word,), name):
            environment[name] = value
    return Settings(
        where=place.name,
        engine=engine,
        environment=environment,
        named=_named(manifest, place, engine),
        transceiver=transceiver_of(manifest, place) if engine == "trtllm" else None,
        devices=place.devices,
        outside=place.outside,
        role=role_of(place),
        ib_device=next(values(place.words, "--disaggregation-ib-device"), None) is not None,
    )


def _named(manifest: Manifest, place: Place, engine: str | None) -> list[str] | None:
    named = backends_named(engine, place.words) if engine else None
    if named is None and engine == "trtllm":
        backend = transceiver_of(manifest, place)
        return [backend] if backend in ("UCX", "MPI", "MOONCAKE") else None
    return named


def transceiver_of(manifest: Manifest, place: Place) -> str | None:
    """cache_transceiver_config.backend from the command line, or from the one ConfigMap of the file that holds it."""
    said = transceiver(place.words)
    if said is not None:
        return said
    found = set()
    for resource in manifest.config_maps.values():
        data = get(resource, "data")
        for _, value in data.value if isinstance(data, yaml.MappingNode) else []:
            if isinstance(value, yaml.ScalarNode) and "cache_transceiver_config" in value.value:
                with contextlib.suppress(yaml.YAMLError):
                    found.add(
                        text_at(
                            yaml.compose(value.value, Loader=yaml.SafeLoader), "cache_transceiver_config", "backend"
                        )
                    )
    return found.pop() if len(found) == 1 else None


def known(variables: Variables) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in variables.entries.value if variables.entries is not None else []:
        name = text_at(entry, "name")
        if name is not None and is_known(name):
            value = text_at(entry, "value")
            found[name] = BEYOND if value is None and get(entry, "valueFrom") is not None else value or ""
    return found


def is_known(name: str) -> bool:
    """Whether we have a word to say about this variable: ours by name, or by whose it looks like."""
    return name in VARIABLES or name.startswith(("NIXL_", "FI_EFA_"))


def check(settings: Settings, fabric: str | None = None) -> Amount:
    """What these settings amount to. fabric: what the user wants it to be."""
    backend, because, found = _backend(settings)
    remarks = list(found)
    env = settings.environment
    carried = None
    if backend in table.BACKENDS:
        carried = _carried(settings, backend)
    else:
        remarks += _if_used(settings)
    for name in env:
        remarks += about(name, settings.engine)
    remarks += _named_otherwise(settings, backend)
    remarks += _fabric(settings, backend, carried, fabric)
    remarks += _traps(settings, backend, carried)
    for kind, name in settings.outside:
        says = f"variables may also come from {kind} {name}, which this file does not show"
        remarks.append(Remark(level="note", about=name, says=says))
    return Amount(settings=settings, backend=backend, because=because, carried=carried, remarks=tuple(remarks))


def _backend(settings: Settings) -> tuple[str | None, str, list[Remark]]:
    engine, env, named = settings.engine, settings.environment, settings.named
    if engine is None:
        return None, "no engine is known: say --framework", []
    if engine == "vllm":
        if not settings.command_line:
            return None, f"vLLM's backend stands in {table.VLLM_FLAG}, which variables do not show", []
        if named is None:
            return "UCX", f"no {table.VLLM_FLAG}: vLLM's NIXL connector, if any, uses UCX", []
        if not named:
            return "another connector", f"{table.VLLM_FLAG} names no NIXL connector", []
        if len(set(named)) > 1:
            says = f"{table.VLLM_FLAG} names {' and '.join(named)}: NIXL then chooses for each transfer"
            return None, says, [Remark(level="contradiction", about="backends", says=says, source=table.VLLM_SOURCE)]
        return named[0], f"{table.VLLM_FLAG}: backends", _misspelt(named[0], "backends")
    if named:
        return _past_nixl(engine, named[0])
    selector = table.SELECTORS[engine]
    past = [name for name in table.PAST_NIXL if env.get(name) == "1"]
    if (
        engine == "trtllm"
        and past
        and settings.transceiver in (None, "DEFAULT")
        and env.get("TRTLLM_USE_NIXL_KVCACHE") != "1"
    ):
        what = {"UCX": "UCX"}.get(past[0].split("_")[2], past[0].split("_")[2].lower())
        says = f"{past[0]}=1 goes past NIXL where cache_transceiver_config.backend is DEFAULT"
        level = "contradiction" if env.get(selector, what) != what else "note"
        return what, says, [Remark(level=level, about=past[0], says=says, source=VARIABLES[past[0]].source)]
    value = env.get(selector)
    if value == BEYOND:
        return None, f"{selector} comes from a ConfigMap or Secret", []
    if engine == "trtllm" and value not in (None, *table.BACKENDS):
        says = f"{selector}={value} is not one of UCX, LIBFABRIC (in capitals): TensorRT-LLM falls back to UCX"
        source = VARIABLES[selector].source
        return "UCX", says, [Remark(level="contradiction", about=selector, says=says, source=source)]
    because = f"{selector}={value}" if value else f"{selector} is not set: UCX"
    return value or "UCX", because, _misspelt(value or "UCX", selector)


def _misspelt(name: str, about_it: str) -> list[Remark]:
    if name in table.BACKENDS or name.upper() not in table.BACKENDS:
        return []
    says = f"{name}: NIXL's plugins are called UCX and LIBFABRIC, in capitals; it warns that there is no {name} and "
    says += "goes on without it"
    return [Remark(level="contradiction", about=about_it, says=says, source="nixl 1.5.1 _api.py, missing plugin")]


def _carried(settings: Settings, backend: str) -> Carried:
    """Values that only the cluster knows leave the fabric open."""
    env = settings.environment
    if backend == "LIBFABRIC":
        name = "FI_PROVIDER"
        if env.get(name) != BEYOND:
            return over_libfabric(env.get(name))
    else:
        name = "UCX_TLS"
        devices = env.get("UCX_NET_DEVICES")
        if env.get(name) != BEYOND:
            return over_ucx(env.get(name), None if devices == BEYOND else devices, _pod_kind(settings.devices))
    return Carried(fabric=None, fallback=False, says=f"{name} comes from a ConfigMap, Secret or field, unseen here")


def _if_used(settings: Settings) -> list[Remark]:
    """What the transports' own variables come to, whichever of them is used."""
    env = settings.environment
    remarks = []
    if "UCX_TLS" in env or "UCX_NET_DEVICES" in env:
        carried = _carried(settings, "UCX")
        tcp = carried.fabric == "tcp"
        says = f'this "UCX" is in truth TCP: {carried.says}' if tcp else f"over UCX: {carried.says}"
        remarks.append(Remark(level="warning" if tcp or carried.fallback else "note", about="UCX_TLS", says=says))
    if "FI_PROVIDER" in env:
        says = f"over LIBFABRIC: {_carried(settings, 'LIBFABRIC').says}"
        remarks.append(Remark(level="note", about="FI_PROVIDER", says=says))
    return remarks


def _past_nixl(engine: str, named: str) -> tuple[str, str, list[Remark]]:
    if engine == "sglang":
        says = f"{table.SGLANG_FLAG} is {named}, not nixl: no NIXL backend is used"
        return named, says, [Remark(level="warning", about=table.SGLANG_FLAG, says=says, source=table.SGLANG_SOURCE)]
    says = f"cache_transceiver_config.backend is {named}: KV goes past NIXL"
    remark = Remark(level="warning", about="cache_transceiver_config", says=says, source=table.TRTLLM_SOURCE)
    return (named if named == "UCX" else named.lower()), says, [remark]


def _named_otherwise(settings: Settings, backend: str | None) -> list[Remark]:
    """Variables that name a backend which is not the one that runs, and the pair that is reported to fail."""
    env = settings.environment
    remarks = [
        Remark(
            level="contradiction",
            about=name,
            says=f"{name}={env[name]}, but {backend} runs: nobody reads {name}",
            source=VARIABLES[name].source,
        )
        for name in table.UNREAD_NAMES
        if name in env and backend is not None and env[name] not in (backend, BEYOND)
    ]
    for engine, name in table.SELECTORS.items():
        if engine == settings.engine or settings.engine is None or backend is None:
            continue
        if env.get(name, backend) not in (backend, BEYOND):
            says = f"{name}={env[name]}, but {backend} runs: {table.NAMES[settings.engine]} does not read it"
            remarks.append(Remark(level="contradiction", about=name, says=says, source=VARIABLES[name].source))
    selector = table.SELECTORS.get(settings.engine or "")
    if selector in env and settings.named and env[selector] != backend:
        says = f"{selector}={env[selector]} decides nothing: {settings.named[0]} moves the KV, not NIXL"
        remarks.append(Remark(level="contradiction", about=selector, says=says))
    if settings.engine == "trtllm" and backend == "LIBFABRIC" and "NIXL_BACKEND" in env:
        says, source = table.CONFLICT_10024
        remarks.append(Remark(level="contradiction", about="TensorRT-LLM#10024", says=says, source=source))
    if backend == "LIBFABRIC" and env.get("TRTLLM_DISAGG_ENABLE_INFLIGHT_CANCEL") == "1":
        known_variable = VARIABLES["TRTLLM_DISAGG_ENABLE_INFLIGHT_CANCEL"]
        remarks.append(
            Remark(
                level="contradiction", about=known_variable.name, says=known_variable.says, source=known_variable.source
            )
        )
    return remarks


def _fabric(settings: Settings, backend: str | None, carried: Carried | None, fabric: str | None) -> list[Remark]:
    if carried is None:
        return []
    about_it = "UCX_TLS" if backend == "UCX" else "FI_PROVIDER"
    remarks = []
    faster = [d for d in settings.devices if d == EFA_DEVICE or d.startswith("rdma/")]
    tcp_in_truth = carried.fabric == "tcp"
    if backend == "UCX" and tcp_in_truth and fabric != "tcp":
        says = f'this "UCX" is in truth TCP: {carried.says}'
        level = "contradiction" if faster or fabric in ("efa", "ib") else "warning"
        asked = f", while the pod asks for {', '.join(faster)}" if faster else ""
        remarks.append(Remark(level=level, about=about_it, says=says + asked))
    elif tcp_in_truth and (faster or fabric in ("efa", "ib")):
        says = f"{carried.says}: tcp, " + (f"while the pod asks for {', '.join(faster)}" if faster else f"not {fabric}")
        remarks.append(Remark(level="contradiction", about=about_it, says=says))
    elif fabric is not None and carried.fabric not in (fabric, None):
        says = f"{carried.says}: {carried.fabric}, not {fabric}"
        remarks.append(Remark(level="contradiction", about=about_it, says=says))
    if carried.fallback:
        remarks.append(Remark(level="warning", about=about_it, says=carried.says))
    elif carried.unusable:
        remarks.append(Remark(level="contradiction", about=about_it, says=carried.says))
    elif "ud_verbs" in carried.says:
        source = "anyscale/ray-serve-llm-perf-examples docs/DEBUGGING.md"
        remarks.append(Remark(level="warning", about=about_it, says=carried.says, source=source))
    return remarks


def _pod_kind(devices: tuple[str, ...]) -> str | None:
    """efa or ib, where a pod asks for devices of one kind."""
    kinds = {"efa" if device == EFA_DEVICE else "ib" for device in devices}
    return kinds.pop() if len(kinds) == 1 else None


def _traps(settings: Settings, backend: str | None, carried: Carried | None) -> list[Remark]:
    """Settings that agree with each other and still end badly."""
    env, found = settings.environment, []
    efa = backend == "LIBFABRIC" and carried is not None and carried.fabric == "efa"
    if efa and _pod_kind(settings.devices) == "ib":
        says = f"{carried.says if carried else ''}, and the pod asks for {settings.devices[0]} and no {EFA_DEVICE}"
        found.append(Remark(level="contradiction", about="FI_PROVIDER", says=says))
    if efa and env.get("FI_EFA_USE_DEVICE_RDMA", "").lower() in _NO:
        says = "0: reads and writes are emulated in software by sends; unset it, or 1"
        found.append(Remark(level="warning", about="FI_EFA_USE_DEVICE_RDMA", says=says, source="fi_efa(7)"))
    if efa and env.get("FI_EFA_ENABLE_SHM_TRANSFER", "1") not in (*_NO, BEYOND):
        says = "not 0: its shared memory provider was seen to break the registration of GPU memory"
        source = VARIABLES["FI_EFA_ENABLE_SHM_TRANSFER"].source
        found.append(Remark(level="warning", about="FI_EFA_ENABLE_SHM_TRANSFER", says=says, source=source))
    if settings.engine == "trtllm" and "NIXL_PLUGIN_DIR" in env:
        known_variable = VARIABLES["NIXL_PLUGIN_DIR"]
        says, source = known_variable.says, known_variable.source
        found.append(Remark(level="warning", about=known_variable.name, says=says, source=source))
    if settings.engine == "sglang" and settings.ib_device and backend == "UCX" and "UCX_NET_DEVICES" not in env:
        says = "Mooncake alone reads it: NIXL takes UCX_NET_DEVICES, without which a first request hung for 300 s"
        source = "sgl-project/sglang#28737"
        found.append(Remark(level="warning", about="--disaggregation-ib-device", says=says, source=source))
    return found


def across(amounts: list[Amount]) -> list[Remark]:
    """Prefill and decode workers that do not use the same backend, or not the same fabric, cannot meet."""
    seen = {
        a.settings.where: (a.backend, a.carried.fabric if a.carried else None) for a in amounts if a.settings.engine
    }
    remarks = []
    if len({backend for backend, _ in seen.values()}) > 1:
        says = "; ".join(f"{where}: {backend or 'unknown'}" for where, (backend, _) in seen.items())
        remarks.append(Remark(level="contradiction", about="backend", says=f"not the same in all workers: {says}"))
    elif len({fabric for _, fabric in seen.values()}) > 1:
        says = "; ".join(f"{where}: {fabric or 'left open'}" for where, (_, fabric) in seen.items())
        remarks.append(Remark(level="warning", about="fabric", says=f"not the same in all workers: {says}"))
    return remarks

"""What the workers' logs prove of the way the KV cache went: backend, fabric, rails, GPUDirect, handshakes. Pure.

A start-up line says what was opened, not what carried a byte; so a claim about the transport stands beside the one
about the bytes and never replaces it.
"""

import re
from collections.abc import Iterable, Sequence

import msgspec

from kvgauge.evidence.facts import Fact
from kvgauge.evidence.logs import LogFacts
from kvgauge.evidence.sums import Claim, Verdict
from kvgauge.plan.records import Backend, Fabric

_CLASSES: tuple[tuple[Fabric, re.Pattern[str]], ...] = (
    ("efa", re.compile(r"efa|srd/|ud_verbs/rdmap")),
    ("ib", re.compile(r"verbs|(rc|dc|ud)(_mlx5|_verbs)?/")),
    ("tcp", re.compile(r"tcp|sockets")),
    ("cuda", re.compile(r"cuda_ipc/")),
    ("shm", re.compile(r"(cma|knem|xpmem|posix|sysv)/|shm")),
)
LEVELS = "NIXL_LOG_LEVEL=INFO, UCX_LOG_LEVEL=info and UCX_LOG_FILE=stderr make them say it"
EFA_ERROR_FIX = "4112: raise ulimit -l (unlimited); 4111: an address that the peer had not registered (nixl#2278)"
STALE_FIX = "give prefill's KV a longer lease (vLLM: kv_lease_duration in kv_connector_extra_config)"
FIXES = {
    "tcp LIBFABRIC": "no EFA device was found where the worker runs: give the container vpc.amazonaws.com/efa devices "
    "and a libfabric with the efa provider (fi_info -p efa lists it), and do not set FI_PROVIDER=tcp",
    "tcp UCX": "UCX was left nothing but tcp: name srd (EFA) or rc (InfiniBand) in UCX_TLS, give the container its "
    "devices, and a UCX with libuct_ib_efa.so for srd",
    "ud": "ud_verbs on EFA is a tenth of its speed or less: name srd in UCX_TLS and give a UCX with libuct_ib_efa.so",
    "emulated": "UCX copies READs through messages: over tcp that is all it has; else name a transport with remote "
    "memory access in UCX_TLS (rc, srd), or let prefill WRITE where cuda_ipc cannot read",
    "gpudirect": "KV goes through host memory: the provider offers no FI_HMEM (EFA needs FI_EFA_USE_DEVICE_RDMA=1 and "
    "the GPU's driver in the container)",
    "rails": "a GPU's buffers use the NICs beside it; fewer mean that the topology was not found: see the worker's log",
    "refused": "the name must be exactly UCX or LIBFABRIC, and the plugin must load where the worker runs",
    "mismatch": "both sides must open as many EFA devices: give their pods the same number",
    "missing": "give the container that device and a UCX with its module (libuct_ib_efa.so for srd); UCX goes on with "
    "whatever else UCX_TLS allows, without an error",
    "proto": "UCX_PROTO_INFO=y at the workers says whether READ and WRITE are the device's own",
}


class Want(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for; None: nothing. rails: used by a buffer."""

    backend: Backend | None = None
    fabric: Fabric | None = None
    rails: int | None = None
    gpudirect: bool | None = None


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What all logs together say, for a sentence. fabric: None when none says it or they differ."""

    backends: tuple[str, ...]
    fabrics: tuple[Fabric, ...]
    rails_opened: int | None
    rails_used: int | None
    gpudirect: tuple[str, ...]
    handshakes_nixl: int
    handshakes_efa: int
    simulated: bool

    @property
    def way(self) -> str:
        """`LIBFABRIC/efa, 4 rails`; empty when nothing is known."""
        names = "/".join(filter(None, ("+".join(self.backends), "+".join(self.fabrics))))
        rails = self.rails_used or self.rails_opened
        return names + (f", {rails} rail{'s' if rails != 1 else ''}" if names and rails else "")


def fabric_of(carrier: str) -> Fabric | None:
    """Of a libfabric provider or of a UCX lane."""
    return next((fabric for fabric, pattern in _CLASSES if pattern.match(carrier)), None)


def seen(logs: Sequence[LogFacts]) -> Seen:
    named = _named(logs)
    carriers = [fabric_of(_carrier(fact)) for fact in _carriers(logs, _only(named))]
    fabrics = dict.fromkeys(fabric for fabric in carriers if fabric is not None)
    return Seen(
        backends=named,
        fabrics=tuple(fabrics),
        rails_opened=_largest(_facts(logs, "rails")),
        rails_used=_largest(_used(logs)),
        gpudirect=tuple(dict.fromkeys(fact.value for fact in _facts(logs, "gpudirect"))),
        handshakes_nixl=sum(sighting.count for log in logs for sighting in log.of("handshake")),
        handshakes_efa=sum(sighting.count for log in logs for sighting in log.of("efa_handshake")),
        simulated=bool(_facts(logs, "simulated")),
    )


def claims(want: Want, logs: Sequence[LogFacts]) -> list[Claim]:
    """One for each thing that was asked for or that the logs speak of."""
    if not logs:
        text = "no log was given: over what the KV cache went is not known"
        return [_made("transport", "unproved", text, None, f"name the workers' logs with --log; {LEVELS}")]
    all_seen = seen(logs)
    found = [
        *_simulated(logs, all_seen),
        *_backend(want, logs, all_seen),
        *_fabric(want, logs, want.backend or _only(all_seen.backends)),
        *_rails(want, logs, all_seen),
        *_gpudirect(want, logs, all_seen),
        *_handshakes(logs, all_seen),
        *_left_out(want, logs),
        *_troubles(logs),
    ]
    silent = [log for log in logs if not log.facts]
    if silent and len(silent) < len(logs):
        names = ", ".join(f"{log.process} ({log.lines} lines)" for log in silent[:8])
        found.append(_made("log", "unproved", f"nothing about a transport in {names}", None, LEVELS))
    cut = [log.cut for log in logs if log.cut]
    return found + [
        Claim(name="log", verdict="unproved", text=f"not all of it was read: {cut[0]}", shown_by="--log")
        for _ in cut[:1]
    ]


def _facts(logs: Sequence[LogFacts], *names: str) -> list[Fact]:
    return [fact for log in logs for fact in log.facts if fact.name in names]


def _largest(facts: Iterable[Fact]) -> int | None:
    return max((int(fact.value) for fact in facts if fact.value.isdecimal() and len(fact.value) < 7), default=None)


REMOTE = "remote memory"
BY_MESSAGES = " by active messages"
_WITNESSES = ("gpu_protocol_inter-node", "gpu_protocol_intra-node", "protocol_inter-node", "lane_inter-node",
              "protocol_intra-node", "lane_intra-node")  # fmt: skip


def _carriers(logs: Sequence[LogFacts], backend: str | None) -> list[Fact]:
    """What carried remote memory access, by the best witness of each log: to other nodes before within one, protocol
    tables before lanes, those of GPU memory, where the KV lies then, before the host's; libfabric's provider. Of one
    backend's alone, where it is known which one it was."""
    found = []
    for log in logs:
        facts = log.facts
        for name in _WITNESSES if backend != "LIBFABRIC" else ():
            if mine := [fact for fact in facts if fact.name == name]:
                found += [fact for fact in mine if "..inf: " in fact.value] or mine
                break
        if backend != "UCX":
            found += [fact for fact in facts if fact.name == "provider"]
    return found


def _named(logs: Sequence[LogFacts]) -> tuple[str, ...]:
    """The backends that were opened."""
    named = dict.fromkeys(fact.value for fact in _facts(logs, "engine_backend", "backend_instantiated"))
    return tuple(name for name in named if name in ("UCX", "LIBFABRIC"))


def _only(names: tuple[str, ...]) -> str | None:
    return names[0] if len(names) == 1 else None


def _carrier(fact: Fact) -> str:
    return fact.value.rpartition(" over ")[2]


def _made(name: str, verdict: Verdict, text: str, fact: Fact | None, fix: str | None = None) -> Claim:
    return Claim(name=name, verdict=verdict, text=text, shown_by=fact.shown_by if fact else "no line says so", fix=fix)


def _simulated(logs: Sequence[LogFacts], all_seen: Seen) -> list[Claim]:
    if not all_seen.simulated:
        return []
    text = "the workers are mockers: they compute nothing and move nothing, whatever else is counted"
    return [_made("engine", "contradicted", text, _facts(logs, "simulated")[0], "prove a deployment of real engines")]


def _backend(want: Want, logs: Sequence[LogFacts], all_seen: Seen) -> list[Claim]:
    refused = _facts(logs, "backend_refused", "backend_missing")
    facts = _facts(logs, "engine_backend", "backend_instantiated")
    named = all_seen.backends
    if refused and (want.backend is None or refused[0].value == want.backend or want.backend not in named):
        text = f"the workers refused backend {refused[0].value}"
        why = [fact for fact in _facts(logs, "plugin_failed") if fact.value.startswith(f"{refused[0].value}: ")]
        text += f", whose plugin did not load: {why[0].value.partition(': ')[2]}" if why else ""
        return [_made("backend", "contradicted", text, why[0] if why else refused[0], FIXES["refused"])]
    if not named:
        verdict = [_made("backend", "unproved", f"no line says that {want.backend} was opened", None)]
        return verdict if want.backend else []
    first = next(fact for fact in facts if fact.value == named[0])
    if want.backend is None:
        return [_made("backend", "proved" if len(named) == 1 else "unproved", f"{' and '.join(named)} opened", first)]
    if want.backend not in named:
        fix = "set the framework's own variable: `kvgauge switch` says which"
        return [
            _made("backend", "contradicted", f"{want.backend} was expected, {' and '.join(named)} opened", first, fix)
        ]
    if len(named) > 1:
        text = f"{' and '.join(named)} are both opened: which of them carries is not in the log"
        return [_made("backend", "unproved", text, first, f"give the workers {want.backend} alone")]
    return [_made("backend", "proved", f"{want.backend}, and no other, was opened", first)]


def _fabric(want: Want, logs: Sequence[LogFacts], backend: str | None) -> list[Claim]:
    carriers = [(fact, fabric_of(_carrier(fact))) for fact in _carriers(logs, backend)]
    known = [(fact, fabric) for fact, fabric in carriers if fabric is not None]
    emulated = [fact for fact, _ in carriers if "software emulation" in fact.value]
    by_lanes = any(fact.name.startswith("lane") for fact, _ in known)
    beside = _facts(logs, "lane_beside") if by_lanes else []
    other = [fact for fact, fabric in carriers if fabric is None and fact.name == "provider"]
    if not known and other:
        text = f"over {other[0].value}, which is none of efa, ib, tcp and sockets"
        return [_made("fabric", "unproved" if want.fabric is None else "contradicted", text, other[0])]
    if not known:
        text = "no line names a provider or a lane to another process"
        return [_made("fabric", "unproved", text, None, LEVELS)]
    named = " and ".join(dict.fromkeys(_carrier(fact) for fact, _ in known))
    messages = [fact for fact, fabric in known if fabric in ("efa", "ib") and fact.value.endswith(BY_MESSAGES)]
    if want.fabric is None:
        claim = _made("fabric", "proved", f"over {named}", known[0][0], _fix(known))
    elif wrong := [(fact, fabric) for fact, fabric in known if fabric != want.fabric]:
        text = f"{want.fabric} was expected, {_carrier(wrong[0][0])} is what was opened"
        claim = _made("fabric", "contradicted", text, wrong[0][0], _fix(wrong))
    else:
        claim = _made("fabric", "proved", f"{want.fabric}: {named}", known[0][0])
    if beside and (claim.verdict == "proved" or want.fabric in [fabric_of(fact.value) for fact in beside]):
        others = ", ".join(dict.fromkeys(fact.value for fact in beside[:8]))
        text = f"{claim.text}, or over {others}: UCX opened these too"
        claim = _made("fabric", "unproved", text, beside[0], "UCX_PROTO_INFO=y at the workers says which one carries")
    if messages and not emulated:
        return [claim, _by_messages(messages)]
    if not emulated:
        return [claim]
    verdict: Verdict = "proved" if want.fabric in (None, "tcp") else "contradicted"
    return [claim, _made(REMOTE, verdict, emulated[0].value, emulated[0], FIXES["emulated"])]


def _by_messages(lanes: Sequence[Fact]) -> Claim:
    """Lanes of a fast fabric that carry remote memory by messages. UD can do no other; of the others a `cfg#` line also
    says so where only large READs and WRITEs are the device's own."""
    for fact in lanes:
        if fact.value.startswith("ud"):
            fix = FIXES["ud"] if "/rdmap" in fact.value else FIXES["emulated"]
            text = f"{fact.value}: datagrams have no READ or WRITE, UCX emulates both in software"
            return _made(REMOTE, "contradicted", text, fact, fix)
    text = f"{lanes[0].value}: UCX may emulate READ and WRITE in software"
    return _made(REMOTE, "unproved", text, lanes[0], FIXES["proto"])


def _fix(carriers: Sequence[tuple[Fact, Fabric | None]]) -> str | None:
    for fact, fabric in carriers:
        carrier = _carrier(fact)
        if carrier.startswith("ud_verbs/rdmap"):
            return FIXES["ud"]
        if fabric == "tcp":
            return FIXES["tcp LIBFABRIC" if fact.name == "provider" else "tcp UCX"]
    return None


def _rails(want: Want, logs: Sequence[LogFacts], all_seen: Seen) -> list[Claim]:
    used, opened = _used(logs), _facts(logs, "rails")
    counts = sorted({int(fact.value) for fact in used if fact.value.isdecimal()})
    text = f"{all_seen.rails_opened} opened, " if all_seen.rails_opened is not None else ""
    text += f"{' or '.join(map(str, counts))} used by a buffer" if counts else "how many a buffer uses is not said"
    shown = next(iter((*used, *opened)), None)
    if want.rails is None:
        return [_made("rails", "proved" if counts else "unproved", text, shown)] if opened or used else []
    if not counts:
        fewer = all_seen.rails_opened is not None and all_seen.rails_opened < want.rails
        return [_made("rails", "contradicted" if fewer else "unproved", f"{want.rails} were expected: {text}", shown)]
    if counts != [want.rails]:
        return [_made("rails", "contradicted", f"{want.rails} were expected: {text}", shown, FIXES["rails"])]
    return [_made("rails", "proved", text, shown)]


def _used(logs: Sequence[LogFacts]) -> list[Fact]:
    """By GPU memory; where none was registered, by the host's."""
    return _facts(logs, "rails_used") or _facts(logs, "rails_used_by_host")


def _gpudirect(want: Want, logs: Sequence[LogFacts], all_seen: Seen) -> list[Claim]:
    said = all_seen.gpudirect
    shown = next(iter(_facts(logs, "gpudirect")), None)
    if want.gpudirect is None:
        text = {"yes": "yes", "no": "no: KV goes through host memory"}.get("+".join(said), "of some rails only")
        return [_made("GPUDirect", "proved" if len(said) == 1 else "unproved", text, shown)] if said else []
    wanted = "yes" if want.gpudirect else "no"
    if not said:
        return [_made("GPUDirect", "unproved", "no line says whether the provider offers FI_HMEM", None)]
    if said != (wanted,):
        text = f"expected {wanted}, the rails say {' and '.join(said)}"
        return [_made("GPUDirect", "contradicted", text, shown, FIXES["gpudirect"] if want.gpudirect else None)]
    return [_made("GPUDirect", "proved", wanted, shown)]


def _handshakes(logs: Sequence[LogFacts], all_seen: Seen) -> list[Claim]:
    missing = _facts(logs, "handshake_missing")
    if missing:
        text = f"the handshake of peer {missing[0].value} never came"
        return [_made("handshakes", "contradicted", text, missing[0], "can the workers reach each other's addresses?")]
    facts = _facts(logs, "handshake", "efa_handshake")
    if not facts:
        return []
    text = f"NIXL {all_seen.handshakes_nixl}, one a peer agent; EFA {all_seen.handshakes_efa}, one a peer endpoint"
    return [_made("handshakes", "proved", text, facts[0])]


def _left_out(want: Want, logs: Sequence[LogFacts]) -> list[Claim]:
    """Transports and devices that UCX was told to use and did not find: one WARN line, at its default log level too.

    Without srd there is no EFA; of InfiniBand's another may be there.
    """
    found = []
    for fact in _facts(logs, "fallback", "device_missing"):
        srd = fact.name == "fallback" and re.search(r"\bsrd\b", fact.value) is not None
        what = "transport" if fact.name == "fallback" else "network device"
        text = f"UCX was told to use {what} {fact.value}, which the worker does not have"
        verdict: Verdict = "contradicted" if srd and want.fabric == "efa" else "unproved"
        found.append(_made("left out", verdict, text, fact, FIXES["missing"]))
    return sorted(found, key=lambda claim: claim.verdict)[:1]


def _troubles(logs: Sequence[LogFacts]) -> list[Claim]:
    """Lines that mean that something is wrong whatever was asked for."""
    found = []
    rules: tuple[tuple[str, Verdict, str, str], ...] = (
        ("rail_mismatch", "contradicted", "the two sides have different numbers of rails", FIXES["mismatch"]),
        ("no_devices", "contradicted", "libfabric found no network device", FIXES["tcp LIBFABRIC"]),
        ("transfer_error", "unproved", "a rail failed at some time", "look at the peer that ended then"),
        ("ucx_error", "unproved", "UCX found no way to a peer at some time", "name a transport that both hosts have"),
        ("agents_max", "unproved", "LIBFABRIC has room for no more agents", "fewer ranks and workers an agent meets"),
        ("efa_error", "unproved", "the EFA device refused a request", EFA_ERROR_FIX),
        ("kv_expired", "unproved", "prefill gave up KV that nobody fetched in time", "look for slow or lost decodes"),
        ("kv_stale", "unproved", "decode fetched KV that prefill had given up", STALE_FIX),
        (
            "kv_failed",
            "unproved",
            "a KV transfer failed at some time",
            "does decode reach prefill's side channel?",
        ),
    )
    for name, verdict, text, fix in rules:
        if facts := _facts(logs, name):
            found.append(_made(name.replace("_", " "), verdict, f"{text}: {facts[0].value}", facts[0], fix))
    return found

"""Which fabric the settings of UCX or libfabric lead to, whatever their profile is called. Pure."""

from dataclasses import dataclass

from kvgauge.switch.transports import RDMA, expand

_TCP_DEVICES = ("eth", "ens", "enp", "eno", "bond", "lo", "veth", "wlan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """Where bytes between two hosts go.

    fabric   efa, ib or tcp; None where the settings leave it open or allow none
    fallback tcp is allowed beside it, and UCX or NIXL takes it without an error
    says     a sentence about it
    unusable no way between two hosts is left
    """

    fabric: str | None
    fallback: bool
    says: str
    unusable: bool = False


def over_ucx(tls: str | None, devices: str | None = None, pod: str | None = None) -> Carried:
    """What UCX_TLS and UCX_NET_DEVICES amount to; None: not set. pod: whose devices it has, efa or ib, where known."""
    words = _words(tls)
    if words == ["all"] or not words or words[0].startswith("^"):
        without = {w.removeprefix("^") for w in words} if words and words[0].startswith("^") else set()
        if "ib" in without:
            return Carried(fabric="tcp", fallback=False, says=f"UCX_TLS={tls} leaves tcp between hosts")
        fallback = "tcp" not in without
        by_device = _by_device(devices)
        if by_device is not None:
            return Carried(
                fabric=by_device,
                fallback=by_device != "tcp" and fallback,
                says=f"UCX_NET_DEVICES={devices} names {by_device} devices",
            )
        tail = ", tcp where it finds no better, without an error" if fallback else ""
        return Carried(fabric=None, fallback=fallback, says=f"UCX takes the fastest transport it finds{tail}")
    return _listed(words, tls or "", devices, pod)


def _listed(words: list[str], tls: str, devices: str | None, pod: str | None) -> Carried:
    tcp = "tcp" in words
    kind = _by_device(devices) or pod
    names = expand(",".join(words))[1] & RDMA
    if lacking := _without_devices(names, kind):
        if tcp:
            return Carried(fabric="tcp", fallback=False, says=f"UCX_TLS={tls}: {lacking}, which leaves tcp")
        return Carried(
            fabric=None,
            fallback=False,
            says=f"UCX_TLS={tls}: {lacking}, so no way between hosts is left",
            unusable=True,
        )
    if "srd" in words and kind != "ib":
        fabric = "efa"
    elif expand(",".join(word for word in words if word != "ib"))[1] & (RDMA - {"srd"}):
        fabric = "efa" if kind == "efa" else "ib"
    elif "ib" in words:
        fabric = kind or ""
    elif tcp:
        return Carried(fabric="tcp", fallback=False, says=f"UCX_TLS={tls} allows tcp alone between hosts")
    else:
        return Carried(
            fabric=None, fallback=False, says=f"UCX_TLS={tls} names no transport between hosts", unusable=True
        )
    if _by_device(devices) == "tcp" and tcp:
        return Carried(fabric="tcp", fallback=False, says=f"UCX_NET_DEVICES={devices} leaves tcp")
    says = f"UCX_TLS={tls}"
    if fabric == "efa" and "srd" not in words and "ib" not in words:
        says += " on EFA means ud_verbs, not SRD: measured at 0.18 GB/s against 10"
        if any(word.startswith(("rc", "dc")) for word in words):
            says += " (EFA has no RC)"
    elif not fabric:
        says += ": InfiniBand verbs, and EFA's SRD since UCX 1.20"
    if tcp:
        says += "; tcp is allowed too, and taken without an error where the other is missing"
    return Carried(fabric=fabric or None, fallback=tcp, says=says)


def _without_devices(names: frozenset[str], kind: str | None) -> str | None:
    """Why none of these RDMA transports can run on devices of that kind; None where one can, or nothing is known."""
    if not names or kind not in ("efa", "ib"):
        return None
    if kind == "efa" and not names & {"srd", "ud_verbs"}:
        return "EFA has no RC, DC or mlx5"
    if kind == "ib" and names == {"srd"}:
        return "srd is EFA's, and the devices are no EFA"
    return None


def _words(value: str | None) -> list[str]:
    """A list of UCX: commas; a backslash before a name makes it exact."""
    return [word.strip().lstrip("\\").split(":")[0] for word in (value or "").split(",") if word.strip()]


def _by_device(devices: str | None) -> str | None:
    """efa, ib or tcp by the names; None for `all`, nothing, or a mixture."""
    kinds = set()
    for word in _words(devices):
        if word == "all" or word.startswith("^"):
            return None
        if word.startswith(("rdmap", "efa")):
            kinds.add("efa")
        elif word.startswith(("mlx", "ibp", "hca", "roce")):
            kinds.add("ib")
        elif word.startswith(_TCP_DEVICES):
            kinds.add("tcp")
        else:
            return None
    return kinds.pop() if len(kinds) == 1 else None


def over_libfabric(provider: str | None) -> Carried:
    """What FI_PROVIDER amounts to under NIXL, which takes cxi, efa, tcp or sockets in this order."""
    if not provider:
        return Carried(fabric=None, fallback=True, says="NIXL takes efa where it finds one, else tcp, without an error")
    # NIXL asks for reliable datagrams: layered names such as "tcp;ofi_rxm" begin with the provider underneath
    words = [word.split(";")[0] for word in _words(provider.lstrip("^"))]
    if provider.startswith("^"):
        if "efa" in words:
            return Carried(fabric="tcp", fallback=False, says=f"FI_PROVIDER={provider} leaves tcp")
        return Carried(fabric=None, fallback="tcp" not in words, says=f"FI_PROVIDER={provider} leaves efa to be found")
    tcp = bool({"tcp", "sockets"} & set(words))
    if {"efa", "efa-direct"} & set(words):
        says = f"FI_PROVIDER={provider}" + (
            "; tcp is taken without an error where no EFA device is found" if tcp else ""
        )
        return Carried(fabric="efa", fallback=tcp, says=says)
    if tcp:
        return Carried(fabric="tcp", fallback=False, says=f"FI_PROVIDER={provider}")
    return Carried(
        fabric=None,
        fallback=False,
        says=f"FI_PROVIDER={provider}: NIXL takes cxi, efa, tcp or sockets, none of these",
        unusable="cxi" not in words,
    )

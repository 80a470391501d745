"""NIXL's own log lines to facts. Pure; lines as seen from 0.9 to 1.5.1 at NIXL_LOG_LEVEL=INFO."""

import re

from kvgauge.evidence.facts import Fact, Missing

HANDSHAKE_SINCE = (1, 4, 0)

_VERSION = re.compile(r"NIXL version: (\S+)")
_RAILS = re.compile(r"Created (\d+) rails? using provider=(\S+)")
_DEVICES = re.compile(r"Discovered (\d+) (\w+) devices(?: \(TCP fallback\))?")
_EFA_DEVICES = re.compile(r"EFA: Discovered (\d+) EFA devices")
_HMEM = re.compile(r"Using provider (with|without) FI_HMEM support for rail (\d+)")
_HANDSHAKE = re.compile(r"Handshake stored: peer='([^']*)'")
_BACKEND = re.compile(r"Backend (\w+) was instantiated")
_UCX = re.compile(r"NIXL UCX backend bound to UCX (\S+) at (\S+)")
_FAILED_PLUGIN = re.compile(r"Failed to load plugin from \S*libplugin_(UCX|LIBFABRIC)\S*: (.*)")


def facts(log: str, process: str) -> list[Fact]:
    """What the log of one process says about backend, provider and rails; each with the line that says so."""
    found: list[Fact] = []
    for line in log.splitlines():
        shown = f"{process}: {line.strip()[:240]}"
        if match := _VERSION.search(line):
            found.append(Fact(name="nixl_version", value=match[1], shown_by=shown))
        elif match := _RAILS.search(line):
            found.append(Fact(name="provider", value=match[2], shown_by=shown))
            found.append(Fact(name="rails", value=match[1], shown_by=shown))
        elif match := _EFA_DEVICES.search(line):
            found.append(Fact(name="devices", value=f"{match[1]} efa", shown_by=shown))
        elif match := _DEVICES.search(line):
            found.append(Fact(name="devices", value=f"{match[1]} {match[2]}", shown_by=shown))
        elif match := _HMEM.search(line):
            found.append(Fact(name="gpudirect", value="yes" if match[1] == "with" else "no", shown_by=shown))
        elif match := _BACKEND.search(line):
            found.append(Fact(name="backend_instantiated", value=match[1], shown_by=shown))
        elif match := _UCX.search(line):
            found.append(Fact(name="ucx_version", value=match[1], shown_by=shown))
        elif match := _FAILED_PLUGIN.search(line):
            found.append(Fact(name="plugin_failed", value=f"{match[1]}: {match[2]}", shown_by=shown))
    if not any(fact.name == "provider" for fact in found):
        found += _provider_before_1_0(log, process)
    return unique(found)


def _provider_before_1_0(log: str, process: str) -> list[Fact]:
    """Builds before 1.0 name no provider, but say when they fell back to TCP."""
    return [
        Fact(name="provider", value="tcp", shown_by=f"{process}: {line.strip()[:240]}")
        for line in log.splitlines()
        if _DEVICES.search(line) and "(TCP fallback)" in line
    ]


def unique(found: list[Fact]) -> list[Fact]:
    """The first fact of each name and value: eight ranks say the same thing eight times."""
    seen: dict[tuple[str, str], Fact] = {}
    for fact in found:
        seen.setdefault((fact.name, fact.value), fact)
    return list(seen.values())


def handshakes(log: str) -> int:
    """Peers whose NIXL-level handshake was stored, counted once for each line."""
    return len(_HANDSHAKE.findall(log))


def handshake_count(logs: dict[str, str], backend: str, release: tuple[int, ...]) -> int | Missing:
    """All handshakes of all processes, or why there is no such number."""
    if backend != "LIBFABRIC":
        return Missing(reason=f"{backend} has no NIXL-level handshake; only LIBFABRIC has, since NIXL 1.4.0")
    if release < HANDSHAKE_SINCE:
        version = ".".join(map(str, release))
        return Missing(reason=f"NIXL {version} has no NIXL-level handshake; it came with 1.4.0")
    return sum(handshakes(log) for log in logs.values())

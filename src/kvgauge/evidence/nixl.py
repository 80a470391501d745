"""NIXL's own log lines to facts. Pure; lines as recorded from 0.8.0 to 1.5.1 at NIXL_LOG_LEVEL=INFO and DEBUG.

What tells the provider differs: "Created N rails using provider=" is INFO since 1.2, DEBUG ("Successfully created")
before; there, the kind of the discovered devices and the rails that announce FI_HMEM stand for it.
"""

import re
from collections.abc import Iterable, Iterator

from kvgauge.evidence.facts import Fact, Missing

HANDSHAKE_SINCE = (1, 4, 0)
SHOWN_CHARACTERS = 240
Seen = tuple[str, str]  # name, value

_RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("nixl_version", re.compile(r"NIXL version: (\S+)")),
    ("backend_instantiated", re.compile(r"Backend (\w+) was instantiated")),
    ("ucx_version", re.compile(r"NIXL UCX backend bound to UCX (\S+) at \S+")),
    ("agent", re.compile(r"Initialized NIXL agent: (\S+)")),
    ("rails_used", re.compile(r"Registered memory on (\d+) rails, mem_type=1")),  # a GPU's
    ("rails_used_by_host", re.compile(r"Registered memory on (\d+) rails, mem_type=0")),
    # one of the two for each peer: who hears of a peer by its handshake keeps that until the connection is made
    ("handshake", re.compile(r"(?:Handshake stored: peer=|Applied buffered handshake from )'([^']*)'")),
    ("connected", re.compile(r"Connection state for agent (\S+) is now CONNECTED")),
    ("self_connection", re.compile(r"Created self-connection for agent: (\S+)")),
    ("runtime", re.compile(r"System runtime: (\w+) (?:for|\()")),
    ("rail_mismatch", re.compile(r"(Rail count mismatch \(local: \d+, remote: \d+\))")),
    ("rail_mismatch", re.compile(r"(dest_data_ep_\d+ failed)")),
    ("handshake_missing", re.compile(r"Handshake from peer '([^']*)' not received")),
    ("backend_refused", re.compile(r"unsupported backend '(\w+)'")),
    ("backend_refused", re.compile(r"createBackend: backend '(\w+)' encountered error")),
    ("transfer_error", re.compile(r"(CQ read failed on rail|Failed to process completions on (?:data )?rails)")),
    ("agents_max", re.compile(r"(agent index \d+ exceeds 8-bit wire limit)")),
    ("efa_error", re.compile(r"EFA internal error: \((41\d\d)\)")),  # libfabric's, without its prefix
    ("no_devices", re.compile(r"(No network devices found with any provider)")),
)
_RAILS = re.compile(r"(?:Created|Successfully created) (\d+) (?:data )?rails?.* using provider=([\w;-]+)")
_DEVICES = re.compile(r"Discovered (\d+) (\w+) devices")
_HMEM = re.compile(r"Using provider (with|without) FI_HMEM support for rail (\d+)")
_FAILED_PLUGIN = re.compile(r"Failed to load plugin from \S*libplugin_(UCX|LIBFABRIC)\S*: (.*)")


def read(line: str) -> Iterator[Seen]:
    """What one line says."""
    if match := _RAILS.search(line):
        yield "provider", match[2]
        yield "rails", match[1]
    elif match := _HMEM.search(line):
        yield "gpudirect", "yes" if match[1] == "with" else "no"
        yield "rail", match[2]
    elif match := _DEVICES.search(line):
        kind = {"EFA": "efa", "socket": "sockets"}.get(match[2], match[2])
        yield "devices", f"{match[1]} {kind}"
        yield "provider_guessed", kind
    elif match := _FAILED_PLUGIN.search(line):
        yield "plugin_failed", f"{match[1]}: {match[2]}"
    else:
        for name, pattern in _RULES:
            if match := pattern.search(line):
                yield name, match[1]
                return


def settled(found: Iterable[Fact]) -> list[Fact]:
    """The facts of one process, each once: `provider` and `rails` as it says them, else as its other lines imply."""
    facts = unique(found)
    named = {fact.name for fact in facts}
    rails = [fact for fact in facts if fact.name == "rail" and fact.value.isdecimal()]
    if "provider" not in named:
        facts += [_renamed(fact, "provider", fact.value) for fact in facts if fact.name == "provider_guessed"]
    if "rails" not in named and rails:
        last = max(rails, key=lambda fact: int(fact.value[:6]))
        facts.append(_renamed(last, "rails", str(int(last.value[:6]) + 1)))
    return [fact for fact in facts if fact.name not in ("rail", "provider_guessed")]


def _renamed(fact: Fact, name: str, value: str) -> Fact:
    return Fact(name=name, value=value, shown_by=fact.shown_by)


def facts(log: str, process: str) -> list[Fact]:
    """What the log of one process says about backend, provider and rails; each with the line that says so."""
    found = [
        Fact(name=name, value=value, shown_by=f"{process}: {line.strip()[:SHOWN_CHARACTERS]}")
        for line in log.splitlines()
        for name, value in read(line)
        if name not in COUNTED
    ]
    return settled(found)


COUNTED = ("handshake", "connected", "self_connection", "agent")  # of these the number matters, not the first


def unique(found: Iterable[Fact]) -> list[Fact]:
    """The first fact of each name and value: eight ranks say the same thing eight times."""
    seen: dict[tuple[str, str], Fact] = {}
    for fact in found:
        seen.setdefault((fact.name, fact.value), fact)
    return list(seen.values())


def handshakes(log: str) -> int:
    """Peers whose NIXL-level handshake was stored, at once or from a buffer, counted once for each line."""
    return sum(name == "handshake" for line in log.splitlines() for name, _ in read(line))


def handshake_count(logs: dict[str, str], backend: str, release: tuple[int, ...]) -> int | Missing:
    """All handshakes of all processes, or why there is no such number."""
    if backend != "LIBFABRIC":
        return Missing(reason=f"{backend} has no NIXL-level handshake; only LIBFABRIC has, since NIXL 1.4.0")
    if release < HANDSHAKE_SINCE:
        version = ".".join(map(str, release))
        return Missing(reason=f"NIXL {version} has no NIXL-level handshake; it came with 1.4.0")
    return sum(handshakes(log) for log in logs.values())

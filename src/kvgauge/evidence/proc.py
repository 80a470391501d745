"""What files of /proc say. Pure; anything that does not parse is left out, never guessed."""

import re

_MEMINFO = re.compile(r"^(\w+(?:\(\w+\))?):\s+(\d+)( kB)?$", re.MULTILINE)
_LIMIT = re.compile(r"^(Max [a-z ]+?)\s{2,}(\S+)\s+(\S+)", re.MULTILINE)
_CHOSEN = re.compile(r"\[(\w+)\]")
CAP_IPC_LOCK = 14  # capability.h


def meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo: bytes by name; what has no unit (HugePages_Total) as it stands."""
    return {name: int(value) << (10 if unit else 0) for name, value, unit in _MEMINFO.findall(text)}


def limits(text: str) -> dict[str, tuple[int | None, int | None]]:
    """/proc/self/limits: (soft, hard) by name, None for unlimited."""
    found = {}
    for name, soft, hard in _LIMIT.findall(text):
        pair = tuple(None if word == "unlimited" else int(word) if word.isdigit() else -1 for word in (soft, hard))
        if -1 not in pair:
            found[name] = (pair[0], pair[1])
    return found


def cores(text: str) -> int | None:
    """How many a list such as 0-3,8 names; None where it is none."""
    count = 0
    for part in text.strip().split(","):
        low, _, high = part.partition("-")
        if not low.isdecimal() or (high and not high.isdecimal()):
            return None
        count += max(0, int(high or low) - int(low) + 1)
    return count or None


def status(text: str) -> dict[str, str]:
    """/proc/self/status: its lines by name."""
    rows = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in rows}


def may_lock(capabilities: str) -> bool:
    """Whether CapEff, hexadecimal, holds CAP_IPC_LOCK."""
    try:
        return bool(int(capabilities, 16) >> CAP_IPC_LOCK & 1)
    except ValueError:
        return False


def modules(text: str) -> frozenset[str]:
    """/proc/modules: the names."""
    return frozenset(line.split()[0] for line in text.splitlines() if line.split())


def chosen(text: str) -> str | None:
    """The bracketed word of `always [madvise] never`."""
    match = _CHOSEN.search(text)
    return match[1] if match else None


def port_range(text: str) -> tuple[int, int] | None:
    """/proc/sys/net/ipv4/ip_local_port_range"""
    words = text.split()
    if len(words) != 2 or not all(word.isdecimal() and int(word) < 65536 for word in words):
        return None
    return int(words[0]), int(words[1])


def keyed(text: str) -> dict[str, int]:
    """`name number` lines, as in cpu.stat and memory.stat."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}

"""Network namespaces for the two sides: two hosts on one machine, with a path between them that is the user's own.

A worker is started through `ip netns exec NAME`, so this needs iproute2 and root. Namespaces and the veth pair
between them exist before kvgauge starts and are left as they are: examples/two-hosts.sh makes and removes them.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvgauge.failures import TargetError, UsageError
from kvgauge.target.interfaces import first_outward

FOLDER = Path("/run/netns")  # where `ip netns` keeps them
SIDES = ("prefill", "decode")
LOOK_TIMEOUT_S = 20.0
SETTLE_S = 5.0  # the kernel takes a second or two to find that a new pair of interfaces is connected
SEARCHED = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))  # ip lies where users' PATH ends


def read_namespaces(words: Sequence[str]) -> dict[str, str]:
    """`prefill=NAME` and `decode=NAME`, or nothing. raises UsageError when they cannot be used here"""
    chosen: dict[str, str] = {}
    for word in words:
        role, _, name = word.partition("=")
        if role not in SIDES or not name or role in chosen:
            raise UsageError(f"cannot use --namespace {word}: give prefill=NAME and decode=NAME, each once")
        chosen[role] = name
    if chosen:
        check(chosen)
    return chosen


def check(chosen: Mapping[str, str]) -> None:
    """raises UsageError unless both sides have a namespace of their own that exists and can be entered."""
    if set(chosen) != set(SIDES) or len(set(chosen.values())) != len(SIDES):
        raise UsageError("two hosts need two namespaces: --namespace prefill=NAME --namespace decode=ANOTHER")
    if shutil.which("ip", path=SEARCHED) is None:
        raise UsageError("--namespace needs the command ip: install iproute2 (Debian: apt-get install iproute2)")
    if os.geteuid() != 0:
        raise UsageError("--namespace needs root: only root may start a process in another network namespace")
    for name in chosen.values():
        if not (FOLDER / name).exists():
            raise UsageError(f"there is no network namespace {name}; `ip netns list` shows those there are")


def inside(namespace: str | None) -> list[str]:
    """What a command is started through: ip enters the namespace and becomes the command, under the same pid."""
    if namespace is None:
        return []
    found = shutil.which("ip", path=SEARCHED)
    if found is None:
        raise TargetError("the command ip is gone: install iproute2")
    return [found, "netns", "exec", namespace]


def first_outward_in(namespace: str | None) -> tuple[str, str] | None:
    """(name, IPv4 address) of the first interface there that is up and not loopback; None where there is none.

    A namespace that was made a moment ago is given 5 s to have one.
    raises  TargetError when the namespace cannot be looked into
    """
    if namespace is None:
        return first_outward()
    until = time.monotonic() + SETTLE_S
    while (chosen := _look_into(namespace)) is None and time.monotonic() < until:
        time.sleep(0.1)
    return chosen


def _look_into(namespace: str) -> tuple[str, str] | None:
    package = str(Path(__file__).parents[2])
    command = [*inside(namespace), sys.executable, "-m", "kvgauge.target.interfaces"]
    try:
        done = subprocess.run(
            command, env={"PYTHONPATH": package}, capture_output=True, text=True, timeout=LOOK_TIMEOUT_S, check=True
        )
    except subprocess.TimeoutExpired:
        raise TargetError(f"no look into network namespace {namespace} within {LOOK_TIMEOUT_S:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise TargetError(f"cannot look into network namespace {namespace}: {error.stderr.strip()[-300:]}") from None
    name, _, address = done.stdout.strip().partition(" ")
    return (name, address) if address else None

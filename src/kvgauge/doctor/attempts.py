"""Opening plugins, each in a process of its own, and asking nvidia-smi. Nothing outlives its time limit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec

from kvgauge.doctor.records import Attempt

CHILD = Path(__file__).with_name("child.py")
TOGETHER = 4
SAID_BYTES_MAX = 64 << 10
DETAIL_MAX = 400


class Try(msgspec.Struct, frozen=True, kw_only=True):
    """plugin    to open;  preload: first, in order;  stand_in: a libcuda for where none loads, None: none is given
    variables  the whole environment of the process
    """

    plugin: str
    preload: tuple[str, ...]
    stand_in: str | None
    variables: dict[str, str]


def attempts(tries: Sequence[Try], limit_s: float) -> list[Attempt]:
    """In their order; all together take little more than limit_s. One that never began says so."""
    until = time.monotonic() + limit_s
    with ThreadPoolExecutor(TOGETHER) as pool:
        return list(pool.map(lambda one: _attempt(one, until), tries))


def _attempt(one: Try, until: float) -> Attempt:
    left = until - time.monotonic()
    if left <= 0:
        return Attempt(ended="no end", detail="there was no time left to try")
    spec = json.dumps({"plugin": one.plugin, "preload": one.preload, "stand_in": one.stand_in})
    said, code = bounded([sys.executable, "-I", "-S", str(CHILD)], spec, left, one.variables)
    steps, last = [], {}
    for line in said.splitlines():
        with suppress(ValueError):
            last = json.loads(line)
            steps += [last["step"]] if "step" in last else []
    name = Path(steps[-1]).name if steps else "the start"
    if "opened" in last:
        return Attempt(ended="opened", libfabric=last["opened"]["libfabric"], ucx=last["opened"]["ucx"])
    if "refused" in last:
        return Attempt(ended="refused", detail=last["refused"][:DETAIL_MAX])
    if code is None:
        return Attempt(ended="no end", detail=f"no end within {left:.1f} s of {name}")
    how = f"killed by {_signal(-code)}" if code < 0 else f"ended with exit code {code}"
    return Attempt(ended="crashed", detail=f"{how} while opening {name}")


def nvidia_smi(limit_s: float) -> tuple[str | None, str | None]:
    """(one line a GPU, None), or (None, why there is none)."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None, "nvidia-smi is not on the PATH: no NVIDIA driver, or a container without its tools"
    query = [tool, "--query-gpu=name,driver_version,memory.used,memory.total", "--format=csv,noheader"]
    said, code = bounded(query, "", limit_s, dict(os.environ))
    if code == 0 and said.strip():
        return said.strip(), None
    why = f"no answer within {limit_s:g} s" if code is None else f"exit code {code}: {said.strip()[:DETAIL_MAX]}"
    return None, f"nvidia-smi gave nothing: {why}"


def bounded(command: Sequence[str], given: str, limit_s: float, variables: Mapping[str, str]) -> tuple[str, int | None]:
    """What it said, and its exit code; None when it was killed at its limit, with all it had started."""
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(variables),
            start_new_session=True,
        )
    except OSError as error:
        return error.strerror or str(error), 127
    try:
        said, _ = child.communicate(given.encode(), timeout=limit_s)
        code: int | None = child.returncode
    except subprocess.TimeoutExpired as late:
        said, code = late.stdout or b"", None
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # one that waits for a device ends when that lets go of it
            child.communicate(timeout=1.0)
    return said[:SAID_BYTES_MAX].decode("utf-8", "replace"), code


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

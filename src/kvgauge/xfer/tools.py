"""Figures of ucx_perftest and fi_pingpong where they are installed, over TCP on loopback: to stand beside ours.

They move one buffer between two processes with no KV layout, no NIXL and no check of what arrived.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence

import msgspec

from kvgauge.failures import TransferError
from kvgauge.xfer.workload import Workload

TIMEOUT_S = 20.0
SETTLE_S, TRIES = 0.5, 5
ITERATIONS = 200
BLOCK_BYTES_MAX = 64 << 20


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One run of another tool; `reason` where it gave no figure. One run has no interval."""

    tool: str
    size_bytes: int
    latency_us: float | None = None
    bandwidth_gb_s: float | None = None
    reason: str | None = None


def beside(works: Sequence[Workload], backends: Sequence[str]) -> list[Figure]:
    """Whatever is installed, for the block sizes of these rows; empty where nothing is."""
    found: list[Figure] = []
    sizes = sorted({min(work.block_bytes, BLOCK_BYTES_MAX) for work in works})
    for tool, backend in (("ucx_perftest", "UCX"), ("fi_pingpong", "LIBFABRIC")):
        path = shutil.which(tool)
        if path is not None and backend in backends:
            found += [_one(tool, path, size) for size in sizes]
    return found


def _one(tool: str, path: str, size: int) -> Figure:
    port = str(_free_port())
    if tool == "ucx_perftest":
        server = [path, "-p", port]
        client = [path, "127.0.0.1", "-p", port, "-t", "ucp_get", "-s", str(size), "-n", str(ITERATIONS), "-f"]
    else:
        server = [path, "-p", "tcp", "-e", "rdm", "-B", port, "-S", str(size), "-I", str(ITERATIONS)]
        client = [path, "-p", "tcp", "-e", "rdm", "-P", port, "-S", str(size), "-I", str(ITERATIONS), "127.0.0.1"]
    environment = {**os.environ, "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo"}
    child = subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        for tries_left in reversed(range(TRIES)):  # neither says when it listens
            time.sleep(SETTLE_S)
            done = subprocess.run(
                client, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, check=False
            )
            if done.returncode == 0 or not tries_left or child.poll() is not None:
                break
        done.check_returncode()
        latency, bandwidth = parse(tool, done.stdout, size)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout or "").strip().splitlines()
        why = f"{tool} ended with code {error.returncode}{f': {said[-1]}' if said else ''}"
        return Figure(tool=tool, size_bytes=size, reason=why[:200])
    except subprocess.TimeoutExpired:
        return Figure(tool=tool, size_bytes=size, reason=f"{tool} did not end within {TIMEOUT_S:.0f} s")
    except (OSError, TransferError) as error:
        return Figure(tool=tool, size_bytes=size, reason=str(error)[:200])
    finally:
        child.kill()
        child.wait()
    return Figure(tool=tool, size_bytes=size, latency_us=latency, bandwidth_gb_s=bandwidth)


def parse(tool: str, text: str, size: int) -> tuple[float, float]:
    """(us, GB/s) of a run. raises TransferError for output of another form

    ucx_perftest  its last line: Final or iterations, then percentile, average and overall us, average and overall MB/s
                  (2^20), average and overall messages
    fi_pingpong   a row: bytes, #sent, #ack, total, time, MB/sec (10^6), usec/xfer, Mxfers/sec
    """
    try:
        if tool == "ucx_perftest":
            words = [line.split() for line in text.splitlines() if line.strip()][-1]
            numbers = [float(word) for word in words if word.replace(".", "", 1).isdigit()]
            return numbers[3], numbers[5] * 2**20 / 1e9
        rows = [line.split() for line in text.splitlines() if line.split() and _is_about(line.split()[0], size)]
        return float(rows[-1][6]), float(rows[-1][5]) / 1e3
    except (IndexError, ValueError):
        raise TransferError(f"{tool} printed what kvgauge cannot read: {text.strip()[-120:]!r}") from None


def _is_about(word: str, size: int) -> bool:
    """fi_pingpong writes 100, 2.9k, 976k, 1.5m: cut off, not rounded."""
    factor = {"k": 1 << 10, "m": 1 << 20}.get(word[-1:].lower(), 1)
    number = word if factor == 1 else word[:-1]
    if not number.replace(".", "", 1).isdigit():
        return False
    return 0 <= size - float(number) * factor < factor * (0.1 if "." in number else 1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

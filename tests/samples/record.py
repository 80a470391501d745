"""Records what a NIXL build logs: two agents in two processes, one READ and one WRITE of scattered blocks.

    python tests/samples/record.py 1.2.0 LIBFABRIC DEBUG > tests/samples/nixl-1.2.0-libfabric-tcp-debug.log

Levels: INFO, DEBUG; PROTO (INFO and UCX_PROTO_INFO=y), ALL (PROTO with every transport UCX finds), FI (libfabric's
own log). Run it where there is an interface beside loopback, a network namespace with a veth pair for example.

So that a sample stays small, lines that differ from ones before only in their numbers are left out after the third
(DEBUG: the first), and of UCX's tables those for remote memory stay. Addresses and names of folders are replaced.
"""

import json
import re
import subprocess
import sys
import time
from multiprocessing import connection
from pathlib import Path

import numpy as np

from kvgauge import backends
from kvgauge.builds.install import install
from kvgauge.failures import TransferError
from kvgauge.kv import libraries
from kvgauge.kv.agent import Agent
from kvgauge.target.interfaces import first_outward

BLOCKS, BLOCK_BYTES = 24, 65_536
GIVE_UP_S = 8.0
HIDDEN = (
    (r"/\S*/(nixl_cu1\d)/", r"/opt/venv/lib/python3.11/site-packages/\1/"),
    (r"/\S*/(nixl_cu1\d\.libs|\.nixl_cu1\d\.mesonpy\.libs)/", r"/opt/venv/lib/python3.11/site-packages/\1/"),
    (r"/root/|/home/\w+/", "/home/user/"),
    (r"\[[\w.-]+:(\d+):(\d+)\]", r"[vm:\1:\2]"),
    (r"\b(?!127\.)\d{1,3}\.\d{1,3}\.\d{1,3}\.(\d{1,3})(/\d+)?\b(?=.*(fabric_attr|addr|127|iface))", r"192.0.2.\1\2"),
)


def side(version: str, backend: str, role: str, address: str) -> None:
    """One process: the initiator leads, the target polls until it is told to end."""
    build = install(version, lambda line: None)
    api = libraries.load(build, backend)
    agent = Agent(api, role, backend, progress_thread=False)
    pool = np.full(BLOCKS * BLOCK_BYTES * 2, 7 if role == "target" else 0, dtype=np.uint8)
    agent.register(pool.ctypes.data, pool.nbytes)
    listed = np.zeros((BLOCKS, 3), dtype=np.uint64)
    listed[:, 0] = pool.ctypes.data + np.arange(BLOCKS, dtype=np.uint64) * np.uint64(2 * BLOCK_BYTES)
    listed[:, 1] = BLOCK_BYTES
    talk = connection.Listener(address).accept() if role == "target" else dial(address)
    talk.send_bytes(json.dumps([agent.metadata.hex(), listed.tolist()]).encode())
    metadata, theirs = json.loads(talk.recv_bytes())
    until = time.monotonic() + GIVE_UP_S
    if role == "target":
        while not talk.poll() and time.monotonic() < until:
            agent.poll()
        return
    peer, _, _ = agent.connect(bytes.fromhex(metadata))
    ours, far = agent.prepare(listed), agent.prepare(np.array(theirs, dtype=np.uint64), peer)
    rows = np.arange(BLOCKS, dtype=np.int32)
    for operation in ("READ", "WRITE"):
        handle, _ = agent.post(operation, (ours, rows), (far, rows[::-1].copy()), b"done")
        while (state := agent.state(handle)) == "PROC" and time.monotonic() < until:
            agent.poll()
        print(f"### {operation} {state} moved {agent.moved_bytes(handle)} by {agent.used_backend(handle)}", flush=True)
    talk.send_bytes(b"bye")


def dial(address: str):
    while True:
        try:
            return connection.Client(address)
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.05)


def shortened(lines: list[str], level: str) -> list[str]:
    seen: dict[str, int] = {}
    kept: list[str] = []
    table: list[str] = []
    for raw in lines:
        line = raw
        for pattern, instead in HIDDEN:
            line = re.sub(pattern, instead, line)
        row = re.match(r"\[[\d.]+\] \[\S+\] +([|+])", line)
        if table and (row is None or (row[1] == "+" and re.search(r"\] +\+", table[-1]) and len(table) > 1)):
            kept += table if any("remote memory" in each for each in table) else []
            table = []
        if row is not None:
            table.append(line)
            continue
        shape = re.sub(r"<info>.*", "", line) if level == "FI" else re.sub(r"0x[0-9a-f]+|\d+", "#", line)
        seen[shape] = seen.get(shape, 0) + 1
        if seen[shape] <= (1 if level in ("DEBUG", "FI") else 3) or "cfg#" in line:
            kept.append(line)
    return kept


def record(version: str, backend: str, level: str) -> None:
    build = install(version, lambda line: None)
    chosen = first_outward()
    interface = chosen[0] if chosen and backends.needs_interface(backend, build.release) else None
    environment = backends.worker_environment(backend, "tcp", interface, build.release)
    environment |= {"NIXL_LOG_LEVEL": level, "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2] / "src")
    if level in ("PROTO", "ALL"):
        environment |= {"NIXL_LOG_LEVEL": "INFO", "UCX_PROTO_INFO": "y"}
    if level == "ALL":
        del environment["UCX_TLS"], environment["UCX_NET_DEVICES"]
    if level == "FI":
        environment |= {"NIXL_LOG_LEVEL": "WARN", "FI_LOG_LEVEL": "info"}
    address = f"/tmp/kvgauge-record-{version}-{backend}"
    Path(address).unlink(missing_ok=True)
    command = [sys.executable, __file__, "--side", version, backend]
    sides = [
        subprocess.Popen([*command, role, address], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for role in ("target", "initiator")
    ]
    texts = []
    for process in reversed(sides):
        try:
            text, _ = process.communicate(timeout=3 * GIVE_UP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
            text += b"### killed: it did not end\n"
        texts.append(text.decode("utf-8", "replace"))
    Path(address).unlink(missing_ok=True)
    for role, text in zip(("initiator", "target"), texts, strict=True):
        print(f"### {role}")
        print("\n".join(shortened(text.splitlines(), level)))


if __name__ == "__main__":
    if sys.argv[1] == "--side":
        try:
            side(*sys.argv[2:])
        except TransferError as error:
            print(f"### failed: {error}")
    else:
        record(*sys.argv[1:])

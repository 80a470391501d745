"""NVIDIA Dynamo's frontend and mocker workers, as child processes in this process's own network namespace.

The frontend, router and worker processes are real; the engine's compute and the KV transfer are simulated.
"""

import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

MODEL = "qwen3-0.6b"
LENGTH_MAX = 8_192  # of a prompt and its answer; the mocker takes it from its flag alone
KV_BYTES_PER_TOKEN = 114_688  # Qwen3-0.6B in bf16; the mocker's own figure leaves head_dim out
START_S = 90.0
STOP_S = 10.0
CLONE_NEWNET, PR_SET_PDEATHSIG = 0x40000000, 1
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

libc = ctypes.CDLL(None, use_errno=True)


def enter_own_network() -> None:
    """Move this process into a network namespace of its own with a loopback. raises OSError where that is not allowed.

    Dynamo's ZMQ sockets listen on every address whatever it is told; in here there is none but loopback.
    """
    if libc.unshare(CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        flags = struct.unpack("16xH14x", fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0)))[0]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def others_here() -> list[str]:
    """Command lines of the other processes in this network namespace."""
    mine, found = Path("/proc/self/ns/net").readlink(), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if (entry / "ns/net").readlink() == mine:
                found.append(f"{entry.name}: " + (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has just ended
    return found


class Dynamo:
    """One deployment: processes by role, the frontend on `port`, the workers' own pages on the two ports after it."""

    def __init__(self, python: Path, model_folder: Path, folder: Path, port: int) -> None:
        self._python, self._model_folder, self.folder, self._port = python, model_folder, folder, port
        self.url = f"http://127.0.0.1:{port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "kv").mkdir(parents=True)
        local = ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST", "DYN_SYSTEM_HOST")
        self._environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "HF_HUB_OFFLINE": "1",
            "DYN_DISCOVERY_BACKEND": "file",
            "DYN_FILE_KV": str(folder / "kv"),
            "DYN_REQUEST_PLANE": "tcp",
            "DYN_EVENT_PLANE": "zmq",
            "DYN_SYSTEM_STARTING_HEALTH_STATUS": "ready",
            **dict.fromkeys(local, "127.0.0.1"),
        }

    def start_frontend(self) -> None:
        self._start("frontend", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(self._port))

    def start_workers(self, kv_gb_s: float) -> None:
        """kv_gb_s: simulated bandwidth of the KV transfer, decimal GB/s."""
        transfer = ("--kv-transfer-bandwidth", str(kv_gb_s), "--kv-bytes-per-token", str(KV_BYTES_PER_TOKEN))
        for number, (role, more) in enumerate({"prefill": transfer, "decode": ()}.items(), 1):
            model = ("--model-path", str(self._model_folder), "--model-name", MODEL, "--max-model-len", str(LENGTH_MAX))
            self._start(
                role,
                "dynamo.mocker",
                *model,
                "--disaggregation-mode",
                role,
                *more,
                DYN_SYSTEM_PORT=str(self._port + number),
            )

    def start(self, kv_gb_s: float) -> None:
        self.start_frontend()
        self.start_workers(kv_gb_s)
        self.wait_for("a ready model", lambda: self.metric("dynamo_frontend_model_ready") == 1)

    def wait_for(self, what: str, happened, timeout_s: float = START_S) -> None:
        """raises AssertionError, with the ends of the logs, when it has not by then"""
        until = time.monotonic() + timeout_s
        while not happened():
            assert time.monotonic() < until, f"{what} did not come within {timeout_s:g} s\n{self.logs()}"
            time.sleep(0.05)

    def metric(self, name: str) -> float | None:
        """Sum over its labels of a metric of the frontend; None when nobody answers or it is not there."""
        status, text = self.get("/metrics")
        lines = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines) if status == 200 and lines else None

    def get(self, path: str) -> tuple[int | None, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return None, ""

    def kill(self, role: str) -> None:
        """SIGKILL, and wait until the process is gone."""
        os.killpg(self.processes[role].pid, signal.SIGKILL)
        self.processes[role].wait(STOP_S)

    def stop(self) -> None:
        """End whatever still runs: terminated, then killed; each is a process group of its own."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes.values():
                if process.poll() is None:
                    os.killpg(process.pid, sign)
            until = time.monotonic() + STOP_S
            for process in self.processes.values():
                try:
                    process.wait(max(0.0, until - time.monotonic()))
                except subprocess.TimeoutExpired:
                    continue

    def logs(self) -> str:
        return last_of(self.folder, 2000)

    def _start(self, role: str, module: str, *arguments: str, **more: str) -> None:
        command = [self._python, "-m", module, *arguments]
        self.processes[role] = started(self.folder, role, command, {**self._environment, **more})


def started(folder: Path, role: str, command: list[object], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """A process that ends with this one, its output in ROLE.log of the folder."""
    with (folder / f"{role}.log").open("wb") as log:
        return subprocess.Popen(
            [str(part) for part in command],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - this process has no threads
        )


def last_of(folder: Path, characters: int) -> str:
    """The end of every log there."""
    texts = {path.stem: path.read_text(errors="replace")[-characters:] for path in sorted(folder.glob("*.log"))}
    return "\n".join(f"--- {name}\n{text}" for name, text in texts.items())


def end_with_parent() -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

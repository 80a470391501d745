"""vLLM on the CPU, prefill and decode apart over NIXL, as child processes in this process's own network namespace.

The engines, their NIXL connector and the transfers are real; the model is tiny and its weights are made up.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from engines.dynamo import last_of, started
from engines.tiny_model import LENGTH_MAX

MODEL = "tiny"
START_S, STOP_S = 240.0, 15.0
KV_BYTES = 128 << 20
LEASE_S = 300  # vLLM: 30; on two cores a first handshake outlasts that, and decode then fetches what was given up
HERE = Path(__file__).parent


class Vllm:
    """prefill on `port`, decode on the port after it, and a router in front of both on any other.

    libraries  a folder for LD_LIBRARY_PATH: what the LIBFABRIC plugin links to
    """

    def __init__(self, python: Path, model: Path, folder: Path, port: int, backend: str, libraries: Path) -> None:
        self._python, self._model, self.folder, self._port, self.backend = python, model, folder, port, backend
        self.urls = {"prefill": f"http://127.0.0.1:{port}", "decode": f"http://127.0.0.1:{port + 1}"}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._environment = {
            "PATH": f"{python.parent}:/usr/bin:/bin",
            "HOME": str(folder),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
            "NIXL_LOG_LEVEL": "INFO",
            "UCX_LOG_LEVEL": "info",
            "UCX_LOG_FILE": "stderr",  # stdout is buffered: lines would come when the worker ends
            "UCX_PROTO_INFO": "y",
            "LD_LIBRARY_PATH": str(libraries),
        }

    @property
    def logs(self) -> list[Path]:
        return [self.folder / "prefill.log", self.folder / "decode.log"]

    def start(self, *flags: str, **more: str) -> None:
        """flags, more: further flags of the server and variables, the same for both"""
        for number, role in enumerate(("prefill", "decode")):
            kind = "kv_producer" if role == "prefill" else "kv_consumer"
            transfer = (
                f'{{"kv_connector":"NixlConnector","kv_role":"{kind}","kv_buffer_device":"cpu",'
                f'"kv_connector_extra_config":{{"backends":["{self.backend}"],"kv_lease_duration":{LEASE_S}}}}}'
            )
            command = [
                *(self._python, "-m", "vllm.entrypoints.openai.api_server"),
                *("--model", self._model, "--served-model-name", MODEL),
                *("--enforce-eager", "--dtype", "float32", "--max-model-len", LENGTH_MAX, "--max-num-seqs", 16),
                *("--no-enable-prefix-caching", "--kv-cache-memory-bytes", KV_BYTES, "--enable-per-request-metrics"),
                *("--host", "127.0.0.1", "--port", self._port + number, "--kv-transfer-config", transfer),
                *flags,
            ]
            self._start(role, command, VLLM_NIXL_SIDE_CHANNEL_PORT=str(self._port + 5 + number), **more)
        for role in ("prefill", "decode"):
            self.wait_for(f"a ready {role}", role, lambda role=role: self.get(self.urls[role], "/health")[0] == 200)

    def route(self, port: int, skip_every: int = 0) -> str:
        """A router in front, which leaves out every Nth request's KV. returns its URL"""
        command = [sys.executable, HERE / "vllm_proxy.py", port, self.urls["prefill"], self.urls["decode"]]
        name, url = f"router-{port}", f"http://127.0.0.1:{port}"
        self._start(name, [*command, "--skip-every", skip_every])
        self.wait_for("a ready router", name, lambda: self.get(url, "/v1/models")[0] == 200)
        return url

    def wait_for(self, what: str, role: str, happened) -> None:
        """raises AssertionError, with the ends of the logs, when it has not in time or the process ends"""
        until = time.monotonic() + START_S
        while not happened():
            assert self.processes[role].poll() is None, f"{role} ended before {what}\n{self.said()}"
            assert time.monotonic() < until, f"{what} did not come within {START_S:g} s\n{self.said()}"
            time.sleep(0.2)

    def metric(self, role: str, name: str, label: str = "") -> float:
        """Sum over its series whose labels hold `label`; 0 where there is none."""
        lines = self.get(self.urls[role], "/metrics")[1].splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0] == name and label in line)

    def get(self, url: str, path: str) -> tuple[int | None, str]:
        try:
            with urllib.request.urlopen(url + path, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return None, ""

    def stop(self) -> None:
        """End whatever still runs: terminated, then killed; each is a process group of its own."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes.values():
                try:
                    os.killpg(process.pid, sign)
                except ProcessLookupError:
                    continue
            until = time.monotonic() + STOP_S
            for process in self.processes.values():
                try:
                    process.wait(max(0.0, until - time.monotonic()))
                except subprocess.TimeoutExpired:
                    continue

    def said(self) -> str:
        return last_of(self.folder, 3000)

    def _start(self, role: str, command: list[object], **more: str) -> None:
        self.processes[role] = started(self.folder, role, command, {**self._environment, **more})


def add_outward_interface() -> None:
    """A veth pair with an address: libfabric's tcp provider refuses loopback. raises CalledProcessError"""
    for words in (
        "link add v0 type veth peer name v1",
        "addr add 10.99.0.1/24 dev v0",
        "link set v0 up",
        "link set v1 up",
    ):
        subprocess.run(["ip", *words.split()], check=True, capture_output=True)

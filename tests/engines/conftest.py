"""Dynamo deployments in a network of their own, and kvgauge run against them as a user types it.

The whole test process enters the namespace, so that nothing here can listen on, or reach, the machine's own network.
"""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from engines import dynamo
from engines.model_folder import make_model_folder
from kvgauge.samples.read import load_exchanges

ROOT = Path(__file__).parents[2]
ENGINES = ROOT / ".venv-engines"
PLAN = """
name: a real engine
repetitions: 1
primary: {{metric: ttft_ms_mean, cell: {primary}}}
defaults: {{fabric: tcp, model: Qwen3-0.6B, tp: 1, patches: none, build: 1.5.0}}
tests:
  - {{name: Dynamo mocker, backend: UCX}}
cells:
"""


@pytest.fixture(scope="session", autouse=True)
def own_network():
    if os.geteuid() != 0:
        skip("not root: a network namespace of their own is needed, Dynamo's sockets listen on every address")
    try:
        dynamo.enter_own_network()
    except OSError as error:
        skip(f"network namespaces are not allowed here: {error.strerror}")
    yield
    until = time.monotonic() + dynamo.STOP_S
    while dynamo.others_here() and time.monotonic() < until:
        time.sleep(0.1)
    assert dynamo.others_here() == [], "processes were left"


def skip(reason):
    warnings.warn(f"NO ENGINE TESTED: {reason}", stacklevel=2)  # shown whatever pytest is told to be quiet about
    pytest.skip(f"NO ENGINE TESTED: {reason}")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    packages = list(ENGINES.glob("lib/python3*/site-packages"))
    assert packages, f"{ENGINES} holds no environment: `make test-engines` makes it"
    return make_model_folder(tmp_path_factory.mktemp("model") / dynamo.MODEL, packages[0])


@pytest.fixture(scope="session")
def deploy(own_network, model_folder, tmp_path_factory):
    """Make a deployment on ports of its own, nothing in it started yet; all are ended with the session."""
    made = []

    def make():
        folder = tmp_path_factory.mktemp("dynamo")
        made.append(dynamo.Dynamo(ENGINES / "bin" / "python", model_folder, folder, 18_000 + 10 * len(made)))
        return made[-1]

    yield make
    for deployment in made:
        deployment.stop()


@pytest.fixture(scope="module")
def fast(deploy):
    """A deployment whose KV transfers take next to no time; not to be broken."""
    deployment = deploy()
    deployment.start(kv_gb_s=50)
    yield deployment
    deployment.stop()


@pytest.fixture
def doomed(deploy):
    """A deployment to break."""
    deployment = deploy()
    deployment.start(kv_gb_s=50)
    yield deployment
    deployment.stop()


class Measured:
    """What one `kvgauge run` left: `cells` by name, `exchanges` with warm-up, `said` on both outputs."""

    def __init__(self, returncode, said, folder):
        self.returncode, self.said = returncode, said
        results = json.loads((folder / "results.json").read_text())
        self.runs = results["tests"][0]["runs"]
        self.cells = {run["cell"]: run for run in self.runs if run["cell"]}
        self.exchanges = load_exchanges(folder / "runs" / "r1-dynamo-mocker")

    def of(self, cell):
        return [exchange for exchange in self.exchanges if exchange.cell == cell and not exchange.warmup]


class Running:
    """`kvgauge run PLAN --url` as a process; ended by pid, whatever happens."""

    def __init__(self, url, cells, folder, *flags):
        names = [cell.split("name: ")[1].split(",")[0] for cell in cells]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.yaml").write_text(
            PLAN.format(primary=names[0]) + "".join(f"  - {{{cell}}}\n" for cell in cells)
        )
        command = [sys.executable, "-m", "kvgauge", "run", "plan.yaml", "--url", url, "--out", "out", *flags]
        self.folder = folder / "out"
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def result(self, timeout_s=120):
        said, _ = self.process.communicate(timeout=timeout_s)
        assert "Traceback" not in said, said
        return Measured(self.process.returncode, said, self.folder)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def running(tmp_path):
    """Start kvgauge against a deployment: cells as YAML, flags of `kvgauge run`."""
    started = []

    def start(deployment, *cells, flags=()):
        started.append(Running(deployment.url, cells, tmp_path / str(len(started)), *flags))
        return started[-1]

    yield start
    for one in started:
        one.end()

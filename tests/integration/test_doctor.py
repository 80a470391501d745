"""`kvgauge doctor` on this machine as it is: it ends soon, and tells of builds what the loader says of them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvgauge.builds.install import install

TIMEOUT_S = 60


def run(*arguments, **variables):
    command = [sys.executable, "-m", "kvgauge", "doctor", *arguments, "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, env={**os.environ, **variables}, check=False
    )
    assert done.stderr == ""
    whole = json.loads(done.stdout)
    assert whole["exit_code"] == done.returncode
    return whole


def attempts(whole, version):
    [build] = [each for each in whole["facts"]["builds"] if each["name"] == version]
    return {plugin["backend"]: plugin["attempt"] for plugin in build["plugins"]}


@pytest.mark.nixl
def test_the_reference_plans_plugins_open_here():
    for version in ("1.2.0", "1.4.1", "1.5.0"):
        install(version)
    whole = run("--reference")
    tried = {version: attempts(whole, version) for version in ("1.2.0", "1.4.1", "1.5.0")}
    for version, found in tried.items():
        for backend, attempt in found.items():
            if attempt is not None and attempt["ended"] == "no end":
                assert unknown(whole, backend, version)  # a busy machine is told, not guessed
            elif attempt is not None:
                assert attempt["ended"] == "opened", attempt
    assert {found["LIBFABRIC"]["libfabric"] for found in tried.values() if found["LIBFABRIC"]["ended"] == "opened"} <= {
        "2.5"
    }
    assert not [each for each in whole["findings"] if each["level"] == "problem" and each["area"] == "builds"]


def unknown(whole, backend, name):
    """Whether the page says that this was not looked at."""
    return any(f"whether {backend} of" in each["what"] and name in each["what"] for each in whole["not_looked"])


PLAN = """
name: own
repetitions: 2
primary: {{metric: ttft_ms_mean, cell: c}}
tests: [{{name: ucx, backend: UCX, fabric: tcp, model: Qwen3-0.6B, build: {{plugin_dir: {folder}, core: {core}}}}}]
cells: [{{name: c, load: closed, concurrency: 1, requests: 1, input_tokens: 16, output_tokens: 1}}]
"""


@pytest.mark.nixl
def test_plugins_of_a_plan_do_not_open_with_another_core(tmp_path):
    install("1.2.0")
    build = install("1.5.0")
    for backend in ("UCX", "LIBFABRIC"):
        name = f"libplugin_{backend}.so"
        (tmp_path / name).write_bytes(
            (Path(build.folder) / f".{build.module}.mesonpy.libs" / "plugins" / name).read_bytes()
        )
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN.format(folder=tmp_path, core="1.2.0"))
    whole = run("--plan", str(plan))
    found = attempts(whole, f"{tmp_path} with core 1.2.0")
    if found["UCX"]["ended"] == "no end":  # a busy machine is told, not guessed
        assert unknown(whole, "UCX", f"{tmp_path} with core 1.2.0")
        return
    assert found["UCX"]["ended"] == "refused", found
    problems = [each["key"] for each in whole["findings"] if each["level"] == "problem"]
    assert "builds.ucx" in problems


@pytest.mark.nixl
def test_an_engines_view_of_a_build_lacks_what_kvgauge_brings_for_its_own(tmp_path):
    build = install("1.5.0")
    began = time.monotonic()
    whole = run("--site", build.folder, NIXL_BACKEND="LIBFABRIC", XDG_CACHE_HOME=str(tmp_path))
    took_s = time.monotonic() - began
    [engine] = [each for each in whole["facts"]["builds"] if build.folder in each["name"]]
    by_backend = {plugin["backend"]: plugin for plugin in engine["plugins"]}
    assert by_backend["UCX"]["missing"] == []
    assert {"srd", "rc_verbs", "tcp"} <= set(engine["transports"])
    fabric = by_backend["LIBFABRIC"]
    if fabric["attempt"]["ended"] == "refused":  # the loader's word and the headers' are one
        assert fabric["missing"] or fabric["too_old"]
    assert any(each["key"] == "variables.unread" and "NIXL_BACKEND" in each["seen"] for each in whole["findings"])
    assert took_s < TIMEOUT_S / 2

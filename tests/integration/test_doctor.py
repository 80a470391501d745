"""`kvgauge doctor` on this machine as it is: it ends soon, and tells of builds what the loader says of them."""

import json
import os
import subprocess
import sys
import time

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
    late = [each["what"] for each in whole["not_looked"] if "opens" in each["what"]]
    for version, found in tried.items():
        for backend, attempt in found.items():
            if attempt is not None and attempt["ended"] == "no end":
                assert any(f"{backend} of {version}" in what for what in late)  # a slow machine is told, not guessed
            elif attempt is not None:
                assert attempt["ended"] == "opened", attempt
    assert {found["LIBFABRIC"]["libfabric"] for found in tried.values() if found["LIBFABRIC"]["ended"] == "opened"} <= {
        "2.5"
    }
    assert not [each for each in whole["findings"] if each["level"] == "problem" and each["area"] == "builds"]


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

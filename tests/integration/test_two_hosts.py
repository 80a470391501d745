"""Two network namespaces with a shaped path between them: what is measured stays below what the path can carry."""

import json
import os
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

from kvgauge.target.namespaces import SEARCHED

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "two-hosts.sh"
RATE_MBIT = 400
CANNOT = 77


def ip(*arguments):
    return subprocess.run([shutil.which("ip", path=SEARCHED), *arguments], capture_output=True, text=True, check=False)


def leftovers():
    named = ip("netns", "list").stdout.split()
    return [name for name in named if name.startswith("kvgauge-")]


def skip_loudly_unless_allowed():
    reason = None
    if os.geteuid() != 0:
        reason = "not root"
    elif not all(shutil.which(tool, path=SEARCHED) for tool in ("ip", "tc")):
        reason = "no iproute2 (ip and tc): apt-get install iproute2"
    else:
        name = f"kvgauge-probe-{os.getpid()}"
        made = ip("netns", "add", name)
        entered = ip("-n", name, "link", "set", "lo", "up")
        ip("netns", "del", name)
        if made.returncode or entered.returncode:
            reason = f"network namespaces are not allowed here: {(made.stderr + entered.stderr).strip()}"
    if reason is not None:
        skip(reason)


def skip(reason):
    warnings.warn(f"TWO HOSTS NOT TESTED: {reason}", stacklevel=2)  # shown whatever pytest is told to be quiet about
    pytest.skip(f"TWO HOSTS NOT TESTED: {reason}")


@pytest.mark.nixl
@pytest.mark.slow
def test_neither_backend_is_faster_than_the_path_between_the_two_hosts_and_nothing_is_left(tmp_path):
    skip_loudly_unless_allowed()
    before = leftovers()
    folder = tmp_path / "out"
    done = subprocess.run(
        ["sh", SCRIPT, f"{RATE_MBIT}mbit", "1ms", folder], capture_output=True, text=True, timeout=58, check=False
    )
    if done.returncode == CANNOT:
        skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    table = dict(re.findall(r"^(UCX|LIBFABRIC) +\d+ +([\d.]+) ", done.stdout, re.MULTILINE))
    assert set(table) == {"UCX", "LIBFABRIC"}
    for median in table.values():
        assert RATE_MBIT / 2 < float(median) < RATE_MBIT
    evidence = [json.loads(path.read_text()) for path in folder.glob("runs/*/evidence.json")]
    assert len(evidence) == 2
    for facts in evidence:
        notes = [fact["value"] for fact in facts["facts"] if fact["name"] == "note"]
        assert [re.sub(r"\d+:.*", "", note) for note in notes] == [
            "prefill workers run in network namespace kvgauge-prefill-",
            "decode workers run in network namespace kvgauge-decode-",
        ]
        assert ["10.99.1.1" in notes[0], "10.99.1.2" in notes[1]] == [True, True]
        moved = sum(facts["backends"].values()) * 512 * 114_688
        assert moved < facts["wire_bytes"] < 1.2 * moved
    assert leftovers() == before


def pretend(folder, **tools):
    """A folder to put before PATH, with commands that do what these lines say."""
    folder.mkdir()
    for name, line in tools.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ({"id": "echo 1000"}, "only root may make network namespaces"),
        ({"id": "echo 0", "ip": "exit 1"}, "network namespaces are not allowed here"),
        ({"id": "echo 0", "ip": "exit 0", "tc": "exit 2"}, "tc cannot hold a veth to 1gbit here"),
    ],
)
def test_where_it_cannot_be_done_the_script_says_so_loudly_and_ends_with_77(tmp_path, tools, said):
    environment = pretend(tmp_path / "bin", **({"ip": "exit 0", "tc": "exit 0"} | tools))
    done = subprocess.run(
        ["sh", SCRIPT, "1gbit", "1ms", tmp_path / "out"],
        env=environment, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert (done.returncode, f"TWO HOSTS NOT MEASURED: {said}" in done.stderr) == (CANNOT, True), done.stderr
    assert not (tmp_path / "out").exists()

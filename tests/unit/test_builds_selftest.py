"""The self-test's parent, against NIXLs of plain Python that hang, crash, lie or are missing."""

import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from kvgauge.builds import selftest
from kvgauge.builds.case import CaseSpec, Trial
from kvgauge.builds.records import Build
from kvgauge.builds.selftest import not_loaded, short, try_case, wrong_data
from kvgauge.failures import BuildError
from kvgauge.kv.shapes import SHAPES

FAKE = """
import os, pathlib, signal, time
HERE = pathlib.Path(__file__).parent
(HERE / f"pid-{os.getpid()}").touch()

class nixl_agent_config:
    def __init__(self, enable_prog_thread=True, capture_telemetry=False, backends=()): pass

class nixl_agent:
    def __init__(self, name, config):
        self.name, self.notes = name, HERE / f"notes-{name}"
        self.notes.mkdir(exist_ok=True)
        self.seen = set()
    def register_memory(self, areas, kind): return areas
    def get_agent_metadata(self): return self.name.encode()
    def add_remote_agent(self, metadata): return metadata
    def prep_xfer_dlist(self, peer, rows, kind): return peer
    def make_prepped_xfer(self, operation, local, ours, remote, theirs, note): return remote, note
    def transfer(self, handle):
        TRANSFER
        peer, note = handle
        made = HERE / f"notes-{peer}" / note.decode().replace("/", "-")
        made.touch()
        return "DONE"
    def check_xfer_state(self, handle): return "STATE"
    def release_xfer_handle(self, handle): pass
    def get_new_notifs(self):
        new = {path.name for path in self.notes.iterdir()} - self.seen
        self.seen |= new
        return {"peer": [name.replace("-", "/").encode() for name in new]}
"""


def make_build(folder, transfer="pass", state="DONE", text=FAKE):
    package = folder / "fakenixl"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_api.py").write_text(text.replace("TRANSFER", transfer).replace("STATE", state))
    return Build(
        name="fake", version="1.5.0", folder=str(folder), module="fakenixl", preload=(), libcuda="/none", sha256={}
    )


def survivors(folder):
    pids = [path.name.removeprefix("pid-") for path in (folder / "fakenixl").glob("pid-*")]
    assert len(pids) == 2
    return [pid for pid in pids if Path("/proc", pid).exists()]


def test_a_call_that_never_returns_is_ended_at_the_limit_and_its_shape_named(tmp_path):
    build = make_build(tmp_path, transfer="while True: time.sleep(1)")
    began = time.monotonic()
    verdict = try_case(build, "UCX", "READ", None, timeout_s=2.0)
    assert time.monotonic() - began < 2.0 + selftest.GRACE_S + 2.0
    assert verdict.outcome == "hangs"
    assert verdict.detail.startswith(f"no end within 2 s of initiator: {SHAPES[0].name}, first transfer; target: ")
    assert survivors(tmp_path) == []


def test_a_transfer_that_stays_in_progress_is_a_hang_and_says_how_far_it_came(tmp_path):
    build = make_build(tmp_path, transfer='return "PROC"', state="PROC")
    verdict = try_case(build, "UCX", "WRITE", None, timeout_s=1.5)
    assert verdict.outcome == "hangs"
    assert "(0 of 1 agents' transfers are done)" in verdict.detail
    assert survivors(tmp_path) == []


def test_done_without_a_notification_is_a_hang(tmp_path):
    verdict = try_case(make_build(tmp_path, transfer='return "DONE"'), "UCX", "WRITE", None, timeout_s=1.5)
    assert verdict.outcome == "hangs"
    assert SHAPES[0].name in verdict.detail
    assert "(DONE at the initiator, but 0 of 1 notifications)" in verdict.detail


def test_a_crash_names_the_signal_and_where_it_happened(tmp_path):
    build = make_build(tmp_path, transfer="os.kill(os.getpid(), signal.SIGSEGV)")
    verdict = try_case(build, "UCX", "READ", None, timeout_s=10.0)
    assert verdict.outcome == "crashes"
    assert verdict.detail.startswith(f"initiator killed by SIGSEGV while {SHAPES[0].name}, first transfer")
    assert survivors(tmp_path) == []


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
def test_done_without_data_is_wrong_data_in_every_shape(tmp_path, operation):
    verdict = try_case(make_build(tmp_path), "UCX", operation, None, timeout_s=20.0)
    assert verdict.outcome == "wrong data"
    assert [trial.faults for trial in verdict.trials] == [
        {"untouched": shape.blocks * shape.ranks} for shape in SHAPES for _ in (0, 1)
    ]
    assert "in 8 of 8 transfers" in verdict.detail
    assert survivors(tmp_path) == []


def test_wrong_data_stands_before_what_came_after_it(tmp_path):
    build = make_build(tmp_path, transfer='if handle[1] == b"1/0": raise RuntimeError("NIXL_ERR_BACKEND")')
    verdict = try_case(build, "UCX", "READ", None, timeout_s=10.0)
    assert verdict.outcome == "wrong data"
    assert "2 of 2 transfers" in verdict.detail
    assert "; then fails: initiator, 512 scattered blocks of 32 KiB, first transfer" in verdict.detail
    assert "NIXL_ERR_BACKEND" in verdict.detail


def test_an_error_state_fails_and_says_so(tmp_path):
    verdict = try_case(make_build(tmp_path, state="ERR"), "UCX", "READ", None, timeout_s=10.0)
    assert (verdict.outcome, verdict.trials) == ("fails", ())
    assert "NIXL reports ERR for a READ" in verdict.detail


def test_a_package_that_cannot_be_imported_does_not_load(tmp_path):
    verdict = try_case(make_build(tmp_path, text="import nosuchlibrary\n"), "UCX", "READ", None, timeout_s=10.0)
    assert verdict.outcome == "does not load"
    assert "No module named 'nosuchlibrary'" in verdict.detail


def test_a_plugin_that_is_not_there_does_not_load_and_is_named(tmp_path):
    text = FAKE.replace("def register_memory(self, areas, kind): return areas", "def register_memory(self, *_): 1 / 0")
    verdict = try_case(make_build(tmp_path, text=text), "UCX", "READ", None, timeout_s=10.0)
    assert verdict.outcome == "does not load"
    assert "libplugin_UCX.so is not in " in verdict.detail


def test_a_backend_that_refuses_loopback_is_not_tried_without_another_interface(tmp_path):
    with pytest.raises(BuildError, match="LIBFABRIC of NIXL fake cannot use loopback"):
        try_case(make_build(tmp_path), "LIBFABRIC", "READ", None)


def test_nothing_of_the_case_is_left_on_disk(tmp_path, monkeypatch):
    scratch = tmp_path / "t"
    scratch.mkdir()
    monkeypatch.setattr(selftest.tempfile, "gettempdir", lambda: str(scratch))
    monkeypatch.setattr(selftest, "_short_folder", lambda: str(scratch))
    try_case(make_build(tmp_path, state="ERR"), "UCX", "READ", None, timeout_s=10.0)
    assert list(scratch.iterdir()) == []


def test_a_worker_whose_parent_was_killed_before_it_was_up_ends_at_once(tmp_path):
    spec = CaseSpec(
        role="initiator", build=make_build(tmp_path), backend="UCX", operation="READ", parent=f"ipc://{tmp_path}/a",
        peer=f"ipc://{tmp_path}/b", parent_pid=1, timeout_s=5.0,
    )  # fmt: skip
    command = [sys.executable, "-m", selftest.WORKER]
    done = subprocess.run(command, input=msgspec.msgpack.encode(spec), timeout=20, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert not list((tmp_path / "fakenixl").glob("pid-*"))


def make_trial(**changes):
    base = {"shape": "s", "later": False, "blocks": 8, "faults": {}, "outside_bytes": 0, "took_ns": 1}
    return Trial(**(base | changes))


def test_wrong_data_adds_up_and_names_the_first_that_was_wrong():
    trials = [
        make_trial(),
        make_trial(later=True, faults={"zero": 3}),
        make_trial(shape="t", faults={"zero": 1, "cut": 2}),
    ]
    assert (
        wrong_data(trials) == "6 of 24 blocks wrong (2 cut, 4 zero); in 2 of 3 transfers, first at: s, later transfer"
    )
    assert wrong_data([make_trial()]) == ""
    spilled = wrong_data([make_trial(outside_bytes=4096)])
    assert spilled == "4,096 bytes overwritten where no block lies; in 1 of 1 transfers, first at: s, first transfer"


LOG = """I1124 05:36:14.31 27100 nixl_plugin_manager.cpp:352] Failed to load plugin from /b/libplugin_GDS.so: libcufile.so.0: cannot open shared object file: No such file or directory
I1124 05:36:14.32 27100 nixl_plugin_manager.cpp:352] Failed to load plugin from /b/plugins/libplugin_LIBFABRIC.so: /l/openmpi/libfabric.so.1: version `FABRIC_1.10' not found (required by /b/m/../.m.libs/plugins/libplugin_LIBFABRIC.so)
"""


def test_the_missing_version_is_taken_from_nixls_own_log_line():
    assert not_loaded(LOG, "LIBFABRIC") == (
        "libfabric.so.1: version `FABRIC_1.10' not found (required by libplugin_LIBFABRIC.so)"
    )
    assert not_loaded(LOG, "UCX") is None


def test_a_message_without_paths_stays_as_it_is():
    text = "libucp.so.0: cannot open shared object file: No such file or directory"
    assert short(text) == text

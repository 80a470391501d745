"""Verdicts are kept by what was tested, so that none is shown for other files."""

import msgspec
import pytest

from kvgauge.builds import verdicts
from kvgauge.builds.case import Trial
from kvgauge.builds.records import Build
from kvgauge.builds.verdicts import Verdict, files_tested, keep, recall, status_line

ROLES = ("plugin_ucx", "plugin_libfabric", "libnixl", "ucx", "libfabric")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def make_build(**hashes):
    sha256 = {role: f"{index}" * 64 for index, role in enumerate(ROLES)} | hashes
    return Build(name="1.5.0", version="1.5.0", folder="/x", module="m", preload=(), libcuda="/c", sha256=sha256)


def make_verdict(backend="UCX", operation="READ", outcome="works", **changes):
    base = {
        "backend": backend, "operation": operation, "outcome": outcome, "detail": "", "trials": (), "plugin": None,
        "libfabric": None, "took_s": 1.0, "timeout_s": 20.0, "tested_at": "2026-11-24T10:00:00+00:00",
    }  # fmt: skip
    return Verdict(**(base | changes))


def test_what_was_kept_is_recalled_whole():
    trial = Trial(shape="s", later=True, blocks=9, faults={"zero": 2}, outside_bytes=7, took_ns=5)
    verdict = make_verdict(outcome="wrong data", detail="2 of 9", trials=(trial,))
    keep(make_build(), verdict)
    assert recall(make_build(), "UCX", "READ") == verdict
    assert recall(make_build(), "UCX", "WRITE") is None
    assert recall(make_build(), "LIBFABRIC", "READ") is None


@pytest.mark.parametrize("role", ["plugin_ucx", "libnixl", "ucx"])
def test_a_changed_file_has_no_verdict(role):
    keep(make_build(), make_verdict())
    assert recall(make_build(**{role: "f" * 64}), "UCX", "READ") is None


def test_files_of_the_other_backend_do_not_matter():
    keep(make_build(), make_verdict())
    assert recall(make_build(plugin_libfabric="f" * 64, libfabric="e" * 64), "UCX", "READ") is not None
    assert set(files_tested(make_build(), "LIBFABRIC")) == {"plugin_libfabric", "libnixl", "libfabric"}


def test_hashes_that_only_begin_alike_are_told_apart():
    keep(make_build(), make_verdict())
    assert recall(make_build(ucx="3" * 12 + "f" * 52), "UCX", "READ") is None


def test_verdicts_of_another_self_test_are_not_shown(monkeypatch):
    keep(make_build(), make_verdict())
    monkeypatch.setattr(verdicts, "SELFTEST_VERSION", verdicts.SELFTEST_VERSION + 1)
    assert recall(make_build(), "UCX", "READ") is None


@pytest.mark.parametrize("text", [b"", b"{", b"null", b'{"selftest_version": 1}'])
def test_a_damaged_file_is_no_verdict(text, tmp_path):
    keep(make_build(), make_verdict())
    (path,) = (tmp_path / "kvgauge" / "builds" / "verdicts").glob("*.json")
    path.write_bytes(text)
    assert recall(make_build(), "UCX", "READ") is None


def test_a_later_verdict_replaces_the_earlier_one_and_leaves_no_other_file(tmp_path):
    keep(make_build(), make_verdict(outcome="hangs"))
    keep(make_build(), make_verdict(outcome="works"))
    assert recall(make_build(), "UCX", "READ").outcome == "works"
    assert len(list((tmp_path / "kvgauge" / "builds" / "verdicts").iterdir())) == 1


def test_the_status_line_says_what_is_known_and_how_to_learn_the_rest():
    build = make_build()
    assert status_line(build).endswith("UCX not tested; LIBFABRIC not tested; `kvgauge builds test` tells")
    for operation in ("READ", "WRITE"):
        keep(build, make_verdict(operation=operation))
    keep(build, make_verdict(backend="LIBFABRIC", outcome="hangs"))
    assert "UCX works; LIBFABRIC READ hangs, WRITE not tested; " in status_line(build)
    keep(build, make_verdict(backend="LIBFABRIC", operation="WRITE", outcome="wrong data"))
    assert status_line(build) == (
        f"build 1.5.0 ({build.identity[:12]}): UCX works; LIBFABRIC READ hangs, WRITE wrong data"
    )


def test_builds_with_the_same_files_share_an_identity_and_others_do_not():
    named = msgspec.structs.replace(make_build(), name="wheel x.whl")
    assert named.identity == make_build().identity
    assert make_build(ucx="a" * 64).identity != make_build().identity

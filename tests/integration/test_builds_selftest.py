"""The self-test on real builds: a good one, one that corrupts, one that does not load, and builds of one's own."""

import shutil
from pathlib import Path

import pytest

from kvgauge.builds import own
from kvgauge.builds.install import install
from kvgauge.builds.records import BuildSource
from kvgauge.builds.selftest import try_build, try_case
from kvgauge.builds.verdicts import recall
from kvgauge.kv.shapes import SHAPES
from kvgauge.target.interfaces import first_outward

pytestmark = pytest.mark.nixl

LIMIT_S = 20.0


@pytest.fixture(scope="module")
def interface():
    outward = first_outward()
    return outward[0] if outward else None


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Verdicts of this test are kept apart from the user's; builds stay where they are."""
    monkeypatch.setattr("kvgauge.builds.verdicts.cache_folder", lambda: tmp_path)


@pytest.fixture
def mine():
    """Find a build of the user's own; what that leaves in the cache goes when the test is over."""
    made = []

    def find(plugin_dir, core):
        made.append(own.find("mine", BuildSource(plugin_dir=str(plugin_dir), core=core)))
        return made[-1]

    yield find
    for build in made:
        for folder in (Path(build.libcuda).parents[1], Path(build.folder)):
            if folder.name.startswith(("plugins-", "core-")):
                shutil.rmtree(folder, ignore_errors=True)


def plugins_of(build):
    return Path(build.folder) / f".{build.module}.mesonpy.libs" / "plugins"


def test_a_good_build_works_with_both_backends_and_the_verdicts_are_kept(interface, kept):
    build = install("1.5.0")
    verdicts = try_build(build, ("UCX", "LIBFABRIC"), interface, timeout_s=LIMIT_S)
    assert [(v.backend, v.operation, v.outcome, v.detail) for v in verdicts] == [
        (backend, operation, "works", "") for backend in ("UCX", "LIBFABRIC") for operation in ("READ", "WRITE")
    ]
    for verdict in verdicts:
        assert [(trial.shape, trial.later) for trial in verdict.trials] == [
            (shape.name, later) for shape in SHAPES for later in (False, True)
        ]
        assert Path(verdict.plugin).samefile(plugins_of(build) / f"libplugin_{verdict.backend}.so")
        assert verdict.libfabric == ("2.5" if verdict.backend == "LIBFABRIC" else None)
        assert recall(build, verdict.backend, verdict.operation) == verdict


def test_libfabric_of_0_9_0_reports_done_for_blocks_that_lie_elsewhere(interface):
    verdict = try_case(install("0.9.0"), "LIBFABRIC", "READ", interface, timeout_s=LIMIT_S)
    assert verdict.outcome == "wrong data"
    scattered = verdict.trials[2]
    assert scattered.shape == SHAPES[1].name
    assert scattered.faults["misplaced"] > 500


def test_a_plugin_that_wants_a_newer_libfabric_does_not_load_and_the_version_is_named(interface):
    verdict = try_case(install("1.5.1"), "LIBFABRIC", "READ", interface, timeout_s=LIMIT_S)
    assert (verdict.outcome, verdict.trials) == ("does not load", ())
    assert "libfabric.so.1: version `FABRIC_1.10' not found" in verdict.detail


@pytest.mark.parametrize(("backend", "installed_core"), [("UCX", False), ("LIBFABRIC", True)])
def test_plugins_from_another_folder_are_the_ones_that_run(interface, tmp_path, mine, backend, installed_core):
    base = install("1.5.0")
    shutil.copytree(plugins_of(base), tmp_path / "plugins")
    core = base.folder if installed_core else "1.5.0"
    build = mine(tmp_path / "plugins", core)
    verdict = try_case(build, backend, "READ", interface, timeout_s=LIMIT_S)
    assert (verdict.outcome, verdict.detail) == ("works", "")
    assert Path(verdict.plugin).samefile(tmp_path / "plugins" / f"libplugin_{backend}.so")
    assert build.identity == base.identity


def test_a_plugin_that_is_no_library_does_not_load(interface, tmp_path, mine):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "libplugin_UCX.so").write_bytes(b"no library at all" * 1000)
    build = mine(tmp_path / "plugins", "1.5.0")
    verdict = try_case(build, "UCX", "READ", interface, timeout_s=LIMIT_S)
    assert verdict.outcome == "does not load"
    assert "libplugin_UCX.so: invalid ELF header" in verdict.detail

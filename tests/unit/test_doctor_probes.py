"""Opening plugins under a limit, watching the machine, finding builds: the edges, with real processes where it matters."""

import os
import platform
import sys
import time
from pathlib import Path

import pytest

import trees
from kvgauge.builds import elf, install
from kvgauge.builds.records import Build, BuildSource
from kvgauge.doctor import attempts, examine, live, plugins
from kvgauge.doctor.attempts import Try
from kvgauge.doctor.loader import Loader
from kvgauge.evidence.cgroups import Cgroups
from kvgauge.evidence.tree import Tree

ENVIRONMENT = {"PATH": os.environ["PATH"]}


def a_try(plugin, *preload, stand_in=None):
    return Try(
        plugin=str(plugin), preload=tuple(map(str, preload)), stand_in=stand_in and str(stand_in), variables=ENVIRONMENT
    )


def a_real_library(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(elf.stand_in(path.name, ["cuInit"], platform.machine()))
    return path


def test_a_library_that_opens_is_opened_after_what_it_is_given_first(tmp_path):
    first, plugin = (a_real_library(tmp_path / name) for name in ("libfirst.so", "libplugin_UCX.so"))
    [attempt] = attempts.attempts([a_try(plugin, first)], 20.0)
    assert (attempt.ended, attempt.libfabric, attempt.ucx) == ("opened", None, None)


def test_a_library_that_is_missing_is_refused_in_the_loaders_words(tmp_path):
    found = attempts.attempts(
        [a_try(tmp_path / "no.so"), a_try(a_real_library(tmp_path / "a.so"), tmp_path / "first.so")], 20.0
    )
    assert [attempt.ended for attempt in found] == ["refused", "refused"]
    assert "no.so: cannot open" in found[0].detail
    assert "first.so: cannot open" in found[1].detail


def test_the_stand_in_is_used_only_where_no_libcuda_loads(tmp_path):
    plugin = a_real_library(tmp_path / "libplugin_LIBFABRIC.so")
    [attempt] = attempts.attempts([a_try(plugin, stand_in=tmp_path / "missing-libcuda.so.1")], 20.0)
    there = Loader(Tree()).find("libcuda.so.1") is not None
    assert attempt.ended == ("opened" if there else "refused")


@pytest.mark.parametrize(
    ("then", "ended", "detail"),
    [
        ("import time; time.sleep(60)", "no end", "of libucp.so.0"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "crashed",
            "killed by SIGSEGV while opening libucp.so.0",
        ),
        ("raise SystemExit(7)", "crashed", "ended with exit code 7 while opening libucp.so.0"),
        ("print('not json')", "crashed", "exit code 0"),
    ],
)
def test_a_plugin_that_hangs_or_crashes_takes_only_its_own_process_with_it(tmp_path, monkeypatch, then, ended, detail):
    child = tmp_path / "child.py"
    child.write_text(f'print(\'{{"step": "/x/libucp.so.0"}}\', flush=True)\n{then}\n')
    monkeypatch.setattr(attempts, "CHILD", child)
    for limit_s in (20.0,) if ended == "crashed" else (0.8, 5.0, 20.0):
        [attempt] = attempts.attempts([a_try("/x/plugin.so")], limit_s)
        if detail in attempt.detail:
            break
    assert attempt.ended == ended
    assert detail in attempt.detail


def test_what_a_killed_command_had_started_is_killed_too(tmp_path):
    note = tmp_path / "pid"
    code = f"import subprocess, sys, time; c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); open({str(note)!r}, 'w').write(str(c.pid)); time.sleep(60)"
    for limit_s in (1.0, 5.0, 20.0):  # a busy machine takes a while to start two processes
        said, ended = attempts.bounded([sys.executable, "-c", code], "", limit_s, ENVIRONMENT)
        if note.exists() and note.read_text():
            break
    assert (said, ended) == ("", None)
    until = time.monotonic() + 10
    while time.monotonic() < until and _runs(int(note.read_text())):
        time.sleep(0.05)
    assert not _runs(int(note.read_text()))


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_tries_that_never_began_say_so(tmp_path):
    [attempt] = attempts.attempts([a_try(tmp_path / "x.so")], 0.0)
    assert (attempt.ended, "no time" in attempt.detail) == ("no end", True)


def test_a_command_that_is_not_there_is_told_and_not_raised():
    assert attempts.bounded(["/no/such/tool"], "", 1.0, {}) == ("No such file or directory", 127)


@pytest.mark.parametrize(
    ("script", "gave", "why"),
    [
        ("echo 'NVIDIA H100, 570.86, 10 MiB, 81559 MiB'", "NVIDIA H100, 570.86, 10 MiB, 81559 MiB", None),
        ("echo broken; exit 9", None, "exit code 9: broken"),
        ("sleep 60", None, "no answer within"),
    ],
)
def test_nvidia_smi_is_asked_under_a_limit(tmp_path, monkeypatch, script, gave, why):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found, reason = attempts.nvidia_smi(0.5 if why and "within" in why else 20.0)
    assert found == gave
    assert reason is None if why is None else why in reason


def test_busy_and_stolen_time_are_what_passed_between_two_looks(tmp_path):
    machine = trees.laptop(tmp_path).write({"/proc/stat": "cpu  100 0 0 100 0 0 0 0 0 0"})
    tree = Tree(machine.root)

    def later(_seconds):
        machine.write({"/proc/stat": "cpu  130 0 0 150 0 0 0 20 0 0"})

    watched = live.watch(tree, Cgroups(tree), later)
    assert (watched.busy, watched.steal) == (0.3, 0.2)


def test_a_proc_that_does_not_move_or_is_not_there_gives_no_shares(tmp_path):
    machine = trees.laptop(tmp_path)
    tree = Tree(machine.root)
    assert live.watch(tree, Cgroups(tree), lambda _s: None).busy is None
    machine.write({"/proc/stat": "cpu  1 0 0 1 0 0 0 0 0 0"})
    assert live.watch(tree, Cgroups(tree), lambda _s: None).busy is None


def test_free_space_is_that_of_the_nearest_folder_that_is_there(tmp_path):
    found = live.disk_free([tmp_path / "not" / "yet"])
    assert found[str(tmp_path / "not" / "yet")] > 0


def test_a_python_environment_is_searched_without_importing_it(tmp_path):
    site, root = tmp_path / "lib" / "python3.11" / "site-packages", tmp_path / "root"
    plugins_folder = site / ".nixl_cu12.mesonpy.libs" / "plugins"
    trees.library(plugins_folder / "libplugin_UCX.so", needed=("libucp-1.so.0",), paths="$ORIGIN/../../nixl_cu12.libs")
    trees.library(plugins_folder / "libplugin_LIBFABRIC.so", needed=("libfabric.so.1", "libcudart.so.12"),
                  versions={"libfabric.so.1": ("FABRIC_1.10",)})  # fmt: skip
    trees.library(site / "nixl_cu12.libs" / "libucp-1.so.0")
    for module in ("libuct_ib-0a1b2c3d.so.0", "libuct_ib_efa.so.0", "libuct_cuda.so"):
        trees.library(site / "nixl_cu12.libs" / "ucx" / module)
    trees.library(site / "nvidia" / "cuda_runtime" / "lib" / "libcudart.so.12")
    (site / "nixl_cu12-1.5.1.dist-info").mkdir()
    trees.library(root / "usr/lib64/libfabric.so.1", defines=("FABRIC_1.8",))
    [candidate] = plugins.environments(Loader(Tree(root)), [site], {})
    build, fabric = candidate.build, candidate.build.plugin("LIBFABRIC")
    assert (build.version, build.plugin("UCX").missing) == ("1.5.1", ())
    assert {"srd", "rc_verbs", "cuda_ipc", "tcp"} <= build.transports
    assert "gdr_copy" not in build.transports
    assert (fabric.missing, len(fabric.too_old), fabric.wants, fabric.offers) == ((), 1, "FABRIC_1.10", "FABRIC_1.8")
    assert [path.rpartition("/")[2] for path in candidate.tries["LIBFABRIC"].preload] == ["libcudart.so.12"]
    assert candidate.tries["LIBFABRIC"].stand_in is None


def test_an_active_environment_and_named_folders_are_searched(tmp_path):
    site = tmp_path / "env" / "lib" / "python3.12" / "site-packages"
    site.mkdir(parents=True)
    image = tmp_path / "root" / "opt" / "dynamo" / "venv" / "lib" / "python3.12" / "site-packages"
    image.mkdir(parents=True)
    found = examine.site_folders([tmp_path], {"VIRTUAL_ENV": str(tmp_path / "env")}, tmp_path / "root")
    assert found[0] == tmp_path.resolve()
    assert {site.resolve(), image.resolve()} <= set(found)


def test_installs_by_hand_bundles_and_nixl_plugin_dir_are_found(tmp_path):
    root, site, named = tmp_path / "root", tmp_path / "site", tmp_path / "named"
    trees.library(root / "opt/nvidia/nvda_nixl/lib64/plugins/libplugin_UCX.so")
    trees.library(site / "tensorrt_llm/libs/nixl/plugins/libplugin_LIBFABRIC.so")
    named.mkdir()
    found = [c.build for c in plugins.environments(Loader(Tree(root)), [site], {"NIXL_PLUGIN_DIR": str(named)})]
    assert [len(build.plugins) for build in found] == [1, 1, 0]
    assert "TensorRT-LLM" in found[0].name
    assert found[2].name == f"NIXL_PLUGIN_DIR={named}"


@pytest.fixture
def cached_core(tmp_path, monkeypatch):
    """A published build in a cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = install.place("nixl-1.5.0")
    libs = folder / ".nixl_cu12.mesonpy.libs"
    fabric = trees.library(tmp_path / "libs" / "libfabric.so.1", defines=("FABRIC_1.9",))
    for backend in ("UCX", "LIBFABRIC"):
        trees.library(libs / "plugins" / f"libplugin_{backend}.so")
    trees.library(libs / "libserdes.so")
    stand_in = a_real_library(folder / "kvgauge-stand-in" / "libcuda.so.1")
    core = Build(name="1.5.0", version="1.5.0", folder=str(folder), module="nixl_cu12", preload=(str(fabric),),
                 libcuda=str(stand_in), sha256={"libnixl": "0"})  # fmt: skip
    install.write_description(folder, core)
    return core


def test_a_plugin_folder_of_a_plan_is_read_with_its_core_and_its_own_libfabric(tmp_path, cached_core):
    folder = tmp_path / "patched"
    trees.library(
        folder / "libplugin_LIBFABRIC.so",
        needed=("libfabric.so.1", "libserdes.so"),
        versions={"libfabric.so.1": ("FABRIC_1.10",)},
    )
    own = trees.library(folder / "libfabric.so.1", defines=("FABRIC_1.10",))
    source = BuildSource(plugin_dir=str(folder), core="1.5.0")
    (tmp_path / "scratch").mkdir()
    found, missing = plugins.own(Loader(Tree(tmp_path / "root")), {"mine": source}, {}, tmp_path / "scratch")
    [candidate] = found
    plugin = candidate.build.plugin("LIBFABRIC")
    assert (missing, plugin.missing, plugin.too_old, plugin.libfabric) == ([], (), (), str(own))
    assert candidate.tries["LIBFABRIC"].preload == (
        str(own),
        f"{cached_core.folder}/.nixl_cu12.mesonpy.libs/libserdes.so",
    )


def test_a_plan_build_that_is_gone_was_needed_and_one_not_yet_unpacked_is_not_looked_at(tmp_path, cached_core):
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"x")
    sources = {
        "gone": BuildSource(wheel=str(tmp_path / "no.whl")),
        "empty": BuildSource(plugin_dir=str(tmp_path), core="1.5.0"),
        "new": BuildSource(wheel=str(wheel)),
    }
    found, missing = plugins.own(Loader(Tree(tmp_path)), sources, {}, tmp_path)
    assert found == []
    assert [(each.what, each.needed) for each in missing] == [
        ("build gone", True),
        ("build empty", True),
        ("build new", False),
    ]

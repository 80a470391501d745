"""Parsers of /proc, cgroups and library headers: right on what is there, silent on what is not."""

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trees
from kvgauge.builds.elf import NotAnElfFile
from kvgauge.builds.links import links, read_links
from kvgauge.doctor.loader import Loader, highest
from kvgauge.evidence import proc
from kvgauge.evidence.cgroups import Cgroups
from kvgauge.evidence.machine import read_available_memory
from kvgauge.evidence.tree import Tree
from trees import GIB

NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=20)
PARSERS = (proc.meminfo, proc.limits, proc.cores, proc.status, proc.may_lock, proc.modules, proc.chosen, proc.port_range,
           proc.keyed)  # fmt: skip


@pytest.mark.parametrize("parser", PARSERS)
@settings(max_examples=40)
@given(text=st.text(max_size=300))
def test_no_text_makes_a_parser_fail(parser, text):
    parser(text)


@given(st.dictionaries(NAMES, st.integers(0, 2**40), max_size=20))
def test_memory_lines_come_back_in_bytes(values):
    text = "".join(f"{name}:   {value} kB\n" for name, value in values.items())
    assert proc.meminfo(text) == {name: value << 10 for name, value in values.items()}


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 20)), min_size=1, max_size=10))
def test_cores_of_a_list_are_counted_whatever_ranges_it_has(ranges):
    text = ",".join(str(low) if not more else f"{low}-{low + more}" for low, more in ranges)
    assert proc.cores(text) == sum(more + 1 for _, more in ranges)


@given(st.integers(0, 2**64 - 1))
def test_the_lock_capability_is_one_bit_of_the_mask(mask):
    assert proc.may_lock(f"{mask:016x}") == bool(mask & 1 << 14)


def test_limits_are_read_with_unlimited_as_none():
    found = proc.limits(trees.LIMITS.format(memlock="unlimited", files=1024))
    assert found["Max locked memory"] == (None, None)
    assert found["Max open files"] == (1024, 1024)


def test_a_port_range_that_is_none_is_left_out():
    assert proc.port_range("32768\t60999\n") == (32768, 60999)
    assert proc.port_range("1 70000") is None
    assert proc.port_range("") is None


def test_a_pod_with_its_own_cgroup_root_has_the_pods_limits(tmp_path):
    machine = trees.pod_v2(trees.laptop(tmp_path), limit=8 * GIB, used=2 * GIB)
    cgroups = Cgroups(Tree(machine.root))
    assert cgroups.memory() == (8 * GIB, 1 * GIB)  # half of it is page cache
    assert cgroups.quota() == 4.0
    assert cgroups.throttled() == 3
    assert cgroups.pids() == (1000, 900)


def test_a_pod_of_cgroup_v1_is_found_at_the_root_of_its_mount(tmp_path):
    machine = trees.pod_v1(trees.laptop(tmp_path), limit=8 * GIB, used=2 * GIB, cores=1.5)
    cgroups = Cgroups(Tree(machine.root))
    assert cgroups.memory() == (8 * GIB, 2 * GIB)
    assert cgroups.quota() == 1.5


def test_the_tightest_of_a_cgroup_and_those_above_it_counts(tmp_path):
    machine = trees.laptop(tmp_path)
    machine.write(
        {
            "/proc/self/cgroup": "0::/a/b",
            "/sys/fs/cgroup/a/b/memory.max": "max",
            "/sys/fs/cgroup/a/memory.max": 4 * GIB,
            "/sys/fs/cgroup/a/memory.current": GIB,
            "/sys/fs/cgroup/a/cpu.max": "max 100000",
        }
    )
    cgroups = Cgroups(Tree(machine.root))
    assert cgroups.memory() == (4 * GIB, GIB)
    assert cgroups.quota() is None


def test_v1_writes_no_limit_as_a_huge_number_and_that_is_none(tmp_path):
    machine = trees.pod_v1(trees.laptop(tmp_path), limit=9223372036854771712, cores=-0.00001)
    cgroups = Cgroups(Tree(machine.root))
    assert cgroups.memory() == (None, 0)
    assert cgroups.quota() is None


def test_without_cgroup_files_there_is_no_limit(tmp_path):
    cgroups = Cgroups(Tree(tmp_path))
    assert (cgroups.memory(), cgroups.quota(), cgroups.throttled(), cgroups.pids()) == (
        (None, 0),
        None,
        0,
        (None, None),
    )


@settings(max_examples=40)
@given(st.text(max_size=200), st.text(max_size=200))
def test_odd_cgroup_and_mount_lines_are_passed_over(tmp_path_factory, own, mounts):
    root = tmp_path_factory.mktemp("odd")
    machine = trees.Machine(root)
    (root / "proc/self").mkdir(parents=True)
    machine.root.joinpath("proc/self/cgroup").write_text(own, errors="replace")
    machine.root.joinpath("proc/self/mountinfo").write_text(mounts, errors="replace")
    assert Cgroups(Tree(root)).memory() == (None, 0)


def test_names_paths_and_versions_of_a_library_are_read(tmp_path):
    made = trees.library(
        tmp_path / "libplugin.so",
        needed=("libfabric.so.1", "libc.so.6"),
        versions={"libfabric.so.1": ("FABRIC_1.0", "FABRIC_1.10"), "libc.so.6": ("GLIBC_2.14",)},
        paths="$ORIGIN/..:/opt/x",
        runpath=False,
    )
    read = read_links(made)
    assert (read.soname, read.needed) == ("libplugin.so", ("libfabric.so.1", "libc.so.6"))
    assert (read.paths, read.early) == (("$ORIGIN/..", "/opt/x"), True)
    assert read.versions == {"libfabric.so.1": ("FABRIC_1.0", "FABRIC_1.10"), "libc.so.6": ("GLIBC_2.14",)}
    assert read.defines == ()


def test_versions_a_library_offers_are_read_without_its_own_name(tmp_path):
    made = trees.library(tmp_path / "libfabric.so.1", defines=("FABRIC_1.0", "FABRIC_1.9"))
    assert read_links(made).defines == ("FABRIC_1.0", "FABRIC_1.9")


def test_a_real_library_needs_the_c_library():
    import _ctypes

    assert any(name.startswith(("libc.so", "libpthread.so")) for name in read_links(Path(_ctypes.__file__)).needed)


@given(st.binary(max_size=400))
def test_random_bytes_are_no_library(data):
    try:
        links(b"\x7fELF\x02\x01" + data)
    except NotAnElfFile:
        pass


def test_a_library_cut_anywhere_is_refused_or_read_and_never_crashes(tmp_path):
    made = trees.library(
        tmp_path / "lib.so", needed=("a",), versions={"a": ("V_1", "V_2")}, defines=("W_1",), paths="/x"
    ).read_bytes()
    for cut in range(len(made)):
        with pytest.raises(NotAnElfFile):
            links(made[:cut])


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "lib.so").write_bytes(b"")
    with pytest.raises(NotAnElfFile):
        read_links(tmp_path / "lib.so")


def test_1_10_is_higher_than_1_9():
    assert highest(["FABRIC_1.9", "FABRIC_1.10", "GLIBC_2.40"]) == "FABRIC_1.10"
    assert highest(["GLIBC_2.40"]) is None


def test_the_loader_names_what_is_missing_and_what_is_too_old(tmp_path):
    root = tmp_path / "root"
    plugin = trees.library(
        tmp_path / "plugins" / "libplugin_LIBFABRIC.so",
        needed=("libfabric.so.1", "libhwloc.so.15"),
        versions={"libfabric.so.1": ("FABRIC_1.10",)},
    )
    trees.library(root / "usr/lib64/libfabric.so.1", defines=("FABRIC_1.9",), needed=("libefa.so.1",))
    found = Loader(Tree(root)).resolve(plugin)
    assert found.missing == {"libhwloc.so.15": "libplugin_LIBFABRIC.so", "libefa.so.1": "libfabric.so.1"}
    assert len(found.old) == 1
    assert "has no FABRIC_1.10" in found.old[0]


def test_the_search_goes_rpath_library_path_runpath_configured_folders(tmp_path):
    root = tmp_path / "root"
    for folder in ("own", "root/asked", "root/conf"):
        trees.library(tmp_path / folder / "libx.so.1")
    trees.Machine(root).write(
        {"/etc/ld.so.conf": "include ld.so.conf.d/*.conf", "/etc/ld.so.conf.d/x.conf": "/conf # a remark"}
    )

    def taken(*, runpath, library_path, paths="$ORIGIN"):
        user = trees.library(tmp_path / "own" / "user.so", needed=("libx.so.1",), paths=paths, runpath=runpath)
        return Loader(Tree(root), library_path).resolve(user).found["libx.so.1"].parent.name

    assert taken(runpath=False, library_path="/asked") == "own"
    assert taken(runpath=True, library_path="/asked") == "asked"
    assert taken(runpath=True, library_path="") == "own"
    assert taken(runpath=True, library_path="", paths="") == "conf"


def test_only_what_the_loader_would_not_find_is_loaded_by_hand_and_dependencies_first(tmp_path):
    beside = tmp_path / "core"
    plugin = trees.library(tmp_path / "plugin.so", needed=("libucp.so", "libserdes.so"))
    trees.library(beside / "libucp.so", needed=("libucs.so",), paths="$ORIGIN")  # finds libucs by itself
    trees.library(beside / "libucs.so")
    trees.library(beside / "libserdes.so", needed=("libcore.so",))  # does not find libcore
    trees.library(beside / "libcore.so")
    found = Loader(Tree(tmp_path / "root")).resolve(plugin, beside=[beside])
    assert found.missing == {}
    assert [path.name for path in found.by_hand] == ["libcore.so", "libserdes.so", "libucp.so"]


def test_what_is_loaded_before_is_found_by_its_soname(tmp_path):
    plugin = trees.library(tmp_path / "plugin.so", needed=("libcuda.so.1",))
    before = trees.library(tmp_path / "elsewhere" / "libcuda.so.1")
    assert Loader(Tree(tmp_path / "root")).resolve(plugin, [before]).missing == {}


def test_a_library_for_another_machine_is_passed_over(tmp_path):
    root = tmp_path / "root"
    other = trees.library(root / "lib64/libx.so.1")
    image = bytearray(other.read_bytes())
    image[18:20] = (183).to_bytes(2, "little")
    other.write_bytes(image)
    right = trees.library(root / "usr/lib/libx.so.1")
    user = trees.library(tmp_path / "user.so", needed=("libx.so.1",))
    assert Loader(Tree(root)).resolve(user).found["libx.so.1"] == right


@pytest.mark.parametrize("pod", [trees.pod_v1, trees.pod_v2])
def test_what_a_run_may_take_is_bounded_by_the_pod_too(tmp_path, pod):
    machine = pod(trees.laptop(tmp_path), limit=3 * GIB, used=0)
    assert read_available_memory(Tree(machine.root)) == 3 * GIB

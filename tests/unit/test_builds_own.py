"""Builds of the user's own: what is wrong with one is said with names, and files make it what it is."""

import platform
import sysconfig

import pytest

from kvgauge.builds import elf, own
from kvgauge.builds.install import place
from kvgauge.builds.records import Build, BuildSource
from kvgauge.failures import BuildError, PlanError
from kvgauge.plan.read import read

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache whose libraries are three stand-ins: nothing is installed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    libraries = place("libraries")
    libraries.mkdir(parents=True)
    for name in ("libcudart.so.12", "libhwloc.so.15", "libfabric.so.1"):
        (libraries / name).write_bytes(elf.stand_in(name, ["f"], platform.machine()))


def make_core(folder, module="nixl_cu12", version="1.5.0+patched", suffix=SUFFIX):
    for part in (module, f"{module}-{version}.dist-info", f".{module}.mesonpy.libs/plugins", "numpy"):
        (folder / part).mkdir(parents=True)
    (folder / module / f"_bindings{suffix}").touch()
    (folder / f"{module}-{version}.dist-info" / "METADATA").write_text(f"Name: {module}\nVersion: {version}\n")
    (folder / f".{module}.mesonpy.libs" / "libnixl.so").write_bytes(b"core")
    return folder


def make_plugins(folder, backends=("UCX", "LIBFABRIC")):
    folder.mkdir()
    for backend in backends:
        name = f"libplugin_{backend}.so"
        (folder / name).write_bytes(elf.stand_in(name, ["cuSomething"], platform.machine()))
    return folder


def find(plugins, core, name="mine"):
    return own.find(name, BuildSource(plugin_dir=str(plugins), core=str(core)))


def test_plugins_with_a_core_folder_make_a_build_that_names_both(tmp_path):
    plugins, core = make_plugins(tmp_path / "p"), make_core(tmp_path / "core")
    build = find(plugins, core)
    assert (build.name, build.version, build.module, build.plugin_dir) == ("mine", "1.5.0", "nixl_cu12", str(plugins))
    assert set(build.sha256) == {"plugin_ucx", "plugin_libfabric", "libnixl", "libfabric"}


def test_a_core_is_seen_without_what_else_lies_in_its_folder(tmp_path):
    build = find(make_plugins(tmp_path / "p"), make_core(tmp_path / "core"))
    seen = {path.name for path in place("").parent.glob("core-*/*")}
    assert seen == {"nixl_cu12", ".nixl_cu12.mesonpy.libs"}
    assert str(tmp_path / "core") != build.folder


def test_a_changed_plugin_is_another_build_and_the_same_files_are_the_same(tmp_path):
    plugins, core = make_plugins(tmp_path / "p"), make_core(tmp_path / "core")
    first = find(plugins, core)
    assert find(plugins, core) == first
    (plugins / "libplugin_UCX.so").write_bytes(elf.stand_in("libplugin_UCX.so", ["cuOther"], platform.machine()))
    changed = find(plugins, core)
    assert changed.identity != first.identity
    assert [build.identity for build in own.found_in_cache()] == [changed.identity]


def test_a_libfabric_beside_the_plugins_is_used_and_counts(tmp_path, monkeypatch):
    plugins, core = make_plugins(tmp_path / "p"), make_core(tmp_path / "core")
    before = find(plugins, core)
    (plugins / "libfabric.so.1").write_bytes(b"mine")
    answer = "\tlibfabric.so.1 => /usr/lib/libfabric.so.1 (0x00007f)\n\tlibucp.so.0 => not found\n\tlibm.so.6 => /lib/libm.so.6 (0x0)\n"
    monkeypatch.setattr(own.subprocess, "run", lambda *_a, **_k: own.subprocess.CompletedProcess([], 0, answer, ""))
    build = find(plugins, core)
    assert build.preload[-1] == str(plugins / "libfabric.so.1")
    assert build.sha256["libfabric"] != before.sha256["libfabric"]
    assert build.plugin_needs == {"UCX": (), "LIBFABRIC": ()}


def test_what_plugins_link_to_is_loaded_from_the_core_where_the_loader_finds_nothing(tmp_path, monkeypatch):
    plugins, core = make_plugins(tmp_path / "p", ["UCX"]), make_core(tmp_path / "core")
    (core / "nixl_cu12.libs").mkdir()
    (core / "nixl_cu12.libs" / "libucp-1.so").write_bytes(b"ucp")
    answer = "\tlibucp-1.so => not found\n\tlibgone.so => not found\n"
    monkeypatch.setattr(own.subprocess, "run", lambda *_a, **_k: own.subprocess.CompletedProcess([], 0, answer, ""))
    build = find(plugins, core)
    (needed,) = build.plugin_needs["UCX"]
    assert own.Path(needed).resolve() == core / "nixl_cu12.libs" / "libucp-1.so"
    assert set(build.sha256) == {"plugin_ucx", "libnixl", "ucx"}


def test_a_system_libfabric_that_is_too_old_is_not_chosen(tmp_path, monkeypatch):
    answer = "\tlibfabric.so.1 => /usr/lib/libfabric.so.1 (0x00007f)\n"
    told = "p.so: /usr/lib/libfabric.so.1: version `FABRIC_1.7' not found (required by p.so)\n"
    monkeypatch.setattr(own.subprocess, "run", lambda *_a, **_k: own.subprocess.CompletedProcess([], 1, answer, told))
    build = find(make_plugins(tmp_path / "p"), make_core(tmp_path / "core"))
    assert build.preload[-1].startswith(str(place("libraries")))


def test_a_folder_without_plugins_says_which_files_are_wanted(tmp_path):
    with pytest.raises(BuildError, match=r"neither libplugin_UCX\.so nor libplugin_LIBFABRIC\.so"):
        find(tmp_path, make_core(tmp_path / "core"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda core: (core / "nixl_cu12" / f"_bindings{SUFFIX}").unlink(), "holds no NIXL package"),
        (lambda core: (core / "nixl_cu12-1.5.0+patched.dist-info" / "METADATA").unlink(), "does not say which NIXL"),
        (lambda core: (core / ".nixl_cu12.mesonpy.libs" / "libnixl.so").unlink(), "holds no libnixl"),
    ],
)
def test_a_core_that_lacks_something_is_refused_by_name(tmp_path, spoil, message):
    core = make_core(tmp_path / "core")
    spoil(core)
    with pytest.raises(BuildError, match=message):
        find(make_plugins(tmp_path / "p"), core)


def test_a_core_for_another_python_is_refused(tmp_path):
    core = make_core(tmp_path / "core", suffix=".cpython-27-x86_64-linux-gnu.so")
    with pytest.raises(BuildError, match=r"built for another Python \(_bindings\.cpython-27"):
        find(make_plugins(tmp_path / "p"), core)


def test_a_core_that_is_neither_version_nor_folder_is_refused(tmp_path):
    with pytest.raises(BuildError, match="neither a published version"):
        find(make_plugins(tmp_path / "p"), tmp_path / "nowhere")


def test_a_wheel_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(BuildError, match="there is no wheel"):
        own.find("w", BuildSource(wheel=str(tmp_path / "x.whl")))


def test_a_wheel_is_unpacked_once_and_known_by_its_content(tmp_path, monkeypatch):
    unpacked = []

    def unpack(options, what):
        unpacked.append(what)
        folder = make_core(tmp_path / f"made-{len(unpacked)}")
        (folder / ".nixl_cu12.mesonpy.libs" / "plugins" / "libplugin_UCX.so").write_bytes(what.encode())
        for part in folder.iterdir():
            part.rename(own.Path(options[options.index("--target") + 1]) / part.name)

    monkeypatch.setattr(own, "run_installer", unpack)
    wheel, copy, other = (tmp_path / name for name in ("a.whl", "b.whl", "c.whl"))
    wheel.write_bytes(b"one")
    copy.write_bytes(b"one")
    other.write_bytes(b"two")
    first, again, third = (own.find(path.name, BuildSource(wheel=str(path))) for path in (wheel, copy, other))
    assert unpacked == ["a.whl", "c.whl"]
    assert (first.name, again.name) == ("a.whl", "b.whl")
    assert first.identity == again.identity != third.identity
    assert len(own.found_in_cache()) == 2


def test_a_wheel_that_is_no_nixl_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "run_installer", lambda _options, _what: None)
    (tmp_path / "x.whl").write_bytes(b"x")
    with pytest.raises(BuildError, match="holds no NIXL package"):
        own.find("x", BuildSource(wheel=str(tmp_path / "x.whl")))
    assert {path.name for path in place("").parent.iterdir()} == {"lock", place("libraries").name}


def test_the_finder_looks_each_build_up_once(monkeypatch):
    asked = []

    def look(name, source, _say):
        asked.append((name, source))
        return Build(name=name, version="1", folder="", module="", preload=(), libcuda="", sha256={})

    monkeypatch.setattr(own, "find", look)
    source = BuildSource(wheel="x.whl")
    look_up = own.finder({source.label: source, "1.5.0": None})
    assert [look_up(name).name for name in ("1.5.0", source.label, "1.5.0")] == ["1.5.0", source.label, "1.5.0"]
    assert asked == [("1.5.0", None), (source.label, source)]


PLAN = """name: p
primary: {metric: ttft_ms_mean, cell: c}
tests:
  - {name: a, backend: UCX, fabric: tcp, model: Qwen3-0.6B, patches: 11 stability, build: BUILD}
cells:
  - {name: c, load: single, concurrency: 1, prompt: Hello, output_tokens: 1, requests: 1}
"""


def read_build(text, source="plans/p.yaml"):
    return read(PLAN.replace("BUILD", text), source=source, known_builds=("1.4.1", "1.5.0")).tests[0]


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("{wheel: dist/x.whl}", BuildSource(wheel="plans/dist/x.whl")),
        ("{wheel: /dist/x.whl}", BuildSource(wheel="/dist/x.whl")),
        ("{plugin_dir: ~/mine, core: 1.5.0}", BuildSource(plugin_dir="~/mine", core="1.5.0")),
        ("{plugin_dir: /p, core: ../c}", BuildSource(plugin_dir="/p", core="plans/../c")),
    ],
)
def test_a_plan_may_name_a_wheel_or_plugins_and_its_own_build_stands_in_for_nothing(text, source):
    test = read_build(text)
    assert (test.build_source, test.build, test.stand_in) == (source, source.label, None)


def test_a_published_build_has_no_source_and_still_stands_in():
    test = read_build("1.5.0")
    assert (test.build_source, test.stand_in) == (None, "stand-in: NIXL 1.5.0, not the patches")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{wheel: x.whl, core: 1.5.0}", "p.yaml:4: build: a wheel is a build by itself"),
        ("{plugin_dir: /p}", "p.yaml:4: a build with a plugin folder of its own has no `core`"),
        ("{core: 1.5.0}", "has no `plugin_dir`"),
        ("{plugin_dir: /p, core: 9.9.9}", "p.yaml:4: core: unknown core '9.9.9'"),
        ("{}", "has no `plugin_dir`"),
        ("{whell: x}", "unknown key 'whell'; did you mean 'wheel'"),
        ("{wheel: [x]}", "p.yaml:4: wheel: expected text, got a list"),
    ],
)
def test_a_build_written_wrongly_is_one_error_with_its_line(text, message):
    with pytest.raises(PlanError) as caught:
        read_build(text, source="p.yaml")
    assert message in str(caught.value)

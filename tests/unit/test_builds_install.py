"""Installing builds with a pip that the test plays: what it is told, what is left when it fails, what is read back."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvgauge.builds import install as module
from kvgauge.builds import pins
from kvgauge.builds.install import cache_folder, install, installed
from kvgauge.builds.records import Build
from kvgauge.failures import BuildError

VERSION = "1.5.0"
LIBRARIES = ("libcudart.so.12", "libhwloc.so.15", "libfabric.so.1")
FILES = {
    "plugin_ucx": ".nixl_cu12.mesonpy.libs/plugins/libplugin_UCX.so",
    "plugin_libfabric": ".nixl_cu12.mesonpy.libs/plugins/libplugin_LIBFABRIC.so",
    "libnixl": ".nixl_cu12.mesonpy.libs/libnixl.so",
    "ucx": "nixl_cu12.libs/libucp-abc.so.0",
}


class Installer:
    """Plays `pip install` and `uv pip install`.

    works  per call: True, or the last line of what goes wrong
    """

    def __init__(self):
        self.commands, self.works, self.skip, self.timeouts = [], lambda _command: True, (), ()
        self.seen_while_working = []

    def run(self, command, **options):
        assert options["timeout"] == module.INSTALL_TIMEOUT_S
        self.commands.append(command)
        self.seen_while_working.append(installed(VERSION))
        if command[0] in self.timeouts:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        said = self.works(command)
        if said is not True:
            return SimpleNamespace(returncode=1, stderr=said)
        where = command.index("--prefix" if "--prefix" in command else "--target") + 1
        folder = Path(command[where])
        if "--prefix" in command:
            names = {name: f"lib/{name}" for name in LIBRARIES}
        else:
            names = {**FILES, "package": "nixl_cu12/_api.py"}
        for name, path in names.items():
            if name not in self.skip:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(name.encode())
        return SimpleNamespace(returncode=0, stderr="")


@pytest.fixture
def installer(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module.shutil, "which", lambda _name: None)
    made = Installer()
    monkeypatch.setattr(module.subprocess, "run", made.run)
    return made


def visible():
    return sorted(path.name for path in cache_folder().iterdir() if not path.name.startswith("."))


def test_a_build_is_installed_from_pinned_hashes_and_read_back_whole(installer):
    said = []
    build = install(VERSION, said.append)
    libraries, wheel = installer.commands
    for command, requirements in ((libraries, pins.LIBRARIES), (wheel, pins.lock(VERSION))):
        assert command[:4] == [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        assert {"--require-hashes", "--no-deps", "--only-binary"} <= set(command)
        assert command[command.index("-r") + 1] == str(requirements)
        assert "--hash=sha256:" in requirements.read_text()
    assert (build.name, build.version, build.release) == (VERSION, VERSION, (1, 5, 0))
    assert set(build.sha256) == {*FILES, "libfabric"}
    assert [Path(path).name for path in build.preload] == list(LIBRARIES)
    assert all(Path(path).is_file() for path in (*build.preload, build.libcuda))
    assert (Path(build.folder) / "nixl_cu12/_api.py").is_file()
    assert installed(VERSION) == build
    assert len(said) == 2


def test_what_is_there_is_neither_installed_again_nor_talked_about(installer):
    build = install(VERSION)
    installer.commands.clear()
    said = []
    assert install(VERSION, said.append) == build
    assert (installer.commands, said) == ([], [])


def test_a_second_version_shares_the_libraries(installer):
    install(VERSION)
    install("1.4.1")
    assert [command[command.index("-r") + 1].rpartition("/")[2] for command in installer.commands] == [
        "libraries.lock",
        f"nixl-{VERSION}.lock",
        "nixl-1.4.1.lock",
    ]


def test_a_build_is_not_seen_before_it_is_whole(installer):
    install(VERSION)
    assert installer.seen_while_working == [None, None]
    assert [path for path in cache_folder().iterdir() if path.name.startswith(".")] == []


def test_an_install_that_fails_leaves_nothing_that_looks_finished(installer):
    installer.works = lambda command: "--prefix" in command or "noise\nERROR: no matching distribution"
    with pytest.raises(
        BuildError, match=rf"cannot install nixl-{VERSION}: ERROR: no matching distribution\. Needed: pip"
    ):
        install(VERSION)
    assert installed(VERSION) is None
    assert not any("nixl" in path.name for path in cache_folder().iterdir())
    installer.works = lambda _command: True
    assert install(VERSION).version == VERSION


def test_a_wheel_that_brings_half_is_not_left_behind_either(installer):
    installer.skip = ("libfabric.so.1",)
    with pytest.raises(BuildError, match=r"libfabric\.so\.1 is missing in .*; remove that folder"):
        install(VERSION)
    assert not any("nixl" in path.name for path in cache_folder().iterdir())


def test_where_pip_cannot_uv_does_it(installer, monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/bin/{name}")
    installer.works = lambda command: True if command[0] == "/bin/uv" else "No module named pip"
    install(VERSION)
    assert [command[0] for command in installer.commands] == [sys.executable, "/bin/uv"] * 2
    uv = installer.commands[1]
    assert uv[uv.index("--python") + 1] == sys.executable
    assert "--require-hashes" in uv


def test_an_installer_that_never_ends_is_given_up_and_the_next_one_asked(installer, monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/bin/{name}")
    installer.timeouts = (sys.executable,)
    assert install(VERSION).version == VERSION
    installer.timeouts = (sys.executable, "/bin/uv")
    with pytest.raises(BuildError, match="no end after 900 s"):
        install("1.4.1")


def test_a_failure_without_words_gives_its_exit_code(installer):
    installer.works = lambda _command: ""
    with pytest.raises(BuildError, match="exit code 1"):
        install(VERSION)


def test_a_version_nobody_published_is_refused_with_those_there_are(installer):
    with pytest.raises(BuildError, match=r"NIXL 9\.9\.9 is not a published build .*1\.5\.0"):
        install("9.9.9")
    assert installer.commands == []


def test_a_folder_that_is_damaged_is_made_anew(installer):
    build = install(VERSION)
    description = Path(build.folder) / "kvgauge-build.json"
    description.write_text("{")
    assert installed(VERSION) is None
    assert install(VERSION) == build


def test_a_cache_that_cannot_be_written_says_which_variable_moves_it(installer, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BuildError, match="Set XDG_CACHE_HOME to a writable folder"):
        install(VERSION)


def test_builds_of_another_python_or_machine_are_not_taken(installer, monkeypatch):
    install(VERSION)
    monkeypatch.setattr(module.platform, "machine", lambda: "aarch64")
    assert installed(VERSION) is None


def test_a_machine_without_a_stand_in_for_libcuda_is_told_where_wheels_exist(installer, monkeypatch):
    monkeypatch.setattr(module.platform, "machine", lambda: "riscv64")
    with pytest.raises(BuildError, match=r"riscv64.*NIXL wheels exist for x86_64 and aarch64"):
        install(VERSION)


def test_without_xdg_the_cache_is_in_the_users_home(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "kvgauge" / "builds"


def test_a_release_whose_plugin_was_swapped_is_refused_and_says_how_to_name_a_patched_one(tmp_path, monkeypatch):
    plugins = tmp_path / ".m.mesonpy.libs" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "libplugin_UCX.so").write_bytes(b"stock")
    build = Build(
        name="1.5.0", version="1.5.0", folder=str(tmp_path), module="m", preload=(), libcuda="",
        sha256=module.identity.hashes(tmp_path, "m", None),
    )  # fmt: skip
    monkeypatch.setattr(module, "installed", lambda _version: build)
    assert module.install("1.5.0") == build
    (plugins / "libplugin_UCX.so").write_bytes(b"patched")
    with pytest.raises(BuildError, match=r"plugin_ucx of NIXL 1\.5\.0 .* changed .* build: \{plugin_dir: DIR"):
        module.install("1.5.0")

"""`kvgauge builds` as it is typed, with an empty cache and without NIXL."""

import json

import pytest

from kvgauge.builds import install as install_module
from kvgauge.builds import selftest
from kvgauge.builds.install import place, write_description
from kvgauge.builds.pins import known_versions
from kvgauge.builds.records import Build
from kvgauge.builds.verdicts import Verdict, keep
from kvgauge.cli.main import main


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(install_module, "_refuse_changed", lambda _build: None)  # builds here are descriptions only


def installed(version="1.5.0"):
    folder = place(f"nixl-{version}")
    folder.mkdir(parents=True)
    sha256 = {role: role[0] * 64 for role in ("plugin_ucx", "plugin_libfabric", "libnixl", "ucx", "libfabric")}
    build = Build(name=version, version=version, folder=str(folder), module="m", preload=(), libcuda="", sha256=sha256)
    write_description(folder, build)
    return build


def make_verdict(backend, operation, outcome="works", detail=""):
    return Verdict(
        backend=backend, operation=operation, outcome=outcome, detail=detail, trials=(), plugin=None, libfabric=None,
        took_s=1.0, timeout_s=20.0, tested_at="2026-11-24T10:00:00+00:00",
    )  # fmt: skip


def test_the_list_has_every_published_version_in_order(capsys):
    assert main(["builds"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:]] == list(known_versions())
    assert all(line.split()[1] == "-" for line in lines[3:])


def test_an_installed_build_is_listed_with_its_hash_and_verdicts(capsys):
    build = installed()
    keep(build, make_verdict("UCX", "READ"))
    keep(build, make_verdict("UCX", "WRITE"))
    keep(build, make_verdict("LIBFABRIC", "READ", "hangs"))
    main(["builds"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("1.5.0")]
    assert line.split()[:4] == ["1.5.0", "installed", "p" * 12, "works"]
    assert "READ hangs, WRITE not tested" in line


def test_hash_prints_every_role_and_the_identity_of_all(capsys):
    build = installed()
    assert main(["builds", "hash", "1.5.0"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"build 1.5.0: NIXL 1.5.0, {build.identity}\n")
    assert [line.split()[0] for line in out.splitlines()[1:]] == sorted(build.sha256)


@pytest.mark.parametrize(("outcome", "code"), [("works", 0), ("wrong data", 1), ("hangs", 1)])
def test_the_exit_code_says_whether_everything_works(monkeypatch, capsys, outcome, code):
    installed()
    monkeypatch.setattr(
        selftest, "try_case", lambda _b, backend, op, _i, **_k: make_verdict(backend, op, outcome, "why")
    )
    assert main(["builds", "test", "1.5.0"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0] == f"NIXL 1.5.0    UCX       READ  {outcome}: why (1.0 s)"


def test_json_goes_to_standard_output_alone_and_one_backend_can_be_chosen(monkeypatch, capsys):
    installed()
    limits = []

    def try_case(_build, backend, operation, _interface, *, timeout_s):
        limits.append(timeout_s)
        return make_verdict(backend, operation)

    monkeypatch.setattr(selftest, "try_case", try_case)
    assert main(["builds", "test", "1.5.0", "--backend", "LIBFABRIC", "--timeout", "7", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(v["backend"], v["operation"]) for v in found["1.5.0"]] == [("LIBFABRIC", "READ"), ("LIBFABRIC", "WRITE")]
    assert limits == [7.0, 7.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["test"], "name a version, a wheel file"),
        (["hash"], "name a version, a wheel file"),
        (["test", "1.5.0", "--timeout", "0"], "--timeout must be above 0 s"),
        (["hash", "--plugin-dir", "/p"], "--plugin-dir and --core go together"),
        (["hash", "--core", "1.5.0"], "--plugin-dir and --core go together"),
        (["install"], "name a version, or say --reference"),
    ],
)
def test_a_command_line_that_cannot_be_meant_ends_with_2(arguments, message, capsys):
    assert main(["builds", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"), [("9.9.9", "not a published build"), ("nowhere.whl", "there is no wheel nowhere.whl")]
)
def test_a_build_that_is_not_there_ends_with_3(name, message, capsys):
    assert main(["builds", "hash", name]) == 3
    assert message in capsys.readouterr().err


def test_all_means_every_published_version(monkeypatch, capsys):
    asked = []

    def installing(version, _say=None):
        asked.append(version)
        return Build(name=version, version=version, folder="", module="m", preload=(), libcuda="", sha256={})

    monkeypatch.setattr("kvgauge.builds.own.install", installing)
    monkeypatch.setattr(selftest, "try_case", lambda _b, backend, op, _i, **_k: make_verdict(backend, op))
    monkeypatch.setattr(install_module, "installed", lambda _version: None)
    assert main(["builds", "test", "--all"]) == 0
    assert asked == list(known_versions())
    assert len(capsys.readouterr().out.splitlines()) == 4 * len(asked)

"""The commands called as functions: exit codes, one line for a mistake, and what each hands to the rest of kvgauge."""

import json
import signal
import sys
from pathlib import Path

import pytest

import kvgauge.builds.install
import kvgauge.builds.own
import kvgauge.conduct
import kvgauge.target.embedded
from kvgauge import __version__, resume
from kvgauge.builds import pins
from kvgauge.builds.records import Build
from kvgauge.cli import plan as plan_command
from kvgauge.cli import report as report_command
from kvgauge.cli.main import main
from kvgauge.failures import BuildError, PlanError, TargetError
from kvgauge.plan.expand import expand
from kvgauge.report import results as results_files
from kvgauge.target.contract import Endpoint
from scene import make_test

PLAN = """
name: two backends
repetitions: 1
primary: {metric: ttft_ms_mean, cell: p}
defaults: {fabric: tcp, model: Qwen3-0.6B, tp: 1, patches: none, build: 1.5.0}
tests:
  - {name: UCX, backend: UCX}
  - {name: LIBFABRIC, backend: LIBFABRIC, build: 1.4.1}
cells:
  - {name: p, load: closed, concurrency: 1, input_tokens: 64, output_tokens: 2, requests: 2, warmup_requests: 1}
"""


@pytest.fixture(autouse=True)
def as_it_was(tmp_path, monkeypatch):
    """Each test in a folder of its own; signal handlers are put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


def a_build(version):
    return Build(
        name=version, version=version, folder=f"/builds/{version}", module="m", preload=(), libcuda="",
        sha256={"plugin_libfabric": "abcdef0123456789"},
    )  # fmt: skip


@pytest.fixture
def builds(monkeypatch):
    """Versions that were asked for; nothing is installed."""
    asked = []

    def fake(version, _say=None):
        asked.append(version)
        if version not in pins.known_versions():
            raise BuildError(f"NIXL {version} is not a published build kvgauge knows")
        return a_build(version)

    monkeypatch.setattr(kvgauge.builds.install, "install", fake)
    monkeypatch.setattr(kvgauge.builds.own, "install", fake)
    return asked


@pytest.fixture
def plan_path(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


def one_line(capsys):
    _, err = capsys.readouterr()
    assert len(err.splitlines()) == 1, err
    assert "Traceback" not in err
    return err


# -- main


def raising(monkeypatch, error):
    def fail(_args):
        raise error

    monkeypatch.setattr(plan_command, "run", fail)


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"kvgauge {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["run", "--no-such-flag"], ["serve", "--port", "x"]])
def test_usage_errors_are_exit_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: kvgauge" in capsys.readouterr().err


def test_help_names_every_command_and_exit_code(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("run", "plan", "serve", "report", "builds", "130 interrupted"))


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (PlanError("no cells", source="p.yaml", line=3), 2, "kvgauge: p.yaml:3: no cells"),
        (TargetError("decode-0 died"), 3, "kvgauge: decode-0 died"),
        (PermissionError(13, "Permission denied", "/etc/x"), 3, "kvgauge: Permission denied: /etc/x"),
        (OSError("something odd"), 3, "kvgauge: something odd"),
        (KeyboardInterrupt(), 130, "kvgauge: interrupted"),
    ],
)
def test_what_goes_wrong_is_one_line_and_its_exit_code(monkeypatch, capsys, error, code, said):
    raising(monkeypatch, error)
    assert main(["plan"]) == code
    assert one_line(capsys) == said + "\n"


def test_a_mistake_of_our_own_is_one_line_that_names_the_file_with_the_traceback(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    raising(monkeypatch, ZeroDivisionError("division by zero"))
    assert main(["plan"]) == 3
    line = one_line(capsys)
    assert line.startswith("kvgauge: a mistake of kvgauge's own: ZeroDivisionError: division by zero (please report it")
    (kept,) = tmp_path.glob("kvgauge-*.txt")
    assert str(kept) in line
    assert "Traceback" in kept.read_text()
    assert "raise error" in kept.read_text()


def test_a_reader_that_leaves_is_no_error(monkeypatch, capsys):
    raising(monkeypatch, BrokenPipeError())
    assert main(["plan"]) == 0
    assert capsys.readouterr().err == ""


# -- plan, report, builds


def test_plan_shows_a_plan_and_refuses_one_that_cannot_be_run(capsys, plan_path, tmp_path):
    assert main(["plan", str(plan_path)]) == 0
    shown = capsys.readouterr().out
    assert "2 tests x 1 repetitions = 2 runs of 1 cells" in shown
    plan_path.write_text(PLAN.replace("backend: UCX}", "backend: UCK}"))
    assert main(["plan", str(plan_path)]) == 2
    assert "plan.yaml:" in one_line(capsys)
    assert main(["plan", str(tmp_path / "none.yaml")]) == 2
    assert "No such file" in one_line(capsys)


def test_the_published_results_can_be_printed_as_tables_json_and_csv(capsys):
    assert main(["report", "--reference"]) == 0
    assert "0.8.0" in capsys.readouterr().out
    assert main(["report", "--reference", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert main(["report", "--reference", "--csv"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) > len(results["tests"])


def test_a_folder_that_holds_no_results_is_named(capsys):
    assert main(["report", "nowhere"]) == 3
    assert "nowhere" in one_line(capsys)
    assert main(["report"]) == 3
    assert str(report_command.LATEST) in one_line(capsys)


def test_one_set_of_results_can_be_printed_as_json_at_a_time(capsys, plan_path):
    from kvgauge.plan import load_plan

    plan = load_plan(plan_path, quick=False, tests=[])
    Path("run").mkdir()
    results_files.write(results_files.build(plan, {}, {}, expand(plan)), Path("run"))
    assert main(["report", "run"]) == 0
    assert "two backends" in capsys.readouterr().out
    assert main(["report", "run", "--reference"]) == 0
    both = capsys.readouterr().out
    assert "two backends" in both
    assert "0.8.0" in both
    assert main(["report", "run", "--reference", "--json"]) == 2
    assert "not both" in one_line(capsys)


def test_builds_lists_every_published_version_with_its_state(capsys, monkeypatch):
    monkeypatch.setattr(kvgauge.builds.install, "installed", lambda v: a_build(v) if v == "1.4.1" else None)
    assert main(["builds"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for version in pins.known_versions():
        (line,) = [line for line in lines if version in line.split()[:2]]
        assert ("installed" in line) is (version == "1.4.1")
        assert ("abcdef012345" in line) is (version == "1.4.1")


def test_builds_install_installs_each_version_once_and_says_where(capsys, builds):
    assert main(["builds", "install", "1.5.0", "1.4.1", "1.5.0"]) == 0
    assert builds == ["1.5.0", "1.4.1"]
    assert "NIXL 1.5.0: /builds/1.5.0" in capsys.readouterr().out


def test_builds_install_quietly_installs_what_the_reference_plan_needs(capsys, builds):
    assert main(["builds", "install", "--reference", "--quiet"]) == 0
    assert len(builds) == len(set(builds)) >= 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("arguments", "code", "word"), [([], 2, "name a version"), (["9.9.9"], 3, "9.9.9")])
def test_builds_install_says_what_it_needs(capsys, builds, arguments, code, word):
    assert main(["builds", "install", *arguments]) == code
    assert word in one_line(capsys)


# -- run


class FakeConductor:
    """Conducts nothing: every run stays pending. `interrupt`: raise that signal meanwhile."""

    made, code, interrupt = None, 0, None

    def __init__(self, plan, folder, target_for, **more):
        type(self).made = self
        self.plan, self.folder, self.target_for, self.more = plan, folder, target_for, more

    def conduct(self):
        if self.interrupt is not None:
            assert not self.more["stop"]()
            signal.raise_signal(self.interrupt)
            assert self.more["stop"]()
        self.folder.mkdir(parents=True, exist_ok=True)
        results = results_files.build(self.plan, {}, {}, expand(self.plan))
        results_files.write(results, self.folder)
        return results

    def exit_code(self):
        return 130 if self.more["stop"]() else self.code


@pytest.fixture
def conductor(monkeypatch, builds):
    kind = type("Conducts", (FakeConductor,), {})
    monkeypatch.setattr(kvgauge.conduct, "Conductor", kind)
    return kind


def test_run_installs_each_build_once_conducts_into_a_new_folder_and_prints_it(capsys, conductor, builds, plan_path):
    assert main(["run", str(plan_path), "--request-timeout", "7"]) == 0
    out, err = capsys.readouterr()
    assert builds == ["1.5.0", "1.4.1"]
    made = conductor.made
    assert made.more["request_timeout_s"] == 7.0
    assert made.folder.parent.name == "kvgauge-runs"
    assert made.folder.name.endswith("-two-backends")
    assert Path("kvgauge-runs/latest").resolve() == made.folder.resolve()
    assert f"results: {made.folder}/results.json" in err.replace("\n", "")
    assert "two backends" in out
    target = made.target_for(Path("logs"), make_test(name="UCX"))
    assert isinstance(target, kvgauge.target.embedded.EmbeddedTarget)


@pytest.mark.parametrize("code", [0, 1, 3])
def test_runs_exit_code_is_the_conductors(capsys, conductor, plan_path, code):
    conductor.code = code
    assert main(["run", str(plan_path)]) == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_under_way_and_keeps_its_results(capsys, conductor, plan_path, number):
    conductor.interrupt = number
    assert main(["run", str(plan_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a second Ctrl-C does not wait
    assert (conductor.made.folder / "results.json").exists()


def test_a_dry_run_prints_the_plan_and_makes_nothing(capsys, conductor, builds, plan_path):
    assert main(["run", str(plan_path), "--dry-run", "--test", "UCX"]) == 0
    shown = capsys.readouterr().out
    assert "r1-ucx" in shown
    assert "r1-libfabric" not in shown
    assert (conductor.made, builds) == (None, [])
    assert not Path("kvgauge-runs").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--request-timeout", "0"], 2, "time-outs must be above 0 s"),
        (["--transfer-timeout", "-1"], 2, "time-outs must be above 0 s"),
        (["--out", "."], 2, "exists already"),
        (["--out", "plan.yaml/below"], 2, "cannot make plan.yaml/below"),
        (["--model", "m"], 2, "--model goes with --url"),
        (["--url", "http://127.0.0.1:9"], 2, "--test NAME (UCX, LIBFABRIC)"),
        (["--url", "ftp://host", "--test", "UCX"], 3, "not an http URL"),
        (["--test", "UCK"], 2, "UCX"),
    ],
)
def test_what_cannot_be_run_says_what_to_change_and_starts_nothing(capsys, conductor, plan_path, arguments, code, word):
    assert main(["run", "plan.yaml", *arguments]) == code
    assert word in one_line(capsys)
    assert conductor.made is None


def test_a_build_that_cannot_be_installed_ends_the_command_before_a_folder_is_made(
    capsys, conductor, plan_path, monkeypatch
):
    def fail(_version, _say):
        raise BuildError("cannot install nixl-1.5.0: no index")

    monkeypatch.setattr(kvgauge.builds.own, "install", fail)
    assert main(["run", str(plan_path)]) == 3
    assert one_line(capsys) == "kvgauge: cannot install nixl-1.5.0: no index\n"
    assert not Path("kvgauge-runs").exists()


def test_a_run_that_was_cut_off_goes_on_in_its_folder_with_its_plan(capsys, conductor, plan_path):
    conductor.interrupt = signal.SIGINT
    real = FakeConductor.conduct

    def begin(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        resume.write_start(self.folder, self.plan, self.more["conditions"])
        return real(self)

    conductor.conduct = begin
    assert main(["run", str(plan_path), "--out", "here"]) == 130
    assert "kvgauge run --resume here" in capsys.readouterr().err
    conductor.interrupt = None
    plan_path.unlink()
    assert main(["run", "--resume", "here"]) == 0
    assert conductor.made.folder == Path("here")
    assert conductor.made.plan.name == "two backends"
    capsys.readouterr()
    conductor.made = None
    for more, word in ((["--out", "there"], "leave --out"), (["--quick"], "the plan changed")):
        assert main(["run", "--resume", "here", *more]) == 2
        assert word in one_line(capsys)
    assert main(["run", "--resume", "nowhere"]) == 2
    assert "cannot be resumed" in one_line(capsys)
    assert conductor.made is None


def test_a_url_is_measured_without_installing_anything(capsys, conductor, builds, plan_path):
    from kvgauge.target.url import UrlTarget

    assert main(["run", str(plan_path), "--test", "UCX", "--url", "http://127.0.0.1:9", "--out", "here"]) == 0
    assert builds == []
    assert conductor.made.folder == Path("here")
    assert not Path("kvgauge-runs").exists()
    assert isinstance(conductor.made.target_for(Path("logs"), make_test(name="UCX")), UrlTarget)


# -- serve


class FakeStack:
    """The embedded target as `serve` uses it."""

    last, dies = None, None

    def __init__(self, logs, find_build, options):
        type(self).last = self
        self.logs, self.find_build, self.options = logs, find_build, options
        self.notes, self.looked, self.calls = ["KV pools cut"], 0, []

    def prepare(self, test):
        self.calls.append("prepare")
        self.test = test

    def start(self, run):
        self.calls.append("start")
        (self.cell,) = run.cells
        return Endpoint(url="http://127.0.0.1:8000", model=self.test.model, fresh=True, same_clock=True)

    def phases(self):
        self.looked += 1
        if self.looked == 2:
            signal.raise_signal(signal.SIGTERM)
        return []

    def trouble(self):
        return self.dies

    def stop(self):
        self.calls.append("stop")


@pytest.fixture
def served(monkeypatch):
    kind = type("Serves", (FakeStack,), {})
    monkeypatch.setattr(kvgauge.target.embedded, "EmbeddedTarget", kind)
    return kind


def test_serve_says_where_it_is_and_ends_everything_on_a_signal(capsys, served):
    assert main(["serve", "--prefill-tp", "2", "--decode-tp", "4", "--context", "400", "--log-folder", "logs"]) == 0
    out, _ = capsys.readouterr()
    stack = served.last
    assert stack.calls == ["prepare", "start", "stop"]
    assert "Qwen3-0.6B (UCX over tcp, NIXL 1.5.0) at http://127.0.0.1:8000/v1" in out
    assert "note: KV pools cut" in out
    assert (stack.test.prefill_tp, stack.test.decode_tp) == (2, 4)
    assert stack.cell.input_tokens + stack.cell.output_tokens == stack.options.context_tokens == 400


def test_serve_without_kv_says_so_and_needs_no_build(capsys, served):
    assert main(["serve", "--no-kv", "--compute", "0", "--host", "::1", "--port", "0"]) == 0
    assert "Qwen3-0.6B (no KV transfer)" in capsys.readouterr().out
    options = served.last.options
    assert (options.kv, options.compute, options.host, options.port) == (False, 0.0, "::1", 0)


def test_serve_ends_with_the_reason_when_a_worker_dies(capsys, served):
    served.dies = "decode-0 was killed by signal 9"
    assert main(["serve"]) == 3
    assert capsys.readouterr().err.splitlines()[-1] == "kvgauge: decode-0 was killed by signal 9"
    assert served.last.calls[-1] == "stop"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--model", "Qwen3-0.7B"], "Qwen3-0.6B"),
        (["--gpu", "H101"], "H100"),
        (["--kv-dtype", "bf1"], "bf16"),
        (["--tp", "3"], "3 ranks"),
        (["--concurrency", "0"], "at least 1"),
        (["--context", "1"], "context at least 2"),
        (["--compute", "-1"], "compute at least 0"),
    ],
)
def test_serve_refuses_what_it_cannot_start_with_the_nearest_thing_it_can(capsys, served, arguments, word):
    assert main(["serve", *arguments]) == 2
    assert word in one_line(capsys)
    assert served.last is None


def test_the_module_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kvgauge", "report", "nowhere"])
    import runpy

    with pytest.raises(SystemExit) as caught:
        runpy.run_module("kvgauge", run_name="__main__")
    assert caught.value.code == 3
    assert "nowhere" in capsys.readouterr().err

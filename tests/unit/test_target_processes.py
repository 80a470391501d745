"""Children that are started, watched and ended; each is a small Python program of the test's."""

import itertools
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvgauge.failures import TargetError
from kvgauge.target import processes as module
from kvgauge.target.processes import Process, check_alive, end

PROGRAMS = {
    "echoes": "import sys; print('got', sys.stdin.read()); sys.exit(3)",
    "waits": "import sys, time; print('up', file=sys.stderr, flush=True); time.sleep(60)",
    "stays": "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(60)",
    "talks": "print('\\n'.join(f'line {i}' for i in range(9)))",
    "silent": "import os; os._exit(1)",
    "tells": "import os, sys; print(sorted(os.environ), os.getsid(0) == os.getpid())",
}
LATEST_S = 10.0  # only a broken machine takes this long


@pytest.fixture
def started(tmp_path):
    made = []

    def start(program, spec=b"", environment=None):
        name = f"kvgauge_child_{program}"
        (tmp_path / f"{name}.py").write_text(PROGRAMS[program])
        environment = {"PYTHONPATH": str(tmp_path)} | (environment or {})
        made.append(Process(program, name, spec, environment, tmp_path / f"{program}.log"))
        return made[-1]

    yield start
    for process in made:
        if process.ended() is None:
            process.kill()


def over(process):
    assert process.wait(time.monotonic() + LATEST_S)
    return process


def up(process):
    until = time.monotonic() + LATEST_S
    while "up" not in process.log() and time.monotonic() < until:
        time.sleep(0.01)
    return process


def test_a_child_gets_its_spec_and_its_end_is_told_with_its_last_lines(started):
    process = over(started("echoes", b"a spec"))
    assert process.ended() == "echoes ended with exit code 3; its last lines: got a spec"


def test_what_it_wrote_to_either_stream_is_in_its_log(started):
    process = up(started("waits"))
    assert process.log() == "up\n"
    assert process.ended() is None
    assert os.getsid(process.pid) == process.pid  # a Ctrl-C on the terminal is not its


def test_only_the_last_lines_are_quoted(started):
    how = over(started("talks")).ended()
    assert how.endswith("its last lines: line 4 | line 5 | line 6 | line 7 | line 8")


def test_one_that_said_nothing_is_said_to_have_said_nothing(started):
    assert over(started("silent", b"x" * (1 << 20))).ended() == "silent ended with exit code 1; its last lines: (none)"


def test_a_killed_child_is_told_by_its_signal(started):
    process = up(started("waits"))
    os.kill(process.pid, signal.SIGKILL)
    assert over(process).ended().startswith("waits was killed by signal 9")


def test_it_inherits_the_variables_it_is_given_and_no_others(started, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_SHELL", "x")
    log = over(started("tells", environment={"GIVEN": "1"})).log()
    assert "'GIVEN'" in log
    assert "SECRET_OF_THE_SHELL" not in log
    assert "True" in log


def test_waiting_ends_at_its_time(started):
    process = up(started("waits"))
    began = time.monotonic()
    assert process.wait(began + 0.05) is False
    assert time.monotonic() - began < LATEST_S


def test_all_are_asked_to_stop_and_one_that_does_not_is_killed_when_its_time_is_over(started, monkeypatch):
    gone, stays, waits = over(started("talks")), up(started("stays")), up(started("waits"))

    def ask():
        os.kill(stays.pid, signal.SIGTERM)
        os.kill(waits.pid, signal.SIGTERM)
        over(waits)
        moments = itertools.count(
            0.0, module.STOP_WAIT_S
        )  # from here on, every look at the clock is a wait's length later
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(moments)))

    end([gone, stays, waits], ask)
    assert "signal 9" in stays.ended()
    assert "signal 15" in waits.ended()
    assert gone.ended().startswith("talks ended with exit code 0")
    assert not any(Path(f"/proc/{process.pid}").exists() for process in (gone, stays, waits))


def test_the_first_that_ended_is_named(started):
    running, ended = up(started("waits")), over(started("echoes"))
    check_alive([running])
    with pytest.raises(TargetError, match=r"^echoes ended with exit code 3"):
        check_alive([running, ended])

"""`kvgauge doctor`: what it prints, its JSON and its exit codes."""

import io
import json

import pytest
from rich.console import Console

from kvgauge.cli import doctor
from kvgauge.cli.main import main
from kvgauge.doctor import examine as looking
from kvgauge.doctor.records import Examination, Facts, Finding, NotLooked

OK = Finding(key="a.ok", level="ok", area="memory", seen="plenty of memory", source="/proc/meminfo")
BAD = Finding(key="a.bad", level="problem", area="limits", seen="ulimit -l: 64 KiB", needed="unlimited", remedy="ulimit -l unlimited",
              source="/proc/self/limits")  # fmt: skip
NOTE = Finding(
    key="a.note", level="note", area="gpu", seen="no [red]GPU[/red]\x1b[2J", needed="one", remedy="none", source="/dev"
)


def an_examination(*findings, not_looked=()):
    return Examination(looked_for="this machine", findings=findings, not_looked=not_looked)


def shown(examination, width=80):
    out = io.StringIO()
    doctor.show(examination, Console(file=out, width=width, highlight=False))
    return out.getvalue()


@pytest.fixture
def examined(monkeypatch):
    """Let the command find this, and keep what it was asked."""
    asked = []

    def give(examination):
        monkeypatch.setattr(
            looking, "examine", lambda plan, sites: asked.append((plan, sites)) or (examination, Facts())
        )
        return asked

    return give


@pytest.mark.parametrize(
    ("examination", "code", "words"),
    [
        (an_examination(OK, NOTE), 0, "nothing here would go wrong; 1 note, 1 ok (exit code 0)"),
        (an_examination(BAD, OK), 1, "1 problem; 1 ok (exit code 1)"),
        (
            an_examination(OK, not_looked=(NotLooked(what="memory", why="gone", needed=True),)),
            3,
            "could not be looked at",
        ),
        (an_examination(OK, not_looked=(NotLooked(what="governor", why="hidden"),)), 0, "nothing here would go wrong"),
        (an_examination(BAD, not_looked=(NotLooked(what="memory", why="gone", needed=True),)), 1, "1 problem"),
    ],
)
def test_the_exit_code_says_what_the_last_line_says(examined, capsys, examination, code, words):
    examined(examination)
    assert main(["doctor"]) == code
    assert words in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("width", [60, 80, 140])
def test_no_line_is_wider_than_the_terminal_and_what_is_to_do_stands_below_what_was_seen(width):
    text = shown(an_examination(BAD, NOTE, OK), width)
    assert max(map(len, text.splitlines())) <= width
    lines = [line.strip() for line in text.splitlines()]
    at = next(i for i, line in enumerate(lines) if "ulimit -l: 64 KiB" in line)
    assert lines[at + 1 : at + 4] == ["needed: unlimited", "do: ulimit -l unlimited", "[/proc/self/limits]"]
    assert text.index("problem: will go wrong") < text.index("note: worth knowing") < text.index("ok: looked at")


def test_markup_and_escapes_from_files_are_shown_as_they_are():
    text = shown(an_examination(NOTE))
    assert "[red]GPU[/red]" in text
    assert "\x1b" not in text


def test_json_holds_findings_what_was_not_looked_at_and_facts(examined, capsys):
    examined(an_examination(BAD, OK, not_looked=(NotLooked(what="x", why="y"),)))
    assert main(["doctor", "--json"]) == 1
    whole = json.loads(capsys.readouterr().out)
    assert {"schema", "kvgauge", "looked_for", "exit_code", "counts", "findings", "not_looked", "facts"} == set(whole)
    assert whole["schema"] == 1
    assert whole["counts"] == {"problem": 1, "warning": 0, "note": 0, "ok": 1}
    assert set(whole["findings"][0]) == {"key", "level", "area", "seen", "needed", "remedy", "source"}
    assert {"memory", "limits", "fabrics", "builds", "variables"} <= set(whole["facts"])


def test_a_plan_is_read_and_handed_on_with_the_test_that_is_meant(examined, tmp_path):
    asked = examined(an_examination(OK))
    assert main(["doctor", "--reference", "--test", "Baseline UCX", "--site", str(tmp_path)]) == 0
    [(plan, sites)] = asked
    assert [test.name for test in plan.tests] == ["Baseline UCX"]
    assert sites == [tmp_path]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--plan", "p.yaml", "--reference"], "two plans"),
        (["--test", "x"], "--plan or --reference"),
        (["--site", "/no/such"], "is no folder"),
        (["--plan", "/no/such.yaml"], "cannot be read"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_why(capsys, arguments, word):
    assert main(["doctor", *arguments]) == 2
    assert word in capsys.readouterr().err

"""Which network namespaces a command line may name, and what is said where they cannot be used."""

import subprocess

import pytest

from kvgauge.failures import TargetError, UsageError
from kvgauge.target import namespaces
from kvgauge.target.namespaces import first_outward_in, inside, read_namespaces

BOTH = ["prefill=a", "decode=b"]


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine that has ip, root and the namespaces a and b, but for what the test takes away."""

    def has(*names, ip="/sbin/ip", uid=0):
        for name in names:
            (tmp_path / name).touch()
        monkeypatch.setattr(namespaces, "FOLDER", tmp_path)
        monkeypatch.setattr(namespaces.shutil, "which", lambda _name, path: ip)
        monkeypatch.setattr(namespaces.os, "geteuid", lambda: uid)

    has("a", "b")
    return has


def test_both_sides_named_once_are_what_the_target_gets(machine):
    assert read_namespaces(BOTH) == {"prefill": "a", "decode": "b"}
    assert read_namespaces([]) == {}


@pytest.mark.parametrize("words", [["frontend=a"], ["prefill="], ["prefill"], ["prefill=a", "prefill=b"]])
def test_a_word_that_names_no_side_or_one_twice_is_refused(machine, words):
    with pytest.raises(UsageError, match="give prefill=NAME and decode=NAME, each once"):
        read_namespaces(words)


@pytest.mark.parametrize("words", [["prefill=a"], ["prefill=a", "decode=a"]])
def test_one_namespace_is_no_two_hosts(machine, words):
    with pytest.raises(UsageError, match="two hosts need two namespaces"):
        read_namespaces(words)


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ({"ip": None}, "apt-get install iproute2"),
        ({"uid": 1000}, "needs root"),
    ],
)
def test_what_the_machine_lacks_is_said_before_anything_starts(machine, lacks, said):
    machine(**lacks)
    with pytest.raises(UsageError, match=said):
        read_namespaces(BOTH)


def test_a_namespace_that_is_not_there_is_named(machine):
    with pytest.raises(UsageError, match="no network namespace c"):
        read_namespaces(["prefill=a", "decode=c"])


def test_a_command_enters_its_namespace_through_ip_and_nothing_where_there_is_none(machine):
    assert inside("a") == ["/sbin/ip", "netns", "exec", "a"]
    assert inside(None) == []
    machine(ip=None)
    with pytest.raises(TargetError, match="iproute2"):
        inside("a")


@pytest.mark.parametrize(("printed", "chosen"), [("v0 10.99.0.1\n", ("v0", "10.99.0.1")), ("\n", None)])
def test_the_interface_is_chosen_inside_the_namespace(machine, monkeypatch, printed, chosen):
    asked = []

    def run(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, printed, "")

    monkeypatch.setattr(namespaces.subprocess, "run", run)
    monkeypatch.setattr(namespaces, "SETTLE_S", 0.0)
    assert first_outward_in("a") == chosen
    assert asked[0][:4] == ["/sbin/ip", "netns", "exec", "a"]


def test_an_interface_that_is_not_connected_yet_is_waited_for(machine, monkeypatch):
    printed = iter(["\n", "\n", "v0 10.99.0.1\n"])
    monkeypatch.setattr(
        namespaces.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, next(printed), "")
    )
    assert first_outward_in("a") == ("v0", "10.99.0.1")


def test_a_namespace_that_cannot_be_entered_is_one_clear_error(machine, monkeypatch):
    def run(command, **_):
        raise subprocess.CalledProcessError(1, command, "", 'Cannot open network namespace "a"')

    monkeypatch.setattr(namespaces.subprocess, "run", run)
    with pytest.raises(TargetError, match='network namespace a: Cannot open network namespace "a"'):
        first_outward_in("a")


def test_a_look_into_a_namespace_does_not_take_for_ever(machine, monkeypatch):
    def run(command, **_):
        raise subprocess.TimeoutExpired(command, 20)

    monkeypatch.setattr(namespaces.subprocess, "run", run)
    with pytest.raises(TargetError, match="within 20 s"):
        first_outward_in("a")

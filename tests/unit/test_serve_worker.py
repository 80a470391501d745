"""A worker's loop and process: when it sleeps, that it serves, reports and stops, and what it says when it dies."""

import io
import os
import signal
import threading
from types import SimpleNamespace

import msgspec
import pytest
import zmq

import kvgauge.parent
from kvgauge.builds.records import Build
from kvgauge.failures import BuildError
from kvgauge.kv import libraries
from kvgauge.serve import messages, worker
from kvgauge.serve.messages import (
    Ask,
    Beat,
    Died,
    Peers,
    Prefill,
    Prefilled,
    Ready,
    Report,
    Stop,
    ToFrontend,
    ToParent,
    encode,
)

WAIT_MS = 5_000  # only a broken worker takes this long
BUILD = Build(name="b", version="1.5.0", folder="/b", module="m", preload=(), libcuda="", sha256={})


class ScriptedRole:
    """Says in turn when it wants to be called again; keeps what it was told."""

    def __init__(self, dues=(None,)):
        self.dues, self.turns, self.got, self.peers = list(dues), 0, [], None

    def on_message(self, raw):
        self.got.append(raw)

    def on_peers(self, peers):
        self.peers = peers

    def turn(self, now_ns):
        self.turns += 1
        due = self.dues.pop(0) if len(self.dues) > 1 else self.dues[0]
        return due(now_ns) if callable(due) else due

    def report(self):
        return Report([], {"UCX": 2}, 3, 4, 5, 0, 0)


class FakeSocket:
    def __init__(self, *waiting):
        self.waiting = list(waiting)

    def recv(self, flags=0):
        if not self.waiting:
            assert flags == zmq.NOBLOCK
            raise zmq.Again
        return self.waiting.pop(0)


class FakeSockets:
    """Control and inbox with what waits there; stops the loop when nothing is left."""

    def __init__(self, control=(), inbox=()):
        self.control = FakeSocket(*map(encode, control), encode(Stop()))
        self.inbox, self.poller = FakeSocket(*inbox), self
        self.waits, self.told, self.beats = [], [], 0

    def beat(self):
        self.beats += 1

    def poll(self, wait_ms):
        self.waits.append(wait_ms)
        if self.inbox.waiting:
            return [(self.inbox, zmq.POLLIN)]
        return [(self.control, zmq.POLLIN)]

    def tell_parent(self, message):
        self.told.append(message)


def test_messages_are_handed_over_in_order_before_the_parents_word_to_stop():
    role, sockets = ScriptedRole(), FakeSockets(inbox=[b"1", b"2", b"3"])
    worker.loop(role, sockets)
    assert role.got == [b"1", b"2", b"3"]


def test_peers_are_passed_on_and_a_question_is_answered_with_a_report():
    role, sockets = ScriptedRole(), FakeSockets(control=[Peers([]), Ask()])
    worker.loop(role, sockets)
    assert role.peers == Peers([])
    assert sockets.told == [role.report()]


def test_a_flood_of_messages_is_interrupted_so_that_transfers_go_on():
    role, sockets = ScriptedRole(), FakeSockets(inbox=[b"x"] * 600)
    worker.loop(role, sockets)
    assert len(role.got) == 600
    assert role.turns >= 3


def test_with_nothing_due_it_sleeps_until_a_message_comes():
    role, sockets = ScriptedRole([None]), FakeSockets(control=[Ask()])
    worker.loop(role, sockets)
    assert sockets.waits == [worker.IDLE_MS] * 2
    assert role.turns == 1


def test_while_a_transfer_is_under_way_it_does_not_sleep_and_takes_several_turns_a_look():
    role, sockets = ScriptedRole([0]), FakeSockets(control=[Ask(), Ask()])
    worker.loop(role, sockets)
    assert sockets.waits[1:] == [0, 0]
    assert role.turns == 2 * worker.TURNS_A_LOOK


@pytest.mark.parametrize(
    ("left_ns", "sleeps_ms"), [(900_000_000, worker.IDLE_MS), (4_000_000, 3), (3_900_000, 3), (1_500_000, 1)]
)
def test_it_sleeps_in_whole_milliseconds_and_wakes_before_what_is_due(left_ns, sleeps_ms):
    role = ScriptedRole([lambda now_ns: now_ns + left_ns])
    assert worker._turns(role) == sleeps_ms
    assert sleeps_ms * 1_000_000 <= left_ns
    assert role.turns == 1


def test_shortly_before_what_is_due_it_does_not_sleep():
    role = ScriptedRole([lambda now_ns: now_ns + worker.SPIN_NS - 1])
    assert worker._turns(role) == 0


# -- the process, played in a thread


class Ended(BaseException):
    pass


class Parent:
    """The parent's and the frontend's ends of a worker's sockets, and the worker's main in a thread."""

    def __init__(self, spec, monkeypatch):
        self.context = zmq.Context()
        self.control = self._bound(zmq.ROUTER, spec.control)
        self.outbox = self._bound(zmq.PULL, spec.outbox)
        self.inbox = self.context.socket(zmq.PUSH)
        self.inbox.connect(spec.inbox)
        self.code, self.raised = [], None
        monkeypatch.setattr(worker, "die_with_parent", lambda _parent: None)
        monkeypatch.setattr(worker, "named_parent", lambda: None)
        monkeypatch.setattr(worker, "signal", SimpleNamespace(signal=lambda *_: None, SIGINT=2, SIG_IGN=None))
        stdin = SimpleNamespace(buffer=io.BytesIO(encode(spec)))
        monkeypatch.setattr(worker, "sys", SimpleNamespace(stdin=stdin, stderr=io.StringIO()))
        fake_os = SimpleNamespace(_exit=self._exit, getpid=os.getpid, sched_yield=os.sched_yield)
        monkeypatch.setattr(worker, "os", fake_os)
        self.thread = threading.Thread(target=self._main)
        self.thread.start()

    def _bound(self, kind, endpoint):
        made = self.context.socket(kind)
        made.setsockopt(zmq.RCVTIMEO, WAIT_MS)
        made.bind(endpoint)
        return made

    def _exit(self, code):
        self.code.append(code)
        raise Ended

    def _main(self):
        try:
            worker.main()
        except Ended:
            pass
        except BaseException as error:
            self.raised = error

    def hears(self):
        """What is said beside that it turns."""
        while True:
            self.identity, raw = self.control.recv_multipart()
            message = msgspec.msgpack.decode(raw, type=ToParent)
            if not isinstance(message, Beat):
                return message

    def says(self, message):
        self.control.send_multipart([self.identity, encode(message)])

    def frontend_hears(self):
        return msgspec.msgpack.decode(self.outbox.recv(), type=ToFrontend)

    def close(self):
        self.thread.join(5)
        self.context.destroy(linger=0)
        assert not self.thread.is_alive()


@pytest.fixture
def parent(worker_spec, tmp_path, monkeypatch):
    started = []

    def start(role="prefill", **changes):
        ends = {name: f"ipc://{tmp_path}/{name}" for name in ("control", "inbox", "outbox")}
        started.append(Parent(worker_spec(role, **ends, **changes), monkeypatch))
        return started[-1]

    yield start
    for it in started:
        it.close()


def test_a_worker_says_it_is_ready_serves_reports_and_ends_when_told(parent):
    it = parent()
    ready = it.hears()
    assert isinstance(ready, Ready)
    assert (it.identity, ready.pid, ready.info.index) == (b"prefill-0", os.getpid(), 0)
    it.inbox.send(encode(Prefill(5, 1, 40)))
    done = it.frontend_hears()
    assert isinstance(done, Prefilled)
    assert (done.key, len(done.blocks)) == (5, 3)
    it.says(Ask())
    report = it.hears()
    assert (report.steps, report.blocks_free, report.blocks_total) == (1, 16, 16)
    it.says(Stop())
    it.thread.join(5)
    assert it.code == [0]


def test_a_build_that_does_not_load_is_said_to_the_parent_in_one_line(parent, monkeypatch):
    monkeypatch.setattr(libraries, "load", lambda *_: (_ for _ in ()).throw(BuildError("NIXL 9 does not load")))
    it = parent("decode", backend="UCX", build=BUILD)
    assert it.hears() == Died("NIXL 9 does not load")
    assert it.identity == b"decode-0"
    it.thread.join(5)
    assert it.raised is None


def test_a_mistake_of_our_own_is_said_to_the_parent_and_raised_for_the_log(parent, monkeypatch):
    monkeypatch.setattr(libraries, "load", lambda *_: (_ for _ in ()).throw(KeyError("what")))
    it = parent("decode", backend="UCX", build=BUILD)
    assert it.hears() == Died("KeyError: 'what'")
    it.thread.join(5)
    assert isinstance(it.raised, KeyError)


@pytest.mark.parametrize(("parent_pid", "dies"), [(None, False), ("ours", False), ("another", True)])
def test_a_worker_whose_parent_is_gone_already_does_not_start(monkeypatch, parent_pid, dies):
    asked, codes = [], []
    fake = SimpleNamespace(prctl=lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(kvgauge.parent, "ctypes", SimpleNamespace(CDLL=lambda _name: fake))
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.delenv(messages.PARENT_VARIABLE, raising=False)
    if parent_pid is not None:
        monkeypatch.setenv(messages.PARENT_VARIABLE, str(os.getppid() + (parent_pid == "another")))
    worker.die_with_parent(worker.named_parent())
    assert asked == [(kvgauge.parent.PR_SET_PDEATHSIG, signal.SIGKILL)]
    assert codes == ([1] if dies else [])

import pytest

from kvgauge.failures import LoadError
from kvgauge.load.cell_work import CellWork
from kvgauge.load.drive import Driver
from kvgauge.load.offset import RealtimeOffset
from kvgauge.load.prompts import Bodies
from kvgauge.load.sessions import Sessions
from kvgauge.load.site import site_of
from kvgauge.load.work import Ended
from kvgauge.plan.records import Cell, Conversation
from scene import make_cell

CELL = Cell(name="c", load="closed", concurrency=4, requests=10, output_tokens=2, warmup_requests=0, prompt="Hello")
URL = "http://127.0.0.1:1"


def work_of(template, ticks=None, bodies=None):
    exchanges = []
    tick = None if ticks is None else lambda: ticks.append(1)
    work = CellWork(
        site_of(URL),
        "/v1/completions",
        bodies or Bodies(CELL, model="m", seed=1),
        template,
        on_exchange=exchanges.append,
        tick=tick,
        stop=lambda: False,
        slots=4,
        offset=RealtimeOffset(lambda: 0, lambda: 0),
    )
    work.begin(requests=10, warmup=False)
    return work, exchanges


@pytest.fixture
def template():
    with Driver(URL, "m", host="h") as driver:
        yield driver._asking.asked(CELL, "r")


def ended(seq, ended_ns=0, slot=0, cut="connect"):
    return Ended(
        slot=slot,
        seq=seq,
        due_ns=0,
        begun_ns=5,
        sent_ns=None,
        ended_ns=ended_ns,
        incoming=None,
        cut=cut,
        detail="refused",
    )


def test_answers_are_read_one_at_a_time_when_no_socket_is_ready(template):
    work, exchanges = work_of(template)
    for seq in range(3):
        work.over(ended(seq))
    assert work.idle(1, ready=False)
    assert len(exchanges) == 1
    assert work.idle(2, ready=False)
    assert [each.seq for each in exchanges] == [0, 1]


def test_while_sockets_do_not_rest_answers_are_read_one_at_a_time_but_do_not_pile_up(template):
    work, exchanges = work_of(template)
    for seq in range(3):
        work.over(ended(seq))
    work.idle(800_000_000, ready=True)
    assert [each.seq for each in exchanges] == [0]
    work.over(ended(3, ended_ns=900_000_000))
    work.over(ended(4, ended_ns=900_000_000))
    work.idle(950_000_000, ready=True)
    assert [each.seq for each in exchanges] == [0, 1, 2], "one has waited too long: as many as have ended since"


def test_ticks_come_ten_times_a_second_when_idle_and_once_a_second_when_not(template):
    ticks = []
    work, _ = work_of(template, ticks)
    for now_ns in range(10**12, 10**12 + 10**9, 10_000_000):
        work.idle(now_ns, ready=False)
    assert len(ticks) == 10
    ticks.clear()
    for now_ns in range(10**12 + 10**9, 10**12 + 4 * 10**9, 10_000_000):
        work.idle(now_ns, ready=True)
    assert 2 <= len(ticks) <= 4


def test_requests_are_built_ahead_when_idle_and_on_demand_otherwise(template):
    work, _ = work_of(template)
    assert len(work._built) == 4
    while work.idle(0, ready=False):
        pass
    assert len(work._built) == 8
    assert [work.next_request(0)[0] for _ in range(10)] == list(range(10))


def test_in_conversations_an_answer_is_read_at_once_and_handed_over_when_it_is_quiet(template):
    conversation = Conversation(turns=2)
    cell = make_cell(prompt_kind="text", conversation=conversation, sessions=9)
    work, exchanges = work_of(template, bodies=Sessions(cell, conversation, model="m", seed=1))
    assert work.next_request(3)[0] == 0
    assert work.skip() == 1
    work.over(ended(1, cut="unsent"))
    work.over(ended(0, slot=3))
    assert exchanges == []
    assert work.next_request(3)[0] == 2, "the first session failed: its slot takes the next but the one skipped"
    work.over(ended(2, slot=3))
    work.drain()
    found = [(each.seq, each.session, each.turn, each.failure) for each in exchanges]
    assert found == [(1, None, None, "unsent"), (0, 0, 1, "connect"), (2, 2, 1, "connect")]


def test_timeouts_must_be_positive():
    with pytest.raises(LoadError, match="above 0"):
        Driver(URL, "m", host="h", request_timeout_s=0)

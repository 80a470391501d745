"""Conversations: what each turn says, when it is due, and what ends a session. On a clock that the test moves."""

import heapq
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.load.arrivals import Closed, ClosedLoop, InSessions, arrivals_of
from kvgauge.load.open import OpenLoad
from kvgauge.load.sessions import Sessions
from kvgauge.plan.conversation import turns_most
from kvgauge.plan.dataset import parse, summary
from kvgauge.plan.records import Conversation
from kvgauge.samples.records import Exchange
from scene import make_cell

MS = 1_000_000
THREE = Conversation(turns=3)


def sessions_of(conversation=THREE, *, expect=4, context_tokens=None, requests=(), warmup=False, seed=1, **changes):
    changes = {"input_tokens": 20, "prompt_kind": "text", "api": "chat", **changes}
    cell = make_cell(conversation=conversation, sessions=expect, **changes)
    made = Sessions(cell, conversation, model="m", seed=seed, requests=requests, context_tokens=context_tokens)
    made.expect(expect, warmup=warmup)
    return made


def answered(tokens_in=20, tokens_out=8, failure=None):
    return Exchange(
        seq=0, run_id="r", cell="c", warmup=False, slot=0, worker=0, host="h", clock="monotonic", stamp_source="user",
        due_ns=0, sent_ns=0, arrivals_ns=(1,), done_ns=1, tokens_in=tokens_in, tokens_out=tokens_out,
        tokens_source="usage", status=200, failure=failure,
    )  # fmt: skip


def talk(sessions, slot=0, answers=("one", "two", "three"), **said):
    """Bodies of one whole session in this slot."""
    bodies = []
    for answer in answers:
        bodies.append(json.loads(sessions.next_body(slot)))
        sessions.heard(slot, answered(**said), lambda answer=answer: answer)
        if sessions.delay_ns(slot) is None:
            break
    return bodies


def test_each_turn_holds_what_was_said_before_and_a_new_question():
    first, second, third = talk(sessions_of())
    [asked] = first["messages"]
    assert second["messages"][:2] == [asked, {"role": "assistant", "content": "one"}]
    assert third["messages"][:4] == [*second["messages"], {"role": "assistant", "content": "two"}]
    users = [message["content"] for message in third["messages"] if message["role"] == "user"]
    assert [len(text.split()) for text in users] == [20, 20, 20]
    assert len(set(users)) == 3


def test_over_completions_it_is_one_text_in_the_same_order():
    first, second, third = talk(sessions_of(api="completions"))
    assert second["prompt"].startswith(first["prompt"] + "\none\n")
    assert third["prompt"].startswith(second["prompt"] + "\ntwo\n")


def test_the_same_seed_says_the_same_and_another_does_not():
    assert talk(sessions_of()) == talk(sessions_of())
    assert talk(sessions_of())[0] != talk(sessions_of(seed=2))[0]
    two = sessions_of()
    assert talk(two, slot=0)[0] != talk(two, slot=1)[0]


def test_sessions_that_interleave_keep_their_own_histories():
    sessions = sessions_of()
    here, there = json.loads(sessions.next_body(0)), json.loads(sessions.next_body(1))
    sessions.heard(1, answered(), lambda: "there")
    sessions.heard(0, answered(), lambda: "here")
    assert json.loads(sessions.next_body(0))["messages"][:2] == [
        *here["messages"],
        {"role": "assistant", "content": "here"},
    ]
    assert json.loads(sessions.next_body(1))["messages"][:2] == [
        *there["messages"],
        {"role": "assistant", "content": "there"},
    ]
    assert (sessions.place(0), sessions.place(1)) == ((0, 2), (1, 2))


def test_what_became_of_sessions_adds_up():
    sessions = sessions_of(expect=4)
    talk(sessions)
    talk(sessions, failure="status")
    sessions.next_body(0)
    sessions.heard(0, answered(), lambda: "x")
    sessions.cut(0)
    sessions.next_body(1)
    counts = sessions.end()
    assert (counts.begun, counts.whole, counts.failed, counts.full, counts.cut) == (4, 1, 1, 0, 2)


def test_a_failed_turn_ends_its_session_and_the_slot_takes_the_next():
    sessions = sessions_of()
    assert len(talk(sessions, failure="stall")) == 1
    sessions.next_body(0)
    assert sessions.place(0) == (1, 1)


@pytest.mark.parametrize(("context_tokens", "turns"), [(None, 3), (56, 2), (55, 1), (10_000, 3)])
def test_a_session_ends_before_the_turn_that_would_not_fit_into_the_models_context(context_tokens, turns):
    sessions = sessions_of(context_tokens=context_tokens)
    sessions.next_body(0)
    sessions.heard(0, answered(tokens_in=20, tokens_out=8), lambda: "x")  # then 20 + 8 + 20 asked + 8 answered
    done = 1
    if sessions.delay_ns(0) is not None:
        sessions.next_body(0)
        sessions.heard(0, answered(tokens_in=48, tokens_out=8), lambda: "y")
        done += 1
        done += sessions.delay_ns(0) is not None
    assert done == turns
    assert sessions.end().full == (turns < 3)


def test_a_server_that_sends_no_usage_is_asked_on_and_judges_itself():
    sessions = sessions_of(context_tokens=56)
    assert len(talk(sessions, tokens_in=None)) == 3


def test_a_history_has_a_bound(monkeypatch):
    monkeypatch.setattr("kvgauge.load.sessions.HISTORY_CHARACTERS_MAX", 400)
    sessions = sessions_of()
    assert len(talk(sessions, answers=("x" * 300, "y", "z"))) == 2
    assert sessions.end().full == 1


def test_of_a_warm_up_each_session_is_one_turn_and_none_is_counted():
    sessions = sessions_of(expect=2, warmup=True)
    assert [len(talk(sessions)) for _ in range(2)] == [1, 1]
    sessions.expect(1, warmup=False)
    assert len(talk(sessions)) == 3
    assert sessions.end().begun == 1


FILE = json.dumps([
    {"conversations": [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "r1"}, {"from": "human", "value": "c"},
                       {"from": "gpt", "value": "r2"}, {"from": "human", "value": "d"}, {"from": "gpt", "value": "r3"}]},
    {"messages": [{"role": "user", "content": "alone"}]},
    {"conversations": [{"from": "human", "value": "e"}, {"from": "human", "value": "f"}]},
    {"conversations": [{"from": "human", "value": "g"}, {"from": "gpt", "value": ""}, {"from": "human", "value": "h"}]},
]).encode()  # fmt: skip


def of_file(**conversation):
    prompts = parse(FILE, "d")
    which = Conversation(**{"turns": None, **conversation})
    return sessions_of(which, requests=prompts, dataset=summary("d", "0" * 64, prompts), input_tokens=None)


def said(body):
    return [message["content"] for message in body["messages"]]


def test_a_datasets_conversations_have_their_own_turns_and_end_where_nobody_answers():
    sessions = of_file()
    assert [len(talk(sessions)) for _ in range(4)] == [3, 1, 1, 1]
    file = summary("d", "0" * 64, parse(FILE, "d"))
    assert (file.prompts, file.turns_mean, file.turns_most, file.whole_words_max) == (4, 1.5, 3, 6)


@pytest.mark.parametrize(("history", "expected"), [("answers", "one"), ("recorded", "r1")])
def test_the_history_holds_the_models_own_answers_or_the_recorded_ones(history, expected):
    _, second, _ = talk(of_file(history=history))
    assert said(second) == ["a b", expected, "c"]


def test_turns_of_a_dataset_may_be_fewer():
    assert len(talk(of_file(turns=2))) == 2


@settings(max_examples=30, deadline=None)
@given(st.floats(1, 8), st.floats(0, 4), st.floats(0, 2000), st.floats(0, 500), st.integers(0, 2**20))
def test_made_sessions_have_the_turns_and_delays_that_were_asked_for(turns, spread, delay_ms, delay_spread, seed):
    which = Conversation(turns=turns, turns_stddev=spread, delay_ms=delay_ms, delay_ms_stddev=delay_spread)
    sessions = sessions_of(which, expect=60, seed=seed, input_tokens=4)
    drawn = []
    for _ in range(60):
        sessions.prepare(1)
        session = sessions._ready[0]
        assert 1 <= session.turns <= turns_most(make_cell(conversation=which))
        assert all(delay_ns >= 0 for delay_ns in session.delays_ns)
        if not delay_spread:
            assert all(abs(delay_ns - delay_ms * MS) <= 1 for delay_ns in session.delays_ns)
        drawn.append(session.turns)
        sessions.skip()
    mean = sum(drawn) / 60
    assert abs(mean - turns) < 0.75 + 4 * spread / 60**0.5 + spread  # cut off below 1


class World:
    """Sends what is due and ends it after `service_ns`; what the loop does, without sockets."""

    def __init__(self, arrivals, sessions, service_ns, *, stop_at_ns=None, fails=()):
        self.sent = []  # (due, begun, slot, session, turn)
        dues, ends = arrivals.first(), []
        heapq.heapify(dues)
        while dues or ends:
            now_ns = min([due.due_ns for due in dues] + [end for end, _ in ends])
            if stop_at_ns is not None and now_ns >= stop_at_ns:
                instead = arrivals.stop(stop_at_ns)
                dues = [due for due in dues if due.due_ns <= stop_at_ns] + instead
                heapq.heapify(dues)
                stop_at_ns = None
                continue
            for end in sorted(ends):
                if end[0] <= now_ns:
                    ends.remove(end)
                    place = sessions.place(end[1])
                    failure = "stall" if place in fails else None
                    sessions.heard(end[1], answered(failure=failure), lambda: "x")
                    for due in arrivals.ended(end[1], end[0]):
                        heapq.heappush(dues, due)
            while dues and dues[0].due_ns <= now_ns:
                due = heapq.heappop(dues)
                assert due.slot not in {slot for _, slot in ends}, "a slot sends one request at a time"
                sessions.next_body(due.slot)
                self.sent.append((due.due_ns, now_ns, due.slot, *sessions.place(due.slot)))
                ends.append((now_ns + service_ns, due.slot))
                for more in arrivals.begun(due.slot, now_ns):
                    heapq.heappush(dues, more)


def closed(slots, sessions, **changes):
    return Closed(ClosedLoop(slots=slots, requests=sessions, start_ns=0), **changes)


DELAYED = Conversation(turns=3, delay_ms=5)


def test_the_next_turn_is_due_its_delay_after_the_answer_ended_and_in_the_same_slot():
    sessions = sessions_of(DELAYED, expect=1)
    world = World(InSessions(closed(1, 1), sessions), sessions, 10 * MS)
    assert world.sent == [(0, 0, 0, 0, 1), (15 * MS, 15 * MS, 0, 0, 2), (30 * MS, 30 * MS, 0, 0, 3)]
    assert sessions.end().whole == 1


def test_concurrency_is_sessions_under_way_delays_included():
    sessions = sessions_of(DELAYED, expect=4)
    world = World(InSessions(closed(2, 4), sessions), sessions, 10 * MS)
    begun = {session: due_ns for due_ns, _, _, session, turn in world.sent if turn == 1}
    assert begun == {0: 0, 1: 0, 2: 40 * MS, 3: 40 * MS}, "the slot is free when the third answer has ended"
    assert len(world.sent) == 12


def test_waves_of_sessions_wait_for_the_longest():
    sessions = sessions_of(DELAYED, expect=4)
    arrivals = InSessions(arrivals_of("wave", slots=2, requests=4, start_ns=0), sessions)
    world = World(arrivals, sessions, 10 * MS, fails={(0, 1)})
    assert {due_ns for due_ns, _, _, session, turn in world.sent if session >= 2 and turn == 1} == {40 * MS}


def test_of_an_open_load_sessions_arrive_by_the_clock_and_wait_for_a_slot():
    sessions = sessions_of(DELAYED, expect=3)
    load = OpenLoad(iter([0, 1 * MS, 2 * MS]), slots=2, start_ns=0)
    world = World(InSessions(load, sessions), sessions, 10 * MS)
    third = next((due, begun) for due, begun, _, session, turn in world.sent if (session, turn) == (2, 1))
    assert third == (2 * MS, 40 * MS)
    assert (load.requests, load.queued, load.under_way_max) == (3, 1, 2)


def test_nothing_is_due_after_the_end_and_sessions_that_wait_are_cut():
    sessions = sessions_of(DELAYED, expect=4)
    world = World(InSessions(closed(2, 4, end_ns=14 * MS), sessions, end_ns=14 * MS), sessions, 10 * MS)
    assert [(due, session) for due, _, _, session, _ in world.sent] == [(0, 0), (0, 1)]
    assert (sessions.end().cut, sessions.end().whole) == (2, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 4), st.integers(0, 8), st.integers(0, 200), st.booleans())
def test_a_stop_sends_nothing_later_and_forgets_nobody_who_was_due(slots, count, turns, delay_ms, stop_ms, is_open):
    sessions = sessions_of(Conversation(turns=turns, delay_ms=delay_ms), expect=count, input_tokens=2)
    times_ns = [3 * MS * number for number in range(count)]
    starts = OpenLoad(iter(times_ns), slots=slots, start_ns=0) if is_open else closed(slots, count)
    world = World(InSessions(starts, sessions, holds=not is_open), sessions, 10 * MS, stop_at_ns=stop_ms * MS)
    assert all(due_ns <= stop_ms * MS for due_ns, *_ in world.sent)
    if is_open:
        begun = {session for *_, session, turn in world.sent if turn == 1}
        assert len(begun) == sum(time_ns <= stop_ms * MS for time_ns in times_ns)
    ended = sessions.end()
    assert ended.begun == ended.whole + ended.cut


@pytest.mark.parametrize(("holds", "begun"), [(True, 2), (False, 3)])
def test_in_an_open_load_who_waits_for_a_slot_gets_it_when_a_session_is_cut(holds, begun):
    sessions = sessions_of(DELAYED, expect=3)
    load = OpenLoad(iter([0, 0, 1 * MS]), slots=2, start_ns=0)
    World(InSessions(load, sessions, end_ns=14 * MS, holds=holds), sessions, 10 * MS)
    assert sessions.end().begun == begun


def test_what_is_said_next_is_made_when_it_is_quiet_and_is_the_same_when_it_was_not():
    quiet, hurried = sessions_of(), sessions_of()
    said = []
    for sessions in (quiet, hurried):
        for answer in ("one", "two", "three"):
            said.append(sessions.next_body(0))
            while sessions is quiet and sessions.prepare(0):
                pass
            assert (sessions._under_way[0].next_text is not None) == (sessions is quiet and answer != "three")
            sessions.heard(0, answered(), lambda answer=answer: answer)
    assert said[:3] == said[3:]

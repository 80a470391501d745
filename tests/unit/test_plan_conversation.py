"""Conversations and steps in plans and on the command line: what is read, and what makes no sense."""

import json
from pathlib import Path

import pytest

from kvgauge.failures import PlanError, UsageError
from kvgauge.plan import load_plan
from kvgauge.plan.asked import Asked, plan_of
from kvgauge.plan.conversation import turns_mean, turns_most
from kvgauge.plan.expand import cell_s, prompt_tokens, under_way
from kvgauge.plan.open import offered, said, span_s
from kvgauge.plan.read import read
from kvgauge.plan.records import Conversation, Plan, Step, Steps
from kvgauge.plan.reference import quick
from kvgauge.target.pools import context_tokens
from scene import make_cell, make_test

HEAD = """\
name: talk
primary: {metric: ttft_ms_mean, cell: c}
tests: [{name: A, backend: UCX, fabric: tcp, build: 1.5.0, model: Qwen3-0.6B}]
MOREcells:
  - {name: c, output_tokens: 8,
"""
TALKS = json.dumps([
    {"conversations": [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}, {"from": "human", "value": "d"}]},
    {"conversations": [{"from": "human", "value": "e"}]},
]).encode()  # fmt: skip


def plan(cell: str, more: str = "") -> Plan:
    def read_file(path: str) -> bytes:
        if path.endswith("talks.json"):
            return TALKS
        if path.endswith("t.jsonl"):
            return b'{"timestamp": 0, "input_length": 5, "output_length": 1}'
        raise FileNotFoundError(2, "No such file or directory", path)

    text = HEAD.replace("MORE", more) + f"     {cell}}}\n"
    return read(text, source="p.yaml", known_builds=("1.5.0",), read_file=read_file)


def refusal(cell: str, more: str = "") -> str:
    with pytest.raises(PlanError) as caught:
        plan(cell, more)
    return str(caught.value)


MADE = "load: closed, concurrency: 2, input_tokens: 100, sessions: 6, conversation: "


def test_a_conversation_is_text_and_counts_sessions():
    [cell] = plan(MADE + "{turns: 3, turns_stddev: 1, delay_ms: 500, delay_ms_stddev: 50}").cells
    assert cell.conversation == Conversation(turns=3, turns_stddev=1, delay_ms=500, delay_ms_stddev=50)
    assert (cell.sessions, cell.requests, cell.prompt_kind, cell.api) == (6, 18, "text", "completions")
    assert (turns_mean(cell), turns_most(cell)) == (3, 6)
    assert prompt_tokens(cell) == 100 + 108, "on average a turn has one before it"


def test_sessions_may_differ_between_concurrencies_and_waves_are_whole():
    several = MADE.replace("concurrency: 2", "concurrency: [1, 2]").replace("sessions: 6", "sessions: [3, 4]")
    with pytest.raises(PlanError, match="unknown cell 'c'; did you mean"):
        plan(several + "{turns: 2}")  # read so far: the list made a cell of each
    cells = asked(sessions=(3, 4), concurrency=(1, 2), turns=2.0).cells
    assert [(cell.sessions, cell.requests) for cell in cells] == [(3, 6), (4, 8)]
    assert "3 sessions are not whole waves of 2" in refusal(
        "load: wave, concurrency: 2, input_tokens: 9, sessions: 3, conversation: {turns: 2}"
    )
    assert "1 sessions never reach concurrency 2" in refusal(MADE.replace("6", "1") + "{turns: 2}")


def test_a_datasets_conversations_bring_their_turns():
    [cell] = plan(
        "load: poisson, rate: 2, duration_s: 10, dataset: talks.json, conversation: {history: recorded}"
    ).cells
    assert (cell.conversation.turns, cell.conversation.history, cell.dataset.turns_mean) == (None, "recorded", 1.5)
    assert offered(cell) == 30, "20 sessions of 1.5 turns"
    assert turns_most(cell) == 2


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("load: closed, concurrency: 1, prompt: Hi, sessions: 2, conversation: {turns: 2}", "every turn would say the same"),
        ("load: trace, trace: t.jsonl, conversation: {turns: 2}", "not of one session"),
        (MADE + "{turns: 2}, prompt_kind: tokens", "come without token ids"),
        (MADE.replace("sessions", "requests") + "{turns: 2}", "counts requests, and a conversation is several"),
        (MADE.replace("sessions", "requests_per_slot") + "{turns: 2}", "give `sessions` or `duration_s`"),
        (MADE.replace("sessions: 6", "until: {half_width: 2%, at_most_s: 9}") + "{turns: 2}", "that are alike"),
        (MADE.replace("sessions: 6, ", "") + "{turns: 2}", "no `sessions` or `duration_s`"),
        (MADE + "{delay_ms: 3}", "conversation has no `turns`"),
        (MADE + "{turns: 2, history: recorded}", "no recorded answers"),
        (MADE + "{turns: 0}", "from 1 to 1000"),
        ("load: closed, concurrency: 1, dataset: talks.json, sessions: 2, conversation: {turns_stddev: 1}", "have their own turns"),
        ("load: closed, concurrency: 1, input_tokens: 4, sessions: 2", "counts conversations: give `conversation`"),
    ],
)  # fmt: skip
def test_what_makes_no_conversation_is_refused_with_its_reason(cell, message):
    text = refusal(cell) if "trace:" not in cell else refused_trace(cell)
    assert message in text


def refused_trace(cell: str) -> str:
    text = HEAD.replace("MORE", "").replace(" output_tokens: 8,", "") + f"     {cell}}}\n"
    trace = b'{"timestamp": 0, "input_length": 5, "output_length": 1}'
    with pytest.raises(PlanError) as caught:
        read(text, source="p.yaml", known_builds=("1.5.0",), read_file=lambda _: trace)
    return str(caught.value)


def test_a_quick_plan_has_few_sessions_and_room_is_made_for_long_histories():
    made = plan(MADE.replace("sessions: 6", "sessions: 60") + "{turns: 3, delay_ms: 1000}")
    [cell] = quick(made).cells
    assert cell.sessions == 2
    [long] = made.cells
    assert context_tokens((long,), 0) >= 3 * 108
    short = make_cell(input_tokens=100, output_tokens=8, requests=180)
    assert cell_s(make_test(), long) > cell_s(make_test(), short) + 30, "30 sessions a slot wait 2 s each"
    one, four = (
        make_cell(load="poisson", rate=400.0, concurrency=1024, conversation=conversation, sessions=100)
        for conversation in (None, Conversation(turns=4))
    )
    assert under_way(make_test(), four) > 2 * under_way(make_test(), one)


STEPS = "load: steps, input_tokens: 64, steps: [{rate: 1, for_s: 30}, {rate: 0, for_s: 5}, {rate: 5, for_s: 30}]"


def test_steps_end_with_the_last_unless_something_else_does():
    [cell] = plan(STEPS).cells
    assert cell.steps == Steps(steps=(Step(rate=1, for_s=30), Step(rate=0, for_s=5), Step(rate=5, for_s=30)))
    assert (cell.duration_s, offered(cell), span_s(cell)) == (65, 180, 65)
    assert said(cell) == "steps of 1 for 30 s, 0 for 5 s, 5 for 30 s (req/s, constant)"
    [cell] = plan(STEPS + ", arrivals: poisson, requests: 40").cells
    assert (cell.steps.arrivals, cell.requests, cell.duration_s) == ("poisson", 40, None)
    assert span_s(cell) == 37


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (STEPS.replace("rate: 5", "rate: 0").replace("rate: 1", "rate: 0"), "at least one step needs a rate above 0"),
        (STEPS.replace("rate: 1", "rate: 0.0001"), "0 is a pause"),
        (STEPS.replace("for_s: 5", "for: 5"), "unknown key 'for'"),
        (STEPS + ", arrivals: gamma", "unknown arrival pattern"),
        (STEPS + ", rate: 3", "a steps load has none"),
        (STEPS.replace("load: steps", "load: constant, rate: 1"), "a constant load has none"),
        ("load: steps, input_tokens: 3", "has no `steps`"),
    ],
)
def test_steps_that_cannot_be_are_refused(cell, message):
    assert message in refusal(cell)


def test_quick_ack_is_a_field_of_the_plan():
    assert not plan(MADE + "{turns: 2}").quick_ack
    assert plan(MADE + "{turns: 2}", "quick_ack: true\n").quick_ack
    assert "expected true or false" in refusal(MADE + "{turns: 2}", "quick_ack: 3\n")


def asked(**given):
    def read_file(path):
        if path == "talks.json":
            return TALKS
        if path == "t.jsonl":
            return b'{"timestamp": 0, "input_length": 5, "output_length": 1}'
        raise FileNotFoundError(2, "No such file or directory", path)

    return plan_of(Asked(**given), "m", read_file)


def test_flags_make_the_same_cells():
    [cell] = asked(sessions=(5,), turns=3.0, turns_stddev=0.5, delay_ms=200.0, delay_ms_stddev=9.0, api="chat").cells
    assert cell.conversation == Conversation(turns=3, turns_stddev=0.5, delay_ms=200, delay_ms_stddev=9)
    assert (cell.sessions, cell.load, cell.input_tokens) == (5, "closed", 512)
    assert [cell.sessions for cell in asked(turns=2.0, concurrency=(1, 3)).cells] == [10, 30]
    assert asked(turns=2.0, rates=(3.0,)).cells[0].sessions == 100
    [cell] = asked(dataset="talks.json", sessions=(2,), history="recorded").cells
    assert (cell.conversation.turns, cell.conversation.history) == (None, "recorded")
    [cell] = asked(steps=((1.0, 30.0), (5.0, 30.0)), pattern="poisson").cells
    assert (cell.load, cell.steps.arrivals, cell.duration_s) == ("steps", "poisson", 60)
    assert asked(quick_ack=True).quick_ack


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "Hi", "turns": 2.0}, "--conversation-turn-mean: given beside `prompt`"),
        ({"trace": "t.jsonl", "sessions": (3,)}, "--conversation-turn-mean: given beside `trace`"),
        ({"requests": (5,), "turns": 2.0}, "--request-count: counts requests, and a conversation is several: give --conversation-num"),
        ({"until": ("ttft_ms_mean", "2%"), "duration_s": 9.0, "turns": 2.0}, "--until: stops at a number"),
        ({"turns": 2.0, "history": "recorded"}, "--conversation-history: made turns"),
        ({"dataset": "talks.json", "turns_stddev": 1.0}, "--conversation-turn-stddev: a dataset's"),
        ({"turns": 0.5}, "--conversation-turn-mean: expected a number from 1"),
        ({"steps": ((1.0, 9.0),), "rates": (3.0,)}, "--rate-steps are rates already"),
        ({"steps": ((1.0, 9.0),), "burstiness": 3.0}, "--rate-steps are rates already"),
        ({"steps": ((-1.0, 9.0),)}, "--rate-steps: expected a number from 0"),
        ({"steps": ((1.0, 0.0),)}, "--rate-steps: expected a number from 0.001"),
        ({"steps": ((1.0, 9.0),), "pattern": "gamma"}, "--arrival-pattern: unknown arrival pattern"),
        ({"steps": ((1.0, 9.0),), "trace": "t.jsonl"}, "--trace has its own times"),
    ],
)  # fmt: skip
def test_a_flag_that_makes_no_sense_beside_another_is_named(given, message):
    with pytest.raises(UsageError) as caught:
        asked(**given)
    assert message in str(caught.value)


def test_the_example_is_valid():
    found = load_plan(Path(__file__).parents[2] / "examples" / "conversations.yaml", quick=False, tests=())
    assert [(cell.sessions, cell.requests) for cell in found.cells] == [(12, 48), (20, 60)]

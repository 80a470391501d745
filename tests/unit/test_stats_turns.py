"""What conversations and steps gave, apart from the sums."""

import msgspec
import pytest

from kvgauge.load.sessions import SessionCounts
from kvgauge.load.tally import CellLoad, OpenOffer
from kvgauge.plan.records import Conversation, Step, Steps
from kvgauge.samples.records import Exchange
from kvgauge.stats.client import client_troubles
from kvgauge.stats.run_level import first_request_penalty
from kvgauge.stats.steps import step_metrics
from kvgauge.stats.turns import turn_metrics, turn_troubles
from scene import make_cell

MS, S = 1_000_000, 1_000_000_000
CELL = make_cell(conversation=Conversation(turns=3), sessions=4)
LOAD = CellLoad(
    cell="c", clock="monotonic", started_ns=0, ended_ns=S, offered=12, completed=12, failed=0, warmups=0, cpu_s=0.1,
    late_ns_max=1, late_ns_mean=1.0, stagger_ns=0, interrupted=False,
    sessions=SessionCounts(begun=5, whole=4, failed=1, full=0, cut=0),
)  # fmt: skip


def exchange(seq, ttft_ms=10.0, **changes):
    due_ns = changes.pop("due_ns", 0)
    first_ns = due_ns + round(ttft_ms * MS)
    base = {
        "seq": seq, "run_id": "r", "cell": "c", "warmup": False, "slot": 0, "worker": 0, "host": "h",
        "clock": "monotonic", "stamp_source": "user", "due_ns": due_ns, "sent_ns": due_ns,
        "arrivals_ns": (first_ns, first_ns + 7 * MS), "done_ns": 2, "tokens_in": 1, "tokens_out": 8,
        "tokens_source": "usage", "status": 200,
    }  # fmt: skip
    return Exchange(**(base | changes))


def talk(session, *ttfts_ms, **changes):
    return [
        exchange(10 * session + turn, ttft_ms, session=session, turn=turn, tokens_in=100 * turn, **changes)
        for turn, ttft_ms in enumerate(ttfts_ms, 1)
    ]


def test_first_turns_and_later_ones_stand_apart():
    found = turn_metrics(CELL, [*talk(0, 50, 20, 22), *talk(1, 54, 18, 24), *talk(2, 900, warmup=True)], LOAD)
    assert (found["sessions"].point, found["sessions_failed"].point, found["sessions"].n) == (4, 1, 5)
    assert (found["ttft_first_turn_ms_mean"].point, found["ttft_first_turn_ms_mean"].n) == (52, 2)
    assert (found["ttft_later_turns_ms_mean"].point, found["ttft_later_turns_ms_mean"].n) == (21, 2)
    assert found["ttft_later_turns_ms_mean"].low is None, "turns of one session resemble one another"
    assert [found[f"ttft_turn_{turn}_ms_mean"].point for turn in (1, 2, 3)] == [52, 19, 23]
    assert [found[f"input_tokens_turn_{turn}_mean"].point for turn in (1, 2, 3)] == [100, 200, 300]


def test_without_streaming_nothing_is_said_of_first_tokens_and_without_sessions_nothing_at_all():
    whole = msgspec.structs.replace(CELL, stream=False)
    found = turn_metrics(whole, talk(0, 50, 20), LOAD)
    assert found["ttft_turn_1_ms_mean"].point is None
    assert "not streamed" in found["ttft_later_turns_ms_mean"].reason
    assert found["input_tokens_turn_2_mean"].point == 200
    assert turn_metrics(make_cell(), [exchange(0)], msgspec.structs.replace(LOAD, sessions=None)) == {}


def test_a_server_that_cuts_what_came_before_is_found_out():
    assert turn_troubles([*talk(0, 1, 2, 3), exchange(99)]) == []
    first, second = talk(3, 1, 2)
    [trouble] = turn_troubles([first, msgspec.structs.replace(second, tokens_in=100)])
    assert "turn 2 of session 3, 100 prompt tokens after 100" in trouble


def test_the_first_requests_penalty_is_held_against_first_turns():
    exchanges = [*talk(0, 500, 90, 95), *talk(1, 100, 90, 95), *talk(2, 104, 90, 95)]
    exchanges = [msgspec.structs.replace(each, due_ns=each.seq) for each in exchanges]
    assert first_request_penalty(exchanges).point == pytest.approx(0.398, abs=0.001)


def test_of_an_open_load_this_clients_lateness_is_judged_by_later_turns():
    cell = make_cell(load="poisson", rate=1.0, conversation=Conversation(turns=2), sessions=9)
    late = [
        exchange(at, 30.0, due_ns=at * S, sent_ns=at * S + 9 * MS, session=at, turn=turn)
        for at, turn in enumerate([1, 2] * 10)
    ]
    assert "left 9.0 ms after" in client_troubles(cell, late)[0]
    assert client_troubles(cell, [each for each in late if each.turn == 1]) == [], "they may have waited for a slot"


STEPS = make_cell(
    load="steps", steps=Steps(steps=(Step(rate=1, for_s=2), Step(rate=0, for_s=1), Step(rate=4, for_s=2)))
)
OFFER = OpenOffer(
    start_ns=100 * S, slots=8, under_way_max=8, queued=0, given_up=0, due_span_ns=S, sent_span_ns=S,
    own_late_ns_mean=0.0, own_late_ns_max=0,
)  # fmt: skip


def test_a_request_belongs_to_the_step_in_which_it_was_due():
    load = msgspec.structs.replace(LOAD, open=OFFER, sessions=None)
    due_s = [0, 1.9, 3, 3.5, 4.9]
    exchanges = [exchange(at, 10.0 * at, due_ns=round((100 + due) * S)) for at, due in enumerate(due_s)]
    exchanges.append(exchange(9, due_ns=102 * S, warmup=True))
    found = step_metrics(STEPS, exchanges, load)
    assert (found["step_1_ttft_ms_mean"].point, found["step_3_ttft_ms_mean"].point) == (5, 30)
    assert (found["step_1_offered_rate_req_s"].point, found["step_3_offered_rate_req_s"].point) == (1, 1.5)
    assert found["step_3_output_token_throughput_tok_s"].point == 12
    assert not any(name.startswith("step_2") for name in found), "a pause has nothing to show"
    assert step_metrics(make_cell(), exchanges, load) == {}

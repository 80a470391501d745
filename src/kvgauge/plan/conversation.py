"""Conversations of several turns: what a plan may say of them. Pure.

conversation: {turns: 3, turns_stddev: 1, delay_ms: 1000, delay_ms_stddev: 200, history: answers | recorded}

Turns are made (`input_tokens` each) or those of a dataset. What cannot be a conversation is refused: one fixed prompt,
a trace, lists of token ids, an end that counts requests.
"""

from math import ceil
from typing import Any

import msgspec

from kvgauge.plan.nodes import Value
from kvgauge.plan.records import Cell, Conversation

TURNS_MAX = 1000
DELAY_MS_MAX = 3_600_000
KEYS = ("turns", "turns_stddev", "delay_ms", "delay_ms_stddev", "history")
NOT_IN_SESSIONS = ("requests", "requests_per_slot", "until")


def read_conversation(fields: dict[str, Value]) -> dict[str, Any]:
    """`conversation` of a cell, by the names of Cell; nothing where there is none.

    raises  PlanError for what makes no conversation
    """
    if "conversation" not in fields:
        if "sessions" in fields:
            raise fields["sessions"].error("counts conversations: give `conversation` too, or count `requests`")
        return {}
    value = fields["conversation"]
    if "prompt" in fields:
        raise value.error("given beside `prompt`: every turn would say the same. Use input_tokens or a dataset")
    if "prompt_kind" in fields and fields["prompt_kind"].scalar("a prompt kind") == "tokens":
        raise fields["prompt_kind"].error("a conversation is text: the model's answers come without token ids")
    for key in NOT_IN_SESSIONS:
        if key in fields:
            counted = "stops at a number of requests that are alike" if key == "until" else "counts requests"
            raise fields[key].error(f"{counted}, and a conversation is several: give `sessions` or `duration_s`")
    return {"conversation": _conversation(value, of_dataset="dataset" in fields)}


def _conversation(value: Value, *, of_dataset: bool) -> Conversation:
    fields = value.fields(KEYS)
    if "turns" not in fields and not of_dataset:
        raise value.missing("turns", "conversation")
    if of_dataset and "turns_stddev" in fields:
        raise fields["turns_stddev"].error("a dataset's conversations have their own turns; `turns` is the most")
    if "history" in fields and not of_dataset and fields["history"].scalar("a history") == "recorded":
        raise fields["history"].error("made turns have no recorded answers; use answers, or a dataset")
    history = fields["history"].word(("answers", "recorded"), "history") if "history" in fields else "answers"
    return Conversation(
        turns=fields["turns"].number(1, TURNS_MAX) if "turns" in fields else None,
        turns_stddev=fields["turns_stddev"].number(0, TURNS_MAX) if "turns_stddev" in fields else 0.0,
        delay_ms=fields["delay_ms"].number(0, DELAY_MS_MAX) if "delay_ms" in fields else 0.0,
        delay_ms_stddev=fields["delay_ms_stddev"].number(0, DELAY_MS_MAX) if "delay_ms_stddev" in fields else 0.0,
        history="recorded" if history == "recorded" else "answers",
    )


def turns_most(cell: Cell) -> int:
    """Most turns of one session: of made ones three standard deviations above their mean; 1 without conversation."""
    conversation = cell.conversation
    if conversation is None:
        return 1
    if cell.dataset is not None:
        most = cell.dataset.turns_most
        return most if conversation.turns is None else min(most, max(1, round(conversation.turns)))
    return min(TURNS_MAX, ceil((conversation.turns or 1) + 3 * conversation.turns_stddev))


def turns_mean(cell: Cell) -> float:
    """Turns of one session, on average; 1 without conversation."""
    if cell.conversation is None:
        return 1.0
    most = cell.conversation.turns
    if cell.dataset is not None:
        return cell.dataset.turns_mean if most is None else min(most, cell.dataset.turns_mean)
    return most or 1.0


def in_sessions(cell: Cell, requests_max: int) -> Cell:
    """The cell whose `requests` counted sessions: with them as such, and about how many requests they are."""
    if cell.conversation is None:
        return cell
    about = min(requests_max, round(cell.requests * turns_mean(cell)))
    return msgspec.structs.replace(cell, sessions=cell.requests, requests=max(cell.requests, about))

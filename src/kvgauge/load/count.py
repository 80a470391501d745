"""Tokens of answers whose server sent no usage: after the run, from their texts. Pure.

What a text shows is counted: a token that leaves no trace in it, such as the one that ends an answer, is not. Of
prompts, those of completions are: what a chat template makes of a message only the server knows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from kvgauge.load.texts import Said
from kvgauge.plan.dataset import DatasetPrompt
from kvgauge.plan.records import Cell
from kvgauge.plan.trace import FileRequest, asked
from kvgauge.samples.records import Exchange
from kvgauge.tokens.choose import Chosen

Key = tuple[str, int]  # cell, seq


def count(said: Iterable[Said], chosen: Chosen, *, stop: Callable[[], bool] = lambda: False) -> dict[Key, int]:
    """Tokens of each answer. stop: asked before each; True leaves the rest to their events"""
    found: dict[Key, int] = {}
    for each in said:
        if stop():
            break
        found[each.cell, each.seq] = sum(chosen.tokenizer.count(text) for text in each.texts if text)
    return found


def counted(
    exchanges: Sequence[Exchange],
    tokens: Mapping[Key, int],
    chosen: Chosen,
    prompt_tokens: Callable[[int], int | None] = lambda _: None,
) -> list[Exchange]:
    """The exchanges, those that were counted by their events now by the tokenizer.

    prompt_tokens  of a request, by its number; None: not known
    """
    return [
        msgspec.structs.replace(
            each,
            tokens_in=prompt_tokens(each.seq) if each.tokens_in is None else each.tokens_in,
            tokens_out=tokens[each.cell, each.seq],
            tokens_source="tokenizer",
            tokenizer=chosen.name,
            tokenizer_stands_in=chosen.stands_in,
        )
        if each.tokens_source == "events" and (each.cell, each.seq) in tokens
        else each
        for each in exchanges
    ]


def prompt_counter(cell: Cell, requests: tuple[FileRequest, ...], chosen: Chosen) -> Callable[[int], int | None]:
    """Tokens of a cell's prompts, by the request's number: those that were made are as long as was asked, those that
    were given are counted."""
    known: dict[str, int] = {}

    def prompt_tokens(seq: int) -> int | None:
        if cell.api != "completions":
            return None
        text = cell.prompt
        if cell.dataset is not None:
            request = requests[seq % len(requests)]
            text = request.text if isinstance(request, DatasetPrompt) else None
        if text is None:
            return asked(cell, requests, seq)[0]
        if text not in known:
            known[text] = chosen.tokenizer.count(text) + chosen.around
        return known[text]

    return prompt_tokens

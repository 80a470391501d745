"""Tokens of answers whose server sent no usage: after the run, from their texts. Pure.

What a text shows is counted: a token that leaves no trace in it, such as the one that ends an answer, is not.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from kvgauge.load.texts import Said
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


def counted(exchanges: Sequence[Exchange], tokens: Mapping[Key, int], chosen: Chosen) -> list[Exchange]:
    """The exchanges, those that were counted by their events now by the tokenizer."""
    return [
        msgspec.structs.replace(
            each,
            tokens_out=tokens[each.cell, each.seq],
            tokens_source="tokenizer",
            tokenizer=chosen.name,
            tokenizer_stands_in=chosen.stands_in,
        )
        if each.tokens_source == "events" and (each.cell, each.seq) in tokens
        else each
        for each in exchanges
    ]

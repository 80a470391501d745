"""Which tokenizer counts for a model: the one the user gave, else the bundled one, its own or a stand-in. Pure."""

from functools import lru_cache

import msgspec

from kvgauge.tokens import files, qwen
from kvgauge.tokens.files import Tokenizer


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """A tokenizer and what it is to the model.

    name       for records and tables
    stands_in  it is another model's: what it counts is an estimate
    around     special tokens that come with every text of a completions request
    """

    tokenizer: Tokenizer
    name: str
    stands_in: bool
    around: int = 0


@lru_cache(maxsize=8)
def given(data: bytes, path: str) -> Chosen:
    """The tokenizer.json that a user says is the model's. raises UsageError when it cannot be used"""
    tokenizer, around = files.read(data, path)
    return Chosen(tokenizer=tokenizer, name=path, stands_in=False, around=around)


def bundled(model: str) -> Chosen:
    """The tokenizer that kvgauge carries, and whether it is this model's own, by its name."""
    return Chosen(tokenizer=qwen.tokenizer(), name=qwen.NAME, stands_in=not qwen.speaks(model))

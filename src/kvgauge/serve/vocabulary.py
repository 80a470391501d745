"""Tokens of the embedded stack: prompts are split into words, answers are words that follow from the prompt.

There are no weights here, so an answer says nothing; but it is a function of the digest that decode finds in
the KV blocks, so the same prompt always gives the same answer, and wrong blocks would change it.
"""

import hashlib
import re

import numpy as np

SIZE = 32_000  # token ids 0 .. SIZE - 1
_WORD = re.compile(r"\w+|[^\w\s]")
_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def word(token: int) -> str:
    """Text of one token: a space and three syllables, no two tokens alike below 70 ** 3."""
    count = len(_SYLLABLES)
    return f" {_SYLLABLES[token % count]}{_SYLLABLES[token // count % count]}{_SYLLABLES[token // count**2 % count]}"


def token_count(text: str) -> int:
    """Tokens of a text prompt: one a word, one a punctuation mark, at least 1."""
    return max(1, len(_WORD.findall(text)))


def digest(prompt: str | list[int]) -> int:
    """64 bits that identify a prompt. Token ids and text never meet: their bytes differ in a prefix."""
    if isinstance(prompt, str):
        raw = b"t" + prompt.encode("utf-8", "surrogatepass")
    else:
        raw = b"i" + np.asarray(prompt, dtype=np.int64).tobytes()
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def answer(seed: int, count: int) -> list[int]:
    """The first `count` tokens of the answer to the prompt with this digest."""
    position = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    mixed = (position ^ (position >> np.uint64(30))) * _MIX
    tokens: list[int] = ((mixed >> np.uint64(33)) % np.uint64(SIZE)).tolist()
    return tokens

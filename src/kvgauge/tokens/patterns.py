"""Regular expressions of tokenizers, as Python's `re` understands them. Pure.

Tokenizers cut text with patterns written for other engines: `\\p{L}` for a category of characters, and a `\\s` that
does not count the separators \\x1c to \\x1f as blanks. Both become classes of characters spelled out, from the Unicode
tables of this Python. What would mean something else here is refused.
"""

import re
import unicodedata
from functools import cache

from kvgauge.failures import UsageError

LAST = 0x10FFFF
BLANKS = ((9, 13), (32, 32), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
          (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000))  # fmt: skip
PATTERN_CHARACTERS_MAX = 10_000
_CATEGORY = re.compile(r"\\([pP])(?:\{(\^?)([A-Za-z]{1,2})\}|([A-Z]))")
_PLAIN_ESCAPES = frozenset("rntfvdDwWb")
_GROUPS = re.compile(r"\(\?(?::|=|!|<=|<!|>|[ims]+:|[ims]+\))")

Ranges = tuple[tuple[int, int], ...]


def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern for `re`. raises UsageError, naming what has no equal here"""
    if len(pattern) > PATTERN_CHARACTERS_MAX:
        raise UsageError(f"a pattern of {len(pattern):,} characters; at most {PATTERN_CHARACTERS_MAX:,} are read")
    try:
        return re.compile(_translated(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"its pattern {pattern[:60]!r} is not one for Python: {error}") from None


def _translated(pattern: str) -> str:
    out: list[str] = []
    at, in_class = 0, False
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            text, at = _escape(pattern, at, in_class=in_class)
            out.append(text)
            continue
        if in_class:
            if char == "[" or pattern.startswith("&&", at):
                raise UsageError(f"its pattern {pattern[:60]!r} has a class inside a class, which is not read")
            in_class = char != "]"
        elif char == "[":
            in_class = True
            start = at + 2 if pattern.startswith("^", at + 1) else at + 1
            if pattern.startswith("]", start):
                raise UsageError(f"its pattern {pattern[:60]!r} has a class that begins with ], which is not read")
        elif char in "^$":
            raise UsageError(f"its pattern {pattern[:60]!r} has {char}, which means something else here")
        elif pattern.startswith("(?", at) and not _GROUPS.match(pattern, at):
            raise UsageError(f"its pattern {pattern[:60]!r} has a group that is not read: {pattern[at : at + 4]!r}")
        elif char == "(" and not pattern.startswith("(?", at):
            char = "(?:"
        out.append(char)
        at += 1
    return "".join(out)


def _escape(pattern: str, at: int, *, in_class: bool) -> tuple[str, int]:
    """What an escape stands for, and where it ends."""
    found = _CATEGORY.match(pattern, at)
    if found:
        sign, caret, long, short = found.groups()
        return _class(category(long or short, inverted=(sign == "P") != bool(caret)), in_class), found.end()
    char = pattern[at + 1 : at + 2]
    if char in ("s", "S"):
        return _class(BLANKS if char == "s" else complement(BLANKS), in_class), at + 2
    if char.isalnum() and char not in _PLAIN_ESCAPES:
        raise UsageError(f"its pattern {pattern[:60]!r} has \\{char}, which is not read")
    return pattern[at : at + 2], at + 2


def _class(ranges: Ranges, in_class: bool) -> str:
    text = "".join(f"\\U{low:08x}" if low == high else f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges)
    return text if in_class else f"[{text}]"


@cache
def category(name: str, *, inverted: bool = False) -> Ranges:
    """Ranges of the characters of a general category: one letter (L) or two (Lu). raises UsageError"""
    ranges = _categories().get(name)
    if ranges is None:
        raise UsageError(f"its pattern names the class \\p{{{name}}}, which is no category of Unicode's")
    return complement(ranges) if inverted else ranges


def complement(ranges: Ranges) -> Ranges:
    edges = [-1, *(edge for pair in ranges for edge in pair), LAST + 1]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    return tuple((low + 1, high - 1) for low, high in gaps if low + 1 <= high - 1)


@cache
def _categories() -> dict[str, Ranges]:
    """A quarter of a second: asked for when the first tokenizer is made."""
    found: dict[str, list[list[int]]] = {}
    for code, name in enumerate(map(unicodedata.category, map(chr, range(LAST + 1)))):
        for key in (name[0], name):
            ranges = found.setdefault(key, [])
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return {name: tuple((low, high) for low, high in ranges) for name, ranges in found.items()}

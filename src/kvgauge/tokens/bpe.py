"""Byte-level byte pair encoding: text to token ids and back. Pure.

A text is cut at added tokens, normalized, cut into pieces by patterns, and the bytes of each piece are merged, the pair
of the lowest rank first, the leftmost of equal ones. Merging takes n log n steps, whatever a server sends.
"""

import heapq
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

CACHED_PIECES_MAX = 1 << 17
CACHED_CHARACTERS_MAX = 64

Rank = Callable[[bytes, bytes], int | None]


class BytePairs:
    """A vocabulary with its rules.

    ids       bytes of each token; all 256 single bytes are among them
    rank      of a pair of neighbours, lower first; None: they are not merged
    added     texts that are one token each wherever they stand
    patterns  applied one after the other; what is between their matches is a piece too
    nfc       texts are brought to Unicode's composed form first
    whole     a piece that is a token is taken as it stands, without merging
    """

    def __init__(
        self,
        ids: Mapping[bytes, int],
        rank: Rank,
        *,
        patterns: Sequence[re.Pattern[str]],
        added: Mapping[str, int] | None = None,
        nfc: bool = False,
        whole: bool = True,
    ) -> None:
        self._ids, self._rank, self._patterns = ids, rank, tuple(patterns)
        self._added, self._nfc, self._whole = dict(added or {}), nfc, whole
        longest_first = sorted(self._added, key=len, reverse=True)
        self._added_at = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if self._added else None
        self._cache: dict[str, tuple[int, ...]] = {}
        self._bytes: dict[int, bytes] | None = None
        self.size = max([*ids.values(), *self._added.values()], default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without what a server puts around it."""
        found: list[int] = []
        for part in self._added_at.split(text) if self._added_at is not None else [text]:
            if part in self._added:
                found.append(self._added[part])
            elif part:
                for piece in self._pieces(part):
                    found += self._tokens(piece)
        return found

    def count(self, text: str) -> int:
        """How many tokens a text makes."""
        return len(self.encode(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD. raises KeyError for an id that is none"""
        if self._bytes is None:
            self._bytes = {number: token for token, number in self._ids.items()}
            self._bytes |= {number: text.encode() for text, number in self._added.items()}
        return b"".join([self._bytes[number] for number in ids]).decode("utf-8", "replace")

    def _pieces(self, text: str) -> list[str]:
        pieces = [unicodedata.normalize("NFC", text) if self._nfc else text]
        for pattern in self._patterns:
            pieces = [piece for whole in pieces for piece in _isolated(pattern, whole)]
        return pieces

    def _tokens(self, piece: str) -> tuple[int, ...]:
        known = self._cache.get(piece)
        if known is not None:
            return known
        data = piece.encode("utf-8", "replace")
        one = self._ids.get(data) if self._whole else None
        ids = (one,) if one is not None else tuple([self._ids[part] for part in merged(data, self._rank)])
        if len(piece) <= CACHED_CHARACTERS_MAX:
            if len(self._cache) >= CACHED_PIECES_MAX:
                self._cache.clear()
            self._cache[piece] = ids
        return ids


def _isolated(pattern: re.Pattern[str], text: str) -> list[str]:
    """The matches and what is between them, in order."""
    found = pattern.findall(text)  # no pattern here has groups: each match is a string
    if sum(map(len, found)) == len(text):
        return [piece for piece in found if piece]
    pieces, at = [], 0
    for match in pattern.finditer(text):
        pieces += [text[at : match.start()], match.group()]
        at = match.end()
    pieces.append(text[at:])
    return [piece for piece in pieces if piece]


def merged(data: bytes, rank: Rank) -> list[bytes]:
    """The parts that are left of single bytes when no pair of neighbours has a rank any more."""
    parts: list[bytes] = [data[at : at + 1] for at in range(len(data))]
    after = list(range(1, len(parts) + 1))  # of each part that still stands, where the next one is
    before = list(range(-1, len(parts) - 1))
    waiting: list[tuple[int, int, bytes, bytes]] = []
    for at, (left, right) in enumerate(pairwise(parts)):
        if (order := rank(left, right)) is not None:
            waiting.append((order, at, left, right))
    heapq.heapify(waiting)
    while waiting:
        _, at, left, right = heapq.heappop(waiting)
        then = after[at]
        if parts[at] != left or then >= len(parts) or parts[then] != right:
            continue  # one of the two has been merged since
        parts[at], parts[then] = left + right, b""
        after[at] = after[then]
        if after[at] < len(parts):
            before[after[at]] = at
        for first, second in ((before[at], at), (at, after[at])):
            if first >= 0 and second < len(parts):
                order = rank(parts[first], parts[second])
                if order is not None:
                    heapq.heappush(waiting, (order, first, parts[first], parts[second]))
    return [part for part in parts if part]

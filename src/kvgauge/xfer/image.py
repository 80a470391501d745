"""What every word of a pool must hold before and after a transfer. Pure numpy.

Word i of a pool is base + i x an odd constant; the base is drawn from who holds the pool and which batch it is. A word
therefore tells which pool, which batch and which place it came from, and no two words of a pool are alike.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from kvgauge.xfer.workload import WORD_BYTES, Int32, Int64, Side, UInt64, Workload, moved_blocks, pair

CHUNK_WORDS = 1 << 18  # 2 MiB: stays in a cache, bounds what a check takes beside the pool
_STEP = np.uint64(0x9E3779B97F4A7C15)
_STEP_INVERSE = pow(0x9E3779B97F4A7C15, -1, 1 << 64)
_RAMP = np.arange(CHUNK_WORDS, dtype=np.uint64) * _STEP


def base(holder: str, turn: int) -> int:
    """The first word of the pool of `holder` (an agent's name) in batch `turn`; -1: the destination's blank."""
    return int.from_bytes(hashlib.sha256(f"{holder}/{turn}".encode()).digest()[:8])


def fill(pool: UInt64, start: int) -> None:
    """Write the image with this base over a whole pool (flat)."""
    for at in range(0, len(pool), CHUNK_WORDS):
        part = pool[at : at + CHUNK_WORDS]
        np.add(_RAMP[: len(part)], _word(start, at), out=part)


def _word(start: int, index: int) -> np.uint64:
    return np.uint64((start + index * int(_STEP)) & 0xFFFFFFFFFFFFFFFF)


class Expect:
    """What one group of a destination pool must hold after a batch.

    destination  which side the pool is on; groups: (in the initiator's pool, in the target's)
    now, before  base of the source pool in this batch and in the one before; blank: of the destination's own image
    """

    def __init__(
        self, work: Workload, destination: Side, groups: tuple[int, int], *, now: int, before: int, blank: int
    ) -> None:
        self.work, self.now, self.before, self.blank = work, now, before, blank
        source: Side = "target" if destination == "initiator" else "initiator"
        self.group, self.source_group = groups if destination == "initiator" else groups[::-1]
        number = pair(work, *groups)
        self.into, self.out_of = moved_blocks(work, destination, number), moved_blocks(work, source, number)


def check(pool: UInt64, expect: Expect, slot: int) -> tuple[dict[str, int], int]:
    """Wrong blocks of one slot by kind, and blocks that changed although none was moved there.

    pool  the whole destination pool, flat

    Kinds: zero; stale (what lay there one batch before); untouched (the blank image); misplaced (another place of the
    source pool); content (anything else). Every byte of the slot is compared.
    """
    work = expect.work
    words = work.block_bytes // WORD_BYTES
    start = (expect.group * work.slots + slot) * work.slot_blocks
    lies = pool[start * words : (start + work.slot_blocks) * words].reshape(work.regions, work.room, words)
    source_start = (expect.source_group * work.slots + slot) * work.slot_blocks
    kinds: dict[str, int] = {}
    outside = 0
    still = np.setdiff1d(np.arange(work.room, dtype=np.int32), expect.into)
    for region in range(work.regions):
        from_row = source_start + region * work.room
        to_row = start + region * work.room
        wrong = _wrong(lies[region], expect.into, from_row + expect.out_of.astype(np.int64), expect.now)
        for block in wrong:
            where = (int(expect.into[block]), from_row + int(expect.out_of[block]), to_row + int(expect.into[block]))
            kind = _kind(lies[region, where[0]], where[1], where[2], expect)
            kinds[kind] = kinds.get(kind, 0) + 1
        outside += len(_wrong(lies[region], still, to_row + still.astype(np.int64), expect.blank))
    return kinds, outside


def _wrong(region: UInt64, blocks: Int32, wanted_rows: Int64, start: int) -> list[int]:
    """Indices into `blocks` whose words are not those of the wanted rows of the image."""
    words = region.shape[1]
    found: set[int] = set()
    for first, last, word, end in _pieces(len(blocks), words):
        got = region[blocks[first:last], word:end]
        at = wanted_rows[first:last].astype(np.uint64) * np.uint64(words) + np.uint64(word)
        wanted = (np.uint64(start) + at * _STEP)[:, None] + _RAMP[: end - word][None, :]
        if not np.array_equal(got, wanted):
            found.update((first + np.flatnonzero((got != wanted).any(axis=1))).tolist())
    return sorted(found)


def _pieces(blocks: int, words: int) -> Iterator[tuple[int, int, int, int]]:
    """(first block, last, first word, last) of pieces of at most CHUNK_WORDS words."""
    if words >= CHUNK_WORDS:
        for block in range(blocks):
            for word in range(0, words, CHUNK_WORDS):
                yield block, block + 1, word, min(words, word + CHUNK_WORDS)
        return
    many = max(1, CHUNK_WORDS // words)
    for first in range(0, blocks, many):
        yield first, min(blocks, first + many), 0, words


def _kind(got: UInt64, from_row: int, to_row: int, expect: Expect) -> str:
    words = len(got)
    index = np.arange(words, dtype=np.uint64) * _STEP
    if not got.any():
        return "zero"
    if np.array_equal(got, index + _word(expect.before, from_row * words)):
        return "stale"
    if np.array_equal(got, index + _word(expect.blank, to_row * words)):
        return "untouched"
    place = (int(got[0]) - expect.now) * _STEP_INVERSE % (1 << 64)  # where in the source pool its first word is from
    pool_words = max(expect.work.pool_words_initiator, expect.work.pool_words_target)
    if place < pool_words and np.array_equal(got, index + _word(expect.now, place)):
        return "misplaced"
    return "content"

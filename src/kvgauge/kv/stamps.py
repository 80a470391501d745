"""Stamps that tell whether a KV block is the right one: written at prefill, compared at decode. Pure numpy.

Each piece of a block begins and ends with the same four 64-bit words:

    word 0  nonce of the request, never 0 and never used twice
    word 1  region (layer x K/V), rank of the writer, piece, and a constant that no zeroed word can hold
    word 2  position of the block in the prompt
    word 3  digest of the prompt: decode derives the answer's tokens from what it finds here

so a block that is zero, of an earlier request, of another layer or position, or only half there is found.
Content between the stamps is compared too where a plan asks for `full_check`.
"""

from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]
Int32 = npt.NDArray[np.int32]

STAMP_WORDS = 4
_MARK = np.uint64(0xA5C3)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Fault = Literal["zero", "stale", "misplaced", "cut", "content"]


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """Outcome over all pieces of one request. `faults` counts wrong pieces by kind."""

    pieces: int
    wrong: int
    faults: dict[Fault, int]
    digest: int | None  # word 3 of the first block, None when that block is wrong

    @property
    def line(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
        return f"{self.wrong} of {self.pieces} KV pieces wrong ({kinds})"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a request's blocks must say, whoever reads them."""

    nonce: int
    digest: int


def expected(identity: Identity, regions: int, blocks: int, rank: int, piece: int) -> UInt64:
    """Stamps of one piece column: shape [regions, blocks, 4]."""
    words = np.empty((regions, blocks, STAMP_WORDS), dtype=np.uint64)
    words[..., 0] = identity.nonce
    region = np.arange(regions, dtype=np.uint64)[:, None]
    words[..., 1] = (region << np.uint64(40)) | np.uint64(rank << 28 | piece << 16) | _MARK
    words[..., 2] = np.arange(blocks, dtype=np.uint64)[None, :]
    words[..., 3] = identity.digest
    return words


def content(stamps: UInt64, words: int) -> UInt64:
    """What lies between the stamps under full check: shape [..., words], derived from the stamp alone."""
    seed = (stamps[..., 0] ^ (stamps[..., 1] * _GOLDEN) ^ (stamps[..., 2] << np.uint64(17)))[..., None]
    filled: UInt64 = seed + np.arange(words, dtype=np.uint64) * _GOLDEN
    return filled


def write(pool: UInt64, blocks: Int32, piece: int, stamps: UInt64, *, full: bool) -> None:
    """Stamp one piece column of these blocks.

    pool    [regions, all blocks, pieces, words]
    stamps  [regions, len(blocks), 4]
    """
    pool[:, blocks, piece, :STAMP_WORDS] = stamps
    pool[:, blocks, piece, -STAMP_WORDS:] = stamps
    if full:
        inside = pool.shape[3] - 2 * STAMP_WORDS
        for region in range(pool.shape[0]):  # one region at a time bounds the memory this takes
            pool[region, blocks, piece, STAMP_WORDS:-STAMP_WORDS] = content(stamps[region], inside)


def check(pool: UInt64, blocks: Int32, piece: int, stamps: UInt64, *, full: bool) -> dict[Fault, int]:
    """Compare one piece column with its stamps. Returns how many pieces are wrong, by kind; empty: none.

    pool, stamps  as for `write`
    """
    head = pool[:, blocks, piece, :STAMP_WORDS]
    tail = pool[:, blocks, piece, -STAMP_WORDS:]
    faults: dict[Fault, int] = {}
    if not (np.array_equal(head, stamps) and np.array_equal(tail, stamps)):
        faults = _kinds(head, tail, stamps)
    if full:
        inside = pool.shape[3] - 2 * STAMP_WORDS
        for region in range(pool.shape[0]):
            got = pool[region, blocks, piece, STAMP_WORDS:-STAMP_WORDS]
            wrong = (got != content(stamps[region], inside)).any(axis=-1)
            stamped = (head[region] == stamps[region]).all(axis=-1) & (tail[region] == stamps[region]).all(axis=-1)
            if count := int(np.count_nonzero(wrong & stamped)):
                faults["content"] = faults.get("content", 0) + count
    return faults


def _kinds(head: UInt64, tail: UInt64, stamps: UInt64) -> dict[Fault, int]:
    head_wrong = (head != stamps).any(axis=-1)
    tail_wrong = (tail != stamps).any(axis=-1)
    zero = head_wrong & (head == 0).all(axis=-1)
    stale = head_wrong & ~zero & (head[..., 0] != stamps[..., 0])
    misplaced = head_wrong & ~zero & ~stale
    cut = ~head_wrong & tail_wrong
    kinds: list[tuple[Fault, npt.NDArray[np.bool_]]] = [
        ("zero", zero),
        ("stale", stale),
        ("misplaced", misplaced),
        ("cut", cut),
    ]
    return {kind: count for kind, where in kinds if (count := int(np.count_nonzero(where)))}

"""Where KV blocks lie, and which rank must fetch which part from which. Pure; numpy only for index arithmetic.

A rank holds its share of the KV heads in one pool:

    [region = layer x (K, V)] [block of 16 tokens] [piece = group of heads] [bytes of that piece]

Heads stand outside tokens within a block (vLLM's HND layout, which it needs too when prefill and decode are
split differently), so the heads that two ranks share are contiguous. A *piece* is the largest group of heads
that no rank on either side splits: with equal TP it is the whole block, and each piece is one descriptor.
"""

import math

import msgspec
import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]
Int32 = npt.NDArray[np.int32]


class PoolShape(msgspec.Struct, frozen=True, kw_only=True):
    """The pool of one rank. Sizes in bytes; `regions` = layers x regions per layer."""

    regions: int
    blocks: int
    pieces: int
    piece_bytes: int

    @property
    def block_bytes(self) -> int:
        return self.pieces * self.piece_bytes

    @property
    def size_bytes(self) -> int:
        return self.regions * self.blocks * self.block_bytes


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """One piece that a decode rank must get, and where it lies at prefill."""

    decode_rank: int
    prefill_rank: int
    decode_piece: int
    prefill_piece: int


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A share seen from one side: which of our pieces belongs to which of theirs."""

    our_rank: int
    our_piece: int
    their_rank: int
    their_piece: int


def from_decode(share: Share) -> Pair:
    """The share as a READ by decode sees it."""
    return Pair(
        our_rank=share.decode_rank,
        our_piece=share.decode_piece,
        their_rank=share.prefill_rank,
        their_piece=share.prefill_piece,
    )


def from_prefill(share: Share) -> Pair:
    """The share as a WRITE by prefill sees it."""
    return Pair(
        our_rank=share.prefill_rank,
        our_piece=share.prefill_piece,
        their_rank=share.decode_rank,
        their_piece=share.decode_piece,
    )


def heads_of(rank: int, tp: int, kv_heads: int) -> range:
    """Global KV heads that a rank holds: its share, or one replicated head when there are more ranks than heads."""
    if tp <= kv_heads:
        each = kv_heads // tp
        return range(rank * each, (rank + 1) * each)
    head = rank * kv_heads // tp
    return range(head, head + 1)


def piece_heads(prefill_tp: int, decode_tp: int, kv_heads: int) -> int:
    """Heads in a piece: the largest group that both sides hold unsplit."""
    return math.gcd(len(heads_of(0, prefill_tp, kv_heads)), len(heads_of(0, decode_tp, kv_heads)))


def shares(prefill_tp: int, decode_tp: int, kv_heads: int) -> list[Share]:
    """Every piece of every decode rank with its source, in decode rank order.

    Where several prefill ranks hold the same heads (replicated heads, or an MLA latent: kv_heads = 1), the
    decode ranks are spread over them.
    """
    group = piece_heads(prefill_tp, decode_tp, kv_heads)
    held = [heads_of(rank, prefill_tp, kv_heads) for rank in range(prefill_tp)]
    found = []
    for decode_rank in range(decode_tp):
        wanted = heads_of(decode_rank, decode_tp, kv_heads)
        for decode_piece, head in enumerate(wanted[::group]):
            holders = [rank for rank, heads in enumerate(held) if head in heads]
            prefill_rank = holders[decode_rank % len(holders)]
            found.append(
                Share(
                    decode_rank=decode_rank,
                    prefill_rank=prefill_rank,
                    decode_piece=decode_piece,
                    prefill_piece=(head - held[prefill_rank][0]) // group,
                )
            )
    return found


def descriptors(base: int, shape: PoolShape, piece: int) -> UInt64:
    """(address, length, device) of one piece of every block of every region; row = region x blocks + block."""
    rows = np.arange(shape.regions * shape.blocks, dtype=np.uint64)
    found = np.zeros((len(rows), 3), dtype=np.uint64)
    found[:, 0] = base + rows * np.uint64(shape.block_bytes) + np.uint64(piece * shape.piece_bytes)
    found[:, 1] = shape.piece_bytes
    return found


def rows_of(blocks: Int32, shape: PoolShape) -> Int32:
    """Rows of `descriptors` for these blocks, layer by layer, K then V: the order in which vLLM reads them."""
    regions = np.arange(shape.regions, dtype=np.int32)[:, None] * np.int32(shape.blocks)
    rows: Int32 = (regions + blocks[None, :]).ravel()
    return rows

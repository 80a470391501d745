"""The transfers of a self-test, and what memory must hold before and after each: every byte is known. Pure numpy.

Each rank has one pool, each shape an area in it. Before a transfer the source pool holds the *source image*, the
destination pool the *blank image*; afterwards the destination's blocks hold the source's, and all else is as it was.
Word i of an image is base + i x an odd constant, so a word tells where it came from.
"""

import hashlib

import msgspec
import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]

WORD_BYTES = 8
HEAD_WORDS = 8  # this much of a block right, and wrong from some word to its end: cut short
_STEP = 0x9E3779B97F4A7C15
_STEP_INVERSE = np.uint64(pow(_STEP, -1, 1 << 64))


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of transfer.

    ranks   agents on each side; rank r moves to rank r
    blocks  moved by each rank, scattered over `room` blocks of its pool
    """

    name: str
    ranks: int
    blocks: int
    room: int
    block_bytes: int

    @property
    def area_bytes(self) -> int:
        return self.room * self.block_bytes


SHAPES = (
    Shape(name="one block of 32 KiB", ranks=1, blocks=1, room=8, block_bytes=32 << 10),
    Shape(name="512 scattered blocks of 32 KiB", ranks=1, blocks=512, room=700, block_bytes=32 << 10),
    # Above libfabric's stripe threshold of 128 KiB.
    Shape(name="64 blocks of 256 KiB", ranks=1, blocks=64, room=90, block_bytes=256 << 10),
    # Llama-3.1-70B at TP 8: 4 KiB descriptors, an agent for each rank.
    Shape(name="TP 8: 8 x 640 blocks of 4 KiB", ranks=8, blocks=640, room=900, block_bytes=4 << 10),
)
RANKS = max(shape.ranks for shape in SHAPES)


def area(shape: Shape, rank: int) -> slice:
    """Where the shape lies in the pool of a rank, in words."""
    start = 0
    for other in SHAPES:
        if other is shape:
            break
        start += other.area_bytes if rank < other.ranks else 0
    return slice(start // WORD_BYTES, (start + shape.area_bytes) // WORD_BYTES)


def pool_bytes(rank: int) -> int:
    """Size of the pool of a rank: an area for each shape it takes part in."""
    return sum(shape.area_bytes for shape in SHAPES if rank < shape.ranks)


def rows(shape: Shape, rank: int, side: str) -> Int64:
    """Which of the area's blocks are moved, in order: a permutation that differs for source and destination."""
    seed = int.from_bytes(_digest(shape.name, rank, side)[:4])
    drawn: Int64 = np.random.default_rng(seed).permutation(shape.room)[: shape.blocks].astype(np.int64)
    return drawn


def source_image(words: int, shape: Shape, rank: int, turn: int) -> UInt64:
    """What the whole source pool holds before transfer number `turn` (0: the first)."""
    return _image(words, _base("source", shape, rank, turn))


def blank_image(words: int, shape: Shape, rank: int, turn: int) -> UInt64:
    """What the whole destination pool holds before it."""
    return _image(words, _base("blank", shape, rank, turn))


def compare(pool: UInt64, shape: Shape, rank: int, turn: int) -> tuple[dict[str, int], int]:
    """Wrong blocks by kind, and bytes that changed outside every block.

    pool  the destination pool of this rank after the transfer, flat

    Kinds: zero; untouched (as before the transfer); stale (what the transfer before brought); misplaced (another
    place of the source pool); cut (right at first, wrong to its end); content (anything else).
    """
    words = len(pool)
    wanted = blank_image(words, shape, rank, turn)
    place, block_words = area(shape, rank), shape.block_bytes // WORD_BYTES
    into, out_of = rows(shape, rank, "destination"), rows(shape, rank, "source")
    source = source_image(words, shape, rank, turn)[place].reshape(shape.room, block_words)
    blank = wanted[place].reshape(shape.room, block_words)[into]  # indexing copies: this stays as it was
    wanted[place].reshape(shape.room, block_words)[into] = source[out_of]
    if np.array_equal(pool, wanted):
        return {}, 0
    got = pool[place].reshape(shape.room, block_words)[into]
    wrong = (got != source[out_of]).any(axis=1)
    kinds = _kinds(got[wrong], source[out_of][wrong], blank[wrong], _bases(shape, rank, turn), words)
    changed = int(np.count_nonzero(pool.view(np.uint8) != wanted.view(np.uint8)))
    inside = int(np.count_nonzero(got.view(np.uint8) != source[out_of].view(np.uint8)))
    return kinds, changed - inside


def _kinds(got: UInt64, want: UInt64, blank: UInt64, bases: tuple[int, int], words: int) -> dict[str, int]:
    """got, want, blank  [wrong blocks, words of a block]; each block is counted as the first kind that fits"""
    now, before = (np.uint64(base) for base in bases)
    index = (got - now) * _STEP_INVERSE  # where in the source pool each word would be from
    follows = (np.diff(index.astype(np.int64), axis=1) == 1).all(axis=1)
    unequal = got != want
    first_wrong = unequal.argmax(axis=1)
    to_the_end = unequal.sum(axis=1) == got.shape[1] - first_wrong
    tests = (
        ("zero", (got == 0).all(axis=1)),
        ("untouched", (got == blank).all(axis=1)),
        ("stale", (got == want - now + before).all(axis=1)),
        ("misplaced", follows & (index[:, 0] < words)),
        ("cut", (first_wrong >= HEAD_WORDS) & to_the_end),
        ("content", np.ones(len(got), dtype=np.bool_)),
    )
    left = np.ones(len(got), dtype=np.bool_)
    kinds = {}
    for kind, fits in tests:
        if count := int(np.count_nonzero(fits & left)):
            kinds[kind] = count
        left &= ~fits
    return kinds


def _image(words: int, base: int) -> UInt64:
    image: UInt64 = np.arange(words, dtype=np.uint64)
    image *= np.uint64(_STEP)
    image += np.uint64(base)
    return image


def _bases(shape: Shape, rank: int, turn: int) -> tuple[int, int]:
    """Of the source image now, and of the one before; for the first, a base no transfer ever had."""
    return _base("source", shape, rank, turn), _base("source", shape, rank, turn - 1)


def _base(kind: str, shape: Shape, rank: int, turn: int) -> int:
    return int.from_bytes(_digest(kind, shape.name, rank, turn)[:8])


def _digest(*parts: object) -> bytes:
    return hashlib.sha256("/".join(map(str, parts)).encode()).digest()

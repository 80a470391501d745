"""What a self-test compares: every byte of the destination, and what a wrong block looks like."""

import numpy as np
import pytest

from kvgauge.kv import shapes
from kvgauge.kv.shapes import SHAPES

SMALL, TP8 = SHAPES[1], SHAPES[3]


def moved(shape, rank=0, turn=0):
    """A destination pool after a right transfer, its blocks as a view to spoil, and which of them were written."""
    words = shapes.pool_bytes(rank) // shapes.WORD_BYTES
    pool = shapes.blank_image(words, shape, rank, turn)
    source = shapes.source_image(words, shape, rank, turn)
    place = shapes.area(shape, rank)
    into, out_of = (shapes.rows(shape, rank, side) for side in ("destination", "source"))
    blocks = pool[place].reshape(shape.room, -1)
    blocks[into] = source[place].reshape(shape.room, -1)[out_of]
    return pool, blocks, into


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_right_transfer_has_no_fault_on_any_rank(shape):
    for rank in range(shape.ranks):
        for turn in (0, 1):
            pool, _, _ = moved(shape, rank, turn)
            assert shapes.compare(pool, shape, rank, turn) == ({}, 0)


def test_nothing_that_was_not_written_passes():
    words = shapes.pool_bytes(0) // shapes.WORD_BYTES
    for shape in SHAPES:
        faults, outside = shapes.compare(shapes.blank_image(words, shape, 0, 0), shape, 0, 0)
        assert (faults, outside) == ({"untouched": shape.blocks}, 0)


def test_a_single_wrong_bit_anywhere_in_a_block_is_found():
    for word in (0, 17, SMALL.block_bytes // shapes.WORD_BYTES - 1):
        pool, blocks, into = moved(SMALL)
        blocks[into[5], word] ^= np.uint64(1 << 40)
        faults, outside = shapes.compare(pool, SMALL, 0, 0)
        assert sum(faults.values()) == 1
        assert outside == 0


def test_each_kind_of_wrong_block_is_called_what_it_is():
    pool, blocks, into = moved(SMALL)
    earlier, _, _ = moved(SMALL, turn=-1)
    place = shapes.area(SMALL, 0)
    blank = shapes.blank_image(len(pool), SMALL, 0, 0)[place].reshape(SMALL.room, -1)
    blocks[into[0]] = 0
    blocks[into[1]] = blank[into[1]]
    blocks[into[2]] = earlier[place].reshape(SMALL.room, -1)[into[2]]
    blocks[into[3]] = blocks[into[4]]
    blocks[into[5], 100:] = blank[into[5], 100:]
    blocks[into[6], 50] ^= np.uint64(1)
    faults, outside = shapes.compare(pool, SMALL, 0, 0)
    assert faults == dict.fromkeys(("zero", "untouched", "stale", "misplaced", "cut", "content"), 1)
    assert outside == 0


def test_swapped_blocks_are_misplaced():
    pool, blocks, into = moved(TP8, rank=3)
    blocks[[into[0], into[1]]] = blocks[[into[1], into[0]]]
    assert shapes.compare(pool, TP8, 3, 0) == ({"misplaced": 2}, 0)


def test_bytes_overwritten_where_no_block_lies_are_counted():
    pool, _, into = moved(SMALL)
    place = shapes.area(SMALL, 0)
    unused = next(row for row in range(SMALL.room) if row not in set(into))
    pool[place].reshape(SMALL.room, -1)[unused, 3] ^= np.uint64(0x0101)
    pool[-1] ^= np.uint64(1)  # another shape's area
    assert shapes.compare(pool, SMALL, 0, 0) == ({}, 3)


def test_areas_fill_a_pool_without_overlap_and_rows_never_repeat():
    for rank in range(shapes.RANKS):
        at = 0
        for shape in SHAPES:
            if rank >= shape.ranks:
                continue
            place = shapes.area(shape, rank)
            assert place.start == at
            at = place.stop
            for side in ("source", "destination"):
                rows = shapes.rows(shape, rank, side)
                assert len(set(rows.tolist())) == shape.blocks
                assert 0 <= rows.min() <= rows.max() < shape.room
        assert at * shapes.WORD_BYTES == shapes.pool_bytes(rank)


def test_source_and_destination_rows_differ_so_that_equal_offsets_cannot_hide_a_mistake():
    for shape in SHAPES:
        same = shapes.rows(shape, 0, "source") == shapes.rows(shape, 0, "destination")
        assert np.count_nonzero(same) < max(1, shape.blocks // 10)

"""Stamps find every way a block can be wrong that we know of, and nothing in a right one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.kv import stamps
from kvgauge.kv.stamps import Identity

REGIONS, BLOCKS, PIECES, WORDS = 4, 12, 2, 32
WHO = Identity(nonce=0xDEADBEEF, digest=0x1234)
CHOSEN = np.array([7, 2, 9], dtype=np.int32)


def written(*, full=False, identity=WHO):
    pool = np.zeros((REGIONS, BLOCKS, PIECES, WORDS), dtype=np.uint64)
    expected = stamps.expected(identity, REGIONS, len(CHOSEN), rank=3, piece=1)
    stamps.write(pool, CHOSEN, 1, expected, full=full)
    return pool, expected


@pytest.mark.parametrize("full", [False, True])
def test_what_was_written_is_right(full):
    pool, expected = written(full=full)
    assert stamps.check(pool, CHOSEN, 1, expected, full=full) == {}


def test_only_the_chosen_blocks_and_piece_are_touched():
    pool, _ = written(full=True)
    pool[:, CHOSEN, 1] = 0
    assert not pool.any()


def test_a_zeroed_block_is_found_and_called_zero():
    pool, expected = written()
    pool[2, 9, 1] = 0
    assert stamps.check(pool, CHOSEN, 1, expected, full=False) == {"zero": 1}


def test_a_block_of_an_earlier_request_is_called_stale():
    pool, expected = written()
    old = stamps.expected(Identity(nonce=1, digest=0x1234), REGIONS, len(CHOSEN), 3, 1)
    pool[0, 7, 1, :4] = old[0, 0]
    assert stamps.check(pool, CHOSEN, 1, expected, full=False) == {"stale": 1}


def test_two_swapped_blocks_are_both_misplaced():
    pool, expected = written()
    pool[1, [7, 2], 1] = pool[1, [2, 7], 1]
    assert stamps.check(pool, CHOSEN, 1, expected, full=False) == {"misplaced": 2}


def test_swapped_layers_are_misplaced():
    pool, expected = written()
    pool[[0, 1]] = pool[[1, 0]]
    assert stamps.check(pool, CHOSEN, 1, expected, full=False) == {"misplaced": 6}


def test_a_block_that_stops_half_way_is_called_cut():
    pool, expected = written()
    pool[3, 2, 1, WORDS // 2 :] = 0
    assert stamps.check(pool, CHOSEN, 1, expected, full=False) == {"cut": 1}


def test_another_ranks_block_is_misplaced():
    pool, _ = written()
    expected = stamps.expected(WHO, REGIONS, len(CHOSEN), rank=2, piece=1)
    assert stamps.check(pool, CHOSEN, 1, expected, full=False) == {"misplaced": REGIONS * len(CHOSEN)}


@settings(max_examples=60)
@given(st.integers(0, REGIONS - 1), st.sampled_from(CHOSEN.tolist()), st.integers(0, WORDS * 64 - 1))
def test_full_check_finds_any_single_flipped_bit(region, block, bit):
    pool, expected = written(full=True)
    pool[region, block, 1, bit // 64] ^= np.uint64(1 << (bit % 64))
    assert sum(stamps.check(pool, CHOSEN, 1, expected, full=True).values()) == 1


def test_without_full_check_a_bit_between_the_stamps_goes_unseen():
    pool, expected = written(full=True)
    pool[0, 7, 1, WORDS // 2] ^= np.uint64(1)
    assert stamps.check(pool, CHOSEN, 1, expected, full=False) == {}
    assert stamps.check(pool, CHOSEN, 1, expected, full=True) == {"content": 1}


def test_no_two_stamps_of_a_request_are_alike():
    words = np.concatenate(
        [stamps.expected(WHO, 160, 32, rank, piece).reshape(-1, 4) for rank in range(16) for piece in range(2)]
    )
    assert len(np.unique(words, axis=0)) == len(words)

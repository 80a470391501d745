"""How many blocks a pool gets: what the heaviest cell needs, and less where memory is short."""

import pytest

from kvgauge.failures import TargetError
from kvgauge.models import BLOCK_TOKENS, MODELS, kv_bytes_per_token
from kvgauge.target.pools import LEAST_BLOCKS, POOL_SHARE, pool_blocks
from scene import make_cell, make_test

BLOCK_BYTES = kv_bytes_per_token(MODELS["Qwen3-0.6B"], "bf16") * BLOCK_TOKENS
PLENTY = 1 << 40
HEAVY = make_cell(concurrency=20, input_tokens=512, output_tokens=128)
LIGHT = make_cell(concurrency=1, input_tokens=16, output_tokens=1)


def test_the_heaviest_cell_decides_and_workers_share_it():
    alone, note = pool_blocks(make_test(), (LIGHT, HEAVY), PLENTY)
    assert (alone, note) == ({"prefill": 20 * 32, "decode": 20 * 40}, None)
    shared, _ = pool_blocks(make_test(prefill_workers=2, decode_workers=3), (HEAVY,), PLENTY)
    assert shared == {"prefill": 320, "decode": 267}


def test_a_light_cell_gets_a_pool_that_blocks_can_scatter_in():
    assert pool_blocks(make_test(), (LIGHT,), PLENTY)[0] == {"prefill": LEAST_BLOCKS, "decode": LEAST_BLOCKS}


def test_short_memory_cuts_both_pools_and_says_so():
    needed = (640 + 800) * BLOCK_BYTES
    cut, note = pool_blocks(make_test(), (HEAVY,), int(needed / POOL_SHARE / 2))
    assert (cut["prefill"], cut["decode"]) == (pytest.approx(320, abs=1), pytest.approx(400, abs=1))
    assert "requests queue for admission" in note


def test_replicated_heads_count_as_often_as_they_are_held():
    one_copy = (640 + 800) * BLOCK_BYTES
    assert pool_blocks(make_test(), (HEAVY,), int(one_copy / POOL_SHARE) + 1)[1] is None
    assert pool_blocks(make_test(prefill_tp=16), (HEAVY,), int(one_copy / POOL_SHARE) + 1)[1] is not None


def test_too_little_memory_is_an_error_that_says_what_to_lower():
    with pytest.raises(TargetError, match="lower the concurrency or the prompt length"):
        pool_blocks(make_test(), (HEAVY,), 10 * BLOCK_BYTES)


def test_pools_without_memory_are_plenty():
    assert pool_blocks(make_test(), (HEAVY,), None) == ({"prefill": 4 * 640, "decode": 4 * 800}, None)


def test_without_cells_there_is_room_for_twenty_requests():
    assert pool_blocks(make_test(), (), PLENTY)[0] == {"prefill": 1280, "decode": 1280}

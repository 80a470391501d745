"""Every head of every decode rank comes from a prefill rank that holds it, in every split we allow."""

import numpy as np
import pytest

from kvgauge.kv.layout import PoolShape, descriptors, from_decode, from_prefill, heads_of, piece_heads, rows_of, shares
from kvgauge.models import MODELS, copies, descriptor_bytes, possible_tps, transfer_bytes

SPLITS = [
    (model, prefill, decode)
    for model in MODELS.values()
    for prefill in possible_tps(model)
    for decode in possible_tps(model)
]


@pytest.mark.parametrize(("model", "prefill", "decode"), SPLITS, ids=lambda v: getattr(v, "name", v))
def test_each_decode_rank_gets_exactly_the_heads_it_holds(model, prefill, decode):
    group = piece_heads(prefill, decode, model.kv_heads)
    for rank in range(decode):
        got = []
        for share in shares(prefill, decode, model.kv_heads):
            if share.decode_rank == rank:
                source = heads_of(share.prefill_rank, prefill, model.kv_heads)
                got += list(source[share.prefill_piece * group : (share.prefill_piece + 1) * group])
        assert got == list(heads_of(rank, decode, model.kv_heads))


@pytest.mark.parametrize(("model", "prefill", "decode"), SPLITS, ids=lambda v: getattr(v, "name", v))
def test_pieces_add_up_to_the_bytes_the_model_says(model, prefill, decode):
    tokens, block_tokens = 512, 16
    group = piece_heads(prefill, decode, model.kv_heads)
    piece_bytes = block_tokens * group * model.head_dim * 2
    moved = (
        len(shares(prefill, decode, model.kv_heads))
        * model.layers
        * model.regions_per_layer
        * (tokens // block_tokens)
        * piece_bytes
    )
    assert moved == transfer_bytes(model, "bf16", tokens, decode)


def test_replicated_sources_share_the_work():
    used = {share.prefill_rank for share in shares(4, 4, 1)}
    assert used == {0, 1, 2, 3}


def test_seventy_b_at_tp_8_moves_4_kib_descriptors():
    model = MODELS["Llama-3.1-70B"]
    assert descriptor_bytes(model, "bf16", 8, 8) == 16 * piece_heads(8, 8, 8) * 128 * 2 == 4096
    assert copies(model, 8) == 1


def test_descriptors_cover_the_pool_without_overlap():
    shape = PoolShape(regions=3, blocks=5, pieces=2, piece_bytes=64)
    both = np.concatenate([descriptors(1000, shape, 0), descriptors(1000, shape, 1)])
    starts = np.sort(both[:, 0])
    assert starts[0] == 1000
    assert np.all(np.diff(starts) == 64)
    assert len(starts) * 64 == shape.size_bytes


def test_rows_go_layer_by_layer_and_block_by_block():
    shape = PoolShape(regions=2, blocks=10, pieces=1, piece_bytes=64)
    assert rows_of(np.array([7, 3], dtype=np.int32), shape).tolist() == [7, 3, 17, 13]


def test_the_two_sides_of_a_share_mirror_each_other():
    for share in shares(2, 8, 8):
        there, back = from_decode(share), from_prefill(share)
        assert (there.our_rank, there.our_piece) == (back.their_rank, back.their_piece)
        assert (there.their_rank, there.their_piece) == (back.our_rank, back.our_piece)

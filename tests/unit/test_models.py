import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.models import (
    BLOCK_TOKENS,
    DTYPE_BYTES,
    MODELS,
    check_tp,
    copies,
    descriptor_bytes,
    descriptors,
    heads_per_rank,
    kv_bytes_per_token,
    possible_tps,
    transfer_bytes,
)

MIB = 1 << 20


@pytest.mark.parametrize(
    ("name", "bytes_per_token", "mib_512"),
    [
        ("Qwen3-0.6B", 114_688, 56),
        ("Qwen2.5-7B", 57_344, 28),
        ("Llama-3.1-8B", 131_072, 64),
        ("Llama-3.1-70B", 327_680, 160),
        ("Qwen3-32B", 262_144, 128),
        ("gpt-oss-120b", 73_728, 36),
        ("DeepSeek-V3", 70_272, 34.3125),
    ],
)
def test_bf16_bytes_are_those_of_the_published_geometry(name, bytes_per_token, mib_512):
    assert kv_bytes_per_token(MODELS[name], "bf16") == bytes_per_token
    assert transfer_bytes(MODELS[name], "bf16", 512, 1) == mib_512 * MIB


def test_every_known_model_is_in_the_table_of_known_bytes():
    assert len(MODELS) == 7
    assert all(model.name == name for name, model in MODELS.items())


@pytest.mark.parametrize(
    ("name", "tp", "each", "count_512"),
    [("Llama-3.1-8B", 1, 32 << 10, 2_048), ("Llama-3.1-70B", 8, 4 << 10, 40_960), ("Qwen3-0.6B", 1, 32 << 10, 1_792)],
)
def test_descriptors_have_the_sizes_of_the_real_models(name, tp, each, count_512):
    assert descriptor_bytes(MODELS[name], "bf16", tp, tp) == each
    assert descriptors(MODELS[name], 512, tp, tp) == count_512


def test_the_narrower_share_of_heads_sets_the_descriptor_when_tp_differs():
    model = MODELS["Llama-3.1-8B"]
    assert descriptor_bytes(model, "bf16", 1, 4) == descriptor_bytes(model, "bf16", 4, 1) == 8 << 10
    assert descriptors(model, 16, 1, 4) == descriptors(model, 16, 4, 1) == 32 * 2 * 4


def test_kv_exists_once_until_ranks_outnumber_heads():
    model = MODELS["Llama-3.1-70B"]
    assert [copies(model, tp) for tp in (1, 8, 16, 32)] == [1, 1, 2, 4]
    assert [heads_per_rank(model, tp) for tp in (1, 2, 8, 16)] == [8, 4, 1, 1]
    assert transfer_bytes(model, "bf16", 512, 16) == 2 * 160 * MIB


def test_an_mla_latent_is_on_every_rank():
    model = MODELS["DeepSeek-V3"]
    assert copies(model, 8) == 8
    assert heads_per_rank(model, 8) == 1
    assert descriptor_bytes(model, "bf16", 8, 8) == 16 * 576 * 2
    assert descriptors(model, 16, 8, 8) == 61 * 8


def test_fp8_halves_and_fp32_doubles():
    model = MODELS["Qwen3-0.6B"]
    assert kv_bytes_per_token(model, "fp8") * 2 == kv_bytes_per_token(model, "fp16")
    assert kv_bytes_per_token(model, "fp32") == 2 * kv_bytes_per_token(model, "bf16")


@pytest.mark.parametrize(("tokens", "whole"), [(0, 0), (1, 1), (16, 1), (17, 2), (512, 32)])
def test_transfers_are_whole_blocks(tokens, whole):
    model = MODELS["Qwen3-0.6B"]
    assert transfer_bytes(model, "bf16", tokens, 1) == whole * BLOCK_TOKENS * 114_688


@pytest.mark.parametrize(
    ("name", "tp", "reason"),
    [
        ("Llama-3.1-8B", 0, "none"),
        ("Llama-3.1-8B", 3, "attention heads"),
        ("Llama-3.1-8B", 64, "more than"),
        ("Qwen2.5-7B", 7, "more than"),
        ("DeepSeek-V3", 5, "attention heads"),
    ],
)
def test_an_impossible_tp_says_why(name, tp, reason):
    assert reason in check_tp(MODELS[name], tp)


def test_possible_tps_are_listed():
    assert possible_tps(MODELS["Qwen3-0.6B"]) == (1, 2, 4, 8, 16)
    assert possible_tps(MODELS["Qwen2.5-7B"]) == (1, 2, 4)


@given(st.sampled_from(sorted(MODELS)), st.sampled_from(sorted(DTYPE_BYTES)), st.integers(0, 5_000), st.data())
def test_descriptors_add_up_to_the_transfer_for_every_pair_of_tps(name, dtype, tokens, data):
    model = MODELS[name]
    prefill, decode = (data.draw(st.sampled_from(possible_tps(model))) for _ in range(2))
    each, count = descriptor_bytes(model, dtype, prefill, decode), descriptors(model, tokens, prefill, decode)
    assert each * count == transfer_bytes(model, dtype, tokens, decode)
    assert copies(model, decode) * model.kv_heads == heads_per_rank(model, decode) * decode

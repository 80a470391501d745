"""How long a named GPU would take: a roofline with fixed costs. Modelled, and said to be so; docs/compute.md.

    prefill step  max(2 x active parameters x tokens + attention, weights read) / (share of peak) + fixed
    decode step   max((weights + KV read) / bandwidth, 2 x active parameters x sequences / peak) + fixed
    TP > 1        every rank does 1/tp of it, plus two all-reduces a layer

A real engine will take this place later. Sources: GPU data sheets for peaks; shares and fixed costs are those of
vLLM-like engines on H100 in public traces, rounded: they set the scale, not a prediction for your machine.
"""

import msgspec

from kvgauge.models import DTYPE_BYTES, Model, kv_bytes_per_token

WEIGHT_BYTES = 2  # bf16 weights
ALL_REDUCES_PER_LAYER = 2


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """Peaks of one GPU, and what engines reach of them.

    flops           dense bf16 operations a second
    memory_bytes_s  high-bandwidth memory
    link_bytes_s    all-reduce bandwidth between the GPUs of a tensor-parallel group
    """

    name: str
    flops: float
    memory_bytes_s: float
    link_bytes_s: float
    flops_share: float = 0.5
    memory_share: float = 0.7
    prefill_fixed_ns: int = 2_000_000
    prefill_layer_ns: int = 150_000  # kernel launches: prefill runs without CUDA graphs
    decode_fixed_ns: int = 1_000_000
    decode_layer_ns: int = 20_000  # inside one CUDA graph
    all_reduce_ns: int = 10_000


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="A100", flops=312e12, memory_bytes_s=2.04e12, link_bytes_s=240e9),
        Gpu(name="H100", flops=989e12, memory_bytes_s=3.35e12, link_bytes_s=360e9),
        Gpu(name="H200", flops=989e12, memory_bytes_s=4.8e12, link_bytes_s=360e9),
        Gpu(name="B200", flops=2_250e12, memory_bytes_s=8.0e12, link_bytes_s=720e9),
    )
}


def prefill_ns(model: Model, gpu: Gpu, tp: int, tokens: int) -> int:
    """One prefill step over `tokens` prompt tokens, all sequences of the step together."""
    linear = 2 * model.parameters_active * tokens
    attention = 2 * model.layers * model.attention_heads * model.head_dim * tokens * tokens
    busy_s = max(
        (linear + attention) / tp / (gpu.flops * gpu.flops_share),
        model.parameters_active * WEIGHT_BYTES / tp / (gpu.memory_bytes_s * gpu.memory_share),
    )
    fixed = gpu.prefill_fixed_ns + model.layers * gpu.prefill_layer_ns
    return fixed + int(busy_s * 1e9) + _all_reduce_ns(model, gpu, tp, tokens)


def decode_ns(model: Model, gpu: Gpu, tp: int, sequences: int, context_tokens: int) -> int:
    """One decode step: a token for each sequence; `context_tokens` is what all of them hold together."""
    kv_bytes = context_tokens * kv_bytes_per_token(model, "bf16")
    busy_s = max(
        (model.parameters_active * WEIGHT_BYTES + kv_bytes) / tp / (gpu.memory_bytes_s * gpu.memory_share),
        2 * model.parameters_active * sequences / tp / (gpu.flops * gpu.flops_share),
    )
    fixed = gpu.decode_fixed_ns + model.layers * gpu.decode_layer_ns
    return fixed + int(busy_s * 1e9) + _all_reduce_ns(model, gpu, tp, sequences)


def _all_reduce_ns(model: Model, gpu: Gpu, tp: int, tokens: int) -> int:
    if tp == 1:
        return 0
    each_s = tokens * model.hidden * DTYPE_BYTES["bf16"] * 2 * (tp - 1) / tp / gpu.link_bytes_s
    return model.layers * ALL_REDUCES_PER_LAYER * (gpu.all_reduce_ns + int(each_s * 1e9))

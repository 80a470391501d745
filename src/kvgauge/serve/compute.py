"""How long a named GPU would take: a roofline with fixed costs. Modelled, and said to be so; docs/compute.md.

    prefill step  max(2 x active parameters x tokens + attention, weights read) / (share of peak) + fixed
    decode step   max((weights + KV read) / bandwidth, 2 x active parameters x sequences / peak) + fixed
    TP > 1        every rank does 1/tp of it, plus two all-reduces a layer

A real engine will take this place later. Sources: GPU data sheets for peaks; shares and fixed costs are those of
vLLM-like engines on H100 in public traces, rounded: they set the scale, not a prediction for your machine.
"""

from collections.abc import Sequence

from kvgauge.gpus import GPUS, Gpu
from kvgauge.models import DTYPE_BYTES, Model, copies, kv_bytes_per_token

__all__ = ["GPUS", "decode_ns", "prefill_ns"]

WEIGHT_BYTES = 2  # bf16 weights
ALL_REDUCES_PER_LAYER = 2


def prefill_ns(model: Model, gpu: Gpu, tp: int, prompts: Sequence[int]) -> int:
    """One prefill step over prompts of these lengths; each attends to itself only, causally."""
    tokens = sum(prompts)
    linear = 2 * model.parameters_active * tokens
    attention = 2 * model.layers * model.attention_heads * model.head_dim * sum(prompt * prompt for prompt in prompts)
    busy_s = max(
        (linear + attention) / tp / (gpu.flops * gpu.flops_share),
        model.parameters_active * WEIGHT_BYTES / tp / (gpu.memory_bytes_s * gpu.memory_share),
    )
    fixed = gpu.prefill_fixed_ns + model.layers * gpu.prefill_layer_ns
    return fixed + int(busy_s * 1e9) + _all_reduce_ns(model, gpu, tp, tokens)


def decode_ns(model: Model, gpu: Gpu, tp: int, sequences: int, context_tokens: int, kv_dtype: str = "bf16") -> int:
    """One decode step: a token for each sequence; `context_tokens` is what all of them hold together."""
    kv_bytes = context_tokens * kv_bytes_per_token(model, kv_dtype) * copies(model, tp)
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

"""KV geometry of the models we know: how many bytes of KV cache a prompt is, and how they lie on ranks.

Pure arithmetic on a table. Imports nothing but msgspec, since workers use it too.

    bytes per token = regions per layer x layers x KV heads x head dimension x bytes per element

K and V of one layer are two regions; multi-head latent attention (MLA) keeps one latent per token and layer,
in one region, and every rank of a tensor-parallel group holds all of it.
"""

import msgspec

BLOCK_TOKENS = 16  # vLLM's default block; the unit in which KV is allocated and transferred

DTYPE_BYTES: dict[str, int] = {"bf16": 2, "fp16": 2, "fp8": 1, "fp32": 4}


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What kvgauge must know about a model: its KV cache exactly, its compute well enough for a roofline.

    kv_heads          KV heads of a layer; 1 where one latent stands for all heads (MLA)
    head_dim          elements of one KV head and token in one region; MLA: latent rank + rope dimension
    regions_per_layer 2: K and V; 1: MLA latent
    parameters        weights in all; parameters_active: those one token passes through
    max_tp            largest tensor parallelism worth asking for
    replicated        every rank holds the whole KV cache, whatever the tensor parallelism (MLA)
    note              where the numbers are from, and what they leave out
    """

    name: str
    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    attention_heads: int
    parameters: int
    parameters_active: int
    max_tp: int
    note: str
    regions_per_layer: int = 2
    replicated: bool = False


_TABLE = (
    Model(
        name="Qwen3-0.6B",
        layers=28,
        kv_heads=8,
        head_dim=128,
        hidden=1024,
        attention_heads=16,
        parameters=596_049_920,
        parameters_active=596_049_920,
        max_tp=16,
        note="config.json; head_dim is explicit there and is not hidden / attention heads",
    ),
    Model(
        name="Qwen2.5-7B",
        layers=28,
        kv_heads=4,
        head_dim=128,
        hidden=3584,
        attention_heads=28,
        parameters=7_615_616_512,
        parameters_active=7_615_616_512,
        max_tp=4,
        note="config.json",
    ),
    Model(
        name="Llama-3.1-8B",
        layers=32,
        kv_heads=8,
        head_dim=128,
        hidden=4096,
        attention_heads=32,
        parameters=8_030_261_248,
        parameters_active=8_030_261_248,
        max_tp=16,
        note="config.json; the same shape in NIXL's kvbench example",
    ),
    Model(
        name="Llama-3.1-70B",
        layers=80,
        kv_heads=8,
        head_dim=128,
        hidden=8192,
        attention_heads=64,
        parameters=70_553_706_496,
        parameters_active=70_553_706_496,
        max_tp=32,
        note="config.json; the same shape in NIXL's kvbench example",
    ),
    Model(
        name="Qwen3-32B",
        layers=64,
        kv_heads=8,
        head_dim=128,
        hidden=5120,
        attention_heads=64,
        parameters=32_762_123_264,
        parameters_active=32_762_123_264,
        max_tp=32,
        note="config.json",
    ),
    Model(
        name="gpt-oss-120b",
        layers=36,
        kv_heads=8,
        head_dim=64,
        hidden=2880,
        attention_heads=64,
        parameters=116_829_156_672,
        parameters_active=5_130_000_000,
        max_tp=16,
        note="upper bound: every other layer attends to a window of 128 tokens, which is not modelled; "
        "active parameters as its model card rounds them",
    ),
    Model(
        name="DeepSeek-V3",
        layers=61,
        kv_heads=1,
        head_dim=512 + 64,
        hidden=7168,
        attention_heads=128,
        parameters=671_026_419_200,
        parameters_active=37_000_000_000,
        max_tp=32,
        note="MLA: kv_lora_rank 512 + rope 64; without the multi-token-prediction layer; "
        "active parameters as its report rounds them",
        regions_per_layer=1,
        replicated=True,
    ),
)

MODELS: dict[str, Model] = {model.name: model for model in _TABLE}


def kv_bytes_per_token(model: Model, dtype: str) -> int:
    """Bytes of KV cache one token takes, counted once however many ranks hold it.

    dtype   a key of DTYPE_BYTES; KeyError for another
    """
    return model.regions_per_layer * model.layers * model.kv_heads * model.head_dim * DTYPE_BYTES[dtype]


def check_tp(model: Model, tp: int) -> str | None:
    """None, or one line that says why this model cannot be split over `tp` ranks."""
    if tp < 1:
        return f"{tp} ranks are none"
    if tp > model.max_tp:
        return f"{tp} ranks are more than the {model.max_tp} that make sense for {model.name}"
    if model.attention_heads % tp:
        return f"the {model.attention_heads} attention heads of {model.name} do not divide over {tp} ranks"
    if not model.replicated and model.kv_heads % tp and tp % model.kv_heads:
        return f"the {model.kv_heads} KV heads of {model.name} neither divide over {tp} ranks nor repeat evenly on them"
    return None


def possible_tps(model: Model) -> tuple[int, ...]:
    """Every tensor parallelism `check_tp` accepts, ascending."""
    return tuple(tp for tp in range(1, model.max_tp + 1) if check_tp(model, tp) is None)


def heads_per_rank(model: Model, tp: int) -> int:
    """KV heads each of `tp` ranks holds; ranks share heads by holding copies once there are more ranks than heads."""
    return model.kv_heads if model.replicated else max(1, model.kv_heads // tp)


def copies(model: Model, tp: int) -> int:
    """How many times the KV cache exists over all ranks of one tensor-parallel group."""
    return tp if model.replicated else max(1, tp // model.kv_heads)


def blocks(prompt_tokens: int) -> int:
    """Whole blocks that hold a prompt."""
    return -(-prompt_tokens // BLOCK_TOKENS)


def transfer_bytes(model: Model, dtype: str, prompt_tokens: int, decode_tp: int) -> int:
    """Bytes one request moves from prefill to decode: whole blocks, once for every copy the decode side keeps."""
    return blocks(prompt_tokens) * BLOCK_TOKENS * kv_bytes_per_token(model, dtype) * copies(model, decode_tp)


def descriptor_bytes(model: Model, dtype: str, prefill_tp: int, decode_tp: int) -> int:
    """Bytes of one descriptor: one region of one layer of one block, as far as one pair of ranks shares its heads."""
    heads = min(heads_per_rank(model, prefill_tp), heads_per_rank(model, decode_tp))
    return BLOCK_TOKENS * heads * model.head_dim * DTYPE_BYTES[dtype]


def descriptors(model: Model, prompt_tokens: int, prefill_tp: int, decode_tp: int) -> int:
    """Descriptors one request lists, over all pairs of ranks."""
    # Any dtype gives the same count: both sizes scale with it.
    moved = transfer_bytes(model, "fp8", prompt_tokens, decode_tp)
    return moved // descriptor_bytes(model, "fp8", prefill_tp, decode_tp)

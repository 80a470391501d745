"""A model folder with made-up weights for vLLM: Qwen3's architecture, small enough for two processes on one core.

The weights are large enough that an answer depends on every part of its prompt: with those that vLLM makes up itself
(--load-format dummy) all prompts are answered alike, and wrong KV would not show. Every id of its vocabulary is a token
of letters, so that any answer is text.
"""

import itertools
import json
import string
from pathlib import Path

import numpy as np

from engines.model_folder import CHAT, SPECIAL, tokenizer

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 256, 512, 4, 4, 2, 64
FLOAT32_BYTES = 4
KV_BYTES_PER_TOKEN = LAYERS * 2 * KV_HEADS * HEAD_DIM * FLOAT32_BYTES  # 4,096: K and V
TOKENS = 32_000  # what kvgauge takes token ids from, unless it is told otherwise
LENGTH_MAX = 4096


def make_tiny_model(folder: Path) -> Path:
    """Write config.json, generation_config.json, tokenizer.json, tokenizer_config.json and model.safetensors."""
    folder.mkdir(parents=True)
    special = {text: TOKENS + number for number, text in enumerate(SPECIAL)}
    ends = special["<|endoftext|>"]
    files = {
        "config.json": {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "vocab_size": TOKENS + len(SPECIAL),
            "max_position_embeddings": LENGTH_MAX,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10_000.0,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "bos_token_id": ends,
            "eos_token_id": special["<|im_end|>"],
        },
        "generation_config.json": {"bos_token_id": ends, "eos_token_id": special["<|im_end|>"], "pad_token_id": ends},
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "model_max_length": LENGTH_MAX,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "chat_template": CHAT,
        },
        "tokenizer.json": tokenizer(ranks(), special),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    write_weights(folder / "model.safetensors", TOKENS + len(SPECIAL))
    return folder


def shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Every weight of it, as transformers names them."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    for layer in range(LAYERS):
        found |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in (
                ("input_layernorm", (HIDDEN,)),
                ("post_attention_layernorm", (HIDDEN,)),
                ("self_attn.q_proj", (HEADS * HEAD_DIM, HIDDEN)),
                ("self_attn.k_proj", (KV_HEADS * HEAD_DIM, HIDDEN)),
                ("self_attn.v_proj", (KV_HEADS * HEAD_DIM, HIDDEN)),
                ("self_attn.o_proj", (HIDDEN, HEADS * HEAD_DIM)),
                ("self_attn.q_norm", (HEAD_DIM,)),
                ("self_attn.k_norm", (HEAD_DIM,)),
                ("mlp.gate_proj", (INNER, HIDDEN)),
                ("mlp.up_proj", (INNER, HIDDEN)),
                ("mlp.down_proj", (HIDDEN, INNER)),
            )
        }
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (vocabulary, HIDDEN)}


def write_weights(path: Path, vocabulary: int) -> None:
    """A file in the safetensors format: the length of a JSON header, the header, the numbers."""
    header, begin = {}, 0
    named = shapes(vocabulary)
    for name, shape in named.items():
        end = begin + FLOAT32_BYTES * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(7)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in named.items():
            file.write(weight(name, shape, rng).astype("<f4").tobytes())


def weight(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Attention looks at few tokens of the prompt (norms of 2 make its logits spread by 4), and what it sees weighs."""
    if len(shape) == 1:
        return np.full(shape, 2.0 if name.endswith(("q_norm.weight", "k_norm.weight")) else 1.0)
    scale = 3.0 if "v_proj" in name or "o_proj" in name else 1.0
    return scale * rng.standard_normal(shape, dtype=np.float32) / (1 if "embed" in name else np.sqrt(shape[1]))


def ranks() -> dict[bytes, int]:
    """Every byte, then words of one, two and three letters with a space before them: each is one before and a byte."""
    letters = [letter.encode() for letter in string.ascii_lowercase + string.ascii_uppercase]
    bytes_ = [bytes([byte]) for byte in range(256)]
    words = (b" " + b"".join(word) for length in (1, 2, 3) for word in itertools.product(letters, repeat=length))
    return {token: rank for rank, token in enumerate(itertools.islice(itertools.chain(bytes_, words), TOKENS))}

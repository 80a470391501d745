"""A model folder without weights for vLLM: Qwen3's architecture, small enough for two processes on one core.

vLLM fills the weights itself (--load-format dummy), the same ones in every process. Every id of its vocabulary is a
token of letters, so that any answer is text.
"""

import itertools
import json
import string
from pathlib import Path

from engines.model_folder import CHAT, SPECIAL, tokenizer

LAYERS, KV_HEADS, HEAD_DIM = 4, 2, 64
FLOAT32_BYTES = 4
KV_BYTES_PER_TOKEN = LAYERS * 2 * KV_HEADS * HEAD_DIM * FLOAT32_BYTES  # 4,096: K and V
TOKENS = 32_000  # what kvgauge takes token ids from, unless it is told otherwise
LENGTH_MAX = 4096


def make_tiny_model(folder: Path) -> Path:
    """Write config.json, generation_config.json, tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True)
    special = {text: TOKENS + number for number, text in enumerate(SPECIAL)}
    ends = special["<|endoftext|>"]
    files = {
        "config.json": {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
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
    return folder


def ranks() -> dict[bytes, int]:
    """Every byte, then words of one, two and three letters with a space before them: each is one before and a byte."""
    letters = [letter.encode() for letter in string.ascii_lowercase + string.ascii_uppercase]
    bytes_ = [bytes([byte]) for byte in range(256)]
    words = (b" " + b"".join(word) for length in (1, 2, 3) for word in itertools.product(letters, repeat=length))
    return {token: rank for rank, token in enumerate(itertools.islice(itertools.chain(bytes_, words), TOKENS))}

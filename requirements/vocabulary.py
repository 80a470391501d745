"""Packs the vocabulary that kvgauge carries: python requirements/vocabulary.py qwen.tiktoken

The input is dashscope/resources/qwen.tiktoken of Alibaba Cloud's package dashscope (PyPI, 2.0.2), under Apache-2.0:
a line is a token in base64 and its rank. The output holds the same, compressed: the length of each token in the order
of ranks, a byte each, then the tokens themselves.
"""

import base64
import hashlib
import lzma
import sys
from pathlib import Path

SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
PACKED = Path(__file__).parents[1] / "src" / "kvgauge" / "tokens" / "qwen3.vocabulary.xz"


def main() -> None:
    data = Path(sys.argv[1]).read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        sys.exit(f"{sys.argv[1]} is not the file whose sha256 begins with {SHA256[:12]}")
    lines = [line.split() for line in data.splitlines()]
    tokens = [base64.b64decode(token) for token, _ in lines]
    assert [int(rank) for _, rank in lines] == list(range(len(tokens)))
    PACKED.write_bytes(lzma.compress(bytes(map(len, tokens)) + b"".join(tokens), preset=9 | lzma.PRESET_EXTREME))
    print(f"{PACKED.name}: {len(tokens):,} tokens, {PACKED.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

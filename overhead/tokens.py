"""What counting tokens costs, in processor time: python overhead/tokens.py [TOKENIZER.json]"""

import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    begun = time.process_time()
    from kvgauge.tokens import choose, files

    imported = time.process_time()
    if len(sys.argv) > 1:
        tokenizer: files.Tokenizer = files.read(Path(sys.argv[1]).read_bytes(), sys.argv[1])[0]
    else:
        tokenizer = choose.bundled("Qwen3-0.6B").tokenizer
    loaded = time.process_time()
    print(f"import {1e3 * (imported - begun):.0f} ms, load {1e3 * (loaded - imported):.0f} ms of one processor")
    prose = "".join(path.read_text() for path in sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("src/kvgauge/*/*.py")]))
    rng = random.Random(1)
    noise = " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(30_000))
    texts = {"prose and code": prose, "the same again": prose, "random words": noise, "one word": "ab" * 50_000}
    for name, text in texts.items():
        start = time.process_time()
        tokens = tokenizer.count(text)
        taken = time.process_time() - start
        print(f"{name}: {len(text):,} characters, {tokens:,} tokens, {tokens / taken / 1e3:,.0f} thousand a second")


if __name__ == "__main__":
    main()

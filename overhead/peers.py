"""Other tools, where they are installed: `aiperf` and `vllm bench serve`, in the same setting, by their own results.

Neither may ask a model hub here, so both get a tokenizer made on the spot: 2,000 words, each a token.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from tools import Finished, Said, Setting, Tool

FNV_START, FNV_PRIME, FNV_MASK = 14695981039346656037, 1099511628211, (1 << 64) - 1
PROMPT_TOKENS = 16
UNKNOWN = "[UNK]"


def installed(venv: Path | None) -> list[Tool]:
    """Those found in a virtual environment, or on PATH."""
    path = str(venv / "bin") if venv else None
    aiperf, vllm = shutil.which("aiperf", path=path), shutil.which("vllm", path=path)
    return [*([Aiperf(aiperf)] if aiperf else []), *([VllmBench(vllm)] if vllm else [])]


def write_tokenizer(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    words = {UNKNOWN: 0, **{f"w{at}": at for at in range(1, 2_001)}}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": UNKNOWN, **plain}],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": UNKNOWN},
    }
    named = dict.fromkeys(("unk_token", "bos_token", "eos_token"), UNKNOWN)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 100_000, **named}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


class Aiperf:
    """Its records hold the X-Request-ID it sent, which the server wrote down."""

    name = "aiperf"

    def __init__(self, program: str) -> None:
        self._program = program

    def command(self, port: int, setting: Setting, folder: Path) -> list[str]:
        shutil.rmtree(folder / "aiperf", ignore_errors=True)
        return [
            *(self._program, "profile", "--model", "pacer", "--url", f"http://127.0.0.1:{port}"),
            *("--endpoint-type", "completions", "--streaming", "--use-server-token-count"),
            *("--concurrency", str(setting.streams), "--request-count", str(setting.requests)),
            *("--warmup-request-count", str(setting.warmup)),
            *("--isl", str(PROMPT_TOKENS), "--osl", str(setting.tokens)),
            *("--tokenizer", str(write_tokenizer(folder / "tokenizer"))),
            *("--ui-type", "none", "--output-artifact-dir", str(folder / "aiperf")),
        ]

    def read(self, run: Finished) -> Said:
        lines = (run.folder / "aiperf" / "profile_export.jsonl").read_text().splitlines()
        records = [record for record in map(json.loads, lines) if record["metadata"]["benchmark_phase"] == "profiling"]
        number_of = {int(tag): number for number, tag in enumerate(run.truth.tag)}
        numbers = [number_of[tag_of(record["metadata"]["x_request_id"])] for record in records]
        ttft_ms = [record["metrics"]["time_to_first_token"]["value"] for record in records]
        gaps = [record["metrics"]["inter_chunk_latency"]["value"] for record in records]
        ended_ns = max(record["metadata"]["request_end_ns"] for record in records) - run.truth.offset_ns
        return Said(
            numbers=np.array(numbers, dtype=np.int64),
            ttft_ns=np.array(np.array(ttft_ms) * 1e6, dtype=np.int64),
            chunks=sum(map(len, gaps)) + len(gaps),
            ended_ns=ended_ns,
        )


class VllmBench:
    """Its result lists requests with their start; the last of the server's requests, in the order they came, are
    these: it sends a trial request and its warm-ups first."""

    name = "vllm bench"

    def __init__(self, program: str) -> None:
        self._program = program

    def command(self, port: int, setting: Setting, folder: Path) -> list[str]:
        (folder / "vllm.json").unlink(missing_ok=True)
        return [
            *(self._program, "bench", "serve", "--backend", "openai", "--base-url", f"http://127.0.0.1:{port}"),
            *("--endpoint", "/v1/completions", "--model", "pacer", "--dataset-name", "random", "--ignore-eos"),
            *("--tokenizer", str(write_tokenizer(folder / "tokenizer"))),
            *("--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(setting.tokens)),
            *("--num-prompts", str(setting.requests), "--max-concurrency", str(setting.streams)),
            *("--num-warmups", str(setting.warmup), "--disable-tqdm"),
            *("--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", "vllm.json"),
        ]

    def read(self, run: Finished) -> Said:
        said = json.loads((run.folder / "vllm.json").read_bytes())
        order = np.argsort(said["start_times"])
        if len(order) != run.setting.requests:
            raise ValueError(f"its result holds {len(order)} requests, not {run.setting.requests}")
        came = np.argsort(run.truth.received_ns)[-len(order) :]
        return Said(
            numbers=came,
            ttft_ns=(np.array(said["ttfts"])[order] * 1e9).astype(np.int64),
            chunks=sum(map(len, said["itls"])) + len(order),
        )


def tag_of(request_id: str) -> int:
    """FNV-1a of an X-Request-ID, as the server writes it down."""
    tag = FNV_START
    for byte in request_id.encode():
        tag = (tag ^ byte) * FNV_PRIME & FNV_MASK
    return tag - (1 << 64) if tag >> 63 else tag

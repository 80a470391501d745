"""Start-up and KV lines of serving engines to facts. Pure; each pattern names where its wording is from.

vLLM 0.10-0.32, TensorRT-LLM 1.x, SGLang of 2025-2026, Dynamo 1.6.1. Colours are removed before anything is looked at.
"""

import re
from collections.abc import Iterator

from kvgauge.evidence.nixl import Seen

_COLOUR = re.compile(r"\x1b\[[0-9;]{0,16}m")
_RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    # vLLM: vllm/distributed/kv_transfer/kv_connector/{factory,v1/metrics,v1/nixl/*}.py
    ("kv_connector", re.compile(r"Creating v1 connector with name: (\w+)")),
    ("nixl_compatible", re.compile(r"NIXL compatibility check (passed)")),
    ("external_hits_pct", re.compile(r"External prefix cache hit rate: ([\d.]+)%")),
    ("kv_expired", re.compile(r"(Releasing expired KV blocks)")),
    ("kv_stale", re.compile(r"(Potentially invalid KV blocks)")),
    ("kv_failed", re.compile(r"NIXL transfer failure: (\w+)")),
    # TensorRT-LLM: cpp/tensorrt_llm/executor/cache_transmission/nixl_utils/transferAgent.cpp
    ("backend_refused", re.compile(r"Unsupported NIXL backend: (\S{1,40}?), fallback to UCX")),
    ("engine_backend", re.compile(r"NixlTransferAgent using NIXL backend: (\w+)")),
    ("engine_address", re.compile(r"NixlTransferAgent mAddress: (\S+)")),
    # SGLang: python/sglang/srt/disaggregation/nixl/conn.py
    ("engine_backend", re.compile(r"NIXL KVManager initialized with backend: (\w+)")),
    ("backend_missing", re.compile(r"NIXL backend '(\w+)' not found")),
    # Dynamo: lib/llm/src/{discovery/watcher,kv_router/prefill_router,mocker}.rs
    ("simulated", re.compile(r"(Creating mocker engine) with config")),
    ("prefill_router", re.compile(r"(Prefill router target activated|Activating prefill router)")),
    ("prefill_worker", re.compile(r"(Prefill worker detected)")),
)
_TRANSFERS = re.compile(r"KV Transfer metrics: (Num successful transfers=.*)")
_PAIR = re.compile(r"([A-Z][\w ()/]{0,60})=([\d.]+)")
_CONFIG_BACKENDS = re.compile(r"""['"]backends['"]: ?\[([^\]]{0,200})\]""")


def plain(line: str) -> str:
    """Without the colours some engines write into their logs."""
    return _COLOUR.sub("", line) if "\x1b" in line else line


def read(line: str) -> Iterator[Seen]:
    """What one line says, its colours removed before."""
    if match := _TRANSFERS.search(line):
        yield from transfers(match[1])
        return
    for name, pattern in _RULES:
        if match := pattern.search(line):
            yield name, match[1]
            return
    if match := _CONFIG_BACKENDS.search(line):
        for name in match[1].split(","):
            if (word := name.strip(" '\"")).isalnum():
                yield "backend_configured", word


def transfers(text: str) -> Iterator[Seen]:
    """vLLM's line of one interval (10 s by default): how many transfers ended well, and how many did not."""
    values = dict(_PAIR.findall(text))
    for key, name in (("Num successful transfers", "vllm_transfers"), ("Num failed transfers", "vllm_failed")):
        if key in values:
            yield name, values[key]
    if "Avg MB per transfer" in values:
        yield "vllm_mib_mean", values["Avg MB per transfer"]

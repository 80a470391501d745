"""Every recorded log judged, and plans that the records contradict: all of them caught, none without what shows it."""

from pathlib import Path

import pytest

from kvgauge.evidence import logs
from kvgauge.evidence.counters import Counted
from kvgauge.evidence.sums import Geometry
from kvgauge.evidence.transport import Want, claims, seen
from kvgauge.plan.records import BACKENDS, FABRICS
from kvgauge.prove.judge import Observed, judged

SAMPLES = Path(__file__).parents[1] / "samples"
# log -> (backend that it proves, fabric that it proves); None: it does not say
LOGS = {
    "dynamo-1.6.1-decode.log": (None, None),
    "dynamo-1.6.1-frontend.log": (None, None),
    "dynamo-1.6.1-prefill.log": (None, None),
    "libfabric-2.5.1-tcp-fi-log.log": (None, None),
    "nixl-0.10.1-libfabric-tcp-debug.log": ("LIBFABRIC", "tcp"),
    "nixl-0.10.1-libfabric-tcp-info.log": ("LIBFABRIC", "tcp"),
    "nixl-0.8.0-libfabric-tcp-info.log": ("LIBFABRIC", "tcp"),
    "nixl-0.8.0-ucx-info.log": (None, None),  # refused
    "nixl-1.0.1-libfabric-tcp-info.log": ("LIBFABRIC", "tcp"),
    "nixl-1.0.1-ucx-info.log": ("UCX", "tcp"),
    "nixl-1.2.0-libfabric-tcp-debug.log": ("LIBFABRIC", "tcp"),
    "nixl-1.2.0-libfabric-tcp-info.log": ("LIBFABRIC", "tcp"),
    "nixl-1.4.1-libfabric-tcp-info.log": ("LIBFABRIC", "tcp"),
    "nixl-1.4.1-ucx-proto.log": ("UCX", "tcp"),
    "nixl-1.5.0-libfabric-tcp-debug.log": ("LIBFABRIC", "tcp"),
    "nixl-1.5.0-libfabric-tcp-info.log": ("LIBFABRIC", "tcp"),
    "nixl-1.5.0-ucx-all-proto.log": ("UCX", "shm"),
    "nixl-1.5.0-ucx-h100-vram-read-proto-info.log": (None, "tcp"),  # emulated, though cuda_ipc was there
    "nixl-1.5.0-ucx-h100-vram-write-proto-info.log": (None, "cuda"),
    "nixl-1.5.0-ucx-info.log": ("UCX", "tcp"),
    "nixl-1.5.1-libfabric-tcp-debug.log": ("LIBFABRIC", "tcp"),
    "nixl-1.5.1-libfabric-tcp-info.log": ("LIBFABRIC", "tcp"),
    "nixl-1.5.1-ucx-info.log": ("UCX", None),  # tcp, or cma beside it: no table says which
    "nixl-1.5.1-ucx-proto-info.log": ("UCX", "shm"),
}


def read(name):
    lines, cut = logs.read_file(SAMPLES / name)
    return logs.scan(lines, name, cut)


def verdict_of(name, **want):
    found = {claim.name: claim for claim in claims(Want(**want), [read(name)])}
    return found.get(next(iter(want)))


def test_no_recorded_log_is_without_a_judgement():
    recorded = {path.name for path in SAMPLES.glob("*.log") if not path.name.startswith(("vllm", "sglang", "trtllm"))}
    assert recorded == set(LOGS)


@pytest.mark.parametrize("name", LOGS)
def test_a_recorded_log_proves_what_ran_and_contradicts_everything_else(name):
    backend, fabric = LOGS[name]
    for asked in BACKENDS if backend else ():
        assert verdict_of(name, backend=asked).verdict == ("proved" if asked == backend else "contradicted"), asked
    for asked in FABRICS if fabric else ():
        assert verdict_of(name, fabric=asked).verdict == ("proved" if asked == fabric else "contradicted"), asked
    if backend is None and fabric is None:
        for asked in FABRICS:
            assert verdict_of(name, fabric=asked).verdict == "unproved"


def test_the_way_of_gpu_memory_is_told_apart_from_that_of_the_hosts():
    assert seen([read("nixl-1.5.0-ucx-h100-vram-write-proto-info.log")]).fabrics == ("cuda",)
    found = {
        each.name: each for each in claims(Want(fabric="cuda"), [read("nixl-1.5.0-ucx-h100-vram-read-proto-info.log")])
    }
    assert (found["fabric"].verdict, found["remote memory"].verdict) == ("contradicted", "contradicted")
    assert "software emulation over tcp/lo" in found["remote memory"].text


# -- twenty plans that are contradicted

EACH = 512 * 114_688
REQUESTS = 50
LIBFABRIC, UCX = "nixl-1.5.0-libfabric-tcp-info.log", "nixl-1.5.0-ucx-info.log"
EMULATED = "nixl-1.5.0-ucx-h100-vram-read-proto-info.log"
HEAD = "I1124 02:42:45.680713   29148 libfabric.cpp:113] "
OPENED = "2026-11-24 02:42:46 NIXL INFO    _api.py:405 Backend {} was instantiated"
LANE = "[1.0] [h:1:0]      ucp_worker.c:1997 UCX  INFO    d inter-node cfg#1 {}"
EFA = (OPENED.format("LIBFABRIC"), HEAD + "Created 4 rails using provider=efa",
       HEAD + "Registered memory on 4 rails, mem_type=1 device=0",
       HEAD + "Using provider with FI_HMEM support for rail 0")  # fmt: skip

CONTRADICTED = [
    # asked for, log (a recorded one, or lines), what the decode workers counted beside it, what must be said
    ({"backend": "UCX"}, LIBFABRIC, {}, "UCX was expected, LIBFABRIC opened"),
    ({"backend": "LIBFABRIC"}, UCX, {}, "LIBFABRIC was expected, UCX opened"),
    ({"backend": "UCX"}, "nixl-0.8.0-ucx-info.log", {}, "refused backend UCX"),
    ({"fabric": "efa"}, LIBFABRIC, {}, "efa was expected, tcp is what was opened"),
    ({"fabric": "efa"}, "nixl-0.8.0-libfabric-tcp-info.log", {}, "efa was expected, sockets is what was opened"),
    ({"fabric": "efa"}, UCX, {}, "efa was expected, tcp/lo by active messages"),
    ({"fabric": "ib"}, UCX, {}, "ib was expected, tcp/lo by active messages"),
    ({"fabric": "tcp"}, "nixl-1.5.1-ucx-proto-info.log", {}, "tcp was expected, cma/memory"),
    ({"fabric": "cuda"}, EMULATED, {}, "cuda was expected, tcp/lo"),
    ({"fabric": "cuda"}, EMULATED, {}, "software emulation over tcp/lo"),
    ({"fabric": "ib"}, EFA, {}, "ib was expected, efa is what was opened"),
    ({"fabric": "efa"}, (OPENED.format("UCX"), LANE.format("rma(rc_mlx5/mlx5_0:1)")), {}, "efa was expected, rc_mlx5"),
    ({"fabric": "ib"}, (OPENED.format("UCX"), LANE.format("rma(srd/rdmap40s0:1)")), {}, "ib was expected, srd/rdmap"),
    ({"rails": 32}, EFA, {}, "32 were expected: 4 opened, 4 used"),
    ({"rails": 4}, LIBFABRIC, {}, "4 were expected: 1 opened, 1 used"),
    ({"gpudirect": True}, LIBFABRIC, {}, "expected yes, the rails say no"),
    ({"gpudirect": False}, EFA, {}, "expected no, the rails say yes"),
    ({}, EFA, {"kv_bytes": 0, "kv_transfers": 0}, "recomputed locally"),
    ({}, EFA, {"kv_bytes": (REQUESTS - 1) * EACH, "kv_transfers": REQUESTS - 1}, "1 of 50 requests moved no KV"),
    ({}, EFA, {"kv_bytes": 2 * REQUESTS * EACH}, "2 times"),
    ({}, EFA, {"kv_bytes": REQUESTS * EACH - 1}, "moved"),
    ({}, EFA, {"kv_failures": 3}, "3 failed KV transfers"),
    ({}, "dynamo-1.6.1-decode.log", {}, "mockers"),
]  # fmt: skip


def judge(want, log, counted):
    values = {
        "requests": REQUESTS,
        "output_tokens": 8 * REQUESTS,
        "kv_bytes": REQUESTS * EACH,
        "kv_transfers": REQUESTS,
    }
    source = Counted(source="d", values={("vLLM", key): float(value) for key, value in (values | counted).items()})
    scene = Observed(
        prompts=(512,) * REQUESTS, failed=(), unknown=None, sources=(source,), silent=(), csv={}, efa=None,
        geometry=Geometry(token_bytes=114_688, block_tokens=16, copies=1, said="Qwen3-0.6B, bf16"),
        logs=(read(log) if isinstance(log, str) else logs.scan(log, "w"),),
        answers=None, answers_wanted=False, want=Want(**want),
    )  # fmt: skip
    return judged(scene)


def test_there_are_twenty_of_them():
    assert len(CONTRADICTED) >= 20


@pytest.mark.parametrize(("want", "log", "counted", "words"), CONTRADICTED)
def test_a_plan_that_the_records_contradict_is_caught(want, log, counted, words):
    found, verdict, _ = judge(want, log, counted)
    against = [claim for claim in found if claim.verdict == "contradicted"]
    assert verdict == "contradicted"
    assert any(words in claim.text for claim in against), against
    assert all(claim.shown_by for claim in against)


@pytest.mark.parametrize(
    ("want", "log"),
    [({"backend": "LIBFABRIC", "fabric": "tcp", "rails": 1, "gpudirect": False}, LIBFABRIC),
     ({"backend": "UCX", "fabric": "tcp"}, UCX),
     ({"backend": "UCX", "fabric": "shm"}, "nixl-1.5.1-ucx-proto-info.log"),
     ({"backend": "LIBFABRIC", "fabric": "efa", "rails": 4, "gpudirect": True}, EFA)],
)  # fmt: skip
def test_the_same_records_contradict_no_plan_that_is_right(want, log):
    found, verdict, _ = judge(want, log, {})
    assert verdict == "proved", found

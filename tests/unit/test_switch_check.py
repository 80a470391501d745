"""What a manifest or an environment amounts to: backend, fabric, what does nothing, what contradicts."""

from pathlib import Path

import pytest

from kvgauge.switch import table
from kvgauge.switch.check import Settings, across, check, settings_of
from kvgauge.switch.places import chosen, read
from kvgauge.switch.show import contradicts

SAMPLES = Path(__file__).parents[1] / "samples" / "switch"


def amount(engine, environment=None, *, fabric=None, **more):
    return check(Settings(where="w", engine=engine, environment=environment or {}, **more), fabric)


def said(found, level):
    return [f"{r.about}: {r.says}" for r in found.remarks if r.level == level]


def of_file(name):
    manifest = read((SAMPLES / name).read_text())
    return [check(settings_of(manifest, place, engine)) for place, engine in chosen(manifest, None)]


@pytest.mark.parametrize(
    ("engine", "environment", "named", "backend"),
    [
        ("vllm", {}, None, "UCX"),
        ("vllm", {}, ["UCX"], "UCX"),
        ("vllm", {}, ["LIBFABRIC"], "LIBFABRIC"),
        ("vllm", {}, [], "another connector"),
        ("vllm", {}, ["UCX", "LIBFABRIC"], None),
        ("trtllm", {}, None, "UCX"),
        ("trtllm", {"TRTLLM_NIXL_KVCACHE_BACKEND": "LIBFABRIC"}, None, "LIBFABRIC"),
        ("trtllm", {"TRTLLM_NIXL_KVCACHE_BACKEND": "libfabric"}, None, "UCX"),
        ("trtllm", {"TRTLLM_NIXL_KVCACHE_BACKEND": "LIBFABRIC"}, ["MPI"], "mpi"),
        ("trtllm", {"TRTLLM_USE_MPI_KVCACHE": "1"}, None, "mpi"),
        ("trtllm", {"TRTLLM_USE_MPI_KVCACHE": "1", "TRTLLM_USE_NIXL_KVCACHE": "1"}, None, "UCX"),
        ("trtllm", {"TRTLLM_NIXL_KVCACHE_BACKEND": "(from elsewhere)"}, None, None),
        ("sglang", {}, None, "UCX"),
        ("sglang", {"SGLANG_DISAGGREGATION_NIXL_BACKEND": "LIBFABRIC"}, None, "LIBFABRIC"),
        ("sglang", {"SGLANG_DISAGGREGATION_NIXL_BACKEND": "LIBFABRIC"}, ["mooncake"], "mooncake"),
        (None, {"UCX_TLS": "tcp"}, None, None),
    ],
)
def test_the_backend_that_runs_is_the_one_the_framework_reads(engine, environment, named, backend):
    assert amount(engine, environment, named=named).backend == backend


@pytest.mark.parametrize(
    ("engine", "environment", "more", "contradiction"),
    [
        ("vllm", {"NIXL_BACKEND": "LIBFABRIC"}, {}, "NIXL_BACKEND=LIBFABRIC, but UCX runs: nobody reads"),
        ("vllm", {"VLLM_NIXL_BACKEND": "LIBFABRIC"}, {}, "VLLM_NIXL_BACKEND=LIBFABRIC, but UCX runs"),
        ("vllm", {"TRTLLM_NIXL_KVCACHE_BACKEND": "LIBFABRIC"}, {}, "vLLM does not read it"),
        ("vllm", {}, {"named": ["UCX", "LIBFABRIC"]}, "NIXL then chooses"),
        ("trtllm", {"TRTLLM_NIXL_KVCACHE_BACKEND": "libfabric"}, {}, "falls back to UCX"),
        ("trtllm", table.REFERENCE["LIBFABRIC"], {}, "NIXL_BACKEND beside TRTLLM_NIXL_KVCACHE_BACKEND"),
        (
            "trtllm",
            {"TRTLLM_NIXL_KVCACHE_BACKEND": "LIBFABRIC", "TRTLLM_USE_UCX_KVCACHE": "1"},
            {},
            "goes past NIXL",
        ),
        (
            "trtllm",
            {"TRTLLM_NIXL_KVCACHE_BACKEND": "LIBFABRIC", "TRTLLM_DISAGG_ENABLE_INFLIGHT_CANCEL": "1"},
            {},
            "refused at start",
        ),
        ("trtllm", {"TRTLLM_NIXL_KVCACHE_BACKEND": "LIBFABRIC"}, {"named": ["UCX"]}, "decides nothing"),
        ("vllm", {"UCX_TLS": "tcp,cuda_copy"}, {"devices": ("vpc.amazonaws.com/efa",)}, "in truth TCP"),
        ("vllm", {"UCX_TLS": "tcp,cuda_copy"}, {"fabric": "ib"}, "in truth TCP"),
        ("vllm", {"UCX_TLS": "rc,sm"}, {"fabric": "efa"}, "ib, not efa"),
        ("vllm", {"UCX_TLS": "sm,self"}, {}, "no transport between hosts"),
        ("vllm", {"FI_PROVIDER": "verbs"}, {"named": ["LIBFABRIC"]}, "none of these"),
        ("vllm", {"FI_PROVIDER": "tcp"}, {"named": ["LIBFABRIC"], "fabric": "efa"}, "tcp, not efa"),
        ("vllm", {"FI_PROVIDER": "tcp"}, {"named": ["LIBFABRIC"], "devices": ("rdma/hca",)}, "asks for rdma/hca"),
    ],
)
def test_settings_that_contradict_each_other_are_named(engine, environment, more, contradiction):
    found = amount(engine, environment, **more)
    assert any(contradiction in line for line in said(found, "contradiction")), found.remarks
    assert contradicts([found], [])


@pytest.mark.parametrize(
    ("engine", "environment", "more"),
    [
        ("vllm", {}, {}),
        ("vllm", {"UCX_TLS": "tcp,cuda_copy,sm"}, {"fabric": "tcp"}),
        ("vllm", {"NIXL_BACKEND": "UCX"}, {}),
        ("trtllm", {"TRTLLM_NIXL_KVCACHE_BACKEND": "LIBFABRIC", "FI_PROVIDER": "efa"}, {"fabric": "efa"}),
        ("trtllm", {"NIXL_BACKEND": "UCX", "UCX_TLS": "rc"}, {}),
        ("sglang", {"SGLANG_DISAGGREGATION_NIXL_BACKEND": "UCX"}, {"fabric": "ib"}),
    ],
)
def test_settings_that_agree_contradict_nothing(engine, environment, more):
    found = amount(engine, environment, **more)
    assert said(found, "contradiction") == []
    assert not contradicts([found], [])


def test_a_ucx_that_is_tcp_is_said_to_be_and_one_that_may_become_tcp_too():
    assert "in truth TCP" in said(amount("vllm", table.REFERENCE["UCX"]), "warning")[0]
    assert "without an error" in said(amount("vllm", {"UCX_TLS": "srd,tcp,self"}), "warning")[0]
    assert "without an error" in said(amount("vllm"), "warning")[0]
    assert "ud_verbs" in said(amount("vllm", {"UCX_TLS": "rc,ud", "UCX_NET_DEVICES": "rdmap79s0:1"}), "warning")[0]


def test_prefill_and_decode_over_different_backends_contradict():
    one, other = amount("vllm", named=["UCX"]), amount("vllm", named=["LIBFABRIC"])
    other = check(Settings(where="x", engine="vllm", environment={}, named=["LIBFABRIC"]))
    assert contradicts([one, other], across([one, other]))
    assert "not the same in all workers: w: UCX; x: LIBFABRIC" in across([one, other])[0].says
    tcp = check(Settings(where="t", engine="vllm", environment={"UCX_TLS": "tcp"}))
    assert [r.level for r in across([one, tcp])] == ["warning"]
    assert across([one, one]) == []


def test_the_manifest_as_deployed_is_seen_through():
    decode, prefill = of_file("dynamo-trtllm-v1beta1.yaml")
    assert (decode.backend, decode.carried.fabric, decode.settings.role) == ("LIBFABRIC", "efa", "decode")
    assert len([r for r in decode.remarks if "nobody reads it" in r.says]) == 4
    assert any("#10024" in r.source for r in prefill.remarks)
    decode, _ = of_file("dynamo-trtllm-v1beta1.ucx.yaml")
    assert (decode.backend, decode.carried.fabric) == ("UCX", "tcp")
    assert any("in truth TCP" in r.says for r in decode.remarks)


def test_devices_and_secrets_of_a_manifest_are_seen():
    decode, _ = of_file("dynamo-vllm-v1alpha1.yaml")
    assert decode.settings.devices == ("vpc.amazonaws.com/efa",)
    assert decode.carried.fabric == "efa"
    assert any("Secret hf-token-secret" in r.says for r in decode.remarks)
    (worker,) = of_file("vllm-deployment.yaml")
    assert worker.settings.devices == ("rdma/hca",)
    assert set(worker.settings.environment) == {"UCX_TLS", "UCX_NET_DEVICES"}

"""What a manifest or an environment amounts to: backend, fabric, what does nothing, what contradicts."""

from pathlib import Path

import pytest

from kvgauge.switch import table
from kvgauge.switch.check import BEYOND, Settings, across, check, settings_of
from kvgauge.switch.patch import Asked, switched
from kvgauge.switch.places import chosen, read
from kvgauge.switch.show import contradicts
from kvgauge.switch.spans import CannotPatch

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


@pytest.mark.parametrize(
    ("engine", "name", "more"),
    [("vllm", "UCX_TLS", {}), ("vllm", "UCX_NET_DEVICES", {}), ("vllm", "FI_PROVIDER", {"named": ["LIBFABRIC"]}),
     ("trtllm", "TRTLLM_NIXL_KVCACHE_BACKEND", {})],
)  # fmt: skip
def test_a_value_that_only_the_cluster_knows_contradicts_nothing(engine, name, more):
    found = amount(engine, {name: BEYOND}, devices=("vpc.amazonaws.com/efa",), **more)
    assert said(found, "contradiction") == []
    assert found.carried is None or found.carried.fabric is None


EFA = {"FI_PROVIDER": "efa", "FI_EFA_ENABLE_SHM_TRANSFER": "0"}


@pytest.mark.parametrize(
    ("engine", "environment", "more", "level", "words"),
    [
        ("vllm", EFA, {"named": ["LIBFABRIC"], "devices": ("rdma/hca",)}, "contradiction", "no vpc.amazonaws.com/efa"),
        ("vllm", {}, {"named": ["libfabric"]}, "contradiction", "in capitals"),
        ("sglang", {"SGLANG_DISAGGREGATION_NIXL_BACKEND": "ucx"}, {}, "contradiction", "in capitals"),
        ("vllm", {"UCX_TLS": "rc,self"}, {"devices": ("vpc.amazonaws.com/efa",)}, "contradiction", "EFA has no RC"),
        ("vllm", EFA | {"FI_EFA_USE_DEVICE_RDMA": "0"}, {"named": ["LIBFABRIC"]}, "warning", "emulated in software"),
        ("vllm", {"FI_PROVIDER": "efa"}, {"named": ["LIBFABRIC"]}, "warning", "registration of GPU memory"),
        ("trtllm", {"NIXL_PLUGIN_DIR": "/opt/nixl"}, {}, "warning", "bundles a NIXL of its own"),
        ("sglang", {"UCX_TLS": "rc"}, {"ib_device": True}, "warning", "Mooncake alone reads it"),
        (
            "vllm",
            {"DYN_KVBM_NIXL_BACKEND_LIBFABRIC": "true"},
            {},
            "note",
            "the transfer from prefill to decode does not",
        ),
        ("vllm", {"FI_EFA_FOO": "1"}, {}, "note", "reads no such variable"),
        ("vllm", {"NIXL_LIBFABRIC_STRIPING_THRESHOLD": "1"}, {}, "note", "no NIXL that kvgauge knows reads it"),
    ],
)
def test_settings_that_agree_and_still_end_badly_are_told(engine, environment, more, level, words):
    assert any(words in line for line in said(amount(engine, environment, **more), level))


def test_settings_that_are_right_raise_no_such_word():
    found = amount(
        "vllm", EFA | {"FI_EFA_USE_DEVICE_RDMA": "1"}, named=["LIBFABRIC"], devices=("vpc.amazonaws.com/efa",)
    )
    assert found.remarks == ()
    devices = {"UCX_TLS": "rc", "UCX_NET_DEVICES": "mlx5_0:1", "NIXL_LOG_LEVEL": "INFO"}
    assert amount("sglang", devices, ib_device=True, devices=("rdma/hca",)).remarks == ()


MERGED = """
common: &common
  image: vllm/vllm-openai
  args: [serve, m, --kv-transfer-config, '{"kv_connector":"NixlConnector"}']
  env: [{name: UCX_TLS, value: tcp}]
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec: {template: {spec: {containers: [{<<: *common, name: prefill}, {<<: [*common], name: decode}]}}}
"""


def test_what_a_merge_brings_is_seen_and_no_merge_is_patched():
    manifest = read(MERGED)
    found = [check(settings_of(manifest, place, engine)) for place, engine in chosen(manifest, None)]
    assert [f.settings.where for f in found] == ["Deployment/d/prefill", "Deployment/d/decode"]
    assert {f.carried.fabric for f in found} == {"tcp"}
    with pytest.raises(CannotPatch, match="merge"):
        switched(MERGED, Asked(backend="LIBFABRIC", fabric="efa"))


def test_a_backend_in_use_over_another_network_than_asked_for_is_told_where_nothing_is_changed():
    text = (SAMPLES / "vllm-deployment.yaml").read_text()
    patched = switched(text, Asked(backend="UCX", fabric="efa"))
    assert patched.text == text
    assert any(r.level == "contradiction" and r.says.endswith("ib, not efa") for r in patched.remarks), patched.remarks

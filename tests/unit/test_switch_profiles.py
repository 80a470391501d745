"""What each framework is told for each backend over each fabric, and what settings come to."""

import json

import pytest
import yaml

from kvgauge.failures import UsageError
from kvgauge.switch import table
from kvgauge.switch.amounts import over_libfabric, over_ucx
from kvgauge.switch.profiles import engine_of, vllm_config, wanted
from kvgauge.switch.show import as_json, as_shell, as_yaml
from kvgauge.switch.variables import VARIABLES

PAIRS = [(b, f) for b in table.BACKENDS for f in table.FABRICS if (b, f) != ("LIBFABRIC", "ib")]
LIBFABRIC_AS_DEPLOYED = """
NIXL_BACKEND=LIBFABRIC TRTLLM_NIXL_KVCACHE_BACKEND=LIBFABRIC NIXL_SKIP_TOPOLOGY_CHECK=1 NIXL_LIBFABRIC_MAX_RAILS=1
FI_PROVIDER=efa FI_EFA_USE_DEVICE_RDMA=1 FI_EFA_ENABLE_SHM_TRANSFER=0 FI_EFA_ENABLE_SHM=0 FI_EFA_USE_HUGE_PAGE=0
FI_EFA_FORK_SAFE=1 FI_MR_CACHE_MAX_COUNT=0 FI_MR_CACHE_MONITOR=disabled
"""
UCX_AS_DEPLOYED = "NIXL_BACKEND=UCX UCX_TLS=tcp,cuda_copy,cuda_ipc,sm,self UCX_NET_DEVICES=all"


def pairs(text):
    return dict(word.split("=", 1) for word in text.split())


def test_the_reference_profile_of_tensorrt_llm_is_what_was_deployed_word_for_word():
    libfabric = wanted("trtllm", "LIBFABRIC", None, "reference")
    assert libfabric.environment == pairs(LIBFABRIC_AS_DEPLOYED)
    assert {"UCX_TLS", "UCX_NET_DEVICES"} <= set(libfabric.removed)
    ucx = wanted("trtllm", "UCX", None, "reference")
    assert ucx.environment == pairs(UCX_AS_DEPLOYED)
    past_nixl = {"TRTLLM_USE_MPI_KVCACHE", "TRTLLM_USE_MOONCAKE_KVCACHE"}
    assert set(ucx.removed) - past_nixl == set(pairs(LIBFABRIC_AS_DEPLOYED)) - {"NIXL_BACKEND"}


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("backend", table.BACKENDS)
def test_elsewhere_the_reference_profile_adds_what_the_framework_reads_and_nothing_else(engine, backend):
    want = wanted(engine, backend, None, "reference")
    own = {table.SELECTORS[engine]: backend} if engine in table.SELECTORS else {}
    assert want.environment == {**table.REFERENCE[backend], **own}


@pytest.mark.parametrize(
    ("backend", "fabric", "profile"),
    [(*pair, p) for pair in PAIRS for p in table.PROFILES if (*pair, p) != ("LIBFABRIC", "tcp", "reference")],
)
@pytest.mark.parametrize("engine", table.ENGINES)
def test_every_framework_is_told_its_backend_in_the_one_way_it_reads(engine, backend, fabric, profile):
    want = wanted(engine, backend, fabric, profile)
    assert not set(want.environment) & set(want.removed)
    if engine == "vllm":
        assert json.loads(want.arguments[1])["kv_connector_extra_config"] == {"backends": [backend]}
        assert not set(want.environment) & set(table.SELECTORS.values()) or profile == "reference"
    elif engine == "trtllm":
        assert want.environment.get("TRTLLM_NIXL_KVCACHE_BACKEND", "UCX") == backend
        assert want.config == {"cache_transceiver_config": {"backend": "NIXL"}}
    else:
        assert want.environment["SGLANG_DISAGGREGATION_NIXL_BACKEND"] == backend
        assert want.arguments == ("--disaggregation-transfer-backend", "nixl")
    other = "LIBFABRIC" if backend == "UCX" else "UCX"
    assert not any(VARIABLES[name].side == other for name in want.environment)
    if profile == "minimal":
        carried = (
            over_ucx(want.environment.get("UCX_TLS"))
            if backend == "UCX"
            else over_libfabric(want.environment["FI_PROVIDER"])
        )
        assert (carried.fabric, carried.fallback) == (fabric, False)
        assert all(VARIABLES[name].reader for name in want.environment)


@pytest.mark.parametrize("engine", table.ENGINES)
def test_nobody_reads_four_of_the_variables_as_deployed_and_two_more_have_no_effect(engine):
    remarks = wanted(engine, "LIBFABRIC", None, "reference").remarks
    nobody = {r.about for r in remarks if r.says.startswith("nobody reads it")}
    assert nobody == {"NIXL_BACKEND", "NIXL_SKIP_TOPOLOGY_CHECK", "NIXL_LIBFABRIC_MAX_RAILS", "FI_EFA_ENABLE_SHM"}
    idle = {r.about for r in remarks if "without effect" in r.says}
    assert idle == {"FI_MR_CACHE_MAX_COUNT", "FI_MR_CACHE_MONITOR"}
    elsewhere = {r.about for r in remarks if "TensorRT-LLM reads it" in r.says}
    assert elsewhere == (set() if engine == "trtllm" else {"TRTLLM_NIXL_KVCACHE_BACKEND"})


def test_the_pair_reported_in_tensorrt_llm_10024_is_named_where_it_is_set_and_only_there():
    def warned(want):
        return any("#10024" in remark.source for remark in want.remarks)

    assert warned(wanted("trtllm", "LIBFABRIC", None, "reference"))
    assert not warned(wanted("trtllm", "LIBFABRIC", "efa", "minimal"))
    assert not warned(wanted("vllm", "LIBFABRIC", None, "reference"))
    assert not warned(wanted("trtllm", "UCX", None, "reference"))


@pytest.mark.parametrize("fabric", [None, "efa", "ib", "tcp"])
def test_the_reference_ucx_profile_is_said_to_be_tcp_whatever_network_it_was_asked_for(fabric):
    (remark,) = [r for r in wanted("vllm", "UCX", fabric, "reference").remarks if r.level == "warning"]
    assert "in truth TCP" in remark.says
    assert (f"not {fabric}" in remark.says) == (fabric in ("efa", "ib"))


def test_what_cannot_be_is_refused_with_what_to_do():
    with pytest.raises(UsageError, match=r"not verbs.*use UCX there"):
        wanted("vllm", "LIBFABRIC", "ib", "minimal")
    with pytest.raises(UsageError, match="take --profile minimal"):
        wanted("vllm", "LIBFABRIC", "tcp", "reference")
    with pytest.raises(UsageError, match="say --fabric"):
        wanted("vllm", "UCX", None, "minimal")
    with pytest.raises(UsageError, match="which LIBFABRIC does not read"):
        wanted("vllm", "LIBFABRIC", "efa", "minimal", net_devices="mlx5_0:1")
    with pytest.raises(UsageError, match="dynamo-vllm, dynamo-trtllm or dynamo-sglang"):
        engine_of("dynamo")


def test_every_entry_of_the_table_has_its_source_and_every_profile_only_known_variables():
    for variable in VARIABLES.values():
        assert variable.says
        assert variable.source, variable.name
    for values in (*table.REFERENCE.values(), *table.MINIMAL.values()):
        assert set(values) <= set(VARIABLES)
    assert set(table.UNREAD_NAMES) <= {v.name for v in VARIABLES.values() if not v.reader}


@pytest.mark.parametrize(
    ("tls", "devices", "fabric", "fallback", "unusable"),
    [
        ("tcp,cuda_copy,cuda_ipc,sm,self", "all", "tcp", False, False),
        ("tcp,cuda_copy", None, "tcp", False, False),
        ("\\tcp,self", None, "tcp", False, False),
        ("srd,cuda_copy,cuda_ipc,sm,self", None, "efa", False, False),
        ("srd,tcp,self", None, "efa", True, False),
        ("rc,ud,cuda_copy", None, "ib", False, False),
        ("rc,ud,cuda_copy", "rdmap79s0:1", "efa", False, False),
        ("rc_x,tcp", "eth0", "tcp", False, False),
        ("ib,cuda", None, None, False, False),
        ("ib,cuda", "mlx5_0:1", "ib", False, False),
        ("cuda_ipc,cuda_copy,sm,self", None, None, False, True),
        ("all", None, None, True, False),
        (None, None, None, True, False),
        ("", None, None, True, False),
        (None, "mlx5_0:1,mlx5_1:1", "ib", True, False),
        (None, "mlx5_0:1,eth0", None, True, False),
        ("^tcp", None, None, False, False),
        ("^ib", None, "tcp", False, False),
    ],
)
def test_ucx_settings_come_to_the_fabric_they_name_and_say_when_tcp_is_taken_silently(
    tls, devices, fabric, fallback, unusable
):
    carried = over_ucx(tls, devices)
    assert (carried.fabric, carried.fallback, carried.unusable) == (fabric, fallback, unusable)


@pytest.mark.parametrize(
    ("tls", "devices", "pod", "fabric", "unusable", "says"),
    [
        ("rc,cuda_copy,sm,self", None, "efa", None, True, "EFA has no RC"),
        ("rc,tcp,self", None, "efa", "tcp", False, "which leaves tcp"),
        (
            "rc,ud,self",
            None,
            "efa",
            "efa",
            False,
            "ud_verbs, not SRD: measured at 0.18 GB/s against 10 (EFA has no RC)",
        ),
        ("ib,self", None, "efa", "efa", False, "UCX_TLS=ib,self"),
        ("srd,rc,self", None, "efa", "efa", False, "UCX_TLS=srd,rc,self"),
        ("srd,rc,self", None, "ib", "ib", False, "UCX_TLS=srd,rc,self"),
        ("srd,self", None, "ib", None, True, "srd is EFA's"),
        ("srd,self", "mlx5_0:1", "efa", None, True, "srd is EFA's"),
        ("rc,self", None, "ib", "ib", False, "UCX_TLS=rc,self"),
        ("rc,self", None, None, "ib", False, "UCX_TLS=rc,self"),
    ],
)
def test_transports_that_the_pods_devices_do_not_have_lead_nowhere_or_to_tcp(tls, devices, pod, fabric, unusable, says):
    carried = over_ucx(tls, devices, pod)
    assert (carried.fabric, carried.unusable) == (fabric, unusable)
    assert says in carried.says


def test_a_list_of_devices_without_one_is_refused():
    with pytest.raises(UsageError, match="names no device"):
        wanted("vllm", "UCX", "ib", net_devices=" ")


@pytest.mark.parametrize(
    ("provider", "fabric", "fallback", "unusable"),
    [
        ("efa", "efa", False, False),
        ("efa;ofi_rxd", "efa", False, False),
        ("efa,tcp", "efa", True, False),
        ("tcp", "tcp", False, False),
        ("tcp,sockets", "tcp", False, False),
        (None, None, True, False),
        ("^efa", "tcp", False, False),
        ("^tcp", None, False, False),
        ("verbs", None, False, True),
        ("cxi", None, False, False),
    ],
)
def test_fi_provider_comes_to_what_nixl_takes_of_it(provider, fabric, fallback, unusable):
    carried = over_libfabric(provider)
    assert (carried.fabric, carried.fallback, carried.unusable) == (fabric, fallback, unusable)


@pytest.mark.parametrize("engine", table.ENGINES)
@pytest.mark.parametrize("backend", table.BACKENDS)
def test_shell_yaml_and_json_say_the_same(engine, backend):
    want = wanted(engine, backend, None, "reference")
    told = json.loads(as_json(want))
    assert told["set"] == want.environment
    assert told["remove"] == list(want.removed)
    loaded = yaml.safe_load(as_yaml(want))
    assert {e["name"]: e["value"] for e in loaded["env"]} == want.environment
    assert tuple(loaded.get("args") or ()) == want.arguments
    lines = as_shell(want).splitlines()
    assert [line for line in lines if line.startswith("unset ")] == [f"unset {name}" for name in want.removed]
    assert len([line for line in lines if line.startswith("export ")]) == len(want.environment)
    assert all(line.startswith(("#", "unset ", "export ")) for line in lines)


def test_the_argument_of_vllm_is_the_one_its_manual_shows():
    assert vllm_config("LIBFABRIC") == (
        '{"kv_connector":"NixlConnector","kv_role":"kv_both","kv_connector_extra_config":{"backends":["LIBFABRIC"]}}'
    )

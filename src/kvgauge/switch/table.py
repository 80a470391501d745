"""Who reads which variable, and what the profiles hold. Data only; each entry names the source it was read in.

Sources were read in 2026-11 at these versions: vLLM 026c83f9, TensorRT-LLM 04fd9ff8 (2026-08), SGLang PR 17146 and
its later conn.py, Dynamo 000a36a7 and its docs to 1.6, NIXL 8770b655 (after 1.4.0), libfabric af8ddbe9 (after 2.6.0),
UCX 9466d104 (after 1.22.0).
"""

from dataclasses import dataclass

BACKENDS = ("UCX", "LIBFABRIC")
FABRICS = ("efa", "ib", "tcp")
PROFILES = ("reference", "minimal")
ENGINES = ("vllm", "trtllm", "sglang")
FRAMEWORKS = ("vllm", "trtllm", "sglang", "dynamo", "dynamo-vllm", "dynamo-trtllm", "dynamo-sglang")
NAMES = {"vllm": "vLLM", "trtllm": "TensorRT-LLM", "sglang": "SGLang"}

NOBODY = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """An environment variable.

    side    the backend it belongs to, or "" where it belongs to none
    reader  which code reads it; NOBODY: none does
    says    what it does, or why it does nothing
    idle    read by `reader`, but without effect on what NIXL does
    """

    name: str
    side: str
    reader: str
    says: str
    source: str
    idle: bool = False


_NIXL = "NIXL 8770b655: absent from the sources, from all history and from the published wheels"
_EFA = "libfabric af8ddbe9 man/fi_efa.7.md"
_UCX = "UCX 9466d104 src/ucp/core/ucp_context.c"

VARIABLES = {
    v.name: v
    for v in (
        Variable(
            name="NIXL_BACKEND",
            side="",
            reader=NOBODY,
            says="the backend is an argument of the NIXL agent, which the framework passes",
            source=f"{_NIXL}; vllm-project/vllm#41814",
        ),
        Variable(
            name="NIXL_SKIP_TOPOLOGY_CHECK",
            side="LIBFABRIC",
            reader=NOBODY,
            says="the topology is always read",
            source=_NIXL,
        ),
        Variable(
            name="NIXL_LIBFABRIC_MAX_RAILS",
            side="LIBFABRIC",
            reader=NOBODY,
            says="every device is opened; give the pod fewer EFA devices to open fewer",
            source=f"{_NIXL}; ai-dynamo/nixl#1161",
        ),
        Variable(
            name="NIXL_LIBFABRIC_NUM_RAILS",
            side="LIBFABRIC",
            reader=NOBODY,
            says="asked for and never merged",
            source="ai-dynamo/nixl#1161 (open), PR 1226 (closed)",
        ),
        Variable(
            name="NIXL_PLUGINS_DIR",
            side="",
            reader=NOBODY,
            says="NIXL reads NIXL_PLUGIN_DIR, without the S",
            source="NIXL 8770b655 src/core/nixl_plugin_manager.cpp:387",
        ),
        Variable(
            name="NIXL_LIB_DIR",
            side="",
            reader=NOBODY,
            says="the loader's paths decide which libnixl is opened",
            source=_NIXL,
        ),
        Variable(
            name="VLLM_NIXL_BACKEND",
            side="",
            reader=NOBODY,
            says="vLLM takes the backend from --kv-transfer-config only",
            source="vllm-project/vllm PR 50832",
        ),
        Variable(
            name="VLLM_NIXL_KVCACHE_BACKEND",
            side="",
            reader=NOBODY,
            says="vLLM takes the backend from --kv-transfer-config only",
            source="vllm-project/vllm#41814",
        ),
        Variable(
            name="VLLM_NIXL_DISAGGREGATION_BACKEND",
            side="",
            reader=NOBODY,
            says="vLLM takes the backend from --kv-transfer-config only",
            source="vllm-project/vllm PR 33185 (closed, not merged)",
        ),
        Variable(
            name="FI_EFA_ENABLE_SHM",
            side="LIBFABRIC",
            reader=NOBODY,
            says="the EFA provider reads FI_EFA_ENABLE_SHM_TRANSFER",
            source="libfabric af8ddbe9 prov/efa/src/efa_env.c and its history",
        ),
        Variable(
            name="TRTLLM_NIXL_KVCACHE_BACKEND",
            side="",
            reader="TensorRT-LLM",
            says="UCX (default) or LIBFABRIC, in capitals; anything else falls back to UCX",
            source="TensorRT-LLM 04fd9ff8 nixl_utils/transferAgent.cpp; since PR 9075 (1.2.0rc)",
        ),
        Variable(
            name="SGLANG_DISAGGREGATION_NIXL_BACKEND",
            side="",
            reader="SGLang",
            says="UCX (default), LIBFABRIC or another plugin",
            source="SGLang python/sglang/srt/environ.py; since PR 17146 (2026-01)",
        ),
        Variable(
            name="FI_PROVIDER",
            side="LIBFABRIC",
            reader="libfabric",
            says="the providers that may be used; NIXL then takes cxi, efa, tcp or sockets, in this order",
            source="NIXL 8770b655 src/utils/libfabric/libfabric_common.cpp:101",
        ),
        Variable(
            name="FI_TCP_IFACE",
            side="LIBFABRIC",
            reader="libfabric",
            says="the interface of the tcp provider",
            source="libfabric af8ddbe9 prov/tcp/src/xnet_init.c:91",
        ),
        Variable(
            name="FI_EFA_USE_DEVICE_RDMA",
            side="LIBFABRIC",
            reader="libfabric",
            says="1: the device's RDMA, and abort where it has none; 0: emulation",
            source=_EFA,
        ),
        Variable(
            name="FI_EFA_ENABLE_SHM_TRANSFER",
            side="LIBFABRIC",
            reader="libfabric",
            says="0: no shared memory inside a node, which breaks NIXL's registration of GPU buffers",
            source=f"{_EFA}; Dynamo TensorRT-LLM kv-cache-transfer page",
        ),
        Variable(
            name="FI_EFA_USE_HUGE_PAGE",
            side="LIBFABRIC",
            reader="libfabric",
            says="huge pages for internal buffers; since 1.20",
            source=_EFA,
        ),
        Variable(
            name="FI_EFA_FORK_SAFE",
            side="LIBFABRIC",
            reader="libfabric",
            says="fork support; then no huge pages by default",
            source=_EFA,
        ),
        Variable(
            name="FI_EFA_IFACE",
            side="LIBFABRIC",
            reader="libfabric",
            says="the EFA devices to open",
            source=_EFA,
        ),
        Variable(
            name="FI_EFA_MR_MAX_CACHED_COUNT",
            side="LIBFABRIC",
            reader="libfabric",
            says="NIXL asks for FI_MR_LOCAL, and the EFA provider opens no registration cache then",
            source="NIXL 8770b655 libfabric_rail.cpp; libfabric af8ddbe9 prov/efa/src/rdm/efa_rdm_domain.c:63",
            idle=True,
        ),
        Variable(
            name="FI_EFA_MR_MAX_CACHED_SIZE",
            side="LIBFABRIC",
            reader="libfabric",
            says="NIXL asks for FI_MR_LOCAL, and the EFA provider opens no registration cache then",
            source="NIXL 8770b655 libfabric_rail.cpp; libfabric af8ddbe9 prov/efa/src/rdm/efa_rdm_domain.c:63",
            idle=True,
        ),
        Variable(
            name="FI_MR_CACHE_MAX_COUNT",
            side="LIBFABRIC",
            reader="libfabric",
            says="NIXL asks for FI_MR_LOCAL, and the EFA provider opens no registration cache then",
            source="NIXL 8770b655 libfabric_rail.cpp; libfabric af8ddbe9 prov/efa/src/rdm/efa_rdm_domain.c:63",
            idle=True,
        ),
        Variable(
            name="FI_MR_CACHE_MONITOR",
            side="LIBFABRIC",
            reader="libfabric",
            says="NIXL asks for FI_MR_LOCAL, and the EFA provider opens no registration cache then",
            source="NIXL 8770b655 libfabric_rail.cpp; libfabric af8ddbe9 prov/efa/src/rdm/efa_rdm_domain.c:63",
            idle=True,
        ),
        Variable(
            name="UCX_TLS",
            side="UCX",
            reader="UCX",
            says="the transports that may be used; one that is missing is skipped while another works",
            source=_UCX,
        ),
        Variable(
            name="UCX_NET_DEVICES",
            side="UCX",
            reader="UCX",
            says="the network devices that may be used; all by default",
            source=_UCX,
        ),
        Variable(
            name="TRTLLM_USE_UCX_KVCACHE",
            side="",
            reader="TensorRT-LLM",
            says="1 with cache_transceiver_config.backend DEFAULT: UCX without NIXL",
            source="ai-dynamo/dynamo PR 13015 and 13048",
        ),
        Variable(
            name="TRTLLM_USE_MPI_KVCACHE",
            side="",
            reader="TensorRT-LLM",
            says="1 with cache_transceiver_config.backend DEFAULT: MPI without NIXL",
            source="ai-dynamo/dynamo PR 13015",
        ),
        Variable(
            name="TRTLLM_USE_MOONCAKE_KVCACHE",
            side="",
            reader="TensorRT-LLM",
            says="1 with cache_transceiver_config.backend DEFAULT: Mooncake without NIXL",
            source="ai-dynamo/dynamo PR 13015",
        ),
        Variable(
            name="TRTLLM_USE_NIXL_KVCACHE",
            side="",
            reader="TensorRT-LLM",
            says="1 with cache_transceiver_config.backend DEFAULT: NIXL, before the others",
            source="ai-dynamo/dynamo PR 13015",
        ),
        Variable(
            name="TRTLLM_DISAGG_ENABLE_INFLIGHT_CANCEL",
            side="UCX",
            reader="TensorRT-LLM",
            says="1 is refused at start with any NIXL backend but UCX",
            source="TensorRT-LLM cpp/tensorrt_llm/batch_manager/cacheTransceiver.cpp",
        ),
    )
}

# Which variable names the NIXL backend, where it is one: vLLM has none, its backend stands in an argument.
SELECTORS = {"trtllm": "TRTLLM_NIXL_KVCACHE_BACKEND", "sglang": "SGLANG_DISAGGREGATION_NIXL_BACKEND"}
# Variables that name a backend to nobody.
UNREAD_NAMES = ("NIXL_BACKEND", "VLLM_NIXL_BACKEND", "VLLM_NIXL_KVCACHE_BACKEND", "VLLM_NIXL_DISAGGREGATION_BACKEND")
VLLM_FLAG = "--kv-transfer-config"
VLLM_SOURCE = "vLLM docs/features/nixl_connector_usage.md; v1/nixl connector, kv_connector_extra_config.backends"
SGLANG_FLAG = "--disaggregation-transfer-backend"
SGLANG_SOURCE = "SGLang docs/advanced_features/pd_disaggregation.md; PR 5477"
TRTLLM_SOURCE = "TensorRT-LLM docs/source/features/disagg-serving.md, NIXL Backend Configuration"

# Past NIXL inside TensorRT-LLM: with one of these (and backend DEFAULT) the NIXL backend decides nothing. UCX first:
# whoever wants UCX may leave it.
PAST_NIXL = ("TRTLLM_USE_UCX_KVCACHE", "TRTLLM_USE_MPI_KVCACHE", "TRTLLM_USE_MOONCAKE_KVCACHE")

# As deployed: the requirement, word for word.
REFERENCE = {
    "UCX": {
        "NIXL_BACKEND": "UCX",
        "UCX_TLS": "tcp,cuda_copy,cuda_ipc,sm,self",
        "UCX_NET_DEVICES": "all",
    },
    "LIBFABRIC": {
        "NIXL_BACKEND": "LIBFABRIC",
        "TRTLLM_NIXL_KVCACHE_BACKEND": "LIBFABRIC",
        "NIXL_SKIP_TOPOLOGY_CHECK": "1",
        "NIXL_LIBFABRIC_MAX_RAILS": "1",
        "FI_PROVIDER": "efa",
        "FI_EFA_USE_DEVICE_RDMA": "1",
        "FI_EFA_ENABLE_SHM_TRANSFER": "0",
        "FI_EFA_ENABLE_SHM": "0",
        "FI_EFA_USE_HUGE_PAGE": "0",
        "FI_EFA_FORK_SAFE": "1",
        "FI_MR_CACHE_MAX_COUNT": "0",
        "FI_MR_CACHE_MONITOR": "disabled",
    },
}
REFERENCE_FABRIC = {"UCX": "tcp", "LIBFABRIC": "efa"}

# Only what is read. No tcp beside a faster transport: UCX would fall back to it without an error.
MINIMAL = {
    ("UCX", "efa"): {"UCX_TLS": "srd,cuda_copy,cuda_ipc,sm,self"},
    ("UCX", "ib"): {"UCX_TLS": "rc,cuda_copy,cuda_ipc,sm,self"},
    ("UCX", "tcp"): {"UCX_TLS": "tcp,cuda_copy,cuda_ipc,sm,self", "UCX_NET_DEVICES": "all"},
    ("LIBFABRIC", "efa"): {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1", "FI_EFA_ENABLE_SHM_TRANSFER": "0"},
    ("LIBFABRIC", "tcp"): {"FI_PROVIDER": "tcp"},
}
NO_LIBFABRIC_IB = (
    "NIXL's LIBFABRIC plugin takes the providers cxi, efa, tcp and sockets, not verbs, so it has no way over "
    "InfiniBand (NIXL 8770b655 libfabric_common.cpp): use UCX there, or say --fabric tcp"
)

# Notes on a pair (backend, fabric), whatever the profile.
ON_PAIR = {
    ("UCX", "efa"): (
        "UCX speaks EFA's SRD since 1.19; older ones have no srd and stop with NIXL_ERR_BACKEND",
        "UCX v1.19.0 src/uct/ib/efa/srd; not tried here for want of EFA",
    ),
    ("UCX", "ib"): (
        "name the HCAs with UCX_NET_DEVICES (--net-devices mlx5_0:1) where a node has several",
        "sgl-project/sglang PR 28737: 300 s hang without it",
    ),
    ("LIBFABRIC", "tcp"): (
        "the tcp provider has no FI_HMEM: GPU memory cannot be registered (NIXL_ERR_NOT_FOUND), host memory can; and "
        "NIXL before 1.0 wants the older provider (FI_PROVIDER=tcp,sockets)",
        "measured with nixl-cu13 1.5.0 on an H100; vLLM: kv_buffer_device cpu",
    ),
    ("LIBFABRIC", "efa"): (
        "the LIBFABRIC plugin and its libfabric must be in the image, and the pod needs vpc.amazonaws.com/efa",
        "Dynamo docs/kubernetes/cloud-providers/eks/efa.md",
    ),
}

CONFLICT_10024 = (
    "NIXL_BACKEND beside TRTLLM_NIXL_KVCACHE_BACKEND=LIBFABRIC is reported to end in `Deserialization of tag "
    "dest_data_ep_N failed` with TensorRT-LLM 1.2.0rc5; stock NIXL does not read NIXL_BACKEND, so leave it out",
    "NVIDIA/TensorRT-LLM#10024 (open)",
)

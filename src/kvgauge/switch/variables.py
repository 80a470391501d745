"""Who reads which environment variable, and what to use instead of those that nobody reads. Data only.

Each entry names the source it was read in; versions as in table.py. NIXL's and the EFA provider's own names are lists:
whatever else begins as theirs is a misspelling, or of a release that we do not know.
"""

from dataclasses import dataclass

NOBODY = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """An environment variable.

    side    the backend it belongs to, or "" where it belongs to none
    reader  which code reads it; NOBODY: none does
    says    what it does, or why it does nothing
    idle    read by `reader`, but without effect on what NIXL does
    instead what does what this one is meant to do; of those that nobody reads
    """

    name: str
    side: str
    reader: str
    says: str
    source: str
    idle: bool = False
    instead: str = ""


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
            instead="kv_connector_extra_config.backends of vLLM, TRTLLM_NIXL_KVCACHE_BACKEND of TensorRT-LLM, "
            "SGLANG_DISAGGREGATION_NIXL_BACKEND of SGLang",
            source=f"{_NIXL}; vllm-project/vllm#41814",
        ),
        Variable(
            name="NIXL_SKIP_TOPOLOGY_CHECK",
            side="LIBFABRIC",
            reader=NOBODY,
            says="the topology is always read",
            instead="nothing: there is no such check to skip",
            source=_NIXL,
        ),
        Variable(
            name="NIXL_LIBFABRIC_MAX_RAILS",
            side="LIBFABRIC",
            reader=NOBODY,
            says="every device is opened; give the pod fewer EFA devices to open fewer",
            instead="fewer vpc.amazonaws.com/efa for the pod, or FI_EFA_IFACE",
            source=f"{_NIXL}; ai-dynamo/nixl#1161",
        ),
        Variable(
            name="NIXL_LIBFABRIC_NUM_RAILS",
            side="LIBFABRIC",
            reader=NOBODY,
            says="asked for and never merged",
            instead="fewer vpc.amazonaws.com/efa for the pod, or FI_EFA_IFACE",
            source="ai-dynamo/nixl#1161 (open), PR 1226 (closed)",
        ),
        Variable(
            name="NIXL_PLUGINS_DIR",
            side="",
            reader=NOBODY,
            says="NIXL reads NIXL_PLUGIN_DIR, without the S",
            instead="NIXL_PLUGIN_DIR",
            source="NIXL 8770b655 src/core/nixl_plugin_manager.cpp:387",
        ),
        Variable(
            name="NIXL_LIB_DIR",
            side="",
            reader=NOBODY,
            says="the loader's paths decide which libnixl is opened",
            instead="NIXL_PLUGIN_DIR for plugins, LD_LIBRARY_PATH for libraries; only build scripts know this one",
            source=_NIXL,
        ),
        Variable(
            name="VLLM_NIXL_BACKEND",
            side="",
            reader=NOBODY,
            says="vLLM takes the backend from --kv-transfer-config only",
            instead="kv_connector_extra_config.backends in --kv-transfer-config",
            source="vllm-project/vllm PR 50832",
        ),
        Variable(
            name="VLLM_NIXL_KVCACHE_BACKEND",
            side="",
            reader=NOBODY,
            says="vLLM takes the backend from --kv-transfer-config only",
            instead="kv_connector_extra_config.backends in --kv-transfer-config",
            source="vllm-project/vllm#41814",
        ),
        Variable(
            name="VLLM_NIXL_DISAGGREGATION_BACKEND",
            side="",
            reader=NOBODY,
            says="vLLM takes the backend from --kv-transfer-config only",
            instead="kv_connector_extra_config.backends in --kv-transfer-config",
            source="vllm-project/vllm PR 33185 (closed, not merged)",
        ),
        Variable(
            name="FI_EFA_ENABLE_SHM",
            side="LIBFABRIC",
            reader=NOBODY,
            says="the EFA provider reads FI_EFA_ENABLE_SHM_TRANSFER",
            instead="FI_EFA_ENABLE_SHM_TRANSFER",
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
        *(
            Variable(
                name=f"DYN_KVBM_NIXL_BACKEND_{name}",
                side="",
                reader="Dynamo's KVBM",
                says="its offloading of blocks takes it, the transfer from prefill to decode does not",
                source="Dynamo docs, KVBM",
                idle=True,
            )
            for name in ("UCX", "LIBFABRIC")
        ),
        Variable(
            name="NIXL_PLUGIN_DIR",
            side="",
            reader="NIXL",
            says="takes the place of the plugins beside libnixl; TensorRT-LLM bundles a NIXL of its own, to whose core "
            "plugins of another build do not fit",
            source="Dynamo TensorRT-LLM kv-cache-transfer page",
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
        *(
            Variable(
                name=name,
                side="LIBFABRIC",
                reader="libfabric",
                says="NIXL asks for FI_MR_LOCAL, and the EFA provider opens no registration cache then",
                source="NIXL 8770b655 libfabric_rail.cpp; libfabric af8ddbe9 prov/efa/src/rdm/efa_rdm_domain.c:63",
                idle=True,
            )
            for name in (
                "FI_EFA_MR_MAX_CACHED_COUNT",
                "FI_EFA_MR_MAX_CACHED_SIZE",
                "FI_MR_CACHE_MAX_COUNT",
                "FI_MR_CACHE_MONITOR",
            )
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
        *(
            Variable(
                name=f"TRTLLM_USE_{name}_KVCACHE",
                side="",
                reader="TensorRT-LLM",
                says=f"1 with cache_transceiver_config.backend DEFAULT: {what}",
                source=f"ai-dynamo/dynamo PR {pull}",
            )
            for name, what, pull in (
                ("UCX", "UCX without NIXL", "13015 and 13048"),
                ("MPI", "MPI without NIXL", "13015"),
                ("MOONCAKE", "Mooncake without NIXL", "13015"),
                ("NIXL", "NIXL, before the others", "13015"),
            )
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

_NIXL_READS = (
    "CONFIG_FILE DISABLE_CUDA_ADDR_WA ETCD_ENDPOINTS ETCD_NAMESPACE LOG_LEVEL PLUGIN_DIR TCPSTORE_ENDPOINT "
    "TCPSTORE_OP_TIMEOUT_MS TCPSTORE_TIMEOUT_MS UCX_DEEPBIND UCX_EXPECTED_SONAME UCX_SGL_ENABLE "
    "UCX_WARNING_TIMEOUT LIBFABRIC_NUM_THREADS LIBFABRIC_SPLIT_BATCH_SIZE LIBFABRIC_POST_QUEUE_SIZE "
    "LIBFABRIC_MAX_BW_PER_DRAM_SEG DEBUG_LOGGING TRACE_BACKENDS PREFIX NO_STUBS_FALLBACK COST_ANALYTICAL_BACKEND "
    "MOONCAKE_IP_ADDR "
)
NIXL_READS = frozenset(_NIXL_READS.split())
# ofiwg/libfabric, prov/efa/src/efa_env.c, August 2026, and names older releases read
_EFA_READS = (
    "CQ_SIZE EFA_CQ_READ_SIZE ENABLE_SHM_TRANSFER FORK_SAFE IFACE IMPLICIT_AV_SIZE INTER_MAX_GDRCOPY_MESSAGE_SIZE "
    "INTER_MAX_MEDIUM_MESSAGE_SIZE INTER_MIN_READ_MESSAGE_SIZE INTER_MIN_READ_WRITE_SIZE INTER_READ_SEGMENT_SIZE "
    "INTERNAL_RX_REFILL_THRESHOLD MAX_MEMCPY_SIZE MAX_TIMEOUT MR_CACHE_ENABLE MR_MAX_CACHED_COUNT "
    "MR_MAX_CACHED_SIZE READCOPY_POOL_SIZE RECVWIN_SIZE RUNT_SIZE RX_COPY_OOO RX_COPY_UNEXP RX_SIZE SHM_AV_SIZE "
    "SHM_CQ_READ_SIZE TIMEOUT_INTERVAL TRACK_MR TX_MIN_CREDITS TX_QUEUE_SIZE TX_SIZE USE_DATA_PATH_DIRECT "
    "USE_DEVICE_RDMA USE_HUGE_PAGE USE_UNSOLICITED_WRITE_RECV USE_ZCPY_RX USE_HW_CNTR USE_SQ_REQ_ID_64_BIT "
    "USE_SM2 HOMOGENEOUS_PEER SET_CUDA_SYNC_MEMOPS RX_WINDOW_SIZE TX_IOV_LIMIT RX_IOV_LIMIT SHM_MAX_MEDIUM_SIZE "
    "MTU_SIZE "
)
EFA_READS = frozenset(_EFA_READS.split())


def nixl_reads(name: str) -> bool:
    """Of a name that begins with NIXL_."""
    return name.startswith("NIXL_TELEMETRY_") or name.removeprefix("NIXL_") in NIXL_READS


def efa_reads(name: str) -> bool:
    """Of a name that begins with FI_EFA_."""
    return name.removeprefix("FI_EFA_") in EFA_READS

"""What the profiles hold, by engine, backend and fabric. Data only; each entry names the source it was read in.

Sources were read in 2026-11 at these versions: vLLM 026c83f9, TensorRT-LLM 04fd9ff8 (2026-08), SGLang PR 17146 and
its later conn.py, Dynamo 000a36a7 and its docs to 1.6, NIXL 8770b655 (after 1.4.0), libfabric af8ddbe9 (after 2.6.0),
UCX 9466d104 (after 1.22.0).
"""

BACKENDS = ("UCX", "LIBFABRIC")
FABRICS = ("efa", "ib", "tcp")
PROFILES = ("reference", "minimal")
ENGINES = ("vllm", "trtllm", "sglang")
FRAMEWORKS = ("vllm", "trtllm", "sglang", "dynamo", "dynamo-vllm", "dynamo-trtllm", "dynamo-sglang")
NAMES = {"vllm": "vLLM", "trtllm": "TensorRT-LLM", "sglang": "SGLang"}

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

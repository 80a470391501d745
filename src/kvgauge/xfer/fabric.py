"""What workers are told about transports, and which words of the user's reach them. Pure."""

from kvgauge import backends
from kvgauge.failures import UsageError
from kvgauge.xfer.workload import Memory

FABRICS = {
    "tcp": "TCP only, both backends",
    "shm": "UCX only: shared memory, beside TCP, by which NIXL hears of failures",
    "cuda": "UCX only: cuda_ipc and cuda_copy, beside shared memory and TCP",
    "any": "nothing is restricted: what the libraries choose by themselves",
}
_UCX_TLS = {"shm": "tcp,sm,self", "cuda": "tcp,cuda_copy,cuda_ipc,sm,self"}
# Only variables of the transports: a worker's loader, Python and NIXL's plugins are not the user's to change from here.
_ALLOWED = ("UCX_", "FI_", "NCCL_", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MPS_", "NIXL_LIBFABRIC_",
            "NIXL_UCX_")  # fmt: skip


def default_fabric(memory: Memory) -> str:
    return "cuda" if memory == "VRAM" else "tcp"


def environment(
    backend: str,
    fabric: str,
    memory: Memory,
    interface: str | None,
    release: tuple[int, ...],
    *,
    plugin_dir: str | None,
    extra: dict[str, str],
    gpu: bool = False,
) -> dict[str, str]:
    """Variables of a worker. raises UsageError for a fabric this backend does not have"""
    if fabric == "cuda" and memory == "DRAM":
        raise UsageError("fabric cuda carries GPU memory alone: say --memory vram, or --fabric tcp, shm or any")
    if fabric in _UCX_TLS and backend != "UCX":
        if fabric == "shm":
            raise UsageError(f"{backend} has no fabric {fabric}: take --fabric tcp, or any")
        fabric = "any"  # GPU memory needs a provider that can reach it; only the machine's own may
    if fabric == "tcp":
        told = backends.worker_environment(backend, "tcp", interface, release, plugin_dir=plugin_dir, gpu=gpu)
        if memory == "VRAM" and backend == "UCX":
            told["UCX_TLS"] = "tcp,self,cuda_copy"
    else:
        told = {**backends.LOGGED, **backends.QUIET}
        if fabric in _UCX_TLS:
            told["UCX_TLS"] = _UCX_TLS[fabric]
        if plugin_dir is not None:
            told["NIXL_PLUGIN_DIR"] = plugin_dir
    if memory == "VRAM" or fabric == "shm":
        told["UCX_PROTO_INFO"] = "y"  # a fall-back to software emulation is three orders of magnitude, and silent
    return told | extra


def read_extra(words: list[str]) -> dict[str, str]:
    """NAME=VALUE of --env. raises UsageError"""
    found = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name.startswith(_ALLOWED):
            raise UsageError(
                f"cannot use --env {name}: give NAME=VALUE with a name that begins with {', '.join(_ALLOWED)}"
            )
        found[name] = value
    return found

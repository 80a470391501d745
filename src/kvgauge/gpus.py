"""GPUs whose compute can be modelled: peaks from data sheets, and what engines reach of them (docs/compute.md)."""

import msgspec


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """Peaks of one GPU, and what engines reach of them.

    flops           dense bf16 operations a second
    memory_bytes_s  high-bandwidth memory
    link_bytes_s    all-reduce bandwidth between the GPUs of a tensor-parallel group
    """

    name: str
    flops: float
    memory_bytes_s: float
    link_bytes_s: float
    flops_share: float = 0.5
    memory_share: float = 0.7
    prefill_fixed_ns: int = 2_000_000
    prefill_layer_ns: int = 150_000  # kernel launches: prefill runs without CUDA graphs
    decode_fixed_ns: int = 1_000_000
    decode_layer_ns: int = 20_000  # inside one CUDA graph
    all_reduce_ns: int = 10_000


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="A100", flops=312e12, memory_bytes_s=2.04e12, link_bytes_s=240e9),
        Gpu(name="H100", flops=989e12, memory_bytes_s=3.35e12, link_bytes_s=360e9),
        Gpu(name="H200", flops=989e12, memory_bytes_s=4.8e12, link_bytes_s=360e9),
        Gpu(name="B200", flops=2_250e12, memory_bytes_s=8.0e12, link_bytes_s=720e9),
    )
}

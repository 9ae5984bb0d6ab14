"""What is known of GPUs: memory, peak rate, bandwidth and links, from NVIDIA's data sheets."""

import re
from dataclasses import dataclass, replace

import torch

from ..errors import InputError

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One GPU: ``memory_bytes`` that a process finds, in whole GiB; rates in FLOP/s and bytes/s, at their peak."""

    name: str
    memory_bytes: int
    bf16_flops: float
    """Dense bf16 peak."""
    memory_bandwidth: float
    """Of its own memory."""
    link_bandwidth: float
    """To the other GPUs of its node, in one direction (NVLink)."""
    network_bandwidth: float
    """To other nodes, in one direction: one adapter of 200 (A100) or 400 Gbit/s for every GPU."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40gb", 39 * GIB, 312e12, 1.555e12, 300e9, 25e9),
        Gpu("a100-80gb", 79 * GIB, 312e12, 2.039e12, 300e9, 25e9),
        Gpu("h100-80gb", 79 * GIB, 989e12, 3.35e12, 450e9, 50e9),
        Gpu("h200-141gb", 139 * GIB, 989e12, 4.8e12, 450e9, 50e9),
        Gpu("b200", 178 * GIB, 2250e12, 7.7e12, 900e9, 50e9),
    )
}

_CARDS_BF16_FLOPS = {
    frozenset(("h100", "pcie")): 756e12,
    frozenset(("h100", "nvl")): 835e12,
    frozenset(("h200", "nvl")): 835e12,
}
"""Dense bf16 peak of PCIe cards whose clock is below that of the SXM module of that name, by words of their names."""

_DEFAULT = "h100-80gb"


def gpu_named(name: str) -> Gpu:
    """Return the GPU called ``name``; ``"24 GiB"`` is one of that memory whose rates are those of an H100.

    Raises InputError where it is neither.
    """
    if name in GPUS:
        return GPUS[name]
    size = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:gib|g)", name.strip().lower())
    if size and 1.0 <= float(size[1]) <= 10_000.0:
        known = GPUS[_DEFAULT]
        rates = (known.bf16_flops, known.memory_bandwidth, known.link_bandwidth, known.network_bandwidth)
        return Gpu(f"{float(size[1]):g} GiB ({_DEFAULT} rates)", int(float(size[1]) * GIB), *rates)
    raise InputError(f"--gpu {name!r} is unknown; expected {', '.join(GPUS)}, or a memory size such as '24 GiB'")


def gpu_of(device: torch.device) -> Gpu | None:
    """Return what is known of ``device`` by its name, with the memory that it has; None where that is nothing.

    Nor is anything known of a slice of a GPU (MIG).
    """
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    # A GH200 computes as an H200 does; a GB200 is faster than a B200.
    words = re.findall(r"[a-z0-9]+", properties.name.lower().replace("gh200", "h200"))
    fitting = [gpu for gpu in GPUS.values() if gpu.name.split("-")[0] in words]
    if not fitting or "mig" in words:
        return None
    nearest = min(fitting, key=lambda gpu: abs(gpu.memory_bytes - properties.total_memory))
    rates = [rate for name, rate in _CARDS_BF16_FLOPS.items() if name <= set(words)]
    return replace(nearest, memory_bytes=properties.total_memory, bf16_flops=(*rates, nearest.bf16_flops)[0])


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of ``device`` in FLOP/s, None where it is not known."""
    gpu = gpu_of(device)
    return gpu.bf16_flops if gpu else None

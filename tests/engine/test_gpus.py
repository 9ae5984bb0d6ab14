"""GPUs by name and by memory."""

from dataclasses import replace

import pytest
import torch
from cacophony.engine.gpus import GIB, GPUS, gpu_named, gpu_of, peak_flops
from cacophony.errors import InputError


@pytest.mark.parametrize("name", ["24 GiB", "24GiB", "24g", " 24.0 gib"])
def test_a_size_is_a_gpu_of_that_memory(name: str):
    assert gpu_named(name).memory_bytes == 24 * GIB


@pytest.mark.parametrize("name", ["", "v100", "0 GiB", "99999 GiB", "-3 GiB", "nan GiB"])
def test_an_unknown_gpu_names_the_known_ones(name: str):
    with pytest.raises(InputError, match=r"--gpu .* is unknown; expected a100-40gb, .* such as '24 GiB'"):
        gpu_named(name)


@pytest.mark.parametrize(
    ("found", "memory_gib", "expected", "tflops"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40gb", 312),
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100-80gb", 312),
        ("NVIDIA A100 80GB PCIe", 79.2, "a100-80gb", 312),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4.8, None, None),
        ("NVIDIA H100 80GB HBM3", 79.1, "h100-80gb", 989),
        ("NVIDIA H100 PCIe", 79.1, "h100-80gb", 756),
        ("NVIDIA H100 NVL", 93.1, "h100-80gb", 835),
        ("NVIDIA H200", 139.8, "h200-141gb", 989),
        ("NVIDIA H200 NVL", 139.8, "h200-141gb", 835),
        ("NVIDIA GH200 480GB", 94.5, "h200-141gb", 989),
        ("NVIDIA B200", 178.4, "b200", 2250),
        ("NVIDIA GB200", 184.0, None, None),
        ("NVIDIA GeForce RTX 4090", 23.5, None, None),
    ],
)
def test_a_device_is_known_by_its_name_and_has_its_own_memory(
    found: str, memory_gib: float, expected: str | None, tflops: int | None, monkeypatch: pytest.MonkeyPatch
):
    memory = int(memory_gib * GIB)
    properties = type("Properties", (), {"name": found, "total_memory": memory})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    peak = tflops and tflops * 1e12
    assert peak_flops(torch.device("cuda")) == peak
    known = replace(GPUS[expected], memory_bytes=memory, bf16_flops=peak) if expected and peak else None
    assert gpu_of(torch.device("cuda")) == known


def test_a_cpu_is_no_gpu():
    assert gpu_of(torch.device("cpu")) is None

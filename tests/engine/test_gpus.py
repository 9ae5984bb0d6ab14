"""GPUs by name and by memory."""

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
    ("found", "memory_gib", "expected"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", 79.1, "h100-80gb"),
        ("NVIDIA H200", 139.8, "h200-141gb"),
        ("NVIDIA B200", 178.4, "b200"),
        ("NVIDIA GeForce RTX 4090", 23.5, None),
    ],
)
def test_a_device_is_known_by_its_name(
    found: str, memory_gib: float, expected: str | None, monkeypatch: pytest.MonkeyPatch
):
    properties = type("Properties", (), {"name": found, "total_memory": int(memory_gib * GIB)})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert gpu_of(torch.device("cuda")) is (GPUS[expected] if expected else None)
    assert peak_flops(torch.device("cuda")) == (GPUS[expected].bf16_flops if expected else None)


def test_a_cpu_is_no_gpu():
    assert gpu_of(torch.device("cpu")) is None

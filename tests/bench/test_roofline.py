"""Roofs are measured, and the least time is the larger of copying's and multiplying's."""

import pytest
import torch
from cacophony.bench.roofline import Roofs, measure_roofs
from cacophony.kernels.spec import Work


def test_the_least_time_is_the_larger_of_the_two() -> None:
    roofs = Roofs(copy_gb_per_s=1000.0, matmul_tflop_per_s={"bfloat16": 500.0, "float32": 50.0})
    assert roofs.floor_ms(Work(bytes=2 * 10**9), "bfloat16") == pytest.approx(2.0)
    assert roofs.floor_ms(Work(bytes=2 * 10**9, flops=5 * 10**12), "bfloat16") == pytest.approx(10.0)
    assert roofs.floor_ms(Work(bytes=2 * 10**9, flops=5 * 10**12), "float32") == pytest.approx(100.0)
    assert roofs.floor_ms(Work(0), "float32") == 0.0


def test_a_cpu_has_roofs_and_the_precision_of_products_stays_as_it_was() -> None:
    before = torch.get_float32_matmul_precision()
    roofs = measure_roofs(torch.device("cpu"), seconds=1e-4)
    assert roofs.copy_gb_per_s > 0
    assert set(roofs.matmul_tflop_per_s) == {"bfloat16", "float32"}
    assert all(rate > 0 for rate in roofs.matmul_tflop_per_s.values())
    assert torch.get_float32_matmul_precision() == before

"""Sums over rows by the kernel: right in every shape, exact where numbers are, the same bits each time."""

import pytest
import torch
from cacophony.kernels.column_sum import column_sum_op
from cacophony.kernels.triton_runtime import HAS_TRITON

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (16, 256), (100, 257), (333, 13), (0, 5), (4, 0)], ids=str)
def test_sums_of_integers_are_exact(shape: tuple[int, int], dtype: torch.dtype) -> None:
    values = torch.randint(-9, 10, shape, device=DEVICE)
    found = column_sum_op(values.to(dtype), torch.float32)
    assert torch.equal(found, values.sum(0).float())


def test_many_small_numbers_are_summed_in_float32() -> None:
    """A sum in bfloat16 would stop growing at 1."""
    found = column_sum_op(torch.full((4096, 3), 2.0**-9, device=DEVICE, dtype=torch.bfloat16), torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [8.0] * 3

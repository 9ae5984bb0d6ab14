"""Sine/cosine embedding of time, in PyTorch and in kernels."""

import math

import pytest
import torch
from cacophony.kernels.sincos import device_sincos, sincos_embedding
from cacophony.kernels.triton_runtime import HAS_TRITON, jit, launch, tl


def test_sincos_is_all_sines_then_all_cosines() -> None:
    times = [0, 1, 7, 61, 187]
    embedding = sincos_embedding(torch.tensor(times), 8)
    for row, time in zip(embedding.tolist(), times, strict=True):
        angles = [time * math.exp(-2 * math.log(10_000) * j / 8) for j in range(4)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert row == pytest.approx(expected, abs=2e-5)  # the angle is a float32


def test_sincos_has_no_longest_time() -> None:
    assert bool(sincos_embedding(torch.tensor([[0, 10**6]]), 768).isfinite().all())
    assert sincos_embedding(torch.zeros(2, 3, dtype=torch.int64), 4).tolist() == [[[0.0, 0.0, 1.0, 1.0]] * 3] * 2


@jit
def sincos_kernel(angle, sine, cosine, N: tl.constexpr):
    i = tl.arange(0, N)
    s, c = device_sincos(tl.load(angle + i))
    tl.store(sine + i, s)
    tl.store(cosine + i, c)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("largest", [1.0, 100.0, 2048.0, 1e6])
def test_the_kernels_sine_and_cosine_are_right_to_the_last_place_but_one(largest: float) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    angle = (torch.rand(8192, dtype=torch.float64) * largest).float().to(device)
    angle[:2] = torch.tensor([0.0, largest])
    sine, cosine = torch.empty_like(angle), torch.empty_like(angle)
    launch(sincos_kernel, (1,), angle, sine, cosine, N=8192)
    for found, exact in ((sine, angle.double().sin()), (cosine, angle.double().cos())):
        assert float((found.double() - exact).abs().max()) < 2**-23

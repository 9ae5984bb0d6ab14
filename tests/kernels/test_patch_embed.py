"""Patch embedding: projection, sin/cos time and frequency row of every patch, in both layouts."""

import math

import pytest
import torch
from cacophony.kernels.layout import Packed, Patches, PatchPositions, pack, pad, padded_layout
from cacophony.kernels.patch_embed import patch_embed
from torch import Tensor

WIDTH = 6


def weights() -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((WIDTH, 256), (WIDTH,), (8, WIDTH))
    projection, bias, freq = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    return projection, bias, freq


PACKED = Packed.from_lengths([3, 0, 5, 1])
PADDED = padded_layout(PACKED)


def ragged() -> tuple[Patches, Patches]:
    """The same patches packed and padded."""
    packed = PACKED
    values = torch.randn(packed.total, 256, dtype=torch.float64)
    time, freq = torch.randint(0, 60, (packed.total,)), torch.randint(0, 8, (packed.total,))
    padded = PatchPositions(pad(time, packed), pad(freq, packed), PADDED)
    return Patches(values, PatchPositions(time, freq, packed)), Patches(pad(values, packed), padded)


def test_each_token_is_its_patch_time_and_frequency() -> None:
    patches, _ = ragged()
    projection, bias, freq = (weight.detach() for weight in weights())
    tokens = patch_embed(patches, projection, bias, freq)
    for i, token in enumerate(tokens.tolist()):
        time = int(patches.positions.time[i])
        for d in range(WIDTH):
            angle = time * 10_000 ** (-2 * (d % 3) / WIDTH)
            expected = sum(float(v * w) for v, w in zip(patches.values[i], projection[d], strict=True))
            expected += float(bias[d]) + float(freq[int(patches.positions.freq[i]), d])
            expected += math.sin(angle) if d < WIDTH // 2 else math.cos(angle)
            assert token[d] == pytest.approx(expected, abs=1e-5)  # the angle is a float32 of up to 60


def test_padded_equals_packed_forward_and_backward() -> None:
    packed, padded = ragged()
    parameters = weights()
    outputs = [patch_embed(packed, *parameters), pack(patch_embed(padded, *parameters), PADDED)]
    cotangent = torch.randn_like(outputs[0])
    gradients = [torch.autograd.grad(output, parameters, cotangent) for output in outputs]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-12)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        assert bool(one.any())


def test_no_patch_is_legal() -> None:
    packed = Packed.from_lengths([0, 0])
    none = torch.zeros(0, dtype=torch.int64)
    patches = Patches(torch.zeros(0, 256, dtype=torch.float64), PatchPositions(none, none, packed))
    assert patch_embed(patches, *weights()).shape == (0, WIDTH)

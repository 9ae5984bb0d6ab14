"""Sine/cosine embedding of time, in PyTorch and for Triton kernels."""

import math

import torch
from torch import Tensor

from .triton_runtime import jit, tl


def sincos_frequencies(width: int, device: torch.device) -> Tensor:
    """Angle of one step of time in each sine of :func:`sincos_embedding`: float32 ``[width / 2]``."""
    j = torch.arange(width // 2, dtype=torch.float32, device=device)
    return torch.exp(j * (-2.0 * math.log(10_000.0) / width))


def sincos_embedding(time: Tensor, width: int) -> Tensor:
    """Sine/cosine embedding of integer ``time`` ``[...]``: float32 ``[..., width]``, sines first, then cosines.

    angle_j = time * 10000 ** (-2 j / width), j = 0 .. width / 2 - 1 (the authors' ``mae.py``).
    """
    angle = time[..., None].float() * sincos_frequencies(width, time.device)
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


@jit
def device_sincos(angle):
    """Sine and cosine of a float32 ``angle`` from 0, both from one reduction to [-π/4, π/4] and without a branch.

    Within 2**-23 of the truth up to an angle of 10**6. The polynomials and π/2 in three parts are those of Cephes
    (``sinf.c``, S. Moshier). Not ``tl.sin``: it takes memory on the stack and as long again for the cosine.
    """
    quarter = tl.floor(angle * 0.6366197723675814 + 0.5)
    # `fma` because its products are not rounded and the angle, a product, is: to the float32 that the reference has.
    x = tl.fma(quarter, -1.5703125, angle)
    x = tl.fma(quarter, -4.837512969970703125e-4, x)
    x = tl.fma(quarter, -7.54978995489188216e-8, x)
    z = x * x
    sine = x + x * z * (-1.6666654611e-1 + z * (8.3321608736e-3 + z * -1.9515295891e-4))
    cosine = 1.0 - 0.5 * z
    cosine += z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5))

    turn = quarter.to(tl.int32) & 3
    is_odd = (turn & 1) == 1
    sine_of_angle = tl.where(is_odd, cosine, sine)
    cosine_of_angle = tl.where(is_odd, sine, cosine)
    sine_of_angle = tl.where(turn >= 2, -sine_of_angle, sine_of_angle)
    cosine_of_angle = tl.where((turn == 1) | (turn == 2), -cosine_of_angle, cosine_of_angle)
    return sine_of_angle, cosine_of_angle

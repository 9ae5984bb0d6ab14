"""How narrow the numbers may be that are summed."""

from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x``, a half-precision one as float32."""
    return x.float() if x.element_size() < 4 else x

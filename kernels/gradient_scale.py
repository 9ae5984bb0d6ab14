"""Scale a gradient that the forward pass made by the loss's own gradient, which only the device knows."""

from torch import Tensor

from .library import define
from .triton_runtime import cdiv, jit, launch, processors, tl

BLOCK = 2048


@jit(do_not_specialize=["n"])
def scale_gradient_kernel(gradient, factor, n, BLOCK: tl.constexpr):
    """Multiply ``gradient`` ``[n]`` by the scalar ``factor``; where that is 1, read it and do nothing."""
    scalar = tl.load(factor)
    if scalar != 1.0:
        for tile in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
            i = tile * BLOCK + tl.arange(0, BLOCK)
            scaled = tl.load(gradient + i, i < n).to(tl.float32) * scalar
            tl.store(gradient + i, scaled.to(gradient.dtype.element_ty), i < n)


def scale_gradient_(gradient: Tensor, factor: Tensor) -> None:
    """Launch the scaling of contiguous ``gradient`` in place by ``factor`` ``[]``."""
    programs = min(cdiv(gradient.numel(), BLOCK), 4 * processors(gradient.device))
    launch(scale_gradient_kernel, (programs,), gradient, factor, gradient.numel(), BLOCK=BLOCK, num_warps=4)


def _nothing(gradient: Tensor, factor: Tensor) -> None:
    return None


scale_gradient_op = define("scale_gradient_(Tensor(a!) gradient, Tensor factor) -> ()", scale_gradient_, _nothing)

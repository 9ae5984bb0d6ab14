"""Mean squared error against patches normalised by their own mean and variance (masked autoencoder, norm-pix loss).

The kernels read prediction and target once and write d(prediction) beside the loss. All that is left to backward is to
scale it, and where the upstream gradient is 1, which the device finds out, not even that.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backend
from .checks import check_device, check_dtype, check_shape
from .gradient_scale import scale_gradient_op
from .patch_mse_triton import MAX_WIDTH, patch_mse_fwd_op
from .precision import at_least_float32
from .spec import Case, Inputs, MakeInputs, Spec, Work, draw_normal


class PatchMSEFunction(torch.autograd.Function):
    """Joins the two ops. The gradient that forward wrote is handed out once; a second backward computes it again."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor, selected: Tensor, *rest: Any) -> Tensor:
        """Run forward and keep d(prediction) for an upstream gradient of 1."""
        denominator, *ctx.constants = rest
        loss, ctx.d_prediction = patch_mse_fwd_op(prediction, target, selected, denominator, *ctx.constants)
        ctx.save_for_backward(prediction, target, selected, denominator)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> Any:  # type: ignore[override]
        """Scale d(prediction) in place by the upstream gradient, which is read on the device."""
        d_prediction = ctx.d_prediction
        if torch.compiler.is_compiling():  # the product is the compiler's to fuse
            return d_prediction * d_loss, *[None] * 7
        if d_prediction is None:
            _, d_prediction = patch_mse_fwd_op(*ctx.saved_tensors, *ctx.constants)
        ctx.d_prediction = None
        scale_gradient_op(d_prediction, d_loss)
        return d_prediction, *[None] * 7


def patch_mse(
    prediction: Tensor,
    target: Tensor,
    selected: Tensor,
    denominator: Tensor | float,
    *,
    unbiased: bool = True,
    eps: float = 1e-6,
) -> Tensor:
    """Return the summed loss of the selected patches over ``denominator``, a scalar of at least float32.

    A patch's loss is the mean over its W pixels of (prediction - (target - mean) / sqrt(var + eps))². ``prediction``
    and ``target`` ``[..., W]``, W = 256 in the paper; ``selected`` bool ``[...]``, and what it leaves out is not read;
    ``denominator`` the number of selected patches of the whole batch, a number or a 0-d tensor, so that micro-batches
    add up. ``unbiased`` divides the variance by W - 1 instead of W. The prediction alone has a gradient, in its dtype.
    Raises ValueError on shapes or devices that do not fit, on a target or denominator that asks for a gradient and,
    fused, on a dtype or width the kernels do not take.
    """
    check_shape("patch_mse", "target", target, prediction.shape)
    check_shape("patch_mse", "selected", selected, prediction.shape[:-1])
    check_dtype("patch_mse", "selected", selected, (torch.bool,))
    scalar = denominator if isinstance(denominator, Tensor) else None
    if scalar is not None:
        check_shape("patch_mse", "denominator", scalar, ())
    check_device("patch_mse", "prediction", prediction.device, target=target, selected=selected, denominator=scalar)
    for name, tensor in (("target", target), ("denominator", scalar)):
        if tensor is not None and tensor.requires_grad:
            raise ValueError(f"patch_mse: {name} asks for a gradient, expected one that is detached")
    if prediction.shape[-1] < 1 + int(unbiased):
        raise ValueError(f"patch_mse: prediction is {prediction.shape[-1]} wide, expected at least {1 + int(unbiased)}")
    return _dispatch(prediction, target, selected, denominator, unbiased=unbiased, eps=eps)


def patch_mse_reference(
    prediction: Tensor, target: Tensor, selected: Tensor, denominator: Tensor | float, *, unbiased: bool, eps: float
) -> Tensor:
    """Compute :func:`patch_mse` in plain PyTorch, statistics and sum at least in float32."""
    prediction, target = at_least_float32(prediction[selected]), at_least_float32(target[selected])
    centred = target - target.mean(dim=-1, keepdim=True)
    variance = centred.square().sum(dim=-1, keepdim=True) / (target.shape[-1] - int(unbiased))
    normalised = centred / (variance + eps).sqrt()
    return (prediction - normalised).square().mean(dim=-1).sum() / denominator


def _patch_mse_cuda(
    prediction: Tensor, target: Tensor, selected: Tensor, denominator: Tensor | float, *, unbiased: bool, eps: float
) -> Tensor:
    # The gradient is rounded to prediction's dtype before it is scaled: in float16 a loss scaler would come too late.
    check_dtype("patch_mse", "prediction", prediction, (torch.float32, torch.bfloat16))
    check_dtype("patch_mse", "target", target)
    width = prediction.shape[-1]
    if width > MAX_WIDTH:
        raise ValueError(f"patch_mse: prediction is {width} wide, expected at most {MAX_WIDTH}")
    tensor, number = (denominator, 1.0) if isinstance(denominator, Tensor) else (None, float(denominator))
    return PatchMSEFunction.apply(
        prediction.reshape(-1, width).contiguous(),
        target.reshape(-1, width).contiguous(),
        selected.reshape(-1).contiguous(),
        *(tensor, number, unbiased, eps, torch.is_grad_enabled() and prediction.requires_grad),
    )


_dispatch = backend.register("patch_mse", reference=patch_mse_reference, fused={"cuda": _patch_mse_cuda})


def _patches(
    *shape: int,
    scale: float = 1.0,
    level: float = 0.0,
    share: float = 0.7,
    unbiased: bool = True,
    target_dtype: torch.dtype | None = None,
) -> MakeInputs:
    """Patches ``[..., W]`` of their own contrast, about ``share`` of them selected; target in ``target_dtype``."""

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        contrast = scale * torch.rand((*shape[:-1], 1), generator=generator).to(device)
        target = draw_normal(shape, generator, device, torch.float32).detach() * contrast + level
        selected = torch.rand(shape[:-1], generator=generator) < share
        return {
            "prediction": draw_normal(shape, generator, device, dtype),
            "target": target.to(target_dtype or dtype),
            "selected": selected.to(device),
            "denominator": selected.sum().clamp_min(1).to(device),
            "unbiased": unbiased,
            "eps": 1e-6,
        }

    return make


def _forward_work(inputs: Inputs) -> Work:
    """Prediction and target of the selected patches are read, and the whole gradient is written."""
    prediction, target, selected = inputs["prediction"], inputs["target"], inputs["selected"]
    share = float(selected.float().mean()) if selected.numel() else 0.0
    read = int(share * (prediction.nbytes + target.nbytes))
    return Work(bytes=read + prediction.nbytes + selected.nbytes, flops=int(share * 12 * prediction.numel()))


SPEC = Spec(
    name="patch_mse",
    op=patch_mse,
    reference=patch_mse_reference,
    cases=(
        Case("padded", _patches(3, 5, 256)),
        Case("packed, biased", _patches(37, 256, unbiased=False)),
        Case("more rows than one round of programs", _patches(300, 256)),
        Case("odd width", _patches(9, 77)),
        Case("1024 pixels", _patches(6, 1024)),
        Case("widest", _patches(2, MAX_WIDTH)),
        Case("two pixels", _patches(21, 2)),
        Case("one row", _patches(1, 256, share=1.0)),
        Case("no row", _patches(0, 256)),
        Case("nothing selected", _patches(5, 256, share=0.0)),
        Case("large", _patches(20, 256, scale=1e4)),
        Case("float32 target", _patches(20, 256, target_dtype=torch.float32)),
        Case("constant target", _patches(20, 256, scale=0.0, level=-1.5)),
        Case("stage 1, all patches", _patches(512 * 750, 256, share=1.0), paper=True),
        Case("stage 1", _patches(512 * 750, 256, share=0.8), paper=True),
        Case("stage 1, float32 target", _patches(512 * 750, 256, share=0.8, target_dtype=torch.float32), paper=True),
    ),
    forward=_forward_work,
    backward=lambda inputs: Work(bytes=0),
)

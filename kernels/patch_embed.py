"""Patches to tokens: linear projection + sin/cos time embedding + learned frequency embedding.

The pixels come in rows, from :mod:`.log_mel_patches`: stage 1 needs the restored ones as targets anyway, SAM's second
pass and a recomputed forward read the kept ones again, and packed they are read in whole lines.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backend
from .checks import check_device, check_dtype, check_shape
from .layout import Packed, Patches, PatchPositions, pad, padded_layout
from .log_mel import FREQ_PATCHES, PATCH_PIXELS
from .patch_embed_triton import patch_embed_bwd_op, patch_embed_fwd_op
from .precision import autocast_dtype, gradient_dtype
from .sincos import sincos_embedding
from .spec import Case, Inputs, MakeInputs, Spec, Work, draw_normal


class PatchEmbedFunction(torch.autograd.Function):
    """Joins the two ops; rows ``[rows, 256]`` in, tokens ``[rows, D]`` out."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, freq_embedding: Tensor, *rest: Any) -> Any:
        """Run forward and keep the pixels."""
        _, freq, ctx.products, _ = rest
        ctx.save_for_backward(values, weight, freq)
        ctx.freq_dtype, ctx.weight_dtype = freq_embedding.dtype, gradient_dtype(weight)
        return patch_embed_fwd_op(values, weight, bias, freq_embedding, *rest)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_tokens: Tensor) -> Any:  # type: ignore[override]
        """Run backward; pixels have a gradient where it is asked for, which training does not."""
        values, weight, freq = ctx.saved_tensors
        d_tokens, width = d_tokens.contiguous(), weight.shape[0]
        dtype = torch.promote_types(ctx.weight_dtype, ctx.freq_dtype)
        flat = patch_embed_bwd_op(d_tokens, values, freq, ctx.products, dtype)
        d_weight, d_freq, d_bias = flat.split([weight.numel(), FREQ_PATCHES * width, width])
        d_weight, d_bias = d_weight.view_as(weight).to(ctx.weight_dtype), d_bias.to(ctx.weight_dtype)
        d_values = None
        if ctx.needs_input_grad[0]:
            d_values = (d_tokens.to(ctx.products) @ weight.to(ctx.products)).to(values.dtype)
        return d_values, d_weight, d_bias, d_freq.view(FREQ_PATCHES, width).to(ctx.freq_dtype), *[None] * 4


def patch_embed(patches: Patches, weight: Tensor, bias: Tensor, freq_embedding: Tensor) -> Tensor:
    """Embed ``patches`` as tokens ``[B, L, D]`` or ``[T, D]``: values @ weight.T + bias + sincos(time) + freq row.

    ``weight`` ``[D, 256]``, ``bias`` ``[D]``, ``freq_embedding`` ``[8, D]``, D even. Pixels are rounded to the dtype of
    ``weight``, under autocast both to autocast's, sums are float32; the tokens have the wider dtype of that and of
    ``freq_embedding``. Raises ValueError on shapes or devices that do not fit and, fused, on a dtype the kernels do not
    take.
    """
    width = weight.shape[0]
    if width % 2:
        raise ValueError(f"patch_embed: weight has {width} rows, expected an even number: half sines, half cosines")
    check_shape("patch_embed", "weight", weight, (width, PATCH_PIXELS))
    check_shape("patch_embed", "bias", bias, (width,))
    check_shape("patch_embed", "freq_embedding", freq_embedding, (FREQ_PATCHES, width))
    positions = patches.positions
    check_shape("patch_embed", "patches.values", patches.values, (*positions.time.shape, PATCH_PIXELS))
    check_shape("patch_embed", "patches.positions.freq", positions.freq, positions.time.shape)
    others = {"weight": weight, "bias": bias, "freq_embedding": freq_embedding}
    check_device(
        "patch_embed", "patches.values", patches.values.device, time=positions.time, freq=positions.freq, **others
    )
    return _dispatch(patches, weight, bias, freq_embedding)


def patch_embed_reference(patches: Patches, weight: Tensor, bias: Tensor, freq_embedding: Tensor) -> Tensor:
    """Compute :func:`patch_embed` in plain PyTorch."""
    tokens = F.linear(patches.values.to(weight.dtype), weight, bias)
    positions = patches.positions
    time_embedding = sincos_embedding(positions.time, weight.shape[0]).to(freq_embedding.dtype)
    return tokens + time_embedding + F.embedding(positions.freq, freq_embedding)


def _patch_embed_cuda(patches: Patches, weight: Tensor, bias: Tensor, freq_embedding: Tensor) -> Tensor:
    values, positions = patches.values, patches.positions
    for name, tensor in {"patches.values": values, "weight": weight, "freq_embedding": freq_embedding}.items():
        check_dtype("patch_embed", name, tensor)
    check_dtype("patch_embed", "bias", bias, (weight.dtype,))
    for name, tensor in {"time": positions.time, "freq": positions.freq}.items():
        check_dtype("patch_embed", f"patches.positions.{name}", tensor, (torch.int64,))
    products = autocast_dtype(values.device) or weight.dtype
    tokens = PatchEmbedFunction.apply(
        values.reshape(-1, PATCH_PIXELS).contiguous(),
        weight.contiguous(),
        bias.contiguous(),
        freq_embedding.contiguous(),
        positions.time.reshape(-1).contiguous(),
        positions.freq.reshape(-1).contiguous(),
        products,
        torch.promote_types(products, freq_embedding.dtype),
    )
    return tokens.view(*positions.time.shape, weight.shape[0])


_dispatch = backend.register("patch_embed", reference=patch_embed_reference, fused={"cuda": _patch_embed_cuda})


def _patches(
    lengths: list[int],
    width: int,
    *,
    padded: bool = False,
    float32: bool = False,
    pixel_gradient: bool = False,
    times: int = 200,
) -> MakeInputs:
    """Patches at random places of clips with so many ``times``; pixels and frequency table in float32 where asked."""

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        packed, wide = Packed.from_lengths(lengths, device), torch.float32 if float32 else dtype
        values = draw_normal((packed.total, PATCH_PIXELS), generator, device, wide).detach()
        time, freq = (
            torch.randint(limit, (packed.total,), generator=generator).to(device) for limit in (times, FREQ_PATCHES)
        )
        patches = Patches(values, PatchPositions(time, freq, packed))
        if padded:
            places = PatchPositions(pad(time, packed), pad(freq, packed), padded_layout(packed))
            patches = Patches(pad(values, packed), places)
        patches.values.requires_grad_(pixel_gradient)
        return {
            "patches": patches,
            "weight": draw_normal((width, PATCH_PIXELS), generator, device, dtype),
            "bias": draw_normal((width,), generator, device, dtype),
            "freq_embedding": draw_normal((FREQ_PATCHES, width), generator, device, wide),
        }

    return make


def _token_bytes(inputs: Inputs) -> int:
    weight, freq_embedding = inputs["weight"], inputs["freq_embedding"]
    token_size = max(weight.element_size(), freq_embedding.element_size())
    return inputs["patches"].positions.time.numel() * weight.shape[0] * token_size


def _parameter_bytes(inputs: Inputs) -> int:
    return sum(inputs[name].nbytes for name in ("weight", "bias", "freq_embedding"))


def _forward_work(inputs: Inputs) -> Work:
    """Pixels, their places and the parameters are read, tokens are written."""
    patches = inputs["patches"]
    read = patches.values.nbytes + 2 * patches.positions.time.nbytes + _parameter_bytes(inputs)
    return Work(bytes=read + _token_bytes(inputs), flops=2 * patches.values.numel() * inputs["weight"].shape[0])


def _backward_work(inputs: Inputs) -> Work:
    """The tokens' gradient, pixels and frequencies are read, the parameters' gradients are written."""
    patches = inputs["patches"]
    read = patches.values.nbytes + patches.positions.freq.nbytes + _token_bytes(inputs)
    flops = 2 * patches.values.numel() * inputs["weight"].shape[0]
    return Work(bytes=read + _parameter_bytes(inputs), flops=flops)


SPEC = Spec(
    name="patch_embed",
    op=patch_embed,
    reference=patch_embed_reference,
    cases=(
        Case("packed, gradient of the pixels", _patches([70, 0, 5, 1], 96, pixel_gradient=True)),
        Case("padded", _patches([40, 0, 31], 96, padded=True)),
        Case("odd", _patches([3, 67], 130)),
        Case("two features", _patches([9], 2)),
        Case("one patch", _patches([1], 48)),
        Case("no patch", _patches([0, 0], 48)),
        Case("float32 stream", _patches([33], 64, float32=True)),
        Case("late in a clip", _patches([33], 96, times=2048)),
        Case("stage 1", _patches([150] * 512, 768), paper=True),
        Case("stage 1, float32 stream", _patches([150] * 512, 768, float32=True), paper=True),
        Case("stage 2", _patches([496] * 256, 768), paper=True),
    ),
    forward=_forward_work,
    backward=_backward_work,
    tensor_cores=True,
)

"""Mean squared error against patches normalised by their own mean and variance (masked autoencoder, norm-pix loss)."""

from torch import Tensor

from . import backend


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

    A patch's loss is the mean over its 256 pixels of (prediction - (target - mean) / sqrt(var + eps))². ``prediction``
    and ``target`` ``[..., 256]``; ``selected`` bool ``[...]``; ``denominator`` the number of selected patches of the
    whole batch, so that micro-batches add up. ``unbiased`` divides the variance by 255 instead of 256.
    """
    return _dispatch(prediction, target, selected, denominator, unbiased=unbiased, eps=eps)


def patch_mse_reference(
    prediction: Tensor, target: Tensor, selected: Tensor, denominator: Tensor | float, *, unbiased: bool, eps: float
) -> Tensor:
    """Compute :func:`patch_mse` in plain PyTorch, statistics and sum at least in float32."""
    prediction, target = _at_least_float32(prediction[selected]), _at_least_float32(target[selected])
    centred = target - target.mean(dim=-1, keepdim=True)
    variance = centred.square().sum(dim=-1, keepdim=True) / (target.shape[-1] - int(unbiased))
    normalised = centred / (variance + eps).sqrt()
    return (prediction - normalised).square().mean(dim=-1).sum() / denominator


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.element_size() < 4 else x


_dispatch = backend.register("patch_mse", reference=patch_mse_reference)

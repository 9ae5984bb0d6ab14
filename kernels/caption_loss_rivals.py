"""Other people's fused head and cross-entropy, called as :func:`~.caption_loss.caption_loss`.

They weigh all tokens alike, so the weights of those that count have to be equal, as in a mean over tokens.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def torch_chunked(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, token_weights: Tensor) -> Tensor:
    """Call PyTorch's own, from 2.13 on, with the chunks and accumulators it chooses."""
    targets, common = _of_equal_weights(targets, token_weights)
    options = torch.nn.LinearCrossEntropyOptions()
    return common * F.linear_cross_entropy(
        hidden, weight, targets, linear_bias=bias, reduction="sum", options=options
    ).to(common.dtype)


def liger(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, token_weights: Tensor) -> Tensor:
    """Call Liger's with float32 accumulators."""
    from liger_kernel.transformers import functional  # type: ignore[import-not-found]

    targets, common = _of_equal_weights(targets, token_weights)
    call: Any = functional.liger_fused_linear_cross_entropy
    return common * call(hidden, weight, targets, bias, reduction="sum", accum_dtype=torch.float32).to(common.dtype)


def apple_cce(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, token_weights: Tensor) -> Tensor:
    """Call Apple's; a bias is known to github.com/apple/ml-cross-entropy, not yet to 25.1.1 of PyPI."""
    import cut_cross_entropy  # type: ignore[import-not-found]

    targets, common = _of_equal_weights(targets, token_weights)
    call: Any = cut_cross_entropy.linear_cross_entropy
    return common * call(hidden, weight, targets, bias=bias, reduction="sum").to(common.dtype)


def _of_equal_weights(targets: Tensor, token_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return what sums of unweighted losses take: targets, -100 where left out, and the weight of all others."""
    return targets.masked_fill(token_weights == 0, -100), token_weights.max()

"""Parameter holders: they own weights and their initial values; the arithmetic is in the ops of ``kernels``."""

import math

import torch
from torch import Tensor, nn

from ..kernels.activation import Activation
from ..kernels.dropout import DropoutKey
from ..kernels.layer_norm import add_layer_norm, layer_norm
from ..kernels.layout import Layout
from ..kernels.linear import linear
from ..kernels.precision import autocast_dtype

# Standard deviation of a unit normal truncated at ±2: flax divides by it so that the truncated sample has std 1.
_TRUNCATED_STD = 0.87962566103423978


class Linear(nn.Module):
    """A linear layer ``[in] -> [out]`` whose kernel starts as flax's lecun_normal, or as N(0, std²) where given."""

    def __init__(self, in_features: int, out_features: int, std: float | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        self.std = std

    def reset(self, generator: torch.Generator) -> None:
        """Draw the initial weights; biases are 0."""
        if self.std is not None:
            self.weight.normal_(0.0, self.std, generator=generator)
        else:
            std = 1.0 / math.sqrt(self.weight.shape[1]) / _TRUNCATED_STD
            nn.init.trunc_normal_(self.weight, 0.0, std, -2 * std, 2 * std, generator=generator)
        self.bias.zero_()

    def forward(self, x: Tensor, activation: Activation | None = None) -> Tensor:
        """Apply :func:`~cacophony.kernels.linear.linear` to ``x`` ``[..., in]``."""
        return linear(x, self.weight, self.bias, activation)

    def flops(self, tokens: int) -> int:
        """FLOPs of one forward pass over so many tokens (a multiply-add counts as two)."""
        return 2 * tokens * self.weight.numel()


class LayerNorm(nn.Module):
    """Layer normalisation of ``width`` features; starts as the identity."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        self.eps = eps

    def reset(self, generator: torch.Generator) -> None:
        """Set scale 1 and shift 0."""
        self.weight.fill_(1.0)
        self.bias.zero_()

    def forward(self, x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Apply :func:`~cacophony.kernels.layer_norm.layer_norm` to ``x`` ``[..., width]``."""
        return layer_norm(x, self.weight, self.bias, self.eps, dtype=dtype)

    def add(
        self,
        x: Tensor,
        residual: Tensor,
        *,
        dropout_key: DropoutKey | None = None,
        layout: Layout | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Apply :func:`~cacophony.kernels.layer_norm.add_layer_norm`: the normed sum and the sum."""
        return add_layer_norm(
            x, residual, self.weight, self.bias, self.eps, dropout_key=dropout_key, layout=layout, dtype=dtype
        )


class Table(nn.Module):
    """A learned table of vectors (embeddings, pool queries, the restore token); starts as N(0, 0.02²)."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*shape))

    def reset(self, generator: torch.Generator) -> None:
        """Draw the initial values."""
        self.weight.normal_(0.0, 0.02, generator=generator)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the vectors of int64 ``rows`` ``[...]``: ``[..., width]``."""
        return nn.functional.embedding(rows, self.weight)


def linear_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which :class:`Linear` reads ``x``: autocast's where it is on.

    A norm that feeds linear layers alone writes it at once, and the numbers are those of a cast in between.
    """
    return autocast_dtype(x.device) or x.dtype


@torch.no_grad()
def init_weights(model: nn.Module, seed: int) -> None:
    """Give every parameter of ``model`` (on the host) its initial value, a function of ``seed`` and module order alone.

    Parameters are filled with NaN first, so that a forgotten one cannot pass for an initialised one.
    """
    for parameter in model.parameters():
        parameter.fill_(float("nan"))
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        reset = getattr(module, "reset", None)
        if reset is not None:
            reset(generator)

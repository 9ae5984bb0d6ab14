"""A stack of transformer blocks on noise, ready to be timed in one of several ways."""

import contextlib
import copy
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..engine.config import Precision
from ..kernels.attention_providers.choice import use_provider
from ..kernels.attention_sdpa import attention_sdpa
from ..kernels.backend import use_backend, use_rival
from ..kernels.layout import Layout, LayoutName, Packed, pad, padded_layout, unpad
from ..models.block import PostNormBlock, PreNormBlock
from ..models.by_hand import Stash
from ..models.config import MAX_TEXT_TOKENS, AudioTextConfig
from ..models.layers import init_weights
from ..models.stash import run_stack
from .packing import CAPTION_TOKENS

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

BlockProvider = Literal["stash10", "stash3", "xformers", "padded", "sdpa", "compile", "reference"]


@dataclass(frozen=True)
class Way:
    """One way to compute a stack: by hand where it has a ``stash``, else by autograd."""

    layout: LayoutName
    stash: Stash | None
    attention: str | None = None
    """Provider of attention that must serve; None leaves the choice to the backend."""
    compiled: bool = False


WAYS: dict[BlockProvider, Way] = {
    "stash10": Way("packed", 10),
    "stash3": Way("packed", 3),
    "xformers": Way("packed", 10, attention="xformers"),
    "padded": Way("padded", 10),
    "sdpa": Way("padded", None, attention="sdpa"),
    "compile": Way("padded", None, attention="sdpa", compiled=True),
    "reference": Way("packed", None),
}
"""By hand keeping everything and keeping little, with the fused ops where the device has them; the first with xFormers'
attention and on padded tokens; plain PyTorch on padded tokens with its own attention, and that compiled; and the
specification, which writes attention weights: the others are held against it, and it is timed where it is named."""

TIMED: tuple[BlockProvider, ...] = ("stash10", "stash3", "xformers", "padded", "sdpa", "compile")

SEQUENCES = ("S = 150", "S = 512", "S = 750", "captions")
"""What there is to attend within: visible patches of stage 1, clips of stage 2, stage 1's decoder; ragged captions."""


@dataclass(frozen=True)
class Stack:
    """Blocks with their weights, and the sequences they run on; ``slots`` of each in the padded layout."""

    blocks: Sequence[nn.Module]
    lengths: Sequence[int]
    slots: int

    @classmethod
    def of(cls, sequences: str, layers: int, tokens: int, config: AudioTextConfig, device: torch.device) -> "Stack":
        """Return ``layers`` blocks of a tower of ``config`` for about ``tokens`` tokens, at least one sequence."""
        if sequences == "captions":
            rng = np.random.default_rng(0)
            mean = sum(CAPTION_TOKENS) / 2
            lengths = rng.integers(CAPTION_TOKENS[0], CAPTION_TOKENS[1] + 1, max(round(tokens / mean), 1)).tolist()
            slots, blocks = MAX_TEXT_TOKENS, [PostNormBlock(config.text) for _ in range(layers)]
        else:
            slots = int(sequences.removeprefix("S = "))
            lengths = [slots] * max(round(tokens / slots), 1)
            blocks = [PreNormBlock(config.audio) for _ in range(layers)]
        modules = nn.ModuleList(blocks)
        init_weights(modules, 0)
        return cls(list(modules.to(device)), lengths, slots)

    def few(self, tokens: int) -> "Stack":
        """Return the same blocks for the first sequences, of ``tokens`` tokens in all or at least one sequence."""
        several = int((np.cumsum(self.lengths) <= tokens).sum())
        return replace(self, lengths=self.lengths[: max(several, 1)])

    def flops(self) -> int:
        """FLOPs of a forward pass on valid tokens."""
        lengths = torch.tensor(self.lengths)
        return sum(block.flops(lengths) for block in self.blocks)  # type: ignore[operator]


class Ready:
    """A stack in one way, to be run forward and backward; ``exact`` in float64, on inputs as ``precision`` has them.

    By hand the residual stream is in the precision's dtype and so are the products; for autograd that is autocast's
    doing, as in training. Parameters and their gradients are float32.
    """

    def __init__(
        self, stack: Stack, way: Way, precision: Precision, device: torch.device, *, exact: bool = False
    ) -> None:
        self.way = way
        blocks = [copy.deepcopy(block).double() for block in stack.blocks] if exact else list(stack.blocks)
        self.parameters = dict(nn.ModuleList(blocks).named_parameters())
        packed = Packed.from_lengths(stack.lengths, device)
        self._as_padded = replace(packed, max_len=stack.slots)
        self._all_valid = packed.total == len(stack.lengths) * stack.slots
        self._autocast = precision == "bf16" and way.stash is None and not exact
        shape = packed.total, next(iter(self.parameters.values())).shape[-1]
        generator = torch.Generator().manual_seed(0)
        x, d_y = (torch.randn(shape, generator=generator).to(device, DTYPES[precision]) for _ in range(2))
        if exact:
            x, d_y = x.double(), d_y.double()
        layout: Layout = packed
        if way.layout == "padded":
            layout, x, d_y = padded_layout(self._as_padded), pad(x, self._as_padded), pad(d_y, self._as_padded)
        self.x, self._d_y = x.requires_grad_(), d_y

        def run(x: Tensor) -> Tensor:
            return run_stack(blocks, x, layout, way.stash)

        self._run = torch.compile(run, dynamic=False) if way.compiled else run

    def prepare(self) -> None:
        """Leave gradients as a step has them: by hand buffers to add to, none where autograd then need not add."""
        self.x.grad = None
        for parameter in self.parameters.values():
            parameter.grad = None if self.way.stash is None else torch.zeros_like(parameter)

    def forward(self) -> Tensor:
        """Return the tokens after the last block."""
        with self._ops(), torch.autocast(self.x.device.type, torch.bfloat16, enabled=self._autocast):
            return self._run(self.x)

    def backward(self, y: Tensor) -> None:
        """Leave the gradients of the tokens and the parameters."""
        with self._ops():
            y.backward(self._d_y)

    def results(self) -> dict[str, Tensor]:
        """Run both and return by name the valid tokens and all gradients."""
        self.prepare()
        y = self.forward()
        self.backward(y)
        tokens = {"output": y.detach(), "d x": self.x.grad}
        gradients = {f"d {name}": parameter.grad for name, parameter in self.parameters.items()}
        if self.way.layout == "padded":
            tokens = {name: unpad(found, self._as_padded) for name, found in tokens.items() if found is not None}
        self.prepare()
        return {name: found for name, found in {**tokens, **gradients}.items() if found is not None}

    @contextlib.contextmanager
    def _ops(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(use_backend("auto" if self.way.stash else "reference"))
            if self.way.attention == "sdpa":
                rival = functools.partial(attention_sdpa, all_valid=self._all_valid)
                stack.enter_context(use_rival("attention", rival))
            elif self.way.attention is not None:
                stack.enter_context(use_backend("fused", ["attention"]))
                stack.enter_context(use_provider(self.way.attention))
            yield

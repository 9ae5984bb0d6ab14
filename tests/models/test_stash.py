"""Blocks by hand against autograd on the same blocks, at every stash level; and what each level keeps."""

import contextlib
from collections.abc import Iterator
from typing import Literal, get_args

import pytest
import torch
from cacophony.kernels.backend import use_backend
from cacophony.kernels.dropout import DropoutKey
from cacophony.kernels.layout import Layout, Packed, padded_layout
from cacophony.kernels.linear_choice import LinearProvider, use_linear_provider
from cacophony.kernels.triton_runtime import HAS_TRITON
from cacophony.models.block import PostNormBlock, PreNormBlock
from cacophony.models.by_hand import Stash
from cacophony.models.config import TransformerConfig
from cacophony.models.layers import init_weights
from cacophony.models.stash import run_stack
from torch import Tensor, nn

CONFIG = TransformerConfig(width=16, layers=2, heads=2, mlp_width=40)
CONTEXT_WIDTH = 24
LENGTHS, CONTEXT_LENGTHS = [5, 0, 7, 2], [9, 3, 4, 6]
LEVELS = [level for level in get_args(Stash) if level > 0]
Kind = Literal["pre-norm", "post-norm", "cross"]
KINDS: list[Kind] = ["pre-norm", "post-norm", "cross"]


PROVIDERS: tuple[LinearProvider, ...] = get_args(LinearProvider)
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


@contextlib.contextmanager
def steps_by(provider: str) -> Iterator[None]:
    """Run the steps of a block fused, ``provider`` multiplying, or as the reference."""
    if provider == "reference":
        yield
        return
    fused = use_backend("fused", ops=["linear", "activation", "layer_norm", "add_layer_norm"])
    with fused, use_linear_provider(provider):
        yield


def blocks(kind: Kind, dtype: torch.dtype = torch.float64) -> nn.ModuleList:
    """Two blocks, every parameter of which matters."""
    made: list[nn.Module] = [PreNormBlock(CONFIG) for _ in range(2)]
    if kind != "pre-norm":
        made = [PostNormBlock(CONFIG, CONTEXT_WIDTH if kind == "cross" else None) for _ in range(2)]
    stack = nn.ModuleList(made)
    init_weights(stack, 1)
    for parameter in stack.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return stack.to(dtype)


def tokens(lengths: list[int], width: int, padded: bool, dtype: torch.dtype) -> tuple[Tensor, Layout]:
    packed = Packed.from_lengths(lengths)
    if not padded:
        return torch.randn((packed.total, width), dtype=dtype, requires_grad=True), packed
    shape = (len(lengths), packed.padded_width, width)
    return torch.randn(shape, dtype=dtype, requires_grad=True), padded_layout(packed)


def gradients(kind: Kind, stash: Stash | None, padded: bool, rate: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output and gradients of a run from seed 0: the same blocks, tokens, masks and cotangent every time."""
    torch.manual_seed(0)
    stack = blocks(kind, dtype)
    x, layout = tokens(LENGTHS, CONFIG.width, padded, dtype)
    context, context_layout = tokens(CONTEXT_LENGTHS, CONTEXT_WIDTH, padded, dtype)
    key = None if kind == "pre-norm" else DropoutKey(rate, 3, 4, torch.arange(4))
    y = run_stack(
        list(stack),
        x,
        layout,
        stash,
        dropout_key=key,
        context=context if kind == "cross" else None,
        context_layout=context_layout if kind == "cross" else None,
    )
    valid = layout.valid[..., None]
    (y * torch.randn_like(y) * valid).sum().backward()
    found = {name: p.grad for name, p in stack.named_parameters()} | {"x": x.grad, "context": context.grad}
    return {"y": (y * valid).detach()} | {name: g for name, g in found.items() if g is not None}


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stash", LEVELS)
def test_equals_autograd(kind: Kind, stash: Stash, rate: float, padded: bool):
    """Budget: float64's rounding, 1e-12 of each tensor's largest entry."""
    expected = gradients(kind, None, padded, rate, torch.float64)
    found = gradients(kind, stash, padded, rate, torch.float64)
    assert found.keys() == expected.keys()
    assert ("context" in found) == (kind == "cross")
    for name, tensor in expected.items():
        budget = 1e-12 * max(float(tensor.abs().max()), 1e-3)  # a key's bias has no gradient but rounding
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=budget, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("kind", "provider"),
    [*((kind, "reference") for kind in KINDS), pytest.param("pre-norm", "triton", marks=needs_triton)],
)
def test_every_level_gives_the_same_bits(kind: Kind, provider: str):
    """What is computed again is computed as the first time."""
    with steps_by(provider):
        one, *others = (gradients(kind, stash, False, 0.3, torch.float32) for stash in LEVELS)
    for other in others:
        assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


@needs_triton
@pytest.mark.parametrize(
    ("kind", "provider", "padded"),
    [*((kind, provider, False) for kind in KINDS for provider in PROVIDERS), ("post-norm", "triton", True)],
)
def test_fused_steps_equal_the_reference(kind: Kind, provider: str, padded: bool):
    """In float32; budget: 1e-5 of each tensor's largest entry."""
    expected = gradients(kind, 1, padded, 0.3, torch.float32)
    with steps_by(provider):
        found = gradients(kind, 1, padded, 0.3, torch.float32)
    for name, tensor in expected.items():
        budget = 1e-5 * max(float(tensor.abs().max()), 1e-1)  # a key's bias has no gradient but rounding
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=budget, msg=lambda m, n=name: f"{n}: {m}")


class Keeper:
    """Bytes of the tensors a stack's forward kept, each storage once; parameters and ``x`` are not kept for it."""

    def __init__(self, stack: nn.ModuleList, x: Tensor) -> None:
        self.known = {p.untyped_storage().data_ptr() for p in stack.parameters()} | {x.untyped_storage().data_ptr()}

    def count(self, kept: object) -> int:
        return sum(size for pointer, size in self._storages(kept) if pointer not in self.known)

    def _storages(self, tree: object) -> set[tuple[int, int]]:
        if isinstance(tree, Tensor):
            storage = tree.untyped_storage()
            return {(storage.data_ptr(), storage.nbytes())}
        children = tree if isinstance(tree, list | tuple) else vars(tree).values() if hasattr(tree, "__dict__") else ()
        return {pair for child in children for pair in self._storages(child)}


@pytest.mark.parametrize("stash", LEVELS)
def test_a_level_keeps_its_number_of_widths_per_token_and_layer(stash: Stash):
    """Within 5 %, feed-forward four times the width; the first block's input is the caller's."""
    config = TransformerConfig(width=32, layers=6, heads=2, mlp_width=128)
    stack = nn.ModuleList(PreNormBlock(config) for _ in range(config.layers))
    init_weights(stack, 0)
    x, layout = tokens([40, 60], config.width, False, torch.float32)
    y = run_stack(list(stack), x, layout, stash)
    assert y.grad_fn is not None
    kept = getattr(y.grad_fn, "kept")  # noqa: B009  (pyright knows no attributes of graph nodes)
    widths = Keeper(stack, x).count(kept) / (100 * config.width * x.element_size())
    assert widths == pytest.approx(stash * config.layers - 1, rel=0.05)


def test_nothing_is_kept_where_no_gradient_is_asked_for():
    stack = blocks("pre-norm")
    x, layout = tokens(LENGTHS, CONFIG.width, False, torch.float64)
    with torch.no_grad():
        y = run_stack(list(stack), x, layout, 10)
    assert y.grad_fn is None
    torch.testing.assert_close(y, run_stack(list(stack), x, layout, None).detach(), rtol=0, atol=1e-12)


def test_parameters_get_their_gradient_where_the_tokens_ask_for_none():
    stack = blocks("pre-norm")
    x, layout = tokens(LENGTHS, CONFIG.width, False, torch.float64)
    run_stack(list(stack), x.detach(), layout, 1).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for n, p in stack.named_parameters() if "bias" not in n)


def test_gradients_add_up_over_calls():
    torch.manual_seed(0)
    stack = blocks("post-norm")
    x, layout = tokens(LENGTHS, CONFIG.width, False, torch.float64)
    for _ in range(2):
        run_stack(list(stack), x, layout, 3).square().sum().backward()
    twice = {name: p.grad.clone() for name, p in stack.named_parameters() if p.grad is not None}
    stack.zero_grad()
    run_stack(list(stack), x, layout, 3).square().sum().backward()
    for name, parameter in stack.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(twice[name], 2 * parameter.grad)


def test_level_0_is_the_callers():
    stack = blocks("pre-norm")
    x, layout = tokens(LENGTHS, CONFIG.width, False, torch.float64)
    with pytest.raises(ValueError, match="stash is 0, expected 1, 2, 3, 6 or 10"):
        run_stack(list(stack), x, layout, 0)

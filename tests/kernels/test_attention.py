"""Attention against Python loops; layouts, causality, cached prefixes, dropout, masked rows; its explicit pair."""

import math
from typing import Any

import pytest
import torch
from cacophony.kernels.attention import attention, attention_bwd, attention_fwd
from cacophony.kernels.backend import Backend, use_backend
from cacophony.kernels.dropout import DropoutKey, attention_dropout
from cacophony.kernels.layout import Layout, Packed, Padded, pack, pad, padded_layout
from cacophony.kernels.triton_runtime import INTERPRETING
from torch import Tensor

needs_interpreter = pytest.mark.skipif(not INTERPRETING, reason="runs the fused path on a CPU")

HEADS, DIM = 2, 3
QUERIES, KEYS = [3, 1, 4], [5, 2, 1]


def tokens(*leading: int) -> Tensor:
    return torch.randn(*leading, HEADS, DIM, dtype=torch.float64)


def full(batch: int, length: int) -> Padded:
    return Padded(torch.ones(batch, length, dtype=torch.bool))


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def three(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = x.unbind(dim)
    return query, key, value


def slow(query: Tensor, key: Tensor, value: Tensor, valid: Tensor, causal: bool = False) -> Tensor:
    """``[B, L, H, d]`` by definition; ``valid`` ``[B, Lk]``, at least one key for every query."""
    out = torch.zeros_like(query)
    for b in range(query.shape[0]):
        for i in range(query.shape[1]):
            last = key.shape[1] - query.shape[1] + i if causal else key.shape[1] - 1
            seen = [j for j in range(key.shape[1]) if valid[b, j] and j <= last]
            for h in range(query.shape[2]):
                scores = [math.exp(float(query[b, i, h] @ key[b, j, h]) / math.sqrt(query.shape[3])) for j in seen]
                for score, j in zip(scores, seen, strict=True):
                    out[b, i, h] += score / sum(scores) * value[b, j, h]
    return out


@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_equals_loops(causal: bool) -> None:
    layout = Padded(torch.tensor([[True] * 5, [True, True, True, False, False], [True] + [False] * 4]))
    query, key, value = tokens(3, 5), tokens(3, 5), tokens(3, 5)
    out = attention(query, key, value, layout, layout, causal=causal)
    expected = slow(query, key, value, layout.mask, causal)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_cross_attention_equals_loops_wherever_the_keys_lie() -> None:
    valid = torch.tensor([[False, True, False, True], [True] * 4])
    query, key, value = tokens(2, 6), tokens(2, 4), tokens(2, 4)
    out = attention(query, key, value, full(2, 6), Padded(valid))
    torch.testing.assert_close(out, slow(query, key, value, valid), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("new", [1, 2, 5])
def test_causal_aligns_the_last_query_with_the_last_key(new: int) -> None:
    query, key, value = tokens(2, 5), tokens(2, 5), tokens(2, 5)
    whole = attention(query, key, value, full(2, 5), full(2, 5), causal=True)
    step = attention(query[:, -new:], key, value, full(2, new), full(2, 5), causal=True)
    torch.testing.assert_close(step, whole[:, -new:], rtol=1e-12, atol=1e-12)


def ragged(lengths: list[int]) -> tuple[Packed, Tensor]:
    packed = Packed.from_lengths(lengths)
    return packed, tokens(packed.total).requires_grad_()


@pytest.mark.parametrize("kind", ["self", "causal", "cross", "dropout"])
def test_padded_equals_packed_forward_and_backward(kind: str) -> None:
    lengths = [3, 0, 1, 6] if kind != "cross" else QUERIES
    queries, query = ragged(lengths)
    keys, key = ragged(KEYS if kind == "cross" else lengths)
    value = torch.randn_like(key).requires_grad_()
    dropout = DropoutKey(0.5, 1, 2, torch.arange(len(lengths))) if kind == "dropout" else None
    causal = kind in ("causal", "dropout")

    one = attention(query, key, value, queries, keys, causal=causal, dropout=dropout)
    padded_queries, padded_keys = padded_layout(queries), padded_layout(keys)
    arguments = (pad(query, queries), pad(key, keys), pad(value, keys))
    padded = attention(*arguments, padded_queries, padded_keys, causal=causal, dropout=dropout)
    other = pack(padded, padded_queries)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(one)
    for a, b in zip(
        torch.autograd.grad(one, (query, key, value), cotangent),
        torch.autograd.grad(other, (query, key, value), cotangent),
        strict=True,
    ):
        assert bool(a.any())
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_padding_is_neither_seen_nor_trained() -> None:
    layout = Padded(torch.tensor([[True, True, False]]))
    query, key, value = tokens(1, 3), tokens(1, 3), tokens(1, 3)
    slot = torch.tensor([False, False, True])[None, :, None, None]
    loud_key, loud_value = (x.masked_fill(slot, 1e6).requires_grad_() for x in (key, value))
    out = attention(query, loud_key, loud_value, layout, layout)
    torch.testing.assert_close(out, attention(query, key, value, layout, layout), rtol=1e-12, atol=1e-12)
    for gradient in torch.autograd.grad(out.sum(), (loud_key, loud_value)):
        assert not bool(gradient[:, 2].any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_sequence_without_keys_gets_the_mean_of_its_slots(dtype: torch.dtype) -> None:
    layout = Padded(torch.tensor([[True, True], [False, False]]))
    query, key, value = (tokens(2, 2).to(dtype).requires_grad_() for _ in range(3))
    out = attention(query, key, value, layout, layout)
    expected = value[1].mean(dim=0, keepdim=True).expand(2, -1, -1)
    torch.testing.assert_close(out[1], expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    for gradient in torch.autograd.grad(out.sum(), (query, key, value)):
        assert bool(gradient.isfinite().all())


def test_gradients() -> None:
    layout = Padded(torch.tensor([[True, True, False], [True, True, True]]))
    arguments = [tokens(2, 3).requires_grad_() for _ in range(3)]
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, layout, layout, causal=True), arguments)


@pytest.mark.parametrize("scale", [1e4, 1e15])
def test_extreme_scores_are_finite(scale: float) -> None:
    query, key, value = ((tokens(1, 4).float() * scale).requires_grad_() for _ in range(3))
    out = attention(query, key, value, full(1, 4), full(1, 4), causal=True)
    assert bool(out.isfinite().all())
    for gradient in torch.autograd.grad(out.sum(), (query, key, value)):
        assert bool(gradient.isfinite().all())


def test_dropout_applies_to_the_weights_after_softmax() -> None:
    """Values that are unit vectors make the output the attention weights themselves."""
    length = 6
    query, key = (torch.randn(2, length, HEADS, length, dtype=torch.float64) for _ in range(2))
    value = torch.eye(length, dtype=torch.float64)[None, :, None].expand(2, length, HEADS, length)
    dropout = DropoutKey(0.4, 0, 0, torch.arange(2))
    layout = full(2, length)
    weights = attention(query, key, value, layout, layout)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, length, HEADS, dtype=torch.float64))
    dropped = attention(query, key, value, layout, layout, dropout=dropout)
    expected = attention_dropout(weights.transpose(1, 2), dropout).transpose(1, 2)
    torch.testing.assert_close(dropped, expected, rtol=1e-12, atol=1e-12)
    assert 0 < int((dropped == 0).sum()) < dropped.numel()


def test_layouts_do_not_mix() -> None:
    packed: Layout = Packed.from_lengths([2])
    with pytest.raises(ValueError, match="both be Padded or both Packed"):
        attention(tokens(1, 2), tokens(2), tokens(2), full(1, 2), packed)


@pytest.mark.parametrize("kind", ["self", "causal", "cross", "dropout", "cross, dropout"])
@pytest.mark.parametrize("form", ["packed", "padded"])
def test_the_explicit_pair_is_what_autograd_gives(kind: str, form: str) -> None:
    lengths = QUERIES if "cross" in kind else [3, 0, 1, 6]
    queries, query = ragged(lengths)
    keys, key = ragged(KEYS if "cross" in kind else lengths)
    value = torch.randn_like(key)
    layouts: tuple[Layout, Layout] = queries, keys
    if form == "padded":
        query, key, value = (pad(x.detach(), at) for x, at in ((query, queries), (key, keys), (value, keys)))
        layouts = padded_layout(queries), padded_layout(keys)
    inputs = leaf(query), leaf(key), leaf(value)
    options: dict[str, Any] = {
        "causal": kind in ("causal", "dropout"),
        "dropout": DropoutKey(0.5, 1, 2, torch.arange(len(lengths))) if "dropout" in kind else None,
    }
    expected = attention(*inputs, *layouts, **options)
    cotangent = torch.randn_like(expected)
    out, saved = attention_fwd(*inputs, *layouts, **options)
    found = attention_bwd(cotangent, *inputs, out, saved, *layouts, **options)
    assert torch.equal(out, expected)
    assert not out.requires_grad
    for gradient, exact in zip(found, torch.autograd.grad(expected, inputs, cotangent), strict=True):
        assert not gradient.requires_grad
        torch.testing.assert_close(gradient, exact, rtol=1e-12, atol=1e-12)


def test_a_padded_sequence_without_keys_has_the_gradient_of_the_mean() -> None:
    layout = Padded(torch.tensor([[True, True], [False, False]]))
    inputs = leaf(tokens(2, 2)), leaf(tokens(2, 2)), leaf(tokens(2, 2))
    expected = attention(*inputs, layout, layout)
    out, saved = attention_fwd(*inputs, layout, layout)
    found = attention_bwd(torch.ones_like(out), *inputs, out, saved, layout, layout)
    for gradient, exact in zip(found, torch.autograd.grad(expected.sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-12, atol=1e-12)


@needs_interpreter
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_the_explicit_pair_fused(rate: float) -> None:
    """Against the reference; one projection's gradient in one tensor, and inputs that are its parts."""
    layout = Packed.from_lengths([3, 0, 20])
    qkv = torch.randn(layout.total, 3, HEADS, 24)
    inputs = three(qkv, 1)
    options: dict[str, Any] = {"causal": True, "dropout": DropoutKey(rate, 1, 2, torch.arange(3))}
    expected, of_expected = attention_fwd(*inputs, layout, layout, **options)
    cotangent = torch.randn_like(expected)
    exact = attention_bwd(cotangent, *inputs, expected, of_expected, layout, layout, **options)
    d_qkv = torch.full_like(qkv, torch.nan)
    with use_backend("fused"):
        out, saved = attention_fwd(*inputs, layout, layout, **options)
        gradients = three(d_qkv, 1)
        attention_bwd(cotangent, *inputs, out, saved, layout, layout, gradients=gradients, **options)
    assert saved.provider == "triton"
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(d_qkv, torch.stack(exact, dim=1), rtol=1e-5, atol=1e-5)


def sum_of_value_gradients(backend: Backend, dtype: torch.dtype, seed: int) -> Tensor:
    """Gradient of the values summed over all tokens ``[H, d]``."""
    layout = Packed.from_lengths([100, 60])
    generator = torch.Generator().manual_seed(seed)
    d_out, *inputs = (torch.randn(layout.total, 2, 24, generator=generator) for _ in range(4))
    query, key, value = (leaf((x + 0.5).to(dtype)) for x in inputs)
    with use_backend(backend):
        out = attention(query, key, value, layout, layout)
    (d_value,) = torch.autograd.grad(out, value, d_out.to(dtype))
    return d_value.double().sum(0)


def query_gradients(backend: Backend, dtype: torch.dtype, seed: int, dropout_rate: float) -> Tensor:
    """Gradients of the queries ``[T, H, d]``, of keys that have much in common, as those of a trained model."""
    layout = Packed.from_lengths([100, 60])
    generator = torch.Generator().manual_seed(seed)
    d_out, *inputs, common = (torch.randn(layout.total, 2, 24, generator=generator).double() for _ in range(5))
    query, key, value = (
        leaf((x + part).to(dtype)) for x, part in zip(inputs, (0.0, 10 * common[:1], 1.0), strict=True)
    )
    dropout = DropoutKey(dropout_rate, 1, 2, torch.arange(2)) if dropout_rate else None
    with use_backend(backend):
        out = attention(query, key, value, layout, layout, dropout=dropout)
    return torch.autograd.grad(out, query, d_out.to(dtype))[0].double()


@needs_interpreter
@pytest.mark.parametrize("dropout_rate", [0.0, 0.2])
def test_what_keys_have_in_common_is_not_in_the_gradient_of_queries(dropout_rate: float) -> None:
    """All keys moved by the same leave the softmax as it is; what rounding leaves of that is as little as PyTorch's."""
    squares = {"reference": 0.0, "fused": 0.0}
    for seed in range(3):
        truth = query_gradients("reference", torch.float64, seed, dropout_rate)
        for backend in ("reference", "fused"):
            found = query_gradients(backend, torch.float32, seed, dropout_rate)
            squares[backend] += float((found - truth).square().sum())
    assert squares["fused"] <= 1.5**2 * squares["reference"]


@needs_interpreter
def test_what_the_bias_of_values_gets_is_as_accurate_as_plain_pytorch() -> None:
    """In a sum over tokens an error that all weights of a query share does not average out."""
    squares = {"reference": 0.0, "fused": 0.0}
    for seed in range(4):
        truth = sum_of_value_gradients("reference", torch.float64, seed)
        for backend in ("reference", "fused"):
            found = sum_of_value_gradients(backend, torch.float32, seed)
            squares[backend] += float((found - truth).square().sum())
    assert squares["fused"] <= 1.25**2 * squares["reference"]


@needs_interpreter
def test_a_micro_batch_drops_what_the_batch_drops() -> None:
    """The mask is replayed, whoever else is in the batch: what gradient accumulation and recomputation need."""
    lengths = [17, 5, 9]
    layout, (query, key, value) = Packed.from_lengths(lengths), three(torch.randn(3, sum(lengths), HEADS, 16), 0)
    with use_backend("fused"):
        whole = attention(
            query, key, value, layout, layout, causal=True, dropout=DropoutKey(0.5, 1, 2, torch.arange(3))
        )
        one = Packed.from_lengths(lengths[2:])
        parts = query[-9:], key[-9:], value[-9:]
        alone = attention(*parts, one, one, causal=True, dropout=DropoutKey(0.5, 1, 2, torch.tensor([2])))
    torch.testing.assert_close(alone, whole[-9:], rtol=1e-6, atol=1e-6)


@needs_interpreter
def test_max_len_may_exceed_the_longest() -> None:
    """``max_len`` is a bound, as in micro-batches of static size."""
    lengths = [5, 2]
    layout = Packed.from_lengths(lengths)
    wide = Packed(layout.cu_seqlens, max_len=70, total=layout.total)
    query, key, value = torch.randn(3, layout.total, HEADS, 16).unbind()
    with use_backend("fused"):
        found = attention(query, key, value, wide, wide)
        torch.testing.assert_close(found, attention(query, key, value, layout, layout), rtol=1e-6, atol=1e-6)


@needs_interpreter
@pytest.mark.parametrize(
    ("head_dim", "dtype", "expected"),
    [(136, torch.float32, "query with head dim 136"), (16, torch.float64, "query with head dim 16, float64")],
)
def test_what_no_provider_takes_is_said_under_fused(head_dim: int, dtype: torch.dtype, expected: str) -> None:
    layout = Packed.from_lengths([2, 3])
    query = torch.randn(5, 1, head_dim, dtype=dtype)
    with use_backend("fused"), pytest.raises(ValueError, match=expected) as error:
        attention(query, query, query, layout, layout)
    assert "triton: it takes" in str(error.value)


def test_wrong_arguments_are_named() -> None:
    layout, query = Packed.from_lengths([2, 3]), torch.randn(5, 2, 16)
    cases: dict[str, tuple[Tensor, Tensor, Tensor, Layout, Layout]] = {
        r"key has shape \[4, 2, 16\], expected \[5, 2, 16\]": (query, query[:4], query, layout, layout),
        r"value has shape \[5, 1, 16\], expected \[5, 2, 16\]": (query, query, query[:, :1], layout, layout),
        r"query has shape \[4, 2, 16\], expected \[5, 2, 16\]": (query[:4], query, query, layout, layout),
        r"key_layout has 1 sequences, expected 2": (query, query, query, layout, Packed.from_lengths([5])),
        r"value is on meta": (query, query, query.to("meta"), layout, layout),
    }
    for message, arguments in cases.items():
        with pytest.raises(ValueError, match=f"attention: {message}"):
            attention(*arguments)
    with pytest.raises(ValueError, match="the same layout for both sides"):
        attention(query, query[:4], query[:4], layout, Packed.from_lengths([2, 2]), causal=True)


def test_more_elements_than_offsets_of_32_bits_count_are_refused() -> None:
    total = 2**20
    layout = Packed(torch.tensor([0, total], dtype=torch.int32), total, total)
    query = torch.empty(total, 16, 128, device="meta")
    with use_backend("fused"), pytest.raises(ValueError, match=r"query has 2147483648 elements, expected fewer than 2"):
        attention(query, query, query, layout, layout)

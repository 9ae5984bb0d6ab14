"""The captioning loss against a written-out log-softmax: token weights, micro-batches, both paths, chunks, memory."""

import math
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from cacophony.kernels import caption_loss_triton
from cacophony.kernels.backend import use_backend
from cacophony.kernels.caption_loss import SPEC, caption_loss, caption_loss_and_gradients
from cacophony.kernels.triton_runtime import HAS_TRITON, record_launches
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WIDTH, VOCABULARY = 4, 11


def case(*shape: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head weight, head bias, targets, token weights (some 0)."""
    hidden = torch.randn(*shape, WIDTH, dtype=torch.float64)
    weight, bias = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64), torch.randn(VOCABULARY, dtype=torch.float64)
    token_weights = torch.rand(shape, dtype=torch.float64) * (torch.rand(shape) < 0.7)
    return hidden, weight, bias, torch.randint(0, VOCABULARY, shape), token_weights


def slow(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, token_weights: Tensor) -> float:
    total = 0.0
    for h, target, w in zip(hidden.view(-1, WIDTH), targets.flatten(), token_weights.flatten(), strict=True):
        logits = [float(weight[v] @ h) + float(bias[v]) for v in range(VOCABULARY)]
        total -= float(w) * (logits[int(target)] - math.log(math.fsum(map(math.exp, logits))))
    return total


@pytest.mark.parametrize("shape", [(1,), (9,), (3, 5)])
def test_equals_the_written_out_loss(shape: tuple[int, ...]) -> None:
    arguments = case(*shape)
    loss = caption_loss(*arguments)
    assert loss.dim() == 0
    assert float(loss) == pytest.approx(slow(*arguments), rel=1e-12, abs=1e-14)


def test_padded_equals_packed_forward_and_backward() -> None:
    hidden, weight, bias, targets, token_weights = case(3, 5)
    valid = token_weights != 0
    inputs = [x.requires_grad_() for x in (hidden, weight, bias)]
    one = caption_loss(hidden, weight, bias, targets, token_weights)
    other = caption_loss(hidden[valid], weight, bias, targets[valid], token_weights[valid])
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, inputs) for loss in (one, other)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_micro_batches_add_up_to_the_mean_over_captions() -> None:
    lengths = [5, 2, 3]
    hidden, weight, bias, targets, _ = case(sum(lengths))
    token_weights = torch.cat([torch.full((n,), 1 / (len(lengths) * n), dtype=torch.float64) for n in lengths])
    weight.requires_grad_()

    def loss(rows: slice) -> Tensor:
        return caption_loss(hidden[rows], weight, bias, targets[rows], token_weights[rows])

    whole, parts = loss(slice(None)), loss(slice(0, 4)) + loss(slice(4, 10))
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    (one,), (other,) = (torch.autograd.grad(total, weight) for total in (whole, parts))
    torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-14)

    nll = [-float((h @ weight.T + bias).log_softmax(0)[t].detach()) for h, t in zip(hidden, targets, strict=True)]
    means = [sum(nll[:5]) / 5, sum(nll[5:7]) / 2, sum(nll[7:]) / 3]
    assert float(whole.detach()) == pytest.approx(sum(means) / 3, rel=1e-12)


def test_tokens_of_weight_0_are_left_out() -> None:
    hidden, weight, bias, targets, token_weights = case(8)
    expected = caption_loss(hidden, weight, bias, targets, token_weights)
    left_out = token_weights == 0
    assert 0 < int(left_out.sum()) < 8
    poisoned = hidden.masked_fill(left_out[:, None], torch.nan).requires_grad_()
    loss = caption_loss(poisoned, weight, bias, targets.masked_fill(left_out, -1), token_weights)
    assert torch.equal(loss, expected)
    loss.backward()
    assert poisoned.grad is not None
    assert torch.equal(poisoned.grad.ne(0).any(dim=1), ~left_out)


def test_no_counted_token_has_no_loss_and_no_gradient() -> None:
    hidden, weight, bias, targets, _ = case(3)
    inputs = [x.requires_grad_() for x in (hidden, weight, bias)]
    loss = caption_loss(hidden, weight, bias, targets, torch.zeros(3))
    assert float(loss.detach()) == 0.0
    for gradient in torch.autograd.grad(loss, inputs):
        assert not bool(gradient.any())


def test_gradients() -> None:
    hidden, weight, bias, targets, token_weights = case(4)
    inputs = [x.requires_grad_() for x in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(lambda h, w, b: caption_loss(h, w, b, targets, token_weights), inputs)


def test_extreme_logits_are_finite() -> None:
    hidden, weight, bias, targets, _ = case(6)
    hidden = (hidden.float() * 1e5).requires_grad_()
    loss = caption_loss(hidden, weight.float(), bias.float(), targets, torch.ones(6))
    loss.backward()
    assert hidden.grad is not None
    assert bool(loss.isfinite())
    assert bool(hidden.grad.isfinite().all())


def test_the_loss_of_bfloat16_logits_is_float32() -> None:
    hidden, weight, bias, targets, token_weights = case(64)
    low = [x.bfloat16() for x in (hidden, weight, bias)]
    loss = caption_loss(low[0], low[1], low[2], targets, token_weights)
    assert loss.dtype == torch.float32
    truth = caption_loss(low[0].double(), low[1].double(), low[2].double(), targets, token_weights)
    # logits of about 3 are rounded to 2**-8 of themselves; 45 tokens of mean weight 0.5
    torch.testing.assert_close(loss.double(), truth, rtol=0.01, atol=0)


# Both paths: plain PyTorch, and the kernels.


class Allocations(TorchDispatchMode):
    """Collects the bytes of every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = (*args, *(kwargs or {}).values())
        if isinstance(out, Tensor) and not func.is_view and all(out is not tensor for tensor in given):
            self.sizes.append(out.nbytes)
        return out


def drawn(case_name: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Inputs of a small case of the SPEC without requests for gradients."""
    return {name: tensor.detach() for name, tensor in SPEC.case(case_name).inputs(DEVICE, dtype).items()}


@pytest.fixture(params=["reference", pytest.param("fused", marks=needs_triton)])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_backend(request.param):
        yield request.param


def autograd(inputs: dict[str, Any], upstream: float = 1.0) -> tuple[Tensor, ...]:
    """Loss and gradients of hidden, weight and bias by the op in autograd."""
    leaves = {name: inputs[name].clone().requires_grad_() for name in ("hidden", "weight", "bias")}
    loss = caption_loss(**{**inputs, **leaves})
    return loss.detach(), *torch.autograd.grad(loss * upstream, list(leaves.values()))


@pytest.mark.usefixtures("path", "poison")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_explicit_form_adds_the_gradients_of_autograd(dtype: torch.dtype) -> None:
    inputs = drawn("odd", dtype)
    loss, d_hidden, d_weight, d_bias = autograd(inputs, upstream=0.25)
    buffers = [torch.full(inputs[name].shape, 2.0, device=DEVICE) for name in ("weight", "bias")]
    found_loss, found = caption_loss_and_gradients(
        **inputs, weight_gradient=buffers[0], bias_gradient=buffers[1], gradient_scale=0.25
    )
    assert not found_loss.requires_grad
    assert found.dtype == dtype
    # Autograd scales, and rounds to bfloat16, after the products.
    atol = 1e-6 if dtype == torch.float32 else 1e-4
    torch.testing.assert_close(found_loss, loss, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(found, d_hidden, rtol=0.0, atol=atol)
    torch.testing.assert_close(buffers[0] - 2.0, d_weight.float(), rtol=0.0, atol=atol)
    torch.testing.assert_close(buffers[1] - 2.0, d_bias.float(), rtol=0.0, atol=atol)


@pytest.mark.usefixtures("path")
def test_explicit_form_makes_no_gradient_that_was_not_asked_for() -> None:
    inputs = drawn("odd")
    loss, d_hidden, d_weight, _ = autograd(inputs)
    buffer = torch.zeros_like(inputs["weight"])
    torch.testing.assert_close(caption_loss_and_gradients(**inputs), (loss, d_hidden))
    caption_loss_and_gradients(**inputs, weight_gradient=buffer)
    torch.testing.assert_close(buffer, d_weight)


@pytest.mark.usefixtures("path")
def test_explicit_form_takes_float32_parameters_beside_bfloat16_tokens() -> None:
    inputs = drawn("odd")
    low = {name: tensor.bfloat16() if name == "hidden" else tensor for name, tensor in inputs.items()}
    exact_loss, exact, exact_weight, exact_bias = autograd(inputs)
    buffers = torch.zeros_like(low["weight"]), torch.zeros_like(low["bias"])
    loss, found = caption_loss_and_gradients(**low, weight_gradient=buffers[0], bias_gradient=buffers[1])
    assert found.dtype == torch.bfloat16
    pairs = ((loss, exact_loss), (found.float(), exact), (buffers[0], exact_weight), (buffers[1], exact_bias))
    for one, other in pairs:  # a few roundings to 2**-9
        assert float((one - other).abs().max()) <= 0.01 * float(other.abs().max())


@needs_triton
def test_chunks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = drawn("more words than a block")
    with use_backend("fused"):
        whole = autograd(inputs)
        monkeypatch.setattr(caption_loss_triton, "LOGITS_BYTES", 1)
        monkeypatch.setattr(caption_loss_triton, "_CHUNK_MULTIPLE", 32)
        assert caption_loss_triton.chunk_tokens(150, 1041, 4) == 32
        parts = autograd(inputs)
    torch.testing.assert_close(parts, whole)


@needs_triton
@pytest.mark.parametrize("tokens", [73_728, 315_392])
def test_memory_does_not_grow_with_tokens_times_words(tokens: int) -> None:
    """At the paper's size, by what the launcher allocates on meta tensors: in float32, in which nothing is cast."""
    width, words = 768, 50_265
    hidden, weight, bias, token_weights, d_weight, d_bias = (
        torch.empty(shape, device="meta")
        for shape in ((tokens, width), (words, width), (words,), (tokens,), (words, width), (words,))
    )
    targets = torch.empty(tokens, device="meta", dtype=torch.int64)
    chunk = caption_loss_triton.chunk_tokens(tokens, words, 4)
    with Allocations() as allocations:
        caption_loss_triton.caption_loss_accumulate_(
            hidden, weight, bias, targets, token_weights, d_weight, d_bias, True, torch.float32, chunk, 1.0
        )
    allocations.sizes.remove(hidden.nbytes)  # what is returned
    logits, second, *_ = sorted(allocations.sizes, reverse=True)
    assert logits <= caption_loss_triton.LOGITS_BYTES
    assert second <= chunk * width * 4  # a product's operand


@needs_triton
def test_chunks_are_few_and_of_one_size() -> None:
    for tokens, expected in ((0, 128), (1, 128), (5248, 5248), (5249, 2688), (73_728, 4992), (315_392, 5248)):
        assert caption_loss_triton.chunk_tokens(tokens, 50_265, 2) == expected


@pytest.mark.usefixtures("path", "poison")
def test_what_a_token_left_out_holds_is_not_read() -> None:
    inputs = drawn("odd")
    left_out = inputs["token_weights"] == 0
    assert bool(left_out.any())
    poisoned = {**inputs}
    poisoned["hidden"] = inputs["hidden"].masked_fill(left_out[:, None], torch.nan)
    poisoned["targets"] = inputs["targets"].masked_fill(left_out, 10**9)
    for found, expected in zip(autograd(poisoned), autograd(inputs), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("path", "poison")
def test_no_token_is_legal() -> None:
    inputs = drawn("odd")
    none = {name: x[:0] if name in ("hidden", "targets", "token_weights") else x for name, x in inputs.items()}
    loss, d_hidden, *d_parameters = autograd(none)
    assert float(loss) == 0.0
    assert d_hidden.shape == (0, 24)
    assert not any(bool(gradient.any()) for gradient in d_parameters)


@pytest.mark.usefixtures("path")
def test_a_target_outside_the_vocabulary_is_an_error_or_nan() -> None:
    inputs = drawn("one token")
    for word in (-100, -1, 40):
        inputs["targets"] = torch.tensor([word], device=DEVICE)
        if DEVICE.type == "cpu":
            with pytest.raises(ValueError, match=rf"caption_loss: targets holds {word} at a token .*expected 0 to 39"):
                caption_loss(**inputs)
        with patch.object(torch.compiler, "is_compiling", lambda: True):  # nothing looks at the targets
            found = caption_loss_and_gradients(**inputs, weight_gradient=torch.zeros_like(inputs["weight"]))
        assert all(bool(tensor.isnan().all()) for tensor in found)


@pytest.mark.usefixtures("path")
def test_a_second_backward_gives_the_same() -> None:
    inputs = drawn("odd")
    leaves = [inputs[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    loss = caption_loss(**inputs)
    one = torch.autograd.grad(loss, leaves, torch.tensor(3.0, device=DEVICE), retain_graph=True)
    other = torch.autograd.grad(loss, leaves, torch.tensor(3.0, device=DEVICE))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@needs_triton
@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_fused_makes_the_gradients_asked_for(frozen: str) -> None:
    inputs = drawn("odd")
    expected: dict[str, Tensor] = dict(zip(("hidden", "weight", "bias"), autograd(inputs)[1:], strict=True))
    del expected[frozen]
    leaves = {name: inputs[name].requires_grad_() for name in expected}
    with use_backend("fused"):
        found = torch.autograd.grad(caption_loss(**inputs), list(leaves.values()))
    for gradient, name in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, expected[name], msg=name)


@needs_triton
def test_fused_loss_alone_makes_no_gradient() -> None:
    inputs = drawn("odd")
    with use_backend("fused"), record_launches() as launches:
        caption_loss(**inputs)
    assert {launch.kernel for launch in launches} == {caption_loss_triton.caption_loss_row_kernel}


@needs_triton
def test_fused_follows_autocast_like_the_reference() -> None:
    inputs = drawn("odd")
    exact = autograd(inputs)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        reference = autograd(inputs)
        with use_backend("fused"):
            found = autograd(inputs)
    for one, other, truth in zip(found, reference, exact, strict=True):
        assert one.dtype == torch.float32
        assert 0.0 < float((one - truth).abs().max()) <= 1.5 * float((other - truth).abs().max())


def test_wrong_arguments_are_named() -> None:
    inputs = drawn("odd")
    with pytest.raises(ValueError, match=r"caption_loss: weight has shape \[24, 301\], expected \[24, 24\]"):
        caption_loss(**{**inputs, "weight": inputs["weight"].T})
    with pytest.raises(ValueError, match=r"caption_loss: bias has shape \[300\], expected \[301\]"):
        caption_loss(**{**inputs, "bias": inputs["bias"][1:]})
    with pytest.raises(ValueError, match=r"caption_loss: targets has shape \[36\], expected \[37\]"):
        caption_loss(**{**inputs, "targets": inputs["targets"][1:]})
    with pytest.raises(ValueError, match=r"caption_loss: targets is torch\.int32, expected torch\.int64"):
        caption_loss(**{**inputs, "targets": inputs["targets"].int()})
    with pytest.raises(ValueError, match="caption_loss: token_weights asks for a gradient"):
        caption_loss(**{**inputs, "token_weights": inputs["token_weights"].requires_grad_()})
    inputs["token_weights"] = inputs["token_weights"].detach()
    with pytest.raises(ValueError, match=r"weight_gradient is torch\.bfloat16, expected torch\.float32"):
        caption_loss_and_gradients(**inputs, weight_gradient=inputs["weight"].bfloat16())
    meta = {name: tensor.to("meta") for name, tensor in inputs.items()}
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in meta.items()}
    with use_backend("fused"), pytest.raises(ValueError, match=r"products' dtype is torch\.float16, expected one of"):
        caption_loss(**half)

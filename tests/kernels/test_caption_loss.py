"""The captioning loss against a written-out log-softmax, its token weights and its micro-batches."""

import math

import pytest
import torch
from cacophony.kernels.caption_loss import caption_loss
from torch import Tensor

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

"""The contrastive loss against the paper's equation (1), written out."""

import math

import pytest
import torch
from cacophony.kernels.info_nce import info_nce
from torch import Tensor


def pairs(count: int, width: int = 6, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    audio = torch.randn(count, width, dtype=torch.float64)
    text = audio + noise * torch.randn(count, width, dtype=torch.float64)
    return torch.nn.functional.normalize(audio, dim=1), torch.nn.functional.normalize(text, dim=1)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def slow(audio: Tensor, text: Tensor, logit_scale: float) -> float:
    x, y, s = audio.tolist(), text.tolist(), math.exp(logit_scale)

    def log_softmax(one: list[float], others: list[list[float]], i: int) -> float:
        logits = [s * sum(a * b for a, b in zip(one, other, strict=True)) for other in others]
        return logits[i] - math.log(math.fsum(math.exp(logit) for logit in logits))

    return -sum(log_softmax(x[i], y, i) + log_softmax(y[i], x, i) for i in range(len(x))) / len(x)


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("logit_scale", [0.0, 2.0, 4.6])
def test_equals_the_equation_and_its_halved_form(count: int, logit_scale: float) -> None:
    audio, text = pairs(count)
    expected = slow(audio, text, logit_scale)
    assert float(info_nce(audio, text, scalar(logit_scale))) == pytest.approx(expected, rel=1e-12, abs=1e-14)
    halved = info_nce(audio, text, scalar(logit_scale), halved=True)
    assert float(halved) == pytest.approx(expected / 2, rel=1e-12, abs=1e-14)


def test_sides_and_order_of_pairs_do_not_matter() -> None:
    audio, text = pairs(7)
    loss = info_nce(audio, text, scalar(2.0))
    torch.testing.assert_close(info_nce(text, audio, scalar(2.0)), loss, rtol=1e-13, atol=0)
    order = torch.randperm(7)
    torch.testing.assert_close(info_nce(audio[order], text[order], scalar(2.0)), loss, rtol=1e-13, atol=0)
    shuffled = info_nce(audio, text.roll(1, 0), scalar(2.0))
    assert float(shuffled) > float(loss)


def test_known_values() -> None:
    same = torch.nn.functional.normalize(torch.ones(5, 3, dtype=torch.float64), dim=1)
    assert float(info_nce(same, same, scalar(3.0))) == pytest.approx(2 * math.log(5), rel=1e-12)
    apart = torch.eye(5, dtype=torch.float64)
    assert float(info_nce(apart, apart, scalar(10.0))) == pytest.approx(0.0, abs=1e-12)
    assert float(info_nce(same[:1], apart[:1, :3], scalar(2.0))) == 0.0


@pytest.mark.parametrize("halved", [False, True])
def test_gradients_of_both_sides_and_of_the_temperature(halved: bool) -> None:
    audio, text = pairs(4, 3)
    arguments = (audio.requires_grad_(), text.requires_grad_(), scalar(1.5).requires_grad_())
    assert torch.autograd.gradcheck(lambda a, t, s: info_nce(a, t, s, halved=halved), arguments)


@pytest.mark.parametrize("logit_scale", [-20.0, 12.0, 40.0])
def test_extreme_temperatures_are_finite(logit_scale: float) -> None:
    audio, text = (x.float().requires_grad_() for x in pairs(6))
    scale = torch.tensor(logit_scale, requires_grad=True)
    loss = info_nce(audio, text, scale)
    assert bool(loss.isfinite())
    for gradient in torch.autograd.grad(loss, (audio, text, scale)):
        assert bool(gradient.isfinite().all())


def test_bfloat16_embeddings_are_computed_in_float32() -> None:
    audio, text = (x.bfloat16() for x in pairs(16))
    expected = info_nce(audio.double(), text.double(), scalar(4.6))
    loss = info_nce(audio, text, torch.tensor(4.6))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(info_nce(audio.float(), text.float(), torch.tensor(4.6)), loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shapes", [((3, 4), (2, 4)), ((3, 4), (3, 5)), ((4,), (4,)), ((2, 3, 4), (2, 3, 4))])
def test_shapes_that_differ_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        info_nce(torch.zeros(shapes[0]), torch.zeros(shapes[1]), torch.tensor(0.0))

"""The contrastive loss against the paper's equation (1), written out."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cacophony.kernels import info_nce_ops
from cacophony.kernels.backend import Backend, use_backend
from cacophony.kernels.info_nce import SPEC, info_nce
from cacophony.kernels.triton_runtime import HAS_TRITON, record_launches
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


@pytest.fixture(params=["reference", pytest.param("fused", marks=needs_triton)])
def either(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Run a test with the reference and with the kernels."""
    with use_backend(request.param):
        yield request.param


def exact(audio: Tensor, text: Tensor, logit_scale: float) -> list[Tensor]:
    """Loss and gradients through the whole matrix in float64."""
    with use_backend("reference"):
        return with_gradients(audio.double(), text.double(), scalar(logit_scale))


def with_gradients(audio: Tensor, text: Tensor, logit_scale: Tensor, **options: Any) -> list[Tensor]:
    """Loss and gradients of both sides and of the temperature, on the host."""
    leaves = [tensor.detach().to(DEVICE).requires_grad_() for tensor in (audio, text, logit_scale)]
    loss = info_nce(*leaves, **options)
    return [tensor.detach().cpu() for tensor in (loss, *torch.autograd.grad(loss, leaves))]


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


@pytest.mark.parametrize("logit_scale", [-200.0, -20.0, 12.0, 40.0])
@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.usefixtures("either")
def test_extreme_temperatures_are_finite(count: int, logit_scale: float) -> None:
    audio, text = (x.float() for x in pairs(count))
    for tensor in with_gradients(audio, text, torch.tensor(logit_scale)):
        assert bool(tensor.isfinite().all())


@pytest.mark.parametrize("logit_scale", [math.nan, math.inf, -math.inf, 100.0])
@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.usefixtures("either")
def test_a_temperature_that_is_not_finite_shows(count: int, logit_scale: float) -> None:
    """Nor is one whose exponential is not, in float32."""
    audio, text = (x.float().to(DEVICE) for x in pairs(count))
    assert not bool(info_nce(audio, text, torch.tensor(logit_scale, device=DEVICE)).isfinite())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.usefixtures("either")
def test_an_embedding_that_is_not_finite_shows(bad: float) -> None:
    audio, text = (x.float().to(DEVICE) for x in pairs(6))
    audio[2, 3] = bad
    assert not bool(info_nce(audio, text, torch.tensor(2.0, device=DEVICE)).isfinite())


@needs_triton
def test_a_loss_that_is_almost_nothing_keeps_its_digits() -> None:
    """No 1 is subtracted from a rounded 1: budget 1e-4 of a loss of about 1e-17, where float64 logits give 0."""
    audio, text = (torch.nn.functional.normalize(torch.eye(5) + 0.05 * torch.rand(5, 5)) for _ in range(2))
    similarity, s = audio.double() @ text.T.double(), math.exp(3.8)
    difference = (s * (similarity - similarity.diagonal()[:, None])).exp().fill_diagonal_(0.0)
    other = (s * (similarity - similarity.diagonal())).exp().fill_diagonal_(0.0)
    expected = float(difference.sum(1).log1p().mean() + other.sum(0).log1p().mean())
    assert 0 < expected < 1e-13
    with use_backend("fused"):
        loss, d_audio, _, _ = with_gradients(audio, text, torch.tensor(3.8))
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert 0 < float(d_audio.abs().max()) < 1e-10


@needs_triton
@pytest.mark.parametrize("block", [128, 256])
def test_blocks_add_up(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """A batch of several blocks, the last of them ragged, against the whole matrix.

    Budget: 1e-5 of the largest entry, as logits of up to 55 are rounded to float32.
    """
    audio, text = (x.float() for x in pairs(300, 24))
    expected = exact(audio, text, 4.0)
    for name in ("FORWARD_BLOCK", "BACKWARD_BLOCK"):
        monkeypatch.setattr(info_nce_ops, name, block)
    with use_backend("fused"):
        found = with_gradients(audio, text, torch.tensor(4.0))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-5 * float(other.abs().max()))


def launched_bytes(call: Callable[[], Any]) -> tuple[int, int]:
    """Bytes of all tensors that the launches of ``call`` read or write, and of the largest one."""
    with record_launches() as launches:
        call()
    arguments = (argument for launch in launches for argument in launch.arguments)
    sizes = {id(tensor): tensor.nbytes for tensor in arguments if isinstance(tensor, Tensor)}
    return sum(sizes.values()), max(sizes.values())


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_memory_grows_with_the_batch_and_not_with_its_square(dtype: torch.dtype) -> None:
    """What the launchers allocate for 65536 and 262144 pairs, whose logits alone would take 275 GB in float32."""

    def step(count: int) -> None:
        audio, text = (torch.empty((count, 768), device="meta", dtype=dtype, requires_grad=True) for _ in range(2))
        with use_backend("fused"):
            info_nce(audio, text, torch.empty((), device="meta", requires_grad=True)).backward()

    (total, largest), (four_times, _) = (launched_bytes(lambda n=n: step(n)) for n in (65_536, 262_144))
    assert four_times <= 4 * total
    # Embeddings and float32 gradients of both sides, and scratch.
    embeddings = 65_536 * 768
    assert total <= 2 * embeddings * (dtype.itemsize + 4) + 2**28
    assert largest == 4 * embeddings


def test_rounded_embeddings_give_the_loss_and_gradients_of_the_rounded() -> None:
    audio, text = (x.float() for x in pairs(16))
    with use_backend("reference"):
        rounded = with_gradients(audio.bfloat16().float(), text.bfloat16().float(), torch.tensor(4.6))
        found = with_gradients(audio, text, torch.tensor(4.6), precision="bfloat16")
        plain = with_gradients(audio, text, torch.tensor(4.6))
    for one, other in zip(found, rounded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
    assert float(found[0]) != float(plain[0])


@needs_triton
def test_half_precision_is_computed_in_float32_too() -> None:
    audio, text = (x.half() for x in pairs(20))
    with use_backend("fused"):
        found = with_gradients(audio, text, torch.tensor(4.6))
    expected = exact(audio, text, 4.6)
    assert [tensor.dtype for tensor in found] == [torch.float32, torch.float16, torch.float16, torch.float32]
    for one, other in zip(found, expected, strict=True):
        atol = (1e-3 if one.dtype == torch.float16 else 1e-6) * float(other.abs().max())
        torch.testing.assert_close(one.double(), other, rtol=0, atol=atol)


@pytest.mark.parametrize("name", sorted(SPEC.rivals))
@pytest.mark.parametrize("halved", [False, True])
def test_rivals_compute_the_same(name: str, halved: bool) -> None:
    arguments = [*(x.float().requires_grad_() for x in pairs(20)), torch.tensor(2.0, requires_grad=True)]
    options = {"halved": halved, "precision": "float32"}
    losses = [function(*arguments, **options) for function in (SPEC.rivals[name], SPEC.reference)]
    torch.testing.assert_close(losses[0], losses[1])
    for one, other in zip(*(torch.autograd.grad(loss, arguments) for loss in losses), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


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
    with pytest.raises(ValueError, match=r"audio and text have shapes .*\[N, D\]"):
        info_nce(torch.zeros(shapes[0]), torch.zeros(shapes[1]), torch.tensor(0.0))


def test_a_temperature_that_is_not_one_number_is_refused() -> None:
    with pytest.raises(ValueError, match="logit_scale has shape"):
        info_nce(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(1))


@needs_triton
def test_the_kernels_refuse_float64() -> None:
    audio, text = (x.to(DEVICE) for x in pairs(3))
    with use_backend("fused"), pytest.raises(ValueError, match=r"audio is torch\.float64"):
        info_nce(audio, text, torch.tensor(0.0, device=DEVICE))

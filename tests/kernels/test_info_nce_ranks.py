"""InfoNCE of a batch cut over ranks equals that of the whole, without processes: ranks are threads that take turns."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cacophony.errors import InputError
from cacophony.kernels.backend import Backend, use_backend
from cacophony.kernels.info_nce import Precision, info_nce
from cacophony.kernels.info_nce_ranks import Gather, LossAndGradients, info_nce_across_ranks
from cacophony.kernels.triton_runtime import HAS_TRITON
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


@pytest.fixture(params=["reference", pytest.param("fused", marks=needs_triton)])
def either(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Run a test with the reference and with the kernels."""
    with use_backend(request.param):
        yield request.param


class Ranks:
    """Threads that exchange tensors; one computes at a time, as Triton's interpreter wants it."""

    def __init__(self, size: int) -> None:
        self.turn = threading.Lock()
        self.barrier = threading.Barrier(size)
        self.parts: list[Tensor] = [torch.empty(0)] * size
        self.gathered_bytes = 0

    def gather_of(self, rank: int) -> Gather:
        def gather(rows: Tensor) -> Tensor:
            self.parts[rank] = rows
            self.turn.release()
            self.barrier.wait(60)
            gathered = torch.cat(self.parts)
            self.barrier.wait(60)
            self.turn.acquire()
            self.gathered_bytes += gathered.nbytes
            return gathered

        return gather


def split(
    audio: Tensor, text: Tensor, logit_scale: Tensor, size: int, *, halved: bool, precision: Precision = "float32"
) -> tuple[list[LossAndGradients], Ranks]:
    """Run ``size`` ranks, each with its share of the pairs."""
    ranks, each = Ranks(size), len(audio) // size

    def run(rank: int) -> LossAndGradients:
        own = slice(rank * each, (rank + 1) * each)
        with ranks.turn:
            return info_nce_across_ranks(
                audio[own],
                text[own],
                logit_scale,
                gather=ranks.gather_of(rank),
                rank=rank,
                halved=halved,
                precision=precision,
            )

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size))), ranks


def pairs(count: int, width: int = 24) -> tuple[Tensor, Tensor]:
    audio = torch.randn(count, width)
    text = audio + torch.randn(count, width)
    return torch.nn.functional.normalize(audio, dim=1), torch.nn.functional.normalize(text, dim=1)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(("size", "count"), [(1, 9), (2, 2), (2, 18), (4, 20), (4, 132)])
@pytest.mark.parametrize(("halved", "logit_scale"), [(False, 4.6), (True, 2.0)])
def test_ranks_compute_the_loss_and_gradients_of_the_whole_batch(
    size: int, count: int, halved: bool, logit_scale: float
) -> None:
    """The loss alike on every rank. Budget: 1e-5 of the largest entry, as logits of up to 100 are float32."""
    audio, text = pairs(count)
    exact = [x.double().requires_grad_() for x in (audio, text, torch.tensor(logit_scale))]
    with use_backend("reference"):
        loss = info_nce(*exact, halved=halved)
    expected = [tensor.detach() for tensor in (loss, *torch.autograd.grad(loss, exact))]
    sides = audio.to(DEVICE), text.to(DEVICE), torch.tensor(logit_scale, device=DEVICE)
    results, _ = split(*sides, size, halved=halved)
    assert all(torch.equal(result.loss, results[0].loss) for result in results)
    found = (
        results[0].loss,
        torch.cat([result.d_audio for result in results]),
        torch.cat([result.d_text for result in results]),
        torch.stack([result.d_logit_scale for result in results]).sum(),
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu().double(), other, rtol=0, atol=1e-5 * float(other.abs().max()) + 1e-20)


def test_float64_embeddings_stay_float64() -> None:
    audio, text = (x.double() for x in pairs(12))
    whole = info_nce_across_ranks(audio, text, torch.tensor(3.0, dtype=torch.float64))
    results, _ = split(audio, text, torch.tensor(3.0, dtype=torch.float64), 3, halved=False)
    for name in ("d_audio", "d_text"):
        found = torch.cat([getattr(result, name) for result in results])
        torch.testing.assert_close(found, getattr(whole, name), rtol=1e-12, atol=1e-15)


@pytest.mark.usefixtures("either")
def test_one_rank_has_the_loss_of_the_op() -> None:
    audio, text = (x.to(DEVICE) for x in pairs(20))
    logit_scale = torch.tensor(2.0, device=DEVICE)
    found = info_nce_across_ranks(audio, text, logit_scale)
    torch.testing.assert_close(found.loss, info_nce(audio, text, logit_scale), rtol=1e-6, atol=0)


def test_autocast_changes_nothing() -> None:
    audio, text = pairs(8)
    logit_scale = torch.tensor(2.0)
    plain = info_nce_across_ranks(audio, text, logit_scale)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce_across_ranks(audio, text, logit_scale).d_audio, plain.d_audio)


def test_ranks_exchange_embeddings_and_four_numbers_a_pair() -> None:
    """No gradient: in bytes, what every rank ends up with."""
    audio, text = pairs(20)
    _, ranks = split(audio, text, torch.tensor(2.0), 4, halved=False)
    embeddings, audio_side, text_shares = 2 * audio.nbytes, 2 * 4 * 20, 4 * 2 * 4 * 20
    assert ranks.gathered_bytes == 4 * (embeddings + audio_side + text_shares)


def test_rounded_embeddings_are_what_is_gathered() -> None:
    audio, text = pairs(8)
    found, _ = split(audio, text, torch.tensor(4.6), 2, halved=False, precision="bfloat16")
    expected, _ = split(audio.bfloat16().float(), text.bfloat16().float(), torch.tensor(4.6), 2, halved=False)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.loss, other.loss, rtol=1e-6, atol=0)
        torch.testing.assert_close(one.d_audio, other.d_audio, rtol=0, atol=1e-6)


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"audio and text have shapes \(3, 4\) and \(2, 4\)"):
        info_nce_across_ranks(torch.zeros(3, 4), torch.zeros(2, 4), torch.tensor(0.0))
    precision: Any = "tf32"
    with pytest.raises(ValueError, match="precision is 'tf32'"):
        info_nce_across_ranks(torch.zeros(3, 4), torch.zeros(3, 4), torch.tensor(0.0), precision=precision)


def test_a_backend_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacophony.kernels.backend.INTERPRETING", False)
    monkeypatch.setattr("cacophony.kernels.backend.HAS_TRITON", False)
    with use_backend("fused"), pytest.raises(InputError, match="info_nce: backend fused was asked for"):
        info_nce_across_ranks(torch.zeros(2, 4), torch.zeros(2, 4), torch.tensor(0.0))

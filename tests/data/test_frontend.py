"""DALI's spectrogram times our matrix is the front-end: framing, window and scale, to float32 rounding."""

import pytest
import torch
from cacophony.data import frontend
from cacophony.data.dali import dali_problem
from cacophony.data.frontend import DaliLogMel
from cacophony.errors import InputError
from cacophony.kernels.log_mel import log_mel, log_mel_reference

pytestmark = pytest.mark.skipif(bool(dali_problem()), reason=dali_problem() or "DALI is here")

CPU = torch.device("cpu")
# Of a value range of about 2; plain PyTorch's own float32 error against float64 is 3e-6 on the same noise.
BUDGET = 1e-5


def noise(samples: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    return (torch.randn(sum(samples)) * 3_000).to(torch.int16), torch.tensor([0, *samples]).cumsum(0)


@pytest.mark.parametrize("samples", [[5_000, 400, 2_401, 1, 160, 161, 159], [0, 800, 0], [16_000], []])
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_it_is_the_float64_front_end_to_rounding(samples: list[int], dtype: torch.dtype) -> None:
    wave, offsets = noise(samples)
    exact = log_mel_reference(wave.double() / 32_768, offsets)
    spectrogram = DaliLogMel(CPU)(wave if dtype == torch.int16 else wave.float() / 32_768, offsets)
    assert spectrogram.frame_offsets.tolist() == exact.frame_offsets.tolist()
    assert spectrogram.frames.dtype == torch.float32
    assert spectrogram.frames.shape == exact.frames.shape
    assert (spectrogram.frames - exact.frames).abs().max() < BUDGET if sum(samples) else True


def test_batches_of_any_size_go_through_one_front_end() -> None:
    front_end = DaliLogMel(CPU)
    for samples in ([3_000] * 2, [900, 7_000, 161, 400, 2_000], [2_500]):
        wave, offsets = noise(samples)
        assert (front_end(wave, offsets).frames - log_mel(wave, offsets).frames).abs().max() < BUDGET


def test_silence_is_the_floor() -> None:
    wave, offsets = torch.zeros(1_000, dtype=torch.int16), torch.tensor([0, 1_000])
    torch.testing.assert_close(DaliLogMel(CPU)(wave, offsets).frames, log_mel(wave, offsets).frames, rtol=0, atol=1e-6)


def test_wrong_dtypes_and_a_missing_dali_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"wave has dtype torch.int32, expected int16 or float32"):
        DaliLogMel(CPU)(torch.zeros(5, dtype=torch.int32), torch.tensor([0, 5]))
    monkeypatch.setattr(frontend, "dali_problem", lambda: "nvidia.dali cannot be imported (x)")
    with pytest.raises(InputError, match=r"data.frontend is dali, but nvidia.dali cannot .*set it to kernels"):
        DaliLogMel(CPU)

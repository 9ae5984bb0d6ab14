"""The front-end against a slow float64 one written from the authors' definition, and its ragged clips."""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from cacophony.errors import InputError
from cacophony.kernels import backend
from cacophony.kernels.backend import Backend, use_backend
from cacophony.kernels.log_mel import Spectrogram, all_patches, log_mel, mel_matrix, num_frames, place_patches
from cacophony.kernels.native import native_library
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

FLOOR = 0.2 * np.log(1e-5) + 0.9
EDGE_LENGTHS = [1, 159, 160, 161, 399, 400, 401, 2400, 2401, 4000]

needs_native = pytest.mark.skipif(native_library("cpu").handle is None, reason=native_library("cpu").about)


@pytest.fixture(params=["reference", pytest.param("fused", marks=needs_native)])
def asked(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Run a test with each implementation."""
    with use_backend(request.param):
        yield request.param


@functools.cache
def triangles() -> np.ndarray:
    """Weights [257, 128]: 130 edges equally spaced in mel from 0 to 8000 Hz, triangles linear in mel, no DC bin."""

    def mel(hertz: float) -> float:
        return 1127.0 * np.log(1.0 + hertz / 700.0)

    edges = [mel(8000.0) * i / 129 for i in range(130)]
    weights = np.zeros((257, 128))
    for k in range(1, 257):
        frequency = mel(k * 16_000 / 512)
        for band in range(128):
            left, peak, right = edges[band : band + 3]
            if left < frequency <= peak:
                weights[k, band] = (frequency - left) / (peak - left)
            elif peak < frequency < right:
                weights[k, band] = (right - frequency) / (right - peak)
    return weights


def slow_log_mel(wave: np.ndarray) -> np.ndarray:
    """Frame i is samples 160 i .. 160 i + 400, zeros past the end; window at the start of 512 samples, not centred."""
    window = [0.5 - 0.5 * np.cos(2 * np.pi * k / 400) for k in range(400)]
    rows = []
    for start in range(0, len(wave), 160):
        piece = np.zeros(512)
        for k, sample in enumerate(wave[start : start + 400]):
            piece[k] = sample * window[k]
        rows.append(0.2 * np.log(np.abs(np.fft.rfft(piece)) @ triangles() + 1e-5) + 0.9)
    return np.array(rows).reshape(-1, 128)


def noise(samples: int, seed: int = 0, amplitude: float = 0.1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, amplitude, samples))


def batch(*waves: Tensor) -> Spectrogram:
    lengths = torch.tensor([0, *(len(wave) for wave in waves)])
    return log_mel(torch.cat(waves), lengths.cumsum(0))


def clips(spectrogram: Spectrogram) -> list[Tensor]:
    return list(spectrogram.frames.split(spectrogram.frame_offsets.diff().tolist()))


@pytest.mark.parametrize("samples", EDGE_LENGTHS)
def test_equals_the_slow_definition(samples: int) -> None:
    wave = noise(samples, samples)
    frames = batch(wave).frames
    assert frames.dtype == torch.float64
    assert frames.shape == (-(-samples // 160), 128)
    np.testing.assert_allclose(frames.numpy(), slow_log_mel(wave.numpy()), rtol=0, atol=1e-8)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("samples", [*EDGE_LENGTHS, 8000])
def test_float32_stays_near_the_truth(samples: int) -> None:
    wave = noise(samples).float()
    frames = batch(wave).frames
    assert frames.dtype == torch.float32
    np.testing.assert_allclose(frames.numpy(), slow_log_mel(wave.double().numpy()), rtol=0, atol=2e-4)


def test_a_click_is_heard_in_the_frames_that_hold_it() -> None:
    """A frame of 400 samples that begins at 160 i: a centred one would begin 56 samples earlier."""
    wave = torch.zeros(3200, dtype=torch.float64)
    wave[1000] = 0.9  # frames 4, 5, 6 begin at 640, 800, 960
    loud = (batch(wave).frames > FLOOR + 1e-6).any(dim=1)
    assert loud.nonzero()[:, 0].tolist() == [4, 5, 6]
    wave = torch.zeros(3200, dtype=torch.float64)
    wave[1039] = 0.9  # the last sample of frame 4 is 1039, under a window of 6e-5
    assert (batch(wave).frames > FLOOR + 1e-6).any(dim=1).nonzero()[:, 0].tolist() == [4, 5, 6]
    wave = wave.roll(1)
    assert (batch(wave).frames > FLOOR + 1e-6).any(dim=1).nonzero()[:, 0].tolist() == [5, 6]


@settings(max_examples=20)
@given(st.lists(st.sampled_from([0, *EDGE_LENGTHS]), min_size=1, max_size=6))
def test_clips_in_one_call_equal_clips_alone(lengths: list[int]) -> None:
    waves = [noise(samples, seed) for seed, samples in enumerate(lengths)]
    together = batch(*waves)
    assert together.frame_offsets.diff().tolist() == [-(-samples // 160) for samples in lengths]
    for wave, frames in zip(waves, clips(together), strict=True):
        torch.testing.assert_close(frames, batch(wave).frames, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("asked")
def test_a_loud_neighbour_is_not_heard() -> None:
    silence, loud = torch.zeros(1700), torch.ones(801)
    frames = clips(batch(loud, silence, loud, silence))
    for quiet in (frames[1], frames[3]):
        torch.testing.assert_close(quiet, torch.full_like(quiet, FLOOR), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_in_the_frames_that_hold_it(bad: float) -> None:
    """In every band but the first, which hears nothing."""
    wave = noise(6000).float()
    clean = batch(wave, wave)
    wave[1000] = bad  # frames 4, 5, 6 begin at 640, 800, 960
    found = batch(wave, noise(6000).float())
    finite = found.frames[:, 1:].isfinite()
    assert (~finite).all(dim=1).nonzero()[:, 0].tolist() == [4, 5, 6]
    assert (~finite).any(dim=1).nonzero()[:, 0].tolist() == [4, 5, 6]
    rest = torch.tensor([frame for frame in range(len(finite)) if frame not in (4, 5, 6)])
    torch.testing.assert_close(found.frames[rest], clean.frames[rest], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("level", [1e-30, 1e-8, 1e4, 1e12])
def test_extreme_levels_are_near_the_truth(level: float) -> None:
    wave = noise(2401, amplitude=level).float()
    np.testing.assert_allclose(batch(wave).frames.numpy(), slow_log_mel(wave.double().numpy()), rtol=0, atol=2e-4)


def test_what_overflows_is_infinite_or_no_number_and_never_a_wrong_number(asked: Backend) -> None:
    frames = batch(torch.full((800,), 3e38)).frames
    assert not bool(frames[:3, 1:3].isfinite().any()), asked


@needs_native
def test_the_number_of_threads_changes_no_bit() -> None:
    waves = [noise(samples, seed).float() for seed, samples in enumerate([90_000, 1, 0, 41_234, 700])]
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with use_backend("fused"):
                found.append(batch(*waves).frames)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@needs_native
def test_a_clip_is_the_same_alone_in_a_batch_and_in_another_thread() -> None:
    waves = [noise(300 + 517 * i, i).float() for i in range(40)]
    with use_backend("fused"), ThreadPoolExecutor(4) as pool:
        together, alone = clips(batch(*waves)), list(pool.map(lambda wave: batch(wave).frames, waves))
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


@needs_native
def test_a_wave_with_gaps_is_read_as_it_is() -> None:
    wave = noise(6000).float()
    with use_backend("fused"):
        assert torch.equal(batch(wave[::2]).frames, batch(wave[::2].clone()).frames)


@needs_native
def test_fused_has_neither_float64_nor_a_gradient() -> None:
    offsets = torch.tensor([0, 400])
    with use_backend("fused"), pytest.raises(ValueError, match=r"float64, expected int16 or float32"):
        log_mel(torch.zeros(400, dtype=torch.float64), offsets)
    wave = torch.zeros(400, requires_grad=True)
    with pytest.raises(ValueError, match="gradient"):
        log_mel(wave, offsets)
    with torch.no_grad():
        assert log_mel(wave, offsets).frames.shape == (3, 128)
    with use_backend("reference"):
        assert log_mel(wave, offsets).frames.requires_grad


def test_without_its_library_it_is_the_reference_and_fused_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    op = backend._ops["log_mel"]
    absent = backend.Op("log_mel", op.reference, {}, needs_triton=False, absent={"cpu": "its library was not built"})
    monkeypatch.setitem(backend._ops, "log_mel", absent)
    choice = backend.choose("log_mel", torch.device("cpu"))
    assert (choice.path, choice.implementation) == ("reference", op.reference)
    assert choice.reason == "no fused implementation on cpu: its library was not built"
    with use_backend("fused"), pytest.raises(InputError, match=r"log_mel on cpu: its library was not built"):
        batch(torch.zeros(400))


@pytest.mark.usefixtures("asked")
def test_int16_equals_float_over_32768() -> None:
    wave = torch.randint(-32768, 32768, (5000,), dtype=torch.int16)
    wave[:2] = torch.tensor([-32768, 32767])
    assert torch.equal(batch(wave).frames, batch(wave.float() / 32768).frames)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.float64])
def test_silence_is_the_floor(dtype: torch.dtype) -> None:
    frames = batch(torch.zeros(2000, dtype=dtype)).frames
    torch.testing.assert_close(frames, torch.full_like(frames, FLOOR), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("asked")
def test_full_scale_is_finite_and_band_0_is_always_the_floor() -> None:
    square = torch.tensor([-32768, 32767], dtype=torch.int16).repeat_interleave(20).repeat(100)
    frames = batch(square, noise(4000).float().mul(32767).clamp(-32768, 32767).to(torch.int16)).frames
    assert bool(frames.isfinite().all())
    torch.testing.assert_close(frames[:, 0], torch.full((len(frames),), FLOOR), rtol=0, atol=1e-6)


def test_mel_matrix_equals_the_triangles() -> None:
    matrix = mel_matrix(torch.float64)
    np.testing.assert_allclose(matrix.numpy(), triangles(), rtol=0, atol=1e-12)
    assert not bool(matrix[0].any())
    assert not bool(matrix[-1].any())


@pytest.mark.parametrize(("samples", "patches"), [(0, 0), (2400, 0), (2401, 8), (4960, 8), (4961, 16), (160_000, 496)])
def test_patch_counts(samples: int, patches: int) -> None:
    frames = int(num_frames(torch.tensor(samples)))
    assert frames == -(-samples // 160)
    assert Spectrogram(torch.zeros(frames, 128), torch.tensor([0, frames])).patch_counts.tolist() == [patches]


def test_no_samples_and_no_clips() -> None:
    empty = torch.zeros(0)
    assert log_mel(empty, torch.tensor([0, 0, 0])).frames.shape == (0, 128)
    assert log_mel(empty, torch.tensor([0])).frame_offsets.tolist() == [0]
    frames = batch(empty.double(), noise(161), empty.double())
    assert frames.frame_offsets.tolist() == [0, 0, 2, 2]
    assert frames.patch_counts.tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float16, torch.bfloat16])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="int16, float32 or float64"):
        log_mel(torch.zeros(400, dtype=dtype), torch.tensor([0, 400]))


@pytest.mark.parametrize("offsets", [torch.tensor([0, 399]), torch.tensor([0, 401]), torch.tensor([0, 400]).to("meta")])
def test_wrong_offsets_are_refused(offsets: Tensor) -> None:
    with pytest.raises(ValueError, match="wave_offsets"):
        log_mel(torch.zeros(400), offsets)


def test_patches_are_the_pixels_of_their_clip() -> None:
    """Clip after clip, time and then frequency; frames that fill no column are in no patch."""
    frames = torch.arange(87 * 128.0).reshape(87, 128)
    patches = all_patches(Spectrogram(frames, torch.tensor([0, 20, 20, 35, 87])))
    first_frames = [0, 35, 51, 67]
    assert patches.shape == (8 * len(first_frames), 256)
    for number, patch in enumerate(patches):
        for dt in range(16):
            for df in range(16):
                assert patch[16 * dt + df] == frames[first_frames[number // 8] + dt, 16 * (number % 8) + df]


def test_patches_go_to_their_rows_and_what_is_nobodys_is_zero() -> None:
    patches = torch.randn(8, 256, requires_grad=True)
    placed = place_patches(patches, torch.tensor([3, -1, 0, 5, 2**31 - 1, 6, -(2**31), 1], dtype=torch.int32), 6)
    assert torch.equal(placed[[3, 0, 5, 1]], patches[[0, 2, 3, 7]])
    assert not bool(placed[[2, 4]].any())
    placed.sum().backward()
    assert patches.grad is not None
    assert patches.grad.sum(dim=1).tolist() == [256, 0, 256, 256, 0, 0, 0, 256]

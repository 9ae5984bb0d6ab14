"""Waveform to patches against the authors' TensorFlow front-end and against its definition in float64."""

import numpy as np
import pytest
import torch
from cacophony.kernels.choose_patches import keep_at_most
from cacophony.kernels.layout import LayoutName, Packed, unpad
from cacophony.kernels.log_mel import Spectrogram, all_patches, log_mel, mel_matrix, num_frames
from cacophony.kernels.log_mel_patches import log_mel_patches
from cacophony.kernels.patch_mask import MaskedPatches, patch_mask

from .clips import NAMES, TONAL, batch
from .support import CPU, golden, run_on

STORED = golden("front_end")
MAX_PATCHES = 512


def frames(found: Spectrogram, name: str) -> np.ndarray:
    """All frames of one of the twelve clips."""
    start, end = found.frame_offsets[NAMES.index(name) :][:2]
    return found.frames[int(start) : int(end)].double().cpu().numpy()


def linear_mel(log: np.ndarray) -> np.ndarray:
    return np.exp((log.astype(np.float64) - 0.9) / 0.2) - 1e-5


@run_on("log_mel")
def test_log_mel_is_its_float64_definition(device: torch.device) -> None:
    found = log_mel(*batch(NAMES, device))
    for name in NAMES:
        ours, kept = frames(found, name), STORED[f"{name}/frames"]
        error = np.abs(ours[kept] - STORED[f"{name}/logmel_f64"])
        assert error.max() < (2e-2 if name in TONAL else 2e-4), name
        assert error.mean() < (1e-3 if name in TONAL else 2e-5), name
        # Every frame, not only the kept ones: the mean over its bands.
        assert ours.shape == (len(STORED[f"{name}/frame_means_f64"]), 128)
        assert np.abs(ours.mean(axis=1) - STORED[f"{name}/frame_means_f64"]).max() < (1e-3 if name in TONAL else 2e-5)


def test_log_mel_of_float64_is_exact() -> None:
    """Float64 is the reference's alone."""
    wave, offsets = batch(NAMES, CPU)
    found = log_mel(wave.double() / 32768.0, offsets)
    for name in NAMES:
        ours, kept = frames(found, name), STORED[f"{name}/frames"]
        np.testing.assert_allclose(ours[kept], STORED[f"{name}/logmel_f64"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(ours.mean(axis=1), STORED[f"{name}/frame_means_f64"], rtol=0, atol=1e-6)


@run_on("log_mel")
def test_log_mel_is_tensorflows_up_to_the_noise_of_its_fft(device: torch.device) -> None:
    found = log_mel(*batch(NAMES, device))
    for name in NAMES:
        log, expected = frames(found, name)[STORED[f"{name}/frames"]], STORED[f"{name}/logmel"]
        assert np.abs(log - expected).mean() < 3e-3, name
        mel, expected_mel = linear_mel(log), linear_mel(expected)
        peak = expected_mel.max(axis=1, keepdims=True)
        assert (np.abs(mel - expected_mel) < 5e-5 * np.maximum(peak, 1e-5)).all(), name
        loud = expected_mel > 1e-3 * peak
        assert np.abs(log - expected)[loud].max(initial=0.0) < 1e-3, name


@run_on("log_mel")
def test_int16_and_float_waves_are_the_same_wave(device: torch.device) -> None:
    wave, offsets = batch(NAMES, device)
    torch.testing.assert_close(log_mel(wave.float() / 32768.0, offsets).frames, log_mel(wave, offsets).frames)


def test_mel_matrix() -> None:
    np.testing.assert_allclose(mel_matrix(torch.float64).numpy(), STORED["mel_matrix_f64"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        mel_matrix().numpy(), STORED["mel_matrix"], rtol=0, atol=2e-5
    )  # TensorFlow computes in float32


@run_on("log_mel")
def test_window(device: torch.device) -> None:
    """A clip that is an impulse at sample k has a first frame of flat spectrum, w[k] in every bin."""
    found = log_mel(torch.eye(400, device=device).flatten(), torch.arange(401) * 400)
    mel = linear_mel(found.frames[found.frame_offsets[:-1]].cpu().numpy())
    expected = STORED["hann_window"][:, None] * STORED["mel_matrix_f64"].sum(axis=0)
    np.testing.assert_allclose(mel, expected, rtol=1e-5, atol=2e-6)


@run_on("log_mel")
def test_magnitude(device: torch.device) -> None:
    """TensorFlow's magnitudes of the sweep, through the mel matrix, are the log-mel."""
    mel = STORED["sweep/magnitude"].astype(np.float64) @ STORED["mel_matrix_f64"]
    ours = linear_mel(frames(log_mel(*batch(NAMES, device)), "sweep")[STORED["sweep/frames"]])
    assert (np.abs(ours - mel) < 5e-5 * mel.max(axis=1, keepdims=True)).all()


def every_patch(
    spectrogram: Spectrogram, layout: LayoutName = "packed", limit: int | None = None, step: int = 0
) -> MaskedPatches:
    """Patches of every clip, or up to ``limit`` of each."""
    counts = spectrogram.patch_counts
    keep = counts if limit is None else keep_at_most(counts, limit)
    clips = torch.arange(len(counts))
    return patch_mask(spectrogram.frames, spectrogram.frame_offsets, keep, clips, seed=0, step=step, layout=layout)


@run_on("patch_mask")
@pytest.mark.parametrize("name", ["silence", "short03", "edge2401"])
def test_patches_are_the_unfolded_log_mel_bit_for_bit(device: torch.device, name: str) -> None:
    """Frequency fastest, frames before bands inside a patch; frames that fill no patch are left out."""
    whole = STORED.tensor(f"{name}/logmel", device)
    masked = every_patch(Spectrogram(whole, torch.tensor([0, len(whole)])))
    assert np.array_equal(masked.kept.values.cpu().numpy(), STORED[f"{name}/patches"])
    assert len(masked.restore.values) == 0


@run_on("log_mel_patches")
@pytest.mark.parametrize("name", ["silence", "short03", "edge2401"])
def test_patches_from_the_wave_are_their_float64_definition(device: torch.device, name: str) -> None:
    wave, offsets = batch([name], device)
    whole = STORED.tensor(f"{name}/logmel_f64")
    assert len(whole) == num_frames(len(wave))
    expected = all_patches(Spectrogram(whole, torch.tensor([0, len(whole)])))
    rows = torch.arange(len(expected), dtype=torch.int32, device=device)
    error = (log_mel_patches(wave, offsets, rows, len(rows), gaps=False).double().cpu() - expected).abs()
    assert error.max() < (2e-2 if name in TONAL else 2e-4)
    assert error.mean() < (1e-3 if name in TONAL else 2e-5)


@run_on("log_mel", "patch_mask")
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_patch_indices_of_every_clip(device: torch.device, layout: LayoutName) -> None:
    """Two clips are too short for a patch; the longest is seen through a subset in the authors' batch, here whole."""
    spectrogram = log_mel(*batch(NAMES, device))
    patches = every_patch(spectrogram, layout).kept
    lengths = spectrogram.patch_counts
    time, freq = patches.positions.time, patches.positions.freq
    if layout == "padded":
        packed = Packed.from_lengths(lengths)
        assert torch.equal(patches.layout.lengths.cpu(), lengths)
        time, freq = unpad(time.cpu(), packed), unpad(freq.cpu(), packed)
    for clip, (name, t, f) in enumerate(
        zip(NAMES, time.cpu().split(lengths.tolist()), freq.cpu().split(lengths.tolist()), strict=True)
    ):
        rows = STORED["patch_mask"][clip] == 1
        chosen = STORED["long10p6/keep_inds"] if name == "long10p6" else np.arange(len(t))
        assert rows.sum() == len(chosen), name
        assert np.array_equal(t.numpy()[chosen], STORED["patch_time_inds"][clip][rows]), name
        assert np.array_equal(f.numpy()[chosen], STORED["patch_freq_inds"][clip][rows]), name
    assert [name for name, length in zip(NAMES, lengths.tolist(), strict=True) if length == 0] == [
        "tiny1600",
        "edge2400",
    ]


@run_on("patch_mask")
def test_too_long_a_clip_is_seen_through_a_sorted_subset(device: torch.device) -> None:
    """Ours and the authors' draws differ; both keep 512 of 528 in order, with their place in the clip."""
    spectrogram = log_mel(*batch(["long10p6"], device))
    whole = every_patch(spectrogram).kept
    draws = []
    for step in (0, 1):
        masked = every_patch(spectrogram, limit=MAX_PATCHES, step=step)
        numbers = masked.kept.positions.time * 8 + masked.kept.positions.freq
        assert torch.equal(masked.kept.values, whole.values[numbers])
        left_out = masked.restore.positions.time * 8 + masked.restore.positions.freq
        assert torch.equal(torch.cat((numbers, left_out)).sort().values, torch.arange(528, device=device))
        draws.append(numbers.cpu())
    assert not torch.equal(*draws)
    for numbers in (*draws, torch.from_numpy(STORED["long10p6/keep_inds"])):
        assert len(numbers) == MAX_PATCHES
        assert bool((numbers.diff() > 0).all())
        assert 0 <= int(numbers[0]) < int(numbers[-1]) < 528


@run_on("log_mel", "patch_mask")
def test_a_clip_without_patches_is_one_masked_slot_of_zeros(device: torch.device) -> None:
    spectrogram = log_mel(*batch(["tiny1600", "edge2400"], device))
    kept = every_patch(spectrogram, "padded").kept
    assert spectrogram.frame_offsets.diff().tolist() == [10, 15]
    assert kept.values.shape == (2, 1, 256)
    assert not bool(kept.layout.valid.any())
    assert not bool(kept.values.any())
    assert len(every_patch(spectrogram, "packed").kept.values) == 0

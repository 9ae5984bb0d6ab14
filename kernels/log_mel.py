"""Waveform to log-mel spectrogram: the authors' TensorFlow front-end, ragged clips by offsets.

Frames of 400 samples every 160 without centring, zeros past the end, periodic Hann, 512-point FFT with the zeros
appended, magnitude, 128 mel bands whose triangles are linear in mel, ``0.2 ln(mel + 1e-5) + 0.9``. The fused
implementations are in C++ and CUDA (``csrc/log_mel.h``).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from . import backend
from .library import define
from .native import native_devices, native_library, why_not
from .spec import Case, ErrorBudget, Inputs, MakeInputs, Spec, Work

SAMPLE_RATE = 16_000  # Hz
WINDOW = 400  # samples
HOP = 160  # samples
FFT_SIZE = 512
MEL_BANDS = 128
PATCH_SIDE = 16  # frames and bands
PATCH_PIXELS = PATCH_SIDE * PATCH_SIDE
FREQ_PATCHES = MEL_BANDS // PATCH_SIDE

Count = TypeVar("Count", Tensor, int)


@dataclass(frozen=True)
class Spectrogram:
    """Log-mel of a batch: ``frames`` ``[F, 128]`` clip after clip; ``frame_offsets`` int64 ``[B + 1]`` on the host."""

    frames: Tensor
    frame_offsets: Tensor

    @property
    def patch_counts(self) -> Tensor:
        """Whole patches of each clip, int64 ``[B]`` on the host: the last ``frames % 16`` frames belong to none."""
        return (self.frame_offsets.diff() // PATCH_SIDE) * FREQ_PATCHES


def num_frames(samples: Count) -> Count:
    """Frames of a clip of so many ``samples``: ceil(samples / 160)."""
    return (samples + HOP - 1) // HOP


def num_patches(samples: Count) -> Count:
    """Whole patches of a clip of so many ``samples``, known before its spectrogram is."""
    return num_frames(samples) // PATCH_SIDE * FREQ_PATCHES


def offsets_of(counts: Tensor) -> Tensor:
    """Return where each of several runs of so many begins, and the last one ends: ``[B]`` to ``[B + 1]``."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


@lru_cache(maxsize=8)
def mel_matrix(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """Return the ``[257, 128]`` matrix from FFT magnitudes to mel bands.

    Equal to ``tf.signal.linear_to_mel_weight_matrix(128, 257, 16000, 0, 8000)``: mel = 1127 ln(1 + f / 700), 130 edges
    equally spaced in mel, triangles linear in mel with peak 1, the DC bin in none. Band 0 is empty at this resolution.
    """
    bins_hz = torch.linspace(0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1, dtype=torch.float64)
    bins_mel = 1127.0 * torch.log1p(bins_hz / 700.0)
    edges_mel = torch.linspace(0, 1127.0 * math.log1p(SAMPLE_RATE / 2 / 700.0), MEL_BANDS + 2, dtype=torch.float64)
    lower, centre, upper = edges_mel[:-2], edges_mel[1:-1], edges_mel[2:]
    rising = (bins_mel[:, None] - lower) / (centre - lower)
    falling = (upper - bins_mel[:, None]) / (upper - centre)
    weights = torch.minimum(rising, falling).clamp_min(0.0)
    weights[0] = 0.0
    return weights.to(device, dtype)


def log_mel_fwd(wave: Tensor, wave_offsets: Tensor, frame_offsets: Tensor, frames: int) -> Tensor:
    """Compute the ``frames`` of all clips in the native library of the device of ``wave``: float32 ``[frames, 128]``.

    Both offsets are int64 ``[B + 1]`` on the host. A CPU's work is shared by as many threads as torch may use, and the
    bits do not depend on their number.
    """
    out = torch.empty((frames, MEL_BANDS), dtype=torch.float32, device=wave.device)
    wave, integer, clips = wave.contiguous(), wave.dtype == torch.int16, len(wave_offsets) - 1
    if wave.device.type == "cpu":
        places = wave_offsets.data_ptr(), frame_offsets.data_ptr()
        native_library("cpu").functions.cacophony_log_mel_cpu(
            wave.data_ptr(), integer, *places, clips, torch.get_num_threads(), out.data_ptr()
        )
        return out
    longest = int(frame_offsets.diff().max()) if clips else 0
    offsets = torch.stack((wave_offsets, frame_offsets)).to(wave.device, non_blocking=True)
    functions = native_library("cuda").functions
    with torch.cuda.device(wave.device):
        stream = torch.cuda.current_stream().cuda_stream
        places = offsets[0].data_ptr(), offsets[1].data_ptr()
        error = functions.cacophony_log_mel_cuda(
            wave.data_ptr(), integer, *places, clips, longest, out.data_ptr(), wave.device.index, stream
        )
    if error:
        raise RuntimeError(f"log_mel on {wave.device}: {functions.cacophony_cuda_error(error).decode()}")
    return out


_op = define(
    "log_mel_fwd(Tensor wave, Tensor wave_offsets, Tensor frame_offsets, SymInt frames) -> Tensor",
    log_mel_fwd,
    lambda wave, wave_offsets, frame_offsets, frames: wave.new_empty((frames, MEL_BANDS), dtype=torch.float32),
    devices=native_devices(),
)


def _log_mel_fused(wave: Tensor, wave_offsets: Tensor) -> Spectrogram:
    check_fused("log_mel", wave)
    frame_offsets = offsets_of(num_frames(wave_offsets.diff()))
    frames = _op(wave.detach(), wave_offsets.long().contiguous(), frame_offsets, int(frame_offsets[-1]))
    return Spectrogram(frames, frame_offsets)


def log_mel(wave: Tensor, wave_offsets: Tensor) -> Spectrogram:
    """Compute the log-mel frames of a batch of clips.

    ``wave`` is ``[S]``, int16 or floating in [-1, 1], 16 kHz mono, clip after clip; ``wave_offsets`` int64 ``[B + 1]``
    on the host. Returns float32 frames, without a gradient where they are fused. float64 is for tests of the definition
    and always the reference's: float64 frames. Raises ValueError for other dtypes or offsets, and for float64 with
    backend ``fused``.
    """
    check_clips("log_mel", wave, wave_offsets)
    if wave.dtype == torch.float64 and backend.current_backend("log_mel") != "fused":
        return log_mel_reference(wave, wave_offsets)
    return _dispatch(wave, wave_offsets)


def check_clips(op: str, wave: Tensor, wave_offsets: Tensor) -> None:
    """Refuse a ``wave`` of another dtype, and ``wave_offsets`` that do not cut it into clips."""
    if wave.dtype not in (torch.int16, torch.float32, torch.float64):
        raise ValueError(f"{op}: wave has dtype {wave.dtype}, expected int16, float32 or float64")
    if wave_offsets.device.type != "cpu":
        raise ValueError(f"{op}: wave_offsets lies on {wave_offsets.device}, expected the host")
    ends = int(wave_offsets[0]), int(wave_offsets[-1])
    if ends != (0, wave.numel()) or bool((wave_offsets.diff() < 0).any()):
        raise ValueError(f"{op}: wave_offsets must rise from 0 to the {wave.numel()} samples of wave")


def check_fused(op: str, wave: Tensor) -> None:
    """Refuse a ``wave`` that the native code does not take: float64, or one that asks for its gradient."""
    if wave.dtype == torch.float64:
        raise ValueError(f"{op}: wave has dtype torch.float64, expected int16 or float32 with backend fused")
    if wave.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{op}: wave asks for its gradient, expected one that does not, or backend reference")


def log_mel_reference(wave: Tensor, wave_offsets: Tensor) -> Spectrogram:
    """Compute :func:`log_mel` in plain PyTorch: one STFT over all clips, kept apart by zeros."""
    scaled = wave.float() / 32768.0 if wave.dtype == torch.int16 else wave
    samples = wave_offsets.diff()
    frames = num_frames(samples)
    # A clip takes whole hops plus enough zeros that its last frame ends before the next clip begins.
    spare_frames = math.ceil((FFT_SIZE - HOP) / HOP)
    slots = (frames + spare_frames) * (frames > 0)
    slot_offsets, frame_offsets = offsets_of(slots), offsets_of(frames)
    total_frames = int(slot_offsets[-1])
    if total_frames == 0:
        return Spectrogram(scaled.new_zeros((0, MEL_BANDS)), frame_offsets)

    spaced = scaled.new_zeros((total_frames - 1) * HOP + FFT_SIZE)
    for clip, start in enumerate((slot_offsets[:-1] * HOP).tolist()):
        begin, end = int(wave_offsets[clip]), int(wave_offsets[clip + 1])
        spaced[start : start + end - begin] = scaled[begin:end]
    window = torch.hann_window(WINDOW, periodic=True, dtype=torch.float64, device=wave.device).to(scaled.dtype)
    window = torch.nn.functional.pad(window, (0, FFT_SIZE - WINDOW))
    spectrum = torch.stft(
        spaced, FFT_SIZE, hop_length=HOP, win_length=FFT_SIZE, window=window, center=False, return_complex=True
    )
    # Not `spectrum.abs()`: it guards against overflow, which is out of reach here, at three times the price on a CPU.
    magnitude = (spectrum.real.square() + spectrum.imag.square()).sqrt().T  # [slots, 257]
    within = torch.arange(int(frame_offsets[-1])) - torch.repeat_interleave(frame_offsets[:-1], frames)
    real_frames = torch.repeat_interleave(slot_offsets[:-1], frames) + within
    real_frames = real_frames.to(wave.device, non_blocking=True)
    mel = (magnitude @ mel_matrix(scaled.dtype, wave.device))[real_frames]
    return Spectrogram(0.2 * torch.log(mel + 1e-5) + 0.9, frame_offsets)


_dispatch = backend.register(
    "log_mel",
    reference=log_mel_reference,
    fused=dict.fromkeys((*native_devices(), "meta"), _log_mel_fused),  # shapes need no library
    needs_triton=False,
    absent=why_not(),
)


def all_patches(spectrogram: Spectrogram) -> Tensor:
    """Unfold the whole patches as ``[patches, 256]`` (pixel = 16 * frame + band).

    One clip after another, by time and then frequency.
    """
    whole = spectrogram.patch_counts // FREQ_PATCHES * PATCH_SIDE  # frames of each clip that are in a patch
    offsets = offsets_of(whole)
    within = torch.arange(int(offsets[-1])) - torch.repeat_interleave(offsets[:-1], whole)
    numbers = torch.repeat_interleave(spectrogram.frame_offsets[:-1], whole) + within
    frames = spectrogram.frames.index_select(0, numbers.to(spectrogram.frames.device, non_blocking=True))
    return frames.view(-1, PATCH_SIDE, FREQ_PATCHES, PATCH_SIDE).transpose(1, 2).reshape(-1, PATCH_PIXELS)


def place_patches(patches: Tensor, rows: Tensor, count: int) -> Tensor:
    """Put patch n of ``patches`` ``[patches, 256]`` into row rows[n] of ``[count, 256]``, zero where none goes.

    ``rows`` int32 ``[patches]``; a patch whose row is not in [0, count) is left out.
    """
    spare = torch.where((rows >= 0) & (rows < count), rows, count).long()
    return patches.new_zeros((count + 1, PATCH_PIXELS)).index_copy_(0, spare, patches)[:count]


def _clips(samples: list[int], *, integer: bool = False, level: float = 0.1) -> MakeInputs:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        wave = torch.randn(sum(samples), generator=generator) * level
        wave = (wave * 32768.0).clamp(-32768, 32767).to(torch.int16) if integer else wave
        return {"wave": wave.to(device), "wave_offsets": torch.tensor([0, *samples]).cumsum(0)}

    return make


def _exact(wave: Tensor, wave_offsets: Tensor) -> Spectrogram:
    return log_mel_reference(wave.double() / 32768.0 if wave.dtype == torch.int16 else wave, wave_offsets)


def _forward_work(inputs: Inputs) -> Work:
    """The wave is read, the frames are written; a frame is a 512-point real FFT and 500 weights of mel triangles."""
    wave, frames = inputs["wave"], int(num_frames(inputs["wave_offsets"].diff()).sum())
    return Work(bytes=wave.nbytes + frames * MEL_BANDS * 4, flops=frames * (5 * 256 * 8 + 2 * 500))


SPEC = Spec(
    name="log_mel",
    op=log_mel,
    reference=log_mel_reference,
    cases=(
        Case("int16", _clips([5_000, 400, 2_401], integer=True)),
        Case("float", _clips([3_333, 16_000])),
        Case("one sample", _clips([1])),
        Case("ten seconds", _clips([160_000], integer=True)),
        Case("silence", _clips([2_500], level=0.0)),
        Case("no clip", _clips([])),
        Case("stage 1", _clips([240_000] * 128, integer=True), paper=True),
        Case("stage 2", _clips([163_840] * 256, integer=True), paper=True),
    ),
    forward=_forward_work,
    # The largest error is where a band happens to be almost empty: two right transforms differ there by luck.
    budget=ErrorBudget(factor=4.0),
    sizes_from_host=True,
    exact=_exact,
)

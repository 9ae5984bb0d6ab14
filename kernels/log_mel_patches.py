"""Waveform to patches of its log-mel, each written into the row it is wanted in: no spectrogram, no gather.

The frames are :mod:`.log_mel`'s, bit for bit. A time column (16 frames, eight patches) of which no patch is wanted is
not computed, so a long clip that is seen through few patches is not transformed whole.
"""

from typing import Any

import torch
from torch import Tensor

from . import backend
from .checks import check_device, check_dtype, check_shape
from .choose_patches import ChosenPatches, choose_patches
from .layout import LayoutName, Patches
from .library import define
from .log_mel import (
    FREQ_PATCHES,
    HOP,
    PATCH_PIXELS,
    PATCH_SIDE,
    all_patches,
    check_clips,
    check_fused,
    log_mel,
    log_mel_reference,
    num_patches,
    offsets_of,
    place_patches,
)
from .native import native_devices, native_library, why_not
from .patch_mask import MaskedPatches
from .spec import Case, ErrorBudget, Inputs, MakeInputs, Spec, Work


def log_mel_patches_fwd(wave: Tensor, wave_offsets: Tensor, rows: Tensor, count: int, gaps: bool) -> Tensor:
    """Compute the patches in the native library of the device of ``wave``: float32 ``[count, 256]``.

    ``wave_offsets`` is int64 ``[B + 1]`` on the host. The bits do not depend on the number of threads.
    """
    allocate = torch.zeros if gaps else torch.empty
    out = allocate((count, PATCH_PIXELS), dtype=torch.float32, device=wave.device)
    wave, rows, integer, clips = wave.contiguous(), rows.contiguous(), wave.dtype == torch.int16, len(wave_offsets) - 1
    patch_counts = num_patches(wave_offsets.diff())
    patch_offsets = offsets_of(patch_counts)
    if wave.device.type == "cpu":
        places = wave_offsets.data_ptr(), patch_offsets.data_ptr(), clips, rows.data_ptr(), count
        native_library("cpu").functions.cacophony_log_mel_patches_cpu(
            wave.data_ptr(), integer, *places, torch.get_num_threads(), out.data_ptr()
        )
        return out
    longest = int(patch_counts.max()) // FREQ_PATCHES if clips else 0
    offsets = torch.stack((wave_offsets, patch_offsets)).to(wave.device, non_blocking=True)
    functions = native_library("cuda").functions
    with torch.cuda.device(wave.device):
        stream = torch.cuda.current_stream().cuda_stream
        places = offsets[0].data_ptr(), offsets[1].data_ptr(), clips, longest, rows.data_ptr(), count
        error = functions.cacophony_log_mel_patches_cuda(
            wave.data_ptr(), integer, *places, out.data_ptr(), wave.device.index, stream
        )
    if error:
        raise RuntimeError(f"log_mel_patches on {wave.device}: {functions.cacophony_cuda_error(error).decode()}")
    return out


def _outputs(wave: Tensor, wave_offsets: Tensor, rows: Tensor, count: int, gaps: bool) -> Tensor:
    return wave.new_empty((count, PATCH_PIXELS), dtype=torch.float32)


_op = define(
    "log_mel_patches_fwd(Tensor wave, Tensor wave_offsets, Tensor rows, SymInt count, bool gaps) -> Tensor",
    log_mel_patches_fwd,
    _outputs,
    devices=native_devices(),
)


def _log_mel_patches_fused(wave: Tensor, wave_offsets: Tensor, rows: Tensor, count: int, *, gaps: bool) -> Tensor:
    check_fused("log_mel_patches", wave)
    return _op(wave.detach(), wave_offsets.long().contiguous(), rows, count, gaps)


def log_mel_patches(wave: Tensor, wave_offsets: Tensor, rows: Tensor, count: int, *, gaps: bool = True) -> Tensor:
    """Compute patches of the log-mel of a batch of clips: float32 ``[count, 256]`` (pixel = 16 * frame + band).

    ``wave`` and ``wave_offsets`` are ``log_mel``'s. The whole patches of all clips are numbered clip after clip, by
    time and then frequency: patch n becomes row rows[n], and is left out where that is not in [0, count). ``rows`` is
    int32 ``[patches]`` on the device of ``wave``, in any order; ``torch.arange`` asks for all patches as they come. A
    row that is nobody's holds zeros; without ``gaps`` there is none, and nothing is cleared.

    Without a gradient where fused; float64 is for tests and always the reference's: float64 pixels. Raises ValueError
    for what does not fit; for two patches in one row, or a row of nobody's without ``gaps``, where ``rows`` lies on the
    host: elsewhere it is not looked at, and such a row holds anything.
    """
    check_clips("log_mel_patches", wave, wave_offsets)
    check_dtype("log_mel_patches", "rows", rows, (torch.int32,))
    check_shape("log_mel_patches", "rows", rows, (int(num_patches(wave_offsets.diff()).sum()),))
    check_device("log_mel_patches", "wave", wave.device, rows=rows)
    if not 0 <= count < 2**31:
        raise ValueError(f"log_mel_patches: count is {count}, expected 0 to 2**31 - 1")
    if rows.device.type == "cpu":
        _check_rows(rows, count, gaps)
    if wave.dtype == torch.float64 and backend.current_backend("log_mel_patches") != "fused":
        return log_mel_patches_reference(wave, wave_offsets, rows, count, gaps=gaps)
    return _dispatch(wave, wave_offsets, rows, count, gaps=gaps)


def _check_rows(rows: Tensor, count: int, gaps: bool) -> None:
    wanted = rows[(rows >= 0) & (rows < count)].sort().values
    twice = wanted[1:][wanted.diff() == 0]
    if len(twice):
        raise ValueError(f"log_mel_patches: rows holds {int(twice[0])} twice, expected one patch in a row")
    if not gaps and len(wanted) < count:
        raise ValueError(
            f"log_mel_patches: rows names {len(wanted)} of {count} rows, expected gaps=True or all of them"
        )


def log_mel_patches_reference(
    wave: Tensor, wave_offsets: Tensor, rows: Tensor, count: int, *, gaps: bool = True
) -> Tensor:
    """Compute :func:`log_mel_patches` in plain PyTorch: the whole spectrogram, unfolded."""
    return place_patches(all_patches(log_mel_reference(wave, wave_offsets)), rows, count)


_dispatch = backend.register(
    "log_mel_patches",
    reference=log_mel_patches_reference,
    fused=dict.fromkeys((*native_devices(), "meta"), _log_mel_patches_fused),  # shapes need no library
    needs_triton=False,
    absent=why_not(),
)


def kept_log_mel(
    wave: Tensor,
    wave_offsets: Tensor,
    keep_counts: Tensor,
    sample_index: Tensor,
    *,
    seed: int,
    step: int,
    layout: LayoutName = "padded",
) -> Patches:
    """Compute ``patch_mask(log_mel(wave))``'s kept patches, bit for bit, and no others.

    ``keep_counts`` int64 ``[B]`` (host) and ``sample_index`` int64 ``[B]`` are :func:`choose_patches`'s. Raises as the
    two ops do.
    """
    chosen = _choose(wave, wave_offsets, keep_counts, sample_index, seed=seed, step=step, layout=layout)
    shape = chosen.kept.time.shape
    values = log_mel_patches(wave, wave_offsets, chosen.rows, shape.numel(), gaps=layout == "padded")
    return Patches(values.view(*shape, PATCH_PIXELS), chosen.kept)


def masked_log_mel(
    wave: Tensor,
    wave_offsets: Tensor,
    keep_counts: Tensor,
    sample_index: Tensor,
    *,
    seed: int,
    step: int,
    layout: LayoutName = "padded",
) -> MaskedPatches:
    """Compute ``patch_mask(log_mel(wave))``, bit for bit; arguments and errors are :func:`kept_log_mel`'s."""
    chosen = _choose(wave, wave_offsets, keep_counts, sample_index, seed=seed, step=step, layout=layout)
    slots = chosen.kept.time.numel() + chosen.restore.time.numel()
    return MaskedPatches.of(log_mel_patches(wave, wave_offsets, chosen.rows, slots, gaps=layout == "padded"), chosen)


def _choose(
    wave: Tensor, wave_offsets: Tensor, keep_counts: Tensor, sample_index: Tensor, **options: Any
) -> ChosenPatches:
    on_device = sample_index.to(wave.device, non_blocking=True)
    return choose_patches(on_device, num_patches(wave_offsets.diff()), keep_counts, **options)


def spectrogram_then_gather(
    wave: Tensor, wave_offsets: Tensor, rows: Tensor, count: int, *, gaps: bool = True
) -> Tensor:
    """Compute :func:`log_mel_patches` from the spectrogram: written, read and written again. A rival for benches."""
    return place_patches(all_patches(log_mel(wave, wave_offsets)), rows, count)


def _clips(samples: list[int], *, keep: float = 1.0, columns: bool = False, integer: bool = True) -> MakeInputs:
    """Clips of which a share ``keep`` of the patches is wanted, or of the whole ``columns``, in random order."""

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        wave = torch.randn(sum(samples), generator=generator) * 0.1
        wave = (wave * 32768.0).clamp(-32768, 32767).to(torch.int16) if integer else wave
        offsets = torch.tensor([0, *samples]).cumsum(0)
        patches = int(num_patches(offsets.diff()).sum())
        unit = FREQ_PATCHES if columns else 1
        order = torch.randperm(patches // unit, generator=generator) if keep < 1.0 else torch.arange(patches // unit)
        rows = (order[:, None] * unit + torch.arange(unit)).flatten().to(torch.int32)
        wanted = round(patches // unit * keep) * unit
        return {
            "wave": wave.to(device),
            "wave_offsets": offsets,
            "rows": rows.to(device),
            "count": wanted,
            "gaps": False,
        }

    return make


def _exact(wave: Tensor, wave_offsets: Tensor, rows: Tensor, count: int, *, gaps: bool) -> Tensor:
    wave = wave.double() / 32768.0 if wave.dtype == torch.int16 else wave
    return log_mel_patches_reference(wave, wave_offsets, rows, count, gaps=gaps)


def _forward_work(inputs: Inputs) -> Work:
    """Of every column with a wanted patch the new samples are read, the patch is written; frames as ``log_mel``'s."""
    rows, count = inputs["rows"].view(-1, FREQ_PATCHES), inputs["count"]
    columns = int(((rows >= 0) & (rows < count)).any(dim=1).sum())
    frames = columns * PATCH_SIDE
    samples = frames * HOP * inputs["wave"].element_size()
    return Work(bytes=samples + rows.nbytes + count * PATCH_PIXELS * 4, flops=frames * (5 * 256 * 8 + 2 * 500))


SPEC = Spec(
    name="log_mel_patches",
    op=log_mel_patches,
    reference=log_mel_patches_reference,
    cases=(
        Case("int16", _clips([5_000, 400, 2_401], keep=0.6)),
        Case("float", _clips([3_333, 16_000], integer=False)),
        Case("columns", _clips([16_000, 8_000], keep=0.5, columns=True)),
        Case("nothing wanted", _clips([5_000], keep=0.0)),
        Case("no patch", _clips([1, 0, 2_400])),
        Case("no clip", _clips([])),
        Case("ten seconds", _clips([160_000])),
        Case("twenty seconds, a fifth of the columns", _clips([320_000], keep=0.2, columns=True)),
        Case("stage 1", _clips([240_000] * 128), paper=True),
        Case("stage 2", _clips([163_840] * 256), paper=True),
        Case("stage 2, long clips", _clips([480_000] * 256, keep=512 / 1496), paper=True),
    ),
    forward=_forward_work,
    budget=ErrorBudget(factor=4.0),  # as log_mel's
    sizes_from_host=True,
    rivals={"spectrogram, then gather": spectrogram_then_gather},
    exact=_exact,
)

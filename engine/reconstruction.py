"""What a masked autoencoder sees and restores of one clip, as a picture."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.shards import Shards
from ..errors import InputError
from ..kernels.choose_patches import keep_fraction
from ..kernels.layout import PatchPositions
from ..kernels.log_mel import FREQ_PATCHES, MEL_BANDS, PATCH_SIDE, num_patches
from ..kernels.log_mel_patches import masked_log_mel
from ..kernels.mae_decoder_input import interleave
from ..models.audio_mae import AudioMAE
from ..models.model_directory import read_model
from .config import MaeRunConfig
from .figures import mel_reconstruction
from .run_directory import read_record


@torch.inference_mode()
def draw_reconstruction(run: Path, data: Path, clip: int, picture: Path) -> None:
    """Draw clip number ``clip`` of the shards in ``data``: original, visible patches, restored log-mel.

    The model predicts normalised pixels; each patch is scaled back by the mean and deviation of the true one, as is
    usual for pictures of this loss. Raises InputError where ``run`` is no stage-1 run.
    """
    record = read_record(run)
    if not isinstance(record.config, MaeRunConfig):
        raise InputError(f"{run}: is a {record.stage} run; expected a stage-1 run (cacophony train mae)")
    model = read_model(run)
    assert isinstance(model, AudioMAE)
    with Shards.open(data) as shards:
        wave = torch.from_numpy(shards.read(clip))

    offsets, index = torch.tensor([0, len(wave)]), torch.tensor([clip])
    keep = keep_fraction(num_patches(offsets.diff()), 1.0 - record.config.objective.mask_ratio)
    masked = masked_log_mel(wave, offsets, keep, index, seed=record.config.seed, step=0, layout="packed")
    visible, restore = masked.kept, masked.restore
    prediction, layout = model(visible, restore.positions)

    def join(a: Tensor, b: Tensor) -> Tensor:
        return interleave(a, b, visible.layout, restore.layout)

    target = join(visible.values, restore.values)
    deviation = (target.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    restored = prediction * deviation + target.mean(dim=-1, keepdim=True)
    seen = join(torch.ones_like(visible.values), torch.zeros_like(restore.values))
    time = join(visible.positions.time, restore.positions.time)
    freq = join(visible.positions.freq, restore.positions.freq)
    positions = PatchPositions(time, freq, layout)
    images = [_image(values, positions) for values in (target, seen, restored)]
    mel_reconstruction(picture, images[0], images[1] > 0.5, np.where(images[1] > 0.5, images[0], images[2]))


def _image(values: Tensor, positions: PatchPositions) -> np.ndarray:
    """Lay patches ``[T, 256]`` out as frames ``[F, 128]``."""
    grid = values.new_zeros((len(values) // FREQ_PATCHES, FREQ_PATCHES, PATCH_SIDE, PATCH_SIDE))
    grid[positions.time, positions.freq] = values.unflatten(1, (PATCH_SIDE, PATCH_SIDE))
    return grid.transpose(1, 2).reshape(-1, MEL_BANDS).numpy()

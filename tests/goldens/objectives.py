"""The gradients of both stages over the goldens' batches, by the code that trains.

Padded, a batch is one micro-batch and nothing is computed twice; packed, it is several, of which only inputs are kept.
"""

from dataclasses import replace
from typing import Literal

import torch
from cacophony.data.batch import AudioTextBatch
from cacophony.engine.config import (
    ContrastiveObjectiveConfig,
    ContrastiveRunConfig,
    MaeObjectiveConfig,
    MaeRunConfig,
)
from cacophony.engine.distributed import World
from cacophony.engine.objectives import ContrastiveCaptioning, MaskedReconstruction, Report
from cacophony.kernels.layout import LayoutName
from cacophony.models.audio_mae import AudioMAE
from cacophony.models.audio_text import AudioText

from .support import audio_patches, golden, masked_patches

SHORTEST = 2401  # samples of a clip with one patch


def mae_backward(model: AudioMAE, config: MaeObjectiveConfig, layout: LayoutName, device: torch.device) -> Report:
    """Add stage 1's gradient to the parameters."""
    stage = MaskedReconstruction(config, MaeRunConfig(model=model.config, layout=layout), World(0, 1, device))
    micro_batches = [slice(None)] if layout == "padded" else [slice(0, 1), slice(1, 4)]
    return stage.backward(model, [masked_patches(layout, device, clips) for clips in micro_batches])


def contrastive_backward(
    model: AudioText, reduction: Literal["caption", "token"], layout: LayoutName, device: torch.device
) -> Report:
    """Add stage 2's gradient to the parameters.

    The goldens start at patches, one clip's a random subset: they replace those of a batch of the shortest clips.
    """
    stored = golden("audio_text")
    lengths = stored.tensor("text/lengths")
    clips = len(lengths)
    batch = AudioTextBatch(
        wave=torch.zeros(clips * SHORTEST, dtype=torch.int16, device=device),
        wave_offsets=torch.arange(clips + 1) * SHORTEST,
        sample_index=torch.arange(clips, device=device),
        token_ids=stored.tensor("text/token_ids", device).int(),
        token_offsets=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
    )
    size, stash = (clips, 10) if layout == "padded" else (4, 0)
    objective = ContrastiveObjectiveConfig(caption_reduction=reduction, stash=stash)
    run = ContrastiveRunConfig(model=model.config, layout=layout, micro_batch_size=size)
    stage = ContrastiveCaptioning(objective, run, World(0, 1, device), dropout=0.0)
    inputs = stage.prepare(batch, step=0)
    for number, micro in enumerate(inputs):
        patches = audio_patches(layout, device, slice(number * size, (number + 1) * size))
        inputs[number] = replace(micro, audio=patches, audio_lengths=patches.layout.lengths.cpu())
    return stage.backward(model, inputs)

"""FLOPs that a run reports equal those of the matrix products that run, whatever the micro-batches, stash and SAM.

Clips are all of one length, so that the reference path, which runs here, has no padding to compute on. Where it does
other work than the fused ops, whose work is counted, the difference is named.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cacophony.data.batch import AudioTextBatch, collate
from cacophony.engine.build import build_model, build_objective, build_updater
from cacophony.engine.config import ContrastiveRunConfig, MaeRunConfig
from cacophony.engine.distributed import World
from cacophony.engine.step_cost import gradient_flops
from cacophony.engine.trainer import make_step
from cacophony.engine.update_config import UpdateConfig
from cacophony.kernels.choose_patches import keep_at_most, keep_fraction
from cacophony.kernels.log_mel import log_mel, num_patches
from cacophony.models.audio_mae import AudioMAE
from cacophony.models.audio_text import AudioText
from cacophony.models.layers import init_weights
from torch.utils.flop_counter import FlopCounterMode

WORLD = World(0, 1, torch.device("cpu"))
CLIPS, SECONDS, TOKENS = 4, 0.8, 9
PATCHES = torch.full((CLIPS,), num_patches(round(16_000 * SECONDS)))


@pytest.fixture(scope="module")
def batch() -> AudioTextBatch:
    rng = np.random.default_rng(0)
    waves = [rng.integers(-9000, 9000, round(16_000 * SECONDS)).astype(np.int16) for _ in range(CLIPS)]
    captions = [np.array([0, *rng.integers(5, 300, TOKENS - 2), 2], np.int32) for _ in range(CLIPS)]
    return collate(waves, np.arange(CLIPS), captions)


def counted(
    config: MaeRunConfig | ContrastiveRunConfig, batch: AudioTextBatch, rho: float, implementation: Any
) -> tuple[Any, int, AudioMAE | AudioText, int]:
    """A step's outcome, the FLOPs torch counted, the network, and the step's gradients."""
    update = UpdateConfig(warmup_steps=0, rho=rho, implementation=implementation)
    config = replace(config, batch_size=CLIPS, update=update)
    model = build_model(config)
    init_weights(model, 0)
    updater = build_updater(model, config, WORLD)
    # Torch's counter knows addmm, but not that gradients are added in place.
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm_flops}) as counter:
        _, outcome = make_step(updater, build_objective(config, WORLD), batch, 0, config)
    gradients = 2 if rho else 1
    # What a run reports is what its plan expects.
    flops = gradient_flops(model, config, PATCHES, torch.full((CLIPS,), TOKENS))
    assert outcome.model_flops == gradients * flops.model
    if config.objective.blocks != "auto":
        assert outcome.recomputed_flops == gradients * flops.recomputed
    return outcome, counter.get_total_flops() - _log_mel_flops(batch), model, gradients


def _addmm_flops(total: Any, left: Any, right: Any, out_shape: Any = None, **options: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


def _scores(queries: torch.Tensor, keys: torch.Tensor, width: int = 16) -> int:
    """FLOPs of attention's scores, which its explicit backward computes again: the kernel's affair, and not counted."""
    return 2 * int((queries * keys).sum()) * width


def _log_mel_flops(batch: AudioTextBatch) -> int:
    with FlopCounterMode(display=False) as counter:
        log_mel(batch.wave, batch.wave_offsets)
    return counter.get_total_flops()


@pytest.mark.parametrize(("rho", "micro_batch_size"), [(0.0, 4), (0.05, 3)])
@pytest.mark.parametrize(
    ("blocks", "stash", "implementation"),
    [("by_hand", 1, "arena"), ("by_hand", 3, "arena"), ("by_hand", 10, "arena"), ("autograd", 10, "per_tensor")],
)
def test_stage_1(
    batch: AudioTextBatch,
    mae_config: MaeRunConfig,
    rho: float,
    micro_batch_size: int,
    blocks: Any,
    stash: Any,
    implementation: Any,
) -> None:
    objective = replace(mae_config.objective, blocks=blocks, stash=stash)
    config = replace(mae_config, objective=objective, micro_batch_size=micro_batch_size)
    outcome, found, model, gradients = counted(config, batch, rho, implementation)
    assert isinstance(model, AudioMAE)
    visible = keep_fraction(PATCHES, 1.0 - config.objective.mask_ratio)
    unneeded = model.encoder.patch.flops(int(visible.sum()))  # nobody asks for the gradient of the pixels
    scores = _scores(visible, visible) + _scores(PATCHES, PATCHES) if blocks == "by_hand" else 0
    assert outcome.model_flops + outcome.recomputed_flops == found + gradients * (unneeded - scores)


@pytest.mark.parametrize(("rho", "micro_batch_size"), [(0.0, 4), (0.05, 3)])
@pytest.mark.parametrize(
    ("blocks", "stash", "implementation", "caption_weight"),
    [
        *(("by_hand", stash, "arena", 1.0) for stash in (0, 1, 3, 10)),
        ("by_hand", 0, "arena", 0.0),
        ("by_hand", 10, "arena", 0.0),
        ("autograd", 0, "per_tensor", 1.0),
        ("autograd", 10, "per_tensor", 1.0),
        ("autograd", 10, "per_tensor", 0.0),
    ],
)
def test_stage_2(
    batch: AudioTextBatch,
    contrastive_config: ContrastiveRunConfig,
    rho: float,
    micro_batch_size: int,
    blocks: Any,
    stash: Any,
    implementation: Any,
    caption_weight: float,
) -> None:
    objective = replace(
        contrastive_config.objective, blocks=blocks, stash=stash, max_patches=24, caption_weight=caption_weight
    )
    config = replace(contrastive_config, objective=objective, micro_batch_size=micro_batch_size)
    outcome, found, model, gradients = counted(config, batch, rho, implementation)
    assert isinstance(model, AudioText)
    patches, tokens = keep_at_most(PATCHES, 24), torch.full((CLIPS,), TOKENS)
    unneeded = model.audio_encoder.patch.flops(int(patches.sum()))
    # The reference projects keys and values of every token, which the fused pool, whose work is counted, does not.
    pools = model.audio_pooler.flops_saved(patches) + model.text_pooler.flops_saved(tokens)
    pools *= 4 if stash == 0 else 3
    scores = 0
    if blocks == "by_hand":
        scores = _scores(patches, patches) + _scores(tokens, tokens)
        if caption_weight:
            scores += _scores(tokens, tokens) + _scores(tokens, patches)
    expected = outcome.model_flops + outcome.recomputed_flops
    assert expected == found + gradients * (unneeded - pools - scores)

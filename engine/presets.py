"""Named runs: functions that return a whole configuration."""

import difflib
from collections.abc import Callable
from dataclasses import replace

from ..errors import InputError
from ..models.config import AUDIO_MAE_SIZES, AUDIO_TEXT_SIZES
from .config import (
    ContrastiveDataConfig,
    ContrastiveObjectiveConfig,
    ContrastiveRunConfig,
    MaeDataConfig,
    MaeRunConfig,
    Stage,
)
from .update_config import UpdateConfig


def paper_stage1() -> MaeRunConfig:
    """Stage 1 as in the paper: batch 512, 2e-4 to 1e-6 over 200k steps, 10k warm-up, 80 % masked, 15 s crops."""
    return MaeRunConfig(
        model=AUDIO_MAE_SIZES["paper"],
        batch_size=512,
        steps=200_000,
        precision="bf16",
        update=UpdateConfig(learning_rate=2e-4, final_learning_rate=1e-6, warmup_steps=10_000, weight_decay=0.01),
    )


def paper_stage2() -> ContrastiveRunConfig:
    """Stage 2 as in the paper: batch 4096, 1e-5 to 1e-6 over 300k steps, 10k warm-up, SAM ρ 0.075, λ 1, RoBERTa."""
    return ContrastiveRunConfig(
        model=AUDIO_TEXT_SIZES["paper"],
        batch_size=4096,
        steps=300_000,
        precision="bf16",
        update=UpdateConfig(
            learning_rate=1e-5, final_learning_rate=1e-6, warmup_steps=10_000, weight_decay=0.01, rho=0.075
        ),
        objective=ContrastiveObjectiveConfig(caption_weight=1.0),
        text_init="roberta-base",
    )


def ablation_stage1() -> MaeRunConfig:
    """The paper's stage 1 with the smaller audio network (width 512, feed-forward 1024)."""
    return MaeRunConfig(
        model=AUDIO_MAE_SIZES["ablation"],
        batch_size=512,
        steps=200_000,
        precision="bf16",
        update=paper_stage1().update,
    )


def ablation_stage2() -> ContrastiveRunConfig:
    """The paper's stage 2 with the smaller audio network (width 512, feed-forward 1024)."""
    return ContrastiveRunConfig(
        model=AUDIO_TEXT_SIZES["ablation"],
        batch_size=4096,
        steps=300_000,
        precision="bf16",
        update=paper_stage2().update,
        text_init=paper_stage2().text_init,
    )


def ablation_stage1_fixed_length() -> MaeRunConfig:
    """`ablation_stage1` on clips of exactly 15 s: shorter ones are followed by silence."""
    base = ablation_stage1()
    return replace(base, data=replace(base.data, fixed_seconds=15.0))


def ablation_stage2_fixed_length() -> ContrastiveRunConfig:
    """`ablation_stage2` on clips of exactly 10.24 s, the 512 patches: cropped instead of seen through a subset."""
    base = ablation_stage2()
    return replace(base, data=replace(base.data, fixed_seconds=10.24))


def ablation_stage2_no_captioning() -> ContrastiveRunConfig:
    """`ablation_stage2` on the contrastive loss alone (λ 0): no caption decoder is made, trained or saved."""
    base = ablation_stage2()
    return replace(base, objective=replace(base.objective, caption_weight=0.0))


def ablation_stage2_no_sam() -> ContrastiveRunConfig:
    """`ablation_stage2` without sharpness-aware minimisation (ρ 0)."""
    base = ablation_stage2()
    return replace(base, update=replace(base.update, rho=0.0))


def ablation_stage2_no_stage1() -> ContrastiveRunConfig:
    """`ablation_stage2` from a random audio encoder; --init is refused."""
    return replace(ablation_stage2(), audio_init="random")


def ablation_stage2_clean() -> ContrastiveRunConfig:
    """`ablation_stage2` on the clips whose captions people wrote: the shards' source "clean"."""
    return _ablation_stage2_on("clean")


def ablation_stage2_clean_and_cleaned() -> ContrastiveRunConfig:
    """`ablation_stage2` on these and on those whose noisy descriptions were cleaned: sources "clean" and "cleaned"."""
    return _ablation_stage2_on("clean", "cleaned")


def ablation_stage2_clean_cleaned_and_synthetic() -> ContrastiveRunConfig:
    """`ablation_stage2` on these and on those that were captioned by a machine: also source "synthetic"."""
    return _ablation_stage2_on("clean", "cleaned", "synthetic")


def _ablation_stage2_on(*sources: str) -> ContrastiveRunConfig:
    base = ablation_stage2()
    return replace(base, data=replace(base.data, sources=sources))


def demo_stage1() -> MaeRunConfig:
    """A small stage 1 that learns something in a minute on two cores."""
    return MaeRunConfig(
        model=AUDIO_MAE_SIZES["demo"],
        data=MaeDataConfig(workers=2),
        batch_size=32,
        micro_batch_size=32,
        steps=420,
        update=UpdateConfig(learning_rate=3e-3, final_learning_rate=1e-5, warmup_steps=20),
        log_every_steps=5,
        save_every_steps=140,
    )


def demo_stage2() -> ContrastiveRunConfig:
    """A small stage 2, SAM on, that retrieves and captions the demo's sounds after a few minutes on two cores."""
    return ContrastiveRunConfig(
        model=AUDIO_TEXT_SIZES["demo"],
        data=ContrastiveDataConfig(workers=2, tokenizer="train", max_text_tokens=40),
        objective=ContrastiveObjectiveConfig(caption_weight=3.0, stash=10, max_patches=48),
        batch_size=64,
        micro_batch_size=64,
        steps=270,
        # The paper's ρ belongs to 287 M parameters; it drowns the gradient of this model, which has under 1 M.
        update=UpdateConfig(learning_rate=3e-3, final_learning_rate=1e-5, warmup_steps=20, rho=0.005),
        log_every_steps=5,
        save_every_steps=135,
    )


Preset = Callable[[], MaeRunConfig] | Callable[[], ContrastiveRunConfig]

PRESETS: dict[Stage, dict[str, Preset]] = {
    "mae": {
        "paper_stage1": paper_stage1,
        "ablation_stage1": ablation_stage1,
        "ablation_stage1_fixed_length": ablation_stage1_fixed_length,
        "demo": demo_stage1,
    },
    "contrastive": {
        "paper_stage2": paper_stage2,
        "ablation_stage2": ablation_stage2,
        "ablation_stage2_fixed_length": ablation_stage2_fixed_length,
        "ablation_stage2_clean": ablation_stage2_clean,
        "ablation_stage2_clean_and_cleaned": ablation_stage2_clean_and_cleaned,
        "ablation_stage2_clean_cleaned_and_synthetic": ablation_stage2_clean_cleaned_and_synthetic,
        "ablation_stage2_no_captioning": ablation_stage2_no_captioning,
        "ablation_stage2_no_sam": ablation_stage2_no_sam,
        "ablation_stage2_no_stage1": ablation_stage2_no_stage1,
        "demo": demo_stage2,
    },
}


def preset(stage: Stage, name: str) -> MaeRunConfig | ContrastiveRunConfig:
    """Return the configuration called ``name``; raises InputError with the nearest name where there is none."""
    known = PRESETS[stage]
    if name in known:
        return known[name]()
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    raise InputError(f"preset {name!r} is unknown for stage {stage}; did you mean {nearest}? (all: {', '.join(known)})")

import json
from typing import Any, get_args

import pytest
from cacophony.engine.config import RUN_CONFIGS, ContrastiveRunConfig, MaeRunConfig, Stage
from cacophony.engine.presets import PRESETS, paper_stage1, paper_stage2, preset
from cacophony.errors import InputError
from cacophony.kernels.log_mel import SAMPLE_RATE, num_patches
from cacophony.models.config_io import difference, from_dict, to_dict

# What the paper states: field of the configuration -> value.
STAGE1 = {
    "batch_size": 512,
    "steps": 200_000,
    "update.learning_rate": 2e-4,
    "update.final_learning_rate": 1e-6,
    "update.warmup_steps": 10_000,
    "update.weight_decay": 0.01,
    "update.rho": 0.0,
    "objective.mask_ratio": 0.8,
    "objective.loss_patches": "masked",
    "data.crop_seconds": 15.0,
    "model.encoder": {"width": 768, "layers": 12, "heads": 8, "mlp_width": 3072},
    "model.decoder": {"width": 768, "layers": 12, "heads": 8, "mlp_width": 3072},
}
STAGE2 = {
    "batch_size": 4096,
    "steps": 300_000,
    "update.learning_rate": 1e-5,
    "update.final_learning_rate": 1e-6,
    "update.warmup_steps": 10_000,
    "update.weight_decay": 0.01,
    "update.rho": 0.075,
    "objective.caption_weight": 1.0,
    "objective.caption_reduction": "caption",
    "objective.halve_contrastive": False,
    "objective.max_patches": 512,
    "data.max_text_tokens": 77,
    "data.synthetic_probability": 0.8,
    "model.audio": {"width": 768, "layers": 12, "heads": 8, "mlp_width": 3072},
    "model.text.layers": 12,
    "model.text.heads": 12,
    "model.text.vocab_size": 50_265,
    "model.caption_layers": 4,
    "model.projection_width": 768,
}
ALL = [(stage, name) for stage in get_args(Stage) for name in PRESETS[stage]]


def field(tree: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        tree = tree[name]
    return tree


@pytest.mark.parametrize(("config", "figures"), [(paper_stage1(), STAGE1), (paper_stage2(), STAGE2)])
def test_the_paper_presets_state_the_papers_figures(config: Any, figures: dict[str, Any]):
    tree = to_dict(config)
    assert {name: field(tree, name) for name in figures} == figures


@pytest.mark.parametrize(("stage", "name"), ALL)
def test_every_preset_survives_json(stage: Stage, name: str):
    config = preset(stage, name)
    assert from_dict(RUN_CONFIGS[stage], json.loads(json.dumps(to_dict(config))), "here") == config


@pytest.mark.parametrize("size", ["paper", "ablation", "demo"])
def test_stage_2_can_take_over_the_audio_encoder_of_stage_1(size: str):
    names = {"paper": ("paper_stage1", "paper_stage2"), "ablation": ("ablation_stage1", "ablation_stage2")}
    first, second = names.get(size, (size, size))
    encoder = to_dict(preset("mae", first))["model"]["encoder"]
    assert to_dict(preset("contrastive", second))["model"]["audio"] == encoder


def test_the_ablation_changes_the_audio_network_only():
    pairs: list[tuple[Stage, str, str]] = [
        ("mae", "paper_stage1", "ablation_stage1"),
        ("contrastive", "paper_stage2", "ablation_stage2"),
    ]
    for stage, paper, ablation in pairs:
        before, after = to_dict(preset(stage, paper)), to_dict(preset(stage, ablation))
        smaller = {"width": 512, "layers": 12, "heads": 8, "mlp_width": 1024}
        for part in ("encoder", "decoder") if stage == "mae" else ("audio",):
            assert after["model"].pop(part) == smaller
            before["model"].pop(part)
        assert after == before


@pytest.mark.parametrize(
    ("stage", "base", "name", "only"),
    [
        ("mae", "ablation_stage1", "ablation_stage1_fixed_length", {"data.fixed_seconds": (0.0, 15.0)}),
        ("contrastive", "ablation_stage2", "ablation_stage2_fixed_length", {"data.fixed_seconds": (0.0, 10.24)}),
        ("contrastive", "ablation_stage2", "ablation_stage2_clean", {"data.sources": ((), ("clean",))}),
        (
            "contrastive",
            "ablation_stage2",
            "ablation_stage2_clean_and_cleaned",
            {"data.sources": ((), ("clean", "cleaned"))},
        ),
        (
            "contrastive",
            "ablation_stage2",
            "ablation_stage2_clean_cleaned_and_synthetic",
            {"data.sources": ((), ("clean", "cleaned", "synthetic"))},
        ),
        ("contrastive", "ablation_stage2", "ablation_stage2_no_captioning", {"objective.caption_weight": (1.0, 0.0)}),
        ("contrastive", "ablation_stage2", "ablation_stage2_no_sam", {"update.rho": (0.075, 0.0)}),
        ("contrastive", "ablation_stage2", "ablation_stage2_no_stage1", {"audio_init": ("init", "random")}),
    ],
)
def test_an_ablation_differs_in_what_it_is_named_for_alone(
    stage: Stage, base: str, name: str, only: dict[str, tuple[Any, Any]]
):
    assert difference(preset(stage, base), preset(stage, name)) == only


def test_a_fixed_length_is_that_of_the_variable_ones_budget():
    first, second = preset("mae", "ablation_stage1_fixed_length"), preset("contrastive", "ablation_stage2_fixed_length")
    assert isinstance(first, MaeRunConfig)
    assert isinstance(second, ContrastiveRunConfig)
    assert first.data.fixed_seconds == first.data.crop_seconds
    assert num_patches(round(second.data.fixed_seconds * SAMPLE_RATE)) == second.objective.max_patches


@pytest.mark.parametrize(
    ("stage", "typed", "meant"),
    [("mae", "paper_stage_1", "paper_stage1"), ("contrastive", "paper_stage1", "paper_stage2"), ("mae", "dem", "demo")],
)
def test_an_unknown_preset_is_refused_with_the_nearest_name(stage: Stage, typed: str, meant: str):
    with pytest.raises(InputError, match=f"'{typed}'.*did you mean {meant}\\?"):
        preset(stage, typed)

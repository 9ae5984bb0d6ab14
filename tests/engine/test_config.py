from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cacophony.engine.config import (
    ContrastiveDataConfig,
    ContrastiveObjectiveConfig,
    ContrastiveRunConfig,
    MaeDataConfig,
    MaeObjectiveConfig,
    MaeRunConfig,
)
from cacophony.engine.update_config import UpdateConfig
from cacophony.errors import InputError
from cacophony.models.config import AudioTextConfig, TextConfig, TransformerConfig

NAN = float("nan")
OUT_OF_RANGE: list[tuple[Callable[..., Any], str, list[Any]]] = [
    (UpdateConfig, "rho", [-1e-9, NAN]),
    (UpdateConfig, "learning_rate", [0.0, -1.0, NAN]),
    (UpdateConfig, "final_learning_rate", [-1e-9, 1.0, NAN]),
    (UpdateConfig, "warmup_steps", [-1]),
    (UpdateConfig, "weight_decay", [-0.1, NAN]),
    (UpdateConfig, "eps", [0.0, NAN]),
    (UpdateConfig, "beta1", [-0.1, 1.0, NAN]),
    (UpdateConfig, "beta2", [-0.1, 1.0, NAN]),
    (UpdateConfig, "max_skipped_in_a_row", [0]),
    (UpdateConfig, "clip_norm", [-0.1, NAN]),
    (UpdateConfig, "ascent_fraction", [0.0, 1.1, NAN]),
    (UpdateConfig, "sam_every", [0]),
    (MaeObjectiveConfig, "mask_ratio", [0.0, 1.0, -0.5, NAN]),
    (ContrastiveObjectiveConfig, "caption_weight", [-0.1, NAN]),
    (ContrastiveObjectiveConfig, "max_patches", [0]),
    (MaeDataConfig, "crop_seconds", [0.0, 0.1, NAN]),
    (MaeDataConfig, "fixed_seconds", [-1.0, 0.1, NAN]),
    (ContrastiveDataConfig, "fixed_seconds", [-1.0, 0.1, NAN, float("inf")]),
    (MaeDataConfig, "workers", [0]),
    (ContrastiveDataConfig, "prefetch_batches", [0]),
    (MaeDataConfig, "max_bad_share", [-0.1, 1.1, NAN]),
    (ContrastiveDataConfig, "max_text_tokens", [2]),
    (ContrastiveDataConfig, "sources", [("",), ("a", "b", "a")]),
    (ContrastiveDataConfig, "synthetic_probability", [-0.1, 1.1, NAN]),
    (MaeRunConfig, "batch_size", [0]),
    (MaeRunConfig, "micro_batch_size", [0]),
    (MaeRunConfig, "micro_batch_tokens", [-1, 1, 743]),  # a crop of 15 s has 744 patches
    (ContrastiveRunConfig, "micro_batch_tokens", [-1, 511]),
    (ContrastiveRunConfig, "micro_batch_text_tokens", [-1, 76]),
    (MaeRunConfig, "steps", [0]),
    (MaeRunConfig, "log_every_steps", [0]),
    (MaeRunConfig, "save_every_steps", [0]),
    (MaeRunConfig, "keep_checkpoints", [0]),
    (MaeRunConfig, "seed", [-1, 2**63]),
    (TransformerConfig, "layers", [0]),
    (TextConfig, "dropout", [-0.1, 1.0, NAN]),
    (AudioTextConfig, "pool_heads", [0, 7]),
]


@pytest.mark.parametrize(
    ("make", "name", "value"), [(make, name, value) for make, name, values in OUT_OF_RANGE for value in values]
)
def test_a_value_outside_its_range_is_refused_by_name(make: Callable[..., Any], name: str, value: Any):
    with pytest.raises(InputError, match=name):
        make(**{name: value})


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "eps", "rho"])
def test_an_update_never_takes_an_infinite_number(name: str):
    with pytest.raises(InputError, match=name):
        UpdateConfig(**{name: float("inf")})  # pyright: ignore[reportArgumentType]


OF_SAM = {"perturbation": "local", "ascent": "momentum", "ascent_fraction": 0.5, "sam_every": 2}


@pytest.mark.parametrize("name", [*OF_SAM, "clip_norm", "no_decay"])
def test_the_rival_update_has_no_options(name: str):
    value = {"clip_norm": 1.0, "no_decay": "vectors", **OF_SAM}[name]
    options: dict[str, Any] = {"rho": 0.1, name: value}
    UpdateConfig(**options)
    with pytest.raises(InputError, match=rf"update\.{name}.*set update\.implementation to arena"):
        UpdateConfig(**options, implementation="per_tensor")


@pytest.mark.parametrize("name", OF_SAM)
def test_an_option_of_sam_without_sam_is_refused(name: str):
    options: dict[str, Any] = {name: OF_SAM[name]}
    with pytest.raises(InputError, match=rf"update\.{name}.*set update\.rho"):
        UpdateConfig(**options)


@pytest.mark.parametrize("name", ["perturbation", "ascent_fraction"])
def test_momentum_leaves_no_gradient_to_change(name: str):
    options: dict[str, Any] = {"rho": 0.1, "ascent": "momentum", name: OF_SAM[name]}
    with pytest.raises(InputError, match=rf"update\.{name}.*set update\.ascent to gradient"):
        UpdateConfig(**options)


def test_an_infinite_temperature_is_refused():
    with pytest.raises(InputError, match="initial_logit_scale"):
        AudioTextConfig(initial_logit_scale=float("inf"))


def test_an_infinite_crop_is_refused():
    with pytest.raises(InputError, match="crop_seconds"):
        MaeDataConfig(crop_seconds=float("inf"))


def test_warm_up_must_end_before_the_run():
    config = MaeRunConfig(steps=11, update=UpdateConfig(warmup_steps=10))
    for steps in (10, 9):
        with pytest.raises(InputError, match=rf"warmup_steps \(10\).*steps \({steps}\)"):
            replace(config, steps=steps)


def test_captions_must_fit_the_position_table():
    model = AudioTextConfig(text=TextConfig(max_positions=40))
    ContrastiveRunConfig(model=model, data=ContrastiveDataConfig(max_text_tokens=40))
    with pytest.raises(InputError, match=r"max_text_tokens \(41\).*max_positions \(40\)"):
        ContrastiveRunConfig(model=model, data=ContrastiveDataConfig(max_text_tokens=41))


@pytest.mark.parametrize("make", [MaeObjectiveConfig, ContrastiveObjectiveConfig])
def test_autograd_has_no_stash_between_nothing_and_everything(make: Callable[..., Any]):
    for stash in (1, 2, 3, 6):
        assert make(stash=stash).blocks == "auto"
        with pytest.raises(InputError, match=rf"objective\.stash is {stash}.*objective\.blocks to by_hand"):
            make(stash=stash, blocks="autograd")
    assert make(stash=10, blocks="autograd").stash == 10


def test_static_micro_batches_have_both_budgets_and_no_padding():
    config = ContrastiveRunConfig(micro_batch_tokens=512, micro_batch_text_tokens=77)
    for alone in ({"micro_batch_tokens": 0}, {"micro_batch_text_tokens": 0}):
        with pytest.raises(InputError, match=r"micro_batch_tokens is .* and micro_batch_text_tokens .*set both"):
            replace(config, **alone)
    for one in (config, MaeRunConfig(micro_batch_tokens=744)):
        with pytest.raises(InputError, match=r"micro_batch_tokens is .*layout is padded; set layout to packed"):
            replace(one, layout="padded")

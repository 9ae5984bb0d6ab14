"""Micro-batches of static size: the same gradient, the same shapes in every step, and dummies that touch nothing."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cacophony.data.batch import AudioTextBatch, collate
from cacophony.engine.build import Config, build_model, build_objective
from cacophony.engine.checkpoint import checkpoints
from cacophony.engine.config import (
    ContrastiveDataConfig,
    ContrastiveObjectiveConfig,
    MaeDataConfig,
    MaeObjectiveConfig,
    MaeRunConfig,
    Stage,
)
from cacophony.engine.contrastive_captioning import PairInputs
from cacophony.engine.distributed import World
from cacophony.engine.masked_reconstruction import MaskedInputs
from cacophony.engine.micro_batches import cut
from cacophony.engine.objective import Report
from cacophony.engine.trainer import train
from cacophony.errors import InputError
from cacophony.kernels import backend
from cacophony.kernels.layout import Packed
from cacophony.kernels.triton_runtime import INTERPRETING
from cacophony.models.audio_mae import AudioEncoder, MAEDecoder
from cacophony.models.by_hand import Stash
from cacophony.models.layers import init_weights
from cacophony.models.text import CaptionDecoder, TextEncoder
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WORLD = World(0, 1, torch.device("cpu"))
STEP = 5
# 8 patches a 16 frames of 10 ms: 48, 24, 8, 56 and 32 of them.
SAMPLES, CAPTIONS = (16_000, 9_000, 3_200, 20_000, 12_345), (6, 2, 9, 3, 20)
BUDGETS = [(64, 24), (112, 31), (200, 64)]


def batch_of(samples: tuple[int, ...], captions: tuple[int, ...]) -> AudioTextBatch:
    rng = np.random.default_rng(0)
    waves = [rng.normal(0, 3000, n).astype(np.int16) for n in samples]
    tokens = [np.array([0, *rng.integers(4, 300, n - 2), 2], np.int32) for n in captions]
    return collate(waves, [7, 3, 900, 0, 12][: len(waves)], tokens)


BATCH = batch_of(SAMPLES, CAPTIONS)
OTHERS = [batch_of((3_200,), (3,)), batch_of((5_000, 20_000, 20_000, 20_000), (24, 2, 2, 24)), BATCH]


@pytest.fixture(params=["mae", "contrastive"])
def config(request: pytest.FixtureRequest) -> Config:
    """Stage 1 with clips of up to 56 patches; stage 2 with up to 40 of a clip's, and dropout."""
    found: Any = request.getfixturevalue(f"{request.param}_config")
    if request.param == "mae":
        return replace(found, data=MaeDataConfig(crop_seconds=1.25), objective=MaeObjectiveConfig(mask_ratio=0.7))
    data = ContrastiveDataConfig(max_text_tokens=24)
    return replace(found, data=data, objective=ContrastiveObjectiveConfig(max_patches=40, caption_weight=0.7))


def with_budget(config: Config, audio: int, text: int) -> Config:
    if isinstance(config, MaeRunConfig):
        return replace(config, micro_batch_tokens=audio)
    return replace(config, micro_batch_tokens=audio, micro_batch_text_tokens=text)


def model_of(config: Config) -> nn.Module:
    model = build_model(config)
    init_weights(model, 1)
    with torch.no_grad():  # away from the start, where embeddings of all clips are nearly equal
        for number, parameter in enumerate(model.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return model


def gradient(
    config: Config, model: nn.Module, batch: AudioTextBatch = BATCH, change: Callable[[Any], None] | None = None
) -> tuple[Report, dict[str, Tensor]]:
    objective = build_objective(config, WORLD)
    inputs = objective.prepare(batch, STEP)
    if change is not None:
        change(inputs)
    model.zero_grad()
    report = objective.backward(model, inputs)
    return report, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def layouts_of(micro: MaskedInputs | PairInputs) -> list[Packed]:
    if isinstance(micro, MaskedInputs):
        found = [micro.patches.kept.layout, micro.patches.restore.layout]
    else:
        found = [micro.audio.layout, micro.text.layout]
    return [layout for layout in found if isinstance(layout, Packed)]


@pytest.mark.parametrize("stash", [0, 1, 2, 3, 6, 10])
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_gradient_is_that_of_micro_batches_that_follow_the_data(
    config: Config, budget: tuple[int, int], stash: Stash
) -> None:
    """Within 1e-5 of each tensor's largest entry, or 5 float32 ulps of the largest of all; counts to the token."""
    if isinstance(config, MaeRunConfig) and stash == 0:
        pytest.skip("stage 1 has no stash 0")
    config = replace(config, objective=replace(config.objective, stash=stash))  # pyright: ignore[reportArgumentType]
    model = model_of(config)
    expected_report, expected = gradient(config, model)
    report, found = gradient(with_budget(config, *budget), model)
    assert (report.valid_tokens, report.model_flops) == (expected_report.valid_tokens, expected_report.model_flops)
    for name, loss in expected_report.losses.items():
        assert float(report.losses[name]) == pytest.approx(float(loss), rel=1e-5), name
    assert found.keys() == expected.keys()
    noise = 3e-7 * max(float(g.abs().max()) for g in expected.values())
    for name, one in expected.items():
        budget_of_error = max(1e-5 * float(one.abs().max()), noise)
        torch.testing.assert_close(found[name], one, rtol=0, atol=budget_of_error, msg=name)


def scribble(inputs: list[MaskedInputs | PairInputs]) -> None:
    """Give the dummies other patches and other tokens."""
    for micro in inputs:
        if isinstance(micro, MaskedInputs):
            parts = (micro.patches.kept, micro.visible_lengths), (micro.patches.restore, micro.restore_lengths)
        else:
            parts = ((micro.audio, micro.audio_lengths),)
            real = int(micro.text.lengths.sum())
            micro.text.token_ids[real:], micro.text.targets[real:] = 11, 12
        for patches, lengths in parts:
            real = int(lengths.sum())
            patches.values[real:] = 30.0
            patches.positions.time[real:], patches.positions.freq[real:] = 3, 5


def test_what_dummies_hold_does_not_change_a_bit(config: Config) -> None:
    config = with_budget(config, *BUDGETS[1])
    assert_dummies_do_nothing(config, BATCH)


@pytest.mark.skipif(not INTERPRETING, reason="kernels run on a CPU in Triton's interpreter alone")
def test_dummies_do_nothing_in_kernels_either(config: Config) -> None:
    """A clip of 8 patches beside 4 dummies, and its caption of 3 tokens beside 3."""
    if isinstance(config, MaeRunConfig):
        config = replace(config, data=MaeDataConfig(crop_seconds=0.2))
    else:
        config = replace(
            config,
            objective=replace(config.objective, max_patches=8, stash=10),
            data=ContrastiveDataConfig(max_text_tokens=6),
        )
    config = with_budget(replace(config, micro_batch_size=1), 12, 6)
    with backend.use_backend("fused"):
        fused = {choice.op for choice in backend.choices(WORLD.device) if choice.path == "fused"}
    with backend.use_backend("fused", fused):
        assert_dummies_do_nothing(config, batch_of((3_200,), (3,)))


def assert_dummies_do_nothing(config: Config, batch: AudioTextBatch) -> None:
    model = model_of(config)
    (report, expected), (other_report, found) = (gradient(config, model, batch, change) for change in (None, scribble))
    assert all(torch.equal(report.losses[name], other_report.losses[name]) for name in report.losses)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Shapes(TorchDispatchMode):
    """Every op's shapes during each forward pass of a tower."""

    def __init__(self) -> None:
        super().__init__()
        self.now: list[Any] | None = None
        self.passes: dict[str, list[list[Any]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.now is not None:
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            self.now.append((func.name(), [tuple(tensor.shape) for tensor in tensors]))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        def begin(tower: nn.Module, _args: Any) -> None:
            self.now = []
            self.passes.setdefault(type(tower).__name__, []).append(self.now)

        def end(*_: Any) -> None:
            self.now = None

        towers = [m for m in model.modules() if isinstance(m, AudioEncoder | MAEDecoder | TextEncoder | CaptionDecoder)]
        hooks = [hook for t in towers for hook in (t.register_forward_pre_hook(begin), t.register_forward_hook(end))]
        with self:
            yield
        for hook in hooks:
            hook.remove()


def test_every_pass_of_every_step_has_the_same_shapes(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """At stash 10, where a micro-batch is embedded once: a second pass finds a layout's positions made.

    On the host the reference attention looks at the lengths; elsewhere it does not know them.
    """
    monkeypatch.setattr(Packed, "host_lengths", None)
    config = with_budget(replace(config, objective=replace(config.objective, stash=10)), *BUDGETS[0])  # pyright: ignore[reportArgumentType]
    objective, model, shapes = build_objective(config, WORLD), model_of(config), Shapes()
    layouts = set()
    for step, batch in enumerate(OTHERS):
        inputs = objective.prepare(batch, step)
        layouts |= {tuple((x.total, x.batch_size, x.max_len) for x in layouts_of(micro)) for micro in inputs}
        with shapes.watching(model):
            objective.backward(model, inputs)
    assert len(layouts) == 1
    assert len(shapes.passes) == (2 if isinstance(config, MaeRunConfig) else 3)
    for passes in shapes.passes.values():
        assert len(passes) > len(OTHERS)
        assert passes[0]
        assert all(one == passes[0] for one in passes)


def test_the_decoder_of_stage_1_sees_the_budget_and_the_encoder_its_share(mae_config: MaeRunConfig) -> None:
    config = replace(mae_config, data=MaeDataConfig(crop_seconds=1.25), objective=MaeObjectiveConfig(mask_ratio=0.7))
    inputs = build_objective(replace(config, micro_batch_tokens=110), WORLD).prepare(BATCH, STEP)
    assert [[layout.total for layout in layouts_of(micro)] for micro in inputs] == [[33, 77]] * len(inputs)
    # 48, 24, 8 | 56, 32 patches: three clips are the most, and the fourth would not have fitted.
    assert [len(micro.visible_lengths) for micro in inputs] == [3, 2]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=12), st.integers(1, 5))
def test_cuts_are_greedy_and_keep_every_clip_in_order(rows: list[tuple[int, int]], size: int) -> None:
    limits = [(torch.tensor([row[i] for row in rows], dtype=torch.int64), most) for i, most in enumerate((10, 5))]
    passes = cut(len(rows), size, limits)
    assert [clip for one in passes for clip in range(one.start, one.stop)] == list(range(len(rows)))

    def fits(clips: slice) -> bool:
        within = all(int(lengths[clips].sum()) <= most for lengths, most in limits)
        return within and clips.stop - clips.start <= size

    assert all(one.stop > one.start and fits(one) for one in passes)
    assert not any(fits(slice(one.start, one.stop + 1)) for one in passes[:-1])


def test_a_clip_over_a_limit_is_no_pass() -> None:
    with pytest.raises(ValueError, match=r"clip 1 has \[9\] tokens, expected at most \[8\]"):
        cut(2, 4, [(torch.tensor([3, 9]), 8)])


def test_a_clip_or_caption_longer_than_the_run_says_is_refused(config: Config) -> None:
    if isinstance(config, MaeRunConfig):
        config = replace(config, data=MaeDataConfig(crop_seconds=1.0))
        message = r"a clip has 56 patches.* 48 by data\.crop_seconds"
    else:
        config = replace(config, data=ContrastiveDataConfig(max_text_tokens=19))
        message = r"a clip has 20 caption tokens.* 19 by data\.max_text_tokens"
    objective = build_objective(with_budget(config, 64, 24), WORLD)
    with pytest.raises(InputError, match=message):
        objective.prepare(BATCH, STEP)


def test_a_run_with_a_budget_continues_bit_for_bit(config: Config, shards: Path, tmp_path: Path) -> None:
    stage: Stage = "mae" if isinstance(config, MaeRunConfig) else "contrastive"
    whole, part = tmp_path / "whole", tmp_path / "part"
    config = replace(with_budget(config, 64, 24), steps=4, save_every_steps=2)
    train(stage, config, shards, whole)
    shutil.copytree(whole, part)
    shutil.rmtree(checkpoints(part)[-1])
    train(stage, config, shards, part, resume=True)
    one, other = (checkpoints(run)[-1] for run in (whole, part))
    assert one.name == other.name
    files = sorted(path.name for path in one.iterdir())
    assert [path for path in files if (one / path).read_bytes() != (other / path).read_bytes()] == []

"""Memory of a step: what few small steps tell, against steps that were made."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from cacophony.data.batch import AudioTextBatch
from cacophony.data.noise import noise_batch
from cacophony.engine.build import Config, build_model, build_objective
from cacophony.engine.config import ContrastiveObjectiveConfig, ContrastiveRunConfig, MaeObjectiveConfig, MaeRunConfig
from cacophony.engine.distributed import World
from cacophony.engine.step_memory import META, ClipSize, StepProbe, trace_step
from cacophony.kernels.backend import use_backend
from cacophony.kernels.triton_runtime import HAS_TRITON
from cacophony.models.audio_mae import AudioMAE
from cacophony.models.audio_text import AudioText
from cacophony.models.config import AudioMAEConfig, AudioTextConfig, TextConfig, TransformerConfig
from cacophony.models.layers import init_weights
from torch.profiler import ProfilerActivity, profile

AUDIO = TransformerConfig(width=32, layers=3, heads=2, mlp_width=128)
MAE = MaeRunConfig(
    model=AudioMAEConfig(encoder=AUDIO, decoder=replace(AUDIO, layers=2)),
    objective=MaeObjectiveConfig(blocks="by_hand", stash=3),
)
CONTRASTIVE = ContrastiveRunConfig(
    model=AudioTextConfig(
        audio=AUDIO,
        text=TextConfig(width=32, layers=2, heads=2, mlp_width=128, vocab_size=60, max_positions=80, dropout=0.1),
        caption_layers=1,
        pool_heads=2,
        projection_width=32,
    ),
    objective=ContrastiveObjectiveConfig(blocks="by_hand", stash=3),
)
CPU = World(0, 1, torch.device("cpu"))
CLIP = ClipSize(patches=64, text_tokens=20)
SECONDS, TOKENS = (CLIP.samples / 16_000, CLIP.samples / 16_000), (CLIP.text_tokens, CLIP.text_tokens)


def real_inputs(config: Config, clips: int) -> tuple[AudioMAE | AudioText, AudioTextBatch]:
    """A network with its gradient buffers, and equal clips of noise."""
    model = build_model(config)
    init_weights(model, 0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model, noise_batch(clips, 60, seconds=SECONDS, tokens=TOKENS)


def real_step(config: Config, clips: int) -> int:
    """Peak of a step that is made."""
    model, batch = real_inputs(config, clips)
    return trace_step(model, config, CPU, batch).peak


def allocated(config: Config, clips: int) -> int:
    """Most bytes that PyTorch's CPU allocator had handed out at a time in a step."""
    model, batch = real_inputs(config, clips)
    objective = build_objective(config, CPU)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        objective.backward(model, objective.prepare(batch, 0))
    kineto: Any = profiled.profiler
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("config", [MAE, CONTRASTIVE], ids=["mae", "contrastive"])
@pytest.mark.parametrize(("micro_batch_size", "micro_batches"), [(4, 3), (8, 4), (16, 2)])
def test_predicted_memory_is_the_allocators(config: Config, micro_batch_size: int, micro_batches: int):
    """Within 5 %: what steps of one and two micro-batches tell, against what a step of many is handed out."""
    config = replace(config, micro_batch_size=micro_batch_size)
    one, two = (real_step(config, count * micro_batch_size) for count in (1, 2))
    made = allocated(config, micro_batches * micro_batch_size)
    assert one + (micro_batches - 1) * (two - one) == pytest.approx(made, rel=0.05)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("config", [MAE, CONTRASTIVE], ids=["mae", "contrastive"])
def test_tensors_without_contents_take_what_the_fused_ops_take(config: Config):
    """Within 5 %: the same step in Triton's interpreter, where the log-mel alone is another op's."""
    config = replace(config, micro_batch_size=2, batch_size=4)
    with META:
        on_meta = build_model(config)
    for parameter in on_meta.parameters():
        parameter.grad = torch.zeros_like(parameter)
    batch = noise_batch(4, 60, seconds=SECONDS, tokens=TOKENS)
    traced = trace_step(on_meta, config, World(0, 1, META), batch.to(META)).peak
    with use_backend("fused"):
        made = real_step(config, 4)
    assert traced == pytest.approx(made, rel=0.05)


def test_a_smaller_stash_keeps_less():
    probe = StepProbe(CONTRASTIVE, CLIP)
    kept = []
    for stash in (0, 1, 2, 3, 6, 10):
        objective = replace(CONTRASTIVE.objective, stash=stash)
        config = replace(CONTRASTIVE, objective=objective, batch_size=64, micro_batch_size=16)
        kept.append(probe.memory(config, ranks=2).kept)
    assert kept == sorted(kept)
    assert kept[0] < 0.05 * kept[1]


def test_the_parts_grow_with_the_clips_of_a_rank():
    probe = StepProbe(CONTRASTIVE, CLIP)
    config = replace(CONTRASTIVE, batch_size=256, micro_batch_size=16)
    few, many = (probe.memory(config, ranks) for ranks in (4, 2))
    assert many.inputs == 2 * few.inputs
    assert many.kept == pytest.approx(2 * few.kept, rel=0.01)
    assert many.prepared == pytest.approx(2 * few.prepared, rel=0.01)
    assert many.working == pytest.approx(few.working, rel=0.05)


@pytest.mark.parametrize("config", [MAE, CONTRASTIVE])
def test_a_micro_batch_is_no_larger_than_a_ranks_share_of_the_batch(config: Config):
    probe, config = StepProbe(config, CLIP), replace(config, batch_size=32)
    fitting, larger = (probe.memory(replace(config, micro_batch_size=size), ranks=4) for size in (8, 64))
    assert larger == fitting


def test_the_state_of_a_bfloat16_run_is_18_bytes_a_linear_parameter_and_20_of_any_other():
    state = StepProbe(replace(CONTRASTIVE, precision="bf16"), CLIP).state
    assert state.master == state.gradient
    assert state.moments == 2 * state.master
    assert 0.5 * state.master < state.compute < state.master
    assert StepProbe(CONTRASTIVE, CLIP).state.compute == state.master

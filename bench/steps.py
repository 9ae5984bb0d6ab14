"""Time of an optimiser step of both stages, packed against padded, on noise of ragged lengths."""

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..data.batch import AudioTextBatch, collate
from ..engine.config import ContrastiveRunConfig, MaeRunConfig, Stage, UpdateConfig
from ..engine.distributed import World
from ..engine.trainer import build_model, build_objective
from ..engine.update import Updater
from ..kernels.layout import LayoutName
from ..kernels.log_mel import SAMPLE_RATE
from ..models.config import AUDIO_MAE_SIZES, AUDIO_TEXT_SIZES
from ..models.generate import BOS, EOS
from ..models.layers import init_weights

STAGES: tuple[Stage, ...] = ("mae", "contrastive")
LAYOUTS: tuple[LayoutName, ...] = ("packed", "padded")
CLIP_SECONDS = (1.0, 10.24)
CAPTION_TOKENS = (6, 30)  # uniform: mean 18, as real captions have; the model takes up to 77


@dataclass(frozen=True)
class StepTiming:
    """A step's time in seconds (median, 20th and 80th percentile) and what it moved at the median."""

    stage: Stage
    layout: LayoutName
    seconds: float
    seconds_p20: float
    seconds_p80: float
    clips_per_s: float
    valid_tokens_per_s: float
    model_tflops_per_s: float


def noise_batch(clips: int, vocab_size: int, seed: int = 0) -> AudioTextBatch:
    """Clips of white noise and captions of random tokens, lengths uniform in CLIP_SECONDS and CAPTION_TOKENS."""
    rng = np.random.default_rng(seed)
    samples = (rng.uniform(*CLIP_SECONDS, clips) * SAMPLE_RATE).astype(int)
    waves = [(3000 * rng.standard_normal(n)).astype(np.int16) for n in samples]
    lengths = rng.integers(CAPTION_TOKENS[0], CAPTION_TOKENS[1] + 1, clips)
    captions = [np.array([BOS, *rng.integers(5, vocab_size, n - 2), EOS], np.int32) for n in lengths]
    return collate(waves, np.arange(clips), captions)


def bench_steps(size: str, clips: int, rounds: int, device: torch.device) -> list[StepTiming]:
    """Time ``rounds`` steps of each stage and layout, after one to warm up; stage 2 with SAM.

    ``size`` names the networks (:mod:`cacophony.models.config`). The layouts take turns, so that what else the machine
    does falls on both.
    """
    timings = []
    for stage in STAGES:
        steps: dict[LayoutName, Callable[[], tuple[int, int]]] = {
            layout: _step(_config(stage, size, clips, layout), device) for layout in LAYOUTS
        }
        work = {layout: step() for layout, step in steps.items()}
        seconds: dict[LayoutName, list[float]] = {layout: [] for layout in LAYOUTS}
        for _ in range(rounds):
            for layout, step in steps.items():
                _synchronise(device)
                started = time.perf_counter()
                step()
                _synchronise(device)
                seconds[layout].append(time.perf_counter() - started)
        for layout in LAYOUTS:
            p20, median, p80 = np.quantile(seconds[layout], (0.2, 0.5, 0.8)).tolist()
            tokens, flops = work[layout]
            rates = clips / median, tokens / median, flops / median / 1e12
            timings.append(StepTiming(stage, layout, median, p20, p80, *rates))
    return timings


def report(timings: list[StepTiming], device: torch.device, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a JSON file holds: the timings, padded time over packed time by stage, machine and versions."""
    seconds = {(t.stage, t.layout): t.seconds for t in timings}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "settings": settings,
        "device": name,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "padded_over_packed": {stage: seconds[stage, "padded"] / seconds[stage, "packed"] for stage in STAGES},
        "steps": [asdict(timing) for timing in timings],
    }


def format_table(timings: list[StepTiming]) -> str:
    """Return the timings as a small table."""
    lines = [f"{'stage':12} {'layout':7} {'step s':>8} {'p20-p80':>15} {'clips/s':>8} {'tokens/s':>9} {'TFLOP/s':>8}"]
    for t in timings:
        spread = f"{t.seconds_p20:.3f}-{t.seconds_p80:.3f}"
        lines.append(
            f"{t.stage:12} {t.layout:7} {t.seconds:8.3f} {spread:>15} {t.clips_per_s:8.1f} "
            f"{t.valid_tokens_per_s:9.0f} {t.model_tflops_per_s:8.4f}"
        )
    return "\n".join(lines)


def _config(stage: Stage, size: str, clips: int, layout: LayoutName) -> MaeRunConfig | ContrastiveRunConfig:
    if stage == "mae":
        update = UpdateConfig(warmup_steps=0)
        return MaeRunConfig(
            model=AUDIO_MAE_SIZES[size], update=update, batch_size=clips, micro_batch_size=clips, layout=layout
        )
    update = UpdateConfig(warmup_steps=0, rho=0.075)
    return ContrastiveRunConfig(
        model=AUDIO_TEXT_SIZES[size], update=update, batch_size=clips, micro_batch_size=clips, layout=layout
    )


def _step(config: MaeRunConfig | ContrastiveRunConfig, device: torch.device) -> Callable[[], tuple[int, int]]:
    """Return a function that makes one optimiser step and returns its valid tokens and model FLOPs."""
    model = build_model(config)
    init_weights(model, config.seed)
    updater = Updater(model.to(device), config.update, config.steps)
    objective = build_objective(config, World(0, 1, device))
    vocab_size = config.model.text.vocab_size if isinstance(config, ContrastiveRunConfig) else 100
    batch = noise_batch(config.batch_size, vocab_size).to(device)

    def step() -> tuple[int, int]:
        inputs = objective.prepare(batch, 0)
        done, outcome = updater.update(0, lambda: objective.backward(model, inputs))
        return done.valid_tokens * outcome.gradients, done.model_flops * outcome.gradients

    return step


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

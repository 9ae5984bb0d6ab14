"""Stage 2's whole update, SAM and all, on noise in one of several ways, and whether the way is right."""

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ..data.batch import AudioTextBatch
from ..data.noise import CAPTION_TOKENS, CLIP_SECONDS
from ..engine.build import build_model, build_objective, build_updater
from ..engine.config import ContrastiveRunConfig
from ..engine.distributed import World
from ..engine.objective import Objective, Report
from ..engine.update import Updater
from ..errors import RunError
from ..kernels.accuracy import map_tensors
from ..kernels.log_mel import FREQ_PATCHES, HOP, PATCH_SIDE, SAMPLE_RATE
from ..kernels.spec import ErrorBudget
from ..models.by_hand import Stash
from ..models.layers import init_weights
from .harness import Task
from .providers import specialising
from .training_step import StepProvider, StepWork, ops_of
from .update_ways import WAYS, Lengths, UpdateProvider, run_config

_LONGEST_EVERY = 32
_CHECKED_CLIPS = 8
_BUDGET = ErrorBudget(factor=3.0, floor_ulps=16.0)  # many roundings in a row, in an order of each way's own


def update_batch(lengths: Lengths, clips: int, config: ContrastiveRunConfig, device: torch.device) -> AudioTextBatch:
    """Return noise: ``full``, every clip and caption as long as the run allows, or ``realistic``.

    Realistic clips and captions have uniform lengths (:mod:`cacophony.data.noise`; captions of 18 tokens in the mean),
    and each 32nd the longest of them, so that padded micro-batches of 32 and more are all of one shape.
    """
    rng = np.random.default_rng(0)
    longest = config.objective.max_patches // FREQ_PATCHES * PATCH_SIDE * HOP
    samples = np.full(clips, longest)
    tokens = np.full(clips, config.data.max_text_tokens)
    if lengths == "realistic":
        samples = (rng.uniform(*CLIP_SECONDS, clips) * SAMPLE_RATE).astype(np.int64)
        tokens = rng.integers(CAPTION_TOKENS[0], CAPTION_TOKENS[1] + 1, clips)
        samples[::_LONGEST_EVERY], tokens[::_LONGEST_EVERY] = round(CLIP_SECONDS[1] * SAMPLE_RATE), CAPTION_TOKENS[1]
    generator = torch.Generator(device).manual_seed(0)
    vocabulary = config.model.text.vocab_size

    def noise(low: int, high: int, count: int, dtype: torch.dtype) -> Tensor:
        return torch.randint(low, high, (count,), dtype=dtype, device=device, generator=generator)

    return AudioTextBatch(
        wave=noise(-9000, 9000, int(samples.sum()), torch.int16),
        wave_offsets=torch.from_numpy(np.cumsum([0, *samples])),
        sample_index=torch.arange(clips, device=device),
        token_ids=noise(5, vocabulary, int(tokens.sum()), torch.int32),
        token_offsets=torch.from_numpy(np.cumsum([0, *tokens])),
    )


class UpdateStep:
    """A network, its objective and its update, ready to make steps of any batch; ``model``, on the host, is copied."""

    def __init__(self, model: nn.Module, config: ContrastiveRunConfig, ops: StepProvider, device: torch.device) -> None:
        self.ops: StepProvider = ops
        self.config = config
        self.model = copy.deepcopy(model).to(device)
        self.objective: Objective = build_objective(config, World(0, 1, device))
        self.updater = build_updater(self.model, config, World(0, 1, device))
        if ops == "compile":
            for network in self.model.children():
                network.compile()

    def run(self, batch: AudioTextBatch, *, sam: bool = True) -> StepWork:
        """Make a step; without ``sam`` a plain one, of one gradient and AdamW."""
        self.updater.config = self.config.update if sam else replace(self.config.update, rho=0.0)
        with ops_of(self.ops), specialising():
            inputs = self.objective.prepare(batch, 0)
            _, outcome = self.updater.update(0, lambda: self.objective.backward(self.model, inputs))
        return StepWork(outcome.valid_tokens, outcome.model_flops)

    def gradients(self, batch: AudioTextBatch) -> dict[str, Tensor]:
        """Make a SAM step and return both gradients by name; in float64 where the network is."""
        seen: dict[str, Tensor] = {}
        is_double = next(self.model.parameters()).dtype == torch.float64

        def gradient() -> Report:
            report = self.objective.backward(self.model, inputs)
            which = "at SAM's point" if seen else "first"
            for name, p in self.model.named_parameters():
                seen[f"{name}, {which}"] = torch.zeros_like(p) if p.grad is None else p.grad.clone()
            return report

        with ops_of(self.ops), specialising():
            inputs = self.objective.prepare(batch, 0)
            inputs = map_tensors(_double, inputs) if is_double else inputs
            self.updater.update(0, gradient)
        return seen

    def update_alone(self) -> Task:
        """Return what a SAM step does beside its gradients: they are noise, of the arena the second is zero."""
        given: list[tuple[nn.Parameter, Tensor]] = []
        nothing = Report({"loss": torch.zeros(())}, 0, 0)
        self.updater.config = self.config.update
        if not isinstance(self.updater, Updater):
            given = [(parameter, torch.randn_like(parameter)) for parameter in self.model.parameters()]

        def prepare() -> None:
            if isinstance(self.updater, Updater):
                self.updater.arena.gradient.normal_()

        def gradient() -> Report:
            for parameter, noise in given:
                parameter.grad = noise
            return nothing

        def run(_: None) -> None:
            with ops_of(self.ops):
                self.updater.update(0, gradient)

        return Task(run, prepare)


def check_gradients(provider: UpdateProvider, stash: Stash, device: torch.device) -> None:
    """Hold both gradients of a small float32 SAM step, in micro-batches, against float64 and one graph of all.

    Raises RunError that names the tensor which is further off than plain PyTorch's own error allows.
    """
    config = run_config("demo", provider, "fp32", _CHECKED_CLIPS, _CHECKED_CLIPS // 2, stash)
    text = replace(config.model.text, dropout=WAYS[provider].dropout)
    config = replace(config, model=replace(config.model, text=text))
    specified = replace(
        config,
        update=replace(config.update, implementation="per_tensor"),
        objective=replace(config.objective, stash=10, blocks="autograd"),
        micro_batch_size=_CHECKED_CLIPS,
        layout="padded",
    )
    model = build_model(config)
    init_weights(model, config.seed)
    batch = update_batch("realistic", _CHECKED_CLIPS, config, device)

    found = UpdateStep(model, config, WAYS[provider].ops, device).gradients(batch)
    reference = UpdateStep(model, specified, "reference", device).gradients(batch)
    truth = UpdateStep(copy.deepcopy(model).double(), specified, "reference", device).gradients(batch)
    whole = float(torch.linalg.vector_norm(torch.stack([exact.norm() for exact in truth.values()])))
    for name, exact in truth.items():
        error, reference_error = (float((x[name].double() - exact).norm()) for x in (found, reference))
        limit = _BUDGET.limit(reference_error, float(exact.norm()), torch.float32)
        # Some gradients (key biases) are zero but for rounding.
        limit += torch.finfo(torch.float32).eps * whole
        if not error <= limit:
            raise RunError(f"its gradient of {name}, is wrong: error {error:.2e}, limit {limit:.2e}")


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor

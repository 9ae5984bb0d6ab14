"""Memory of an optimiser step, found by making it on tensors without contents.

The step that a run makes is made on ``meta`` tensors, as the fused ops would on a GPU, while
:class:`~.live_bytes.LiveBytes` counts: nothing about the networks is written down twice. Bytes grow linearly with the
micro-batches of a step, all of one size, so steps of one and of two tell about one of many.
"""

import contextlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.batch import AudioTextBatch
from ..kernels.backend import use_backend
from ..kernels.log_mel import FREQ_PATCHES, HOP, PATCH_SIDE
from .build import Config, build_model, build_objective, build_updater
from .distributed import World
from .live_bytes import LiveBytes
from .update import Updater

META = torch.device("meta")


@dataclass(frozen=True)
class ClipSize:
    """A clip to plan with: ``patches`` of its log-mel (a multiple of 8), and ``text_tokens`` of its caption."""

    patches: int
    text_tokens: int

    @property
    def samples(self) -> int:
        """Samples at 16 kHz."""
        return self.patches // FREQ_PATCHES * PATCH_SIDE * HOP


@dataclass(frozen=True)
class StateBytes:
    """Bytes of a rank's weights, gradient, AdamW's moments, and the copy of the weights that it computes with."""

    master: int
    gradient: int
    moments: int
    compute: int

    def shared(self, ranks: int) -> "StateBytes":
        """Return what each of so many ranks has that share the update: all of gradient and copy, and shares of them.

        But for the few elements that make all shares as large.
        """
        own_gradient, own_copy = self.gradient // ranks, self.compute // ranks
        return StateBytes(
            self.master // ranks, self.gradient + own_gradient, self.moments // ranks, self.compute + own_copy
        )


@dataclass(frozen=True)
class StepMemory:
    """Most bytes alive in a rank's step beside its state, by what they are for.

    ``inputs``: the batch as loaded, and the next one; ``prepared``: patches, positions and targets of all
    micro-batches; ``kept``: what forward passes leave for the backward ones; ``working``: what one micro-batch takes
    while it is worked on.
    """

    inputs: int
    prepared: int
    kept: int
    working: int


@dataclass(frozen=True)
class Traced:
    """A step as traced: bytes alive once its inputs are prepared, and at its peak, batch and state not counted."""

    prepared: int
    peak: int


@dataclass(frozen=True)
class PlannedWorld(World):
    """A rank whose others are not there: collectives give shapes; ``pairs`` is the clips of all ranks."""

    pairs: int = 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Leave ``tensor`` as it is."""
        return tensor

    def gather(self, rows: Tensor) -> Tensor:
        """Return as many rows as all ranks have: one a clip, or of three dimensions one a rank."""
        return rows.new_empty((self.pairs if rows.dim() < 3 else self.size, *rows.shape[1:]))


class StepProbe:
    """Traces steps of one network on clips of one size; what it has traced once it knows."""

    def __init__(self, config: Config, clip: ClipSize) -> None:
        with META:
            self.model = build_model(config)
        self.clip = clip
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        updater = build_updater(self.model, config, World(0, 1, META))
        if not isinstance(updater, Updater):
            raise ValueError("StepProbe: config.update.implementation is per_tensor, expected arena")
        arena = updater.arena
        self.state = StateBytes(
            arena.master.nbytes,
            arena.gradient.nbytes,
            arena.exp_avg.nbytes + arena.exp_avg_sq.nbytes,
            arena.narrow.nbytes + arena.wide.nbytes,
        )
        self._traced: dict[tuple[object, ...], Traced] = {}

    def memory(self, config: Config, ranks: int) -> StepMemory:
        """Return what a step of ``config`` takes on each of ``ranks``."""
        local = config.batch_size // ranks
        config = replace(config, micro_batch_size=min(config.micro_batch_size, local))
        micro_batches = local / config.micro_batch_size
        one, two = (self._trace(config, ranks, count) for count in (1, 2))
        kept = two.peak - one.peak - (two.prepared - one.prepared)
        batch = batch_of(self.clip, local)
        return StepMemory(
            inputs=2 * (batch.wave.nbytes + batch.token_ids.nbytes),
            prepared=round(one.prepared + (micro_batches - 1) * (two.prepared - one.prepared)),
            kept=round(micro_batches * kept),
            working=one.peak - one.prepared - kept,
        )

    def _trace(self, config: Config, ranks: int, micro_batches: int) -> Traced:
        key = (config.objective, config.micro_batch_size, config.batch_size, ranks, micro_batches)
        if key not in self._traced:
            world = PlannedWorld(0, ranks, META, pairs=config.batch_size)
            batch = batch_of(self.clip, micro_batches * config.micro_batch_size)
            self._traced[key] = trace_step(self.model, config, world, batch)
        return self._traced[key]


def trace_step(model: torch.nn.Module, config: Config, world: World, batch: AudioTextBatch) -> Traced:
    """Prepare ``batch`` and compute its gradient on the world's device while bytes are counted.

    On ``meta`` with the fused ops' shapes, elsewhere with the ops that run there.
    """
    objective = build_objective(config, world)
    on_meta = world.device.type == "meta"
    with use_backend("fused") if on_meta else contextlib.nullcontext(), LiveBytes() as counter:
        inputs = objective.prepare(batch, 0)
        prepared = counter.live
        objective.backward(model, inputs)
    return Traced(prepared, counter.peak)


def batch_of(clip: ClipSize, clips: int) -> AudioTextBatch:
    """Return a batch of so many equal clips, without contents."""

    def offsets(length: int) -> Tensor:
        return torch.arange(clips + 1) * length

    return AudioTextBatch(
        wave=torch.empty(clips * clip.samples, dtype=torch.int16, device=META),
        wave_offsets=offsets(clip.samples),
        sample_index=torch.empty(clips, dtype=torch.int64, device=META),
        token_ids=torch.empty(clips * clip.text_tokens, dtype=torch.int32, device=META),
        token_offsets=offsets(clip.text_tokens),
    )

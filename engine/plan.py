"""A plan: micro-batch and stash of a run on given GPUs, its memory by part, its FLOPs, and how long it should take."""

import functools
import itertools
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch

from ..errors import InputError
from ..kernels.log_mel import FREQ_PATCHES
from ..models.by_hand import Stash
from .config import ContrastiveRunConfig, MaeRunConfig
from .gpus import GIB, Gpu
from .step_cost import Flops, RunConfigOfStage, Transfer, gradient_flops, gradients_per_step, is_shared, transfers
from .step_memory import ClipSize, StateBytes, StepMemory, StepProbe

MEAN_TEXT_TOKENS = 20
"""Of a caption, <s> and </s> included, where nothing else is known."""

RESERVED_BYTES = int(1.5 * GIB)
"""Left alone: CUDA's context, the libraries' workspaces, and what the allocator cannot hand out for its gaps."""

ENOUGH_TOKENS = 32_768
"""Patches of a micro-batch beyond which a larger one is no faster; a smaller stash is not taken for more."""

EFFICIENCY = 0.4
"""Share of the bf16 peak that a step is taken to reach, recomputation counted as work, and of bandwidth 0.8.

Not measured: 41 % is the best published figure for transformers of this width (nanochat d12 on an H100).
"""
BANDWIDTH_SHARE = 0.8

UPDATE_BYTES_PER_PARAMETER = {1: 30, 2: 44}
"""Read and written by the update: AdamW 30; with SAM the norm, 4, and the perturbation, 10, come on top."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a run is planned for."""

    gpu: Gpu
    gpus: int
    clip: ClipSize
    efficiency: float = EFFICIENCY


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a run would go; ``fits`` where its ``memory`` of one GPU is no more than there is."""

    config: RunConfigOfStage
    machine: Machine
    state: StateBytes
    memory: StepMemory
    flops: Flops
    transfers: list[Transfer]
    parameters: int

    @property
    def parts(self) -> dict[str, int]:
        """Bytes on one GPU by what they are for."""
        state, step = self.state, self.memory
        return {
            "weights (float32)": state.master,
            "gradient (float32)": state.gradient,
            "AdamW's moments (float32)": state.moments,
            "weights to compute with": state.compute,
            "batch, and the next one": step.inputs,
            "patches, positions, targets": step.prepared,
            "kept for the backward": step.kept,
            "one micro-batch's work": step.working,
            "left alone": RESERVED_BYTES,
        }

    @property
    def bytes(self) -> int:
        """Bytes on one GPU in all."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether that is there."""
        return self.bytes <= self.machine.gpu.memory_bytes

    @property
    def compute_seconds(self) -> float:
        """Seconds of a step's forward and backward passes."""
        flops = gradients_per_step(self.config) * (self.flops.model + self.flops.recomputed)
        return flops / (self.machine.gpu.bf16_flops * self.machine.efficiency)

    @property
    def update_seconds(self) -> float:
        """Seconds of a step's update, which memory bounds."""
        times, ranks = gradients_per_step(self.config), self.machine.gpus
        of_parameter = float(UPDATE_BYTES_PER_PARAMETER[times])
        if is_shared(self.config, ranks):
            of_parameter = of_parameter / ranks + 4 * times  # all of the gradient becomes zero
        moved = self.parameters * of_parameter
        return moved / (self.machine.gpu.memory_bandwidth * BANDWIDTH_SHARE)

    @property
    def transfer_seconds(self) -> float:
        """Seconds of a step's collectives, hidden behind computation or not."""
        return sum(self._seconds(transfer) for transfer in self.transfers)

    @property
    def exposed_seconds(self) -> float:
        """Seconds of a step in which computation waits for collectives.

        Gradients are summed beside the backward pass of the last micro-batch; what takes longer is waited for, and the
        bucket that becomes whole last always.
        """
        beside = self.last_backward_seconds
        of_bucket = min(self.config.update.bucket_mib * 2**20 / (4 * self.parameters), 1.0)
        exposed = 0.0
        for transfer in self.transfers:
            seconds = self._seconds(transfer)
            exposed += max(seconds - transfer.beside * beside, of_bucket * seconds if transfer.beside else 0.0)
        return exposed

    @property
    def last_backward_seconds(self) -> float:
        """Seconds of the backward pass of a micro-batch: two thirds of its model FLOPs, nothing computed again."""
        local = self.config.batch_size // self.machine.gpus
        micro_batches = max(local / self.config.micro_batch_size, 1.0)
        return 2 / 3 * self.flops.model / micro_batches / (self.machine.gpu.bf16_flops * self.machine.efficiency)

    def _seconds(self, transfer: Transfer) -> float:
        return transfer.seconds(self.machine.gpu, self.machine.gpus) / BANDWIDTH_SHARE

    @property
    def step_seconds(self) -> float:
        """Seconds of a step."""
        return self.compute_seconds + self.update_seconds + self.exposed_seconds

    @property
    def days(self) -> float:
        """Days of the whole run."""
        return self.step_seconds * self.config.steps / 86_400


@functools.lru_cache(maxsize=8)
def _probe(config: RunConfigOfStage, clip: ClipSize) -> StepProbe:
    """Return the one that traces steps of ``config``; what it has traced does not depend on the GPU."""
    return StepProbe(config, clip)


class Planner:
    """Plans runs of one stage and network on one kind of GPU; what is found out about memory is kept."""

    def __init__(self, config: RunConfigOfStage, machine: Machine) -> None:
        if config.batch_size % machine.gpus:
            raise InputError(
                f"batch_size {config.batch_size} is not divisible by {machine.gpus} GPUs; change --batch or --gpus"
            )
        self.config = config
        self.machine = machine
        self.probe = _probe(config, machine.clip)

    def plan(self, config: RunConfigOfStage) -> Plan:
        """Plan exactly ``config``: its batch, micro-batch and stash, whether it fits or not."""
        machine, local = self.machine, config.batch_size // self.machine.gpus
        lengths = torch.full((local,), machine.clip.patches), torch.full((local,), machine.clip.text_tokens)
        state = self.probe.state
        return Plan(
            config=config,
            machine=machine,
            state=state.shared(machine.gpus) if is_shared(config, machine.gpus) else state,
            memory=self.probe.memory(config, machine.gpus),
            flops=gradient_flops(self.probe.model, config, *lengths),
            transfers=transfers(config, state.gradient, state.compute, machine.gpus),
            parameters=self.probe.parameters,
        )

    def best(self, stash: Stash | None = None, micro_batch_size: int | None = None) -> Plan | None:
        """Return the plan with the least recomputation that fits, None where none does; what is given stays.

        Of each stash the largest micro-batch that fits is looked at. A smaller stash is taken only where its
        micro-batch is larger and the one before has fewer than ENOUGH_TOKENS patches.
        """
        if not self.smallest(stash, micro_batch_size).fits:
            return None
        chosen: Plan | None = None
        for level in self._levels(stash):
            for size in self._sizes(micro_batch_size):
                plan = self.plan(self._with(level, size))
                if plan.fits:
                    if chosen is None or size > chosen.config.micro_batch_size:
                        chosen = plan
                    break
                if plan.bytes - plan.memory.working > self.machine.gpu.memory_bytes:
                    break  # the rest does not depend on the size
            if chosen is not None and chosen.config.micro_batch_size >= self._sizes(micro_batch_size)[0]:
                break
        return chosen

    def smallest(self, stash: Stash | None = None, micro_batch_size: int | None = None) -> Plan:
        """Return the plan that takes the least memory, whether it fits or not; what is given stays."""
        return self.plan(self._with(self._levels(stash)[-1], self._sizes(micro_batch_size)[-1]))

    def _with(self, stash: Stash, micro_batch_size: int) -> RunConfigOfStage:
        objective: Any = replace(self.config.objective, stash=stash, blocks="by_hand")
        return replace(self.config, micro_batch_size=micro_batch_size, objective=objective)

    def _sizes(self, asked: int | None) -> list[int]:
        if asked is not None:
            return [asked]
        local = self.config.batch_size // self.machine.gpus
        largest = min(-(-ENOUGH_TOKENS // self.machine.clip.patches), local)
        return [largest >> halvings for halvings in range(largest.bit_length())]

    def _levels(self, asked: Stash | None) -> list[Stash]:
        if asked is not None:
            return [asked]
        levels = sorted(get_args(Stash), reverse=True)
        return [level for level in levels if level > 0 or isinstance(self.config, ContrastiveRunConfig)]


def nearest_that_fits(config: RunConfigOfStage, machine: Machine) -> Plan | None:
    """Return the plan for the largest batch, halved as often as needed, that fits; None where not one clip does."""
    for halvings in itertools.count(1):
        batch = config.batch_size >> halvings
        if batch < machine.gpus or batch % machine.gpus:
            return None
        found = Planner(replace(config, batch_size=batch), machine).best()
        if found is not None:
            return found
    return None


def fit_note(config: RunConfigOfStage, gpu: Gpu, ranks: int) -> str:
    """Return a line that says whether ``config`` fits ``gpu`` if every clip has the most patches it can have.

    Where it does not, the line names the settings of the nearest plan that does.
    """
    patches = config.data.max_patches if isinstance(config, MaeRunConfig) else config.objective.max_patches
    clip = ClipSize(-(-patches // FREQ_PATCHES) * FREQ_PATCHES, MEAN_TEXT_TOKENS)
    planner = Planner(config, Machine(gpu=gpu, gpus=ranks, clip=clip))
    plan = planner.plan(config)
    there = f"{gpu.memory_bytes / GIB:.0f} GiB"
    if plan.fits:
        return f"plan: {plan.bytes / GIB:.1f} of {there} with clips of {patches} patches"
    best = planner.best()
    advice = "take a smaller batch_size, or more GPUs (`cacophony plan`)"
    if best is not None:
        advice = (
            f"--objective.stash {best.config.objective.stash} --micro-batch-size {best.config.micro_batch_size} does"
        )
    return f"plan DOES NOT FIT: {plan.bytes / GIB:.1f} of {there} with clips of {patches} patches; {advice}"

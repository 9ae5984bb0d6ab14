"""The parameter update on flat buffers: gradient → norm → [perturb → gradient → norm] → AdamW, all on the device.

Ranks share it: each sums, perturbs and updates its share of the elements, and every rank gets the copy of all. A step
with SAM sends (ranks - 1) / ranks of: twice the gradient in float32 (reduce-scatter, while the last backward pass goes
on: :mod:`.gradient_sum`) and twice the copy (all-gather).

Nothing here waits for the device or depends on its numbers, so that an update can be captured in a CUDA graph: the
device counts steps, looks up the learning rate and skips a step whose gradient is not finite. :mod:`.update_per_tensor`
is the rival.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..kernels.adamw import SKIPPED, SKIPPED_IN_A_ROW, STEPS, adamw_
from ..kernels.sam import gradient_norm, sam_perturb_
from ..kernels.spans import span
from ..models.layers import Table
from .arena import Arena, ParameterGroup
from .distributed import World
from .gradient_sum import GradientSum
from .objective import Report
from .phases import ASCENT, UPDATE
from .schedule import learning_rate, schedule_table
from .update_config import UpdateConfig


@dataclass(frozen=True)
class Outcome:
    """What an update did; its tensors lie on the device.

    ``gradient_norm`` is that of the first gradient; with SAM it is unperturbed (of ``ascent`` momentum there is no
    such gradient), and with ``local`` perturbation the sum of the ranks' norms. ``reports`` is one a gradient.
    ``sam_loss`` is the loss at SAM's point, None without SAM.
    """

    learning_rate: float
    gradient_norm: Tensor
    skipped_in_a_row: Tensor
    reports: Sequence[Report]
    sam_loss: Tensor | None = None

    @property
    def valid_tokens(self) -> int:
        """Valid tokens of all gradients together."""
        return sum(report.valid_tokens for report in self.reports)

    @property
    def model_flops(self) -> int:
        """Model FLOPs of all gradients together."""
        return sum(report.model_flops for report in self.reports)

    @property
    def recomputed_flops(self) -> int:
        """FLOPs spent on computing again, all gradients together."""
        return sum(report.recomputed_flops for report in self.reports)

    @property
    def skipped(self) -> bool:
        """Whether the step was skipped because a gradient was not finite; waits for the device."""
        return bool(self.skipped_in_a_row > 0)


@dataclass
class Counters:
    """Steps whose gradient was not finite: all of the run, and the latest in a row."""

    skipped: int = 0
    skipped_in_a_row: int = 0


class Updater:
    """Applies updates to a model, whose parameters become views of its :class:`~.arena.Arena`."""

    def __init__(
        self,
        model: nn.Module,
        config: UpdateConfig,
        steps: int,
        *,
        linear_dtype: torch.dtype | None = None,
        world: World | None = None,
    ) -> None:
        """Lay out the arena of a run of ``steps``; ``linear_dtype`` is that in which linear layers compute."""
        self.model, self.config, self.steps = model, config, steps
        self.world = world or alone(model)
        # To follow its own gradient, a rank needs the master of all of it.
        self.is_shared = self.world.size > 1 and config.perturbation == "global"
        self.arena = Arena(
            model,
            parameter_groups(model, config),
            linear_dtype,
            self.world if self.is_shared else None,
            round(config.bucket_mib * 2**20),
        )
        self._sum = GradientSum(self.arena, self.world)
        self._schedule = schedule_table(steps, config).to(self.arena.master)
        self._next_step = 0

    def update(
        self, step: int, gradient: Callable[[], Report], ascent: Callable[[], Report] | None = None
    ) -> tuple[Report, Outcome]:
        """Make optimiser step ``step``; returns the report of its first gradient, and what happened.

        ``gradient`` adds this rank's share of the global batch's gradient to the parameters' ``grad``; ``ascent``, if
        given, that which SAM follows. Every parameter takes part; one without a gradient has a zero one, so its moments
        and weight decay. A step with a gradient that is not finite leaves master and moments as they were and is
        counted. Whatever ``gradient`` raises, the master is as before the step, and what a rank alone computes with.
        """
        arena, config = self.arena, self.config
        if step != self._next_step:
            arena.counts[STEPS].fill_(step)
        self._next_step = step + 1
        arena.attach_gradients()
        reports, ascent_norm = [], None
        with_sam = config.rho > 0.0 and step % config.sam_every == 0
        try:
            if with_sam and config.ascent == "momentum":
                with span(ASCENT), span(UPDATE):
                    self._perturb(arena.exp_avg, self._norm_of(arena.exp_avg))
            elif with_sam:
                with span(ASCENT):
                    # Along its own gradient a rank ascends without the others.
                    with self._sum.watching() if config.perturbation == "global" else contextlib.nullcontext():
                        reports.append((ascent or gradient)())
                    with span(UPDATE):
                        ascent_norm = self._ascend()
            with self._sum.watching():
                reports.append(gradient())
            with span(UPDATE):
                norm = self._norm()
        except BaseException:
            if not self.is_shared:  # where others may be waiting elsewhere, the copy stays: the run ends
                arena.restore_copy()
            arena.gradient.zero_()
            raise
        with span(UPDATE):
            adamw_(
                *(arena.master, arena.exp_avg, arena.exp_avg_sq, arena.own_gradient, arena.own_narrow, arena.own_wide),
                *(arena.groups, arena.table, norm, ascent_norm, arena.counts, self._schedule),
                beta1=config.beta1,
                beta2=config.beta2,
                eps=config.eps,
                clip_norm=config.clip_norm,
            )
            arena.gather_copy()
        rate = learning_rate(step, self.steps, config)
        in_a_row = arena.counts[SKIPPED_IN_A_ROW].clone()
        sam_loss = reports[-1].losses["loss"] if with_sam else None
        first_norm = norm if ascent_norm is None else ascent_norm
        return reports[0], Outcome(rate, first_norm, in_a_row, tuple(reports), sam_loss)

    def _ascend(self) -> Tensor:
        """Perturb the copy along the gradient; returns the norm that says whether the gradient was finite."""
        arena = self.arena
        if self.config.perturbation == "global":
            norm = self._norm()
            self._perturb(arena.own_gradient, norm)
            return norm
        arena.check_gradients()
        own = gradient_norm(arena.gradient)
        self._perturb(arena.gradient, own)
        return self.world.sum_(own)  # not finite on one rank is not finite on all

    def _norm(self) -> Tensor:
        """Wait for the gradient's sum over ranks; returns its norm."""
        self.arena.check_gradients()
        self._sum.finish()
        return self._norm_of(self.arena.own_gradient)

    def _norm_of(self, own: Tensor) -> Tensor:
        """Return the norm of what the ranks hold shares of."""
        norm = gradient_norm(own)
        if not self.is_shared:
            return norm
        return self.world.sum_(norm.double().square()).sqrt().to(norm.dtype)

    def _perturb(self, direction: Tensor, norm: Tensor) -> None:
        arena, rho = self.arena, self.config.rho
        zero = direction is arena.own_gradient
        sam_perturb_(arena.master, direction, norm, arena.own_narrow, arena.own_wide, rho=rho, zero_direction=zero)
        arena.gather_copy()

    @property
    def counters(self) -> Counters:
        """Skipped steps as the device counted them; waits for it."""
        _, _, skipped, in_a_row = self.arena.counts.tolist()
        return Counters(skipped, in_a_row)

    @counters.setter
    def counters(self, counters: Counters) -> None:
        self.arena.counts[SKIPPED] = counters.skipped
        self.arena.counts[SKIPPED_IN_A_ROW] = counters.skipped_in_a_row

    def weights(self) -> dict[str, Tensor]:
        """Return the network's state dict, in the master's precision; all ranks call it."""
        return self.arena.weights()

    def load_weights(self, tensors: dict[str, Tensor], source: Path) -> None:
        """Copy ``tensors`` into master and copy; raises InputError that names one that does not fit."""
        self.arena.load_weights(tensors, source)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return moments and step counts, or this rank's :mod:`pieces <.pieces>` of them: ``exp_avg.<name>``, …"""
        return self.arena.state_tensors()

    def load_state_tensors(self, state: dict[str, Tensor], source: Path) -> None:
        """Restore what :meth:`state_tensors` returned; raises InputError that names a tensor that does not fit."""
        self.arena.load_state_tensors(state, source)


def parameter_groups(model: nn.Module, config: UpdateConfig) -> list[ParameterGroup]:
    """Return who decays and who does not, as ``config.no_decay`` says."""
    tables = {id(p) for module in model.modules() if isinstance(module, Table) for p in module.parameters()}
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        is_exempt = config.no_decay != "none" and parameter.dim() < 2
        is_exempt |= config.no_decay == "vectors_and_tables" and id(parameter) in tables
        (others if is_exempt else decayed).append(name)
    return [ParameterGroup(decayed, config.weight_decay), ParameterGroup(others, 0.0)]


def alone(model: nn.Module) -> World:
    """Return a world of one on the device of ``model``."""
    return World(0, 1, next(model.parameters()).device)

"""The update tensor by tensor: kept copies of the weights for SAM, ``torch.optim.AdamW``. The rival of :mod:`.update`.

It waits for the device at every gradient's norm, and computes from float32 parameters, which autocast casts at every
call. It knows SAM and nothing beside it.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ..kernels.spans import span
from ..models.tensor_shapes import check_tensors, load_into, shapes
from .distributed import World
from .objective import Report
from .phases import ASCENT, UPDATE
from .pieces import join_pieces
from .schedule import learning_rate
from .update import Counters, Outcome, alone
from .update_config import UpdateConfig

_ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")


def model_gradient_norm(model: nn.Module) -> Tensor:
    """Return the L2 norm of all gradients together, a 0-d float32 tensor on the parameters' device."""
    norms = [torch.linalg.vector_norm(p.grad.float()) for p in model.parameters() if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms))


@contextlib.contextmanager
def perturbed(model: nn.Module, rho: float, norm: Tensor) -> Iterator[None]:
    """Run the body with every weight moved by rho · g / ‖g‖ (SAM's ascent); exactly the old weights come back.

    ``norm`` is ‖g‖ over all parameters and more than 0. The gradients are cleared for the body to fill.
    """
    moved = [p for p in model.parameters() if p.grad is not None]
    with span(ASCENT), span(UPDATE):
        saved = [p.detach().clone() for p in moved]
    try:
        with torch.no_grad(), span(ASCENT), span(UPDATE):
            for parameter in moved:
                assert parameter.grad is not None
                parameter.add_(parameter.grad * (rho / norm))
        model.zero_grad(set_to_none=True)
        yield
    finally:
        with torch.no_grad(), span(ASCENT), span(UPDATE):
            for parameter, old in zip(moved, saved, strict=True):
                parameter.copy_(old)


class PerTensorUpdater:
    """Applies updates to a model; its state is the optimiser's and the counters, the same on every rank."""

    is_shared = False

    def __init__(self, model: nn.Module, config: UpdateConfig, steps: int, *, world: World | None = None) -> None:
        """Build the optimiser of a run of ``steps``."""
        self.model, self.config, self.steps = model, config, steps
        self.world = world or alone(model)
        self.counters = Counters()
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
        )

    def update(
        self, step: int, gradient: Callable[[], Report], ascent: Callable[[], Report] | None = None
    ) -> tuple[Report, Outcome]:
        """Make optimiser step ``step``, as :class:`~.update.Updater` does: gradient → [perturb → gradient] → AdamW.

        There is no second gradient where the first is zero or not finite.
        """
        rate = learning_rate(step, self.steps, self.config)
        self.model.zero_grad(set_to_none=True)
        # Without SAM the first gradient is the only one.
        with span(ASCENT) if self.config.rho > 0.0 else contextlib.nullcontext():
            reports = [(ascent or gradient)()]
            with span(UPDATE):
                norm = self._norm()
                norm_value = float(norm)
        finite = math.isfinite(norm_value)
        if finite and self.config.rho > 0.0 and norm_value > 0.0:
            with perturbed(self.model, self.config.rho, norm):
                reports.append(gradient())
            with span(UPDATE):
                finite = math.isfinite(float(self._norm()))
        with span(UPDATE):
            if finite:
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                self.optimizer.step()
            self.model.zero_grad(set_to_none=True)
        self.counters.skipped += not finite
        self.counters.skipped_in_a_row = 0 if finite else self.counters.skipped_in_a_row + 1
        in_a_row = torch.tensor(self.counters.skipped_in_a_row)
        sam_loss = reports[1].losses["loss"] if len(reports) == 2 else None
        return reports[0], Outcome(rate, norm, in_a_row, tuple(reports), sam_loss)

    def _norm(self) -> Tensor:
        self.world.sum_gradients_(self.model)
        return model_gradient_norm(self.model)

    def weights(self) -> dict[str, Tensor]:
        """Return the network's state dict."""
        return self.model.state_dict()

    def load_weights(self, tensors: dict[str, Tensor], source: Path) -> None:
        """Copy ``tensors`` into the network; raises InputError that names one that does not fit."""
        load_into(self.model, tensors, source)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the optimiser's moments and step counts, one entry a parameter: ``exp_avg.<name>``, …"""
        state = {}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"{key}.{name}"] = value
        return state

    def load_state_tensors(self, state: dict[str, Tensor], source: Path) -> None:
        """Restore what :meth:`state_tensors` returned, for every parameter or (before the first update) none.

        Raises InputError that names a tensor that is missing, unexpected or of another shape.
        """
        if not state:
            return
        parameters = dict(self.model.named_parameters())
        expected = {
            f"{key}.{name}": () if key == "step" else tuple(parameter.shape)
            for name, parameter in parameters.items()
            for key in _ADAMW_STATE
        }
        state = join_pieces(state, expected, source)
        check_tensors(shapes(state), expected, source)
        for name, parameter in parameters.items():
            self.optimizer.state[parameter] = {
                # AdamW keeps its step count on the host.
                key: state[f"{key}.{name}"].to("cpu" if key == "step" else parameter.device)
                for key in _ADAMW_STATE
            }

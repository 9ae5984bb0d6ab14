"""Arena: all parameters of a network in one flat float32 buffer, its gradient and moments in others alike.

The network's parameters become views of a copy of the master. In bfloat16 runs the copy holds the weights and biases of
:class:`~.models.layers.Linear` in bfloat16, which is what autocast would make of them at every call; all else, and in
float32 runs everything, is copied as it is. ``grad`` of every parameter is a view of the gradient, float32 always.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.adamw import APPLIED
from ..kernels.adamw_triton import COUNTS
from ..kernels.flat_buffers import SEGMENT, write_copy
from ..kernels.precision import set_gradient
from ..models.layers import Linear
from ..models.tensor_shapes import check_tensors, shapes

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are updated alike: their decoupled weight decay and the factor of their learning rate."""

    names: Sequence[str]
    weight_decay: float
    rate_factor: float = 1.0


@dataclass(frozen=True)
class _Place:
    """Where a parameter lies: from ``start``, in the narrow part of the copy or in the wide."""

    parameter: nn.Parameter
    start: int
    shape: torch.Size
    is_narrow: bool

    def of(self, buffer: Tensor, start: int = 0) -> Tensor:
        """Return the view of a flat ``buffer`` whose first element is number ``start`` of the master."""
        return buffer[self.start - start :][: self.shape.numel()].view(self.shape)


class Arena:
    """The flat buffers of a network on its device, and the network's parameters as views of them.

    ``master``, ``gradient``, ``exp_avg`` and ``exp_avg_sq`` ``[N]``; ``narrow`` and ``wide``, the copy; ``groups`` and
    ``table``, who is updated how; ``counts``: see :mod:`~.kernels.adamw`. Parameters that a network shares lie there
    once. A parameter begins at a multiple of SEGMENT elements; what is between two is zero and stays so.
    """

    def __init__(self, model: nn.Module, groups: Sequence[ParameterGroup], linear_dtype: torch.dtype | None) -> None:
        """Move the parameters of ``model`` into buffers of their dtype; ``linear_dtype`` of the copy of Linear's."""
        parameters = dict(model.named_parameters())
        dtypes, devices = {p.dtype for p in parameters.values()}, {p.device for p in parameters.values()}
        if len(dtypes) != 1 or len(devices) != 1:
            raise ValueError(f"Arena: expected parameters of one dtype on one device, got {dtypes} on {devices}")
        (dtype,), (device,) = dtypes, devices
        self.model = model
        narrow = _linear_parameters(model) if linear_dtype not in (None, dtype) else set()
        group_of = {name: number for number, group in enumerate(groups) for name in group.names}
        self.places: dict[str, _Place] = {}
        numbers: list[int] = []
        narrow_elements = 0
        # A stable sort: linear layers first, else in the order of the network.
        for name in sorted(parameters, key=lambda name: id(parameters[name]) not in narrow):
            parameter, is_narrow = parameters[name], id(parameters[name]) in narrow
            self.places[name] = _Place(parameter, len(numbers) * SEGMENT, parameter.shape, is_narrow)
            numbers += [group_of[name]] * -(-parameter.numel() // SEGMENT)
            narrow_elements = len(numbers) * SEGMENT if is_narrow else narrow_elements
        elements = len(numbers) * SEGMENT

        self.master, self.gradient, self.exp_avg, self.exp_avg_sq = (
            torch.zeros(elements, dtype=dtype, device=device) for _ in range(4)
        )
        self.narrow = torch.zeros(narrow_elements, dtype=linear_dtype or dtype, device=device)
        self.wide = torch.zeros(elements - narrow_elements, dtype=dtype, device=device)
        self.groups = torch.tensor(numbers, dtype=torch.uint8, device=device)
        table = [[group.weight_decay, group.rate_factor] for group in groups]
        self.table = torch.tensor(table, dtype=dtype, device=device)
        self.counts = torch.zeros(COUNTS, dtype=torch.int64, device=device)
        for place in self.places.values():
            place.of(self.master).copy_(place.parameter.detach())
            place.parameter.data = place.of(self.narrow) if place.is_narrow else place.of(self.wide, narrow_elements)
        self.restore_copy()
        self._gradients = {name: place.of(self.gradient) for name, place in self.places.items()}
        self.attach_gradients()

    def attach_gradients(self) -> None:
        """Make ``grad`` of every parameter its view of the gradient again, where somebody dropped or replaced it."""
        for name, view in self._gradients.items():
            parameter = self.places[name].parameter
            if parameter.grad is not view:
                set_gradient(parameter, view)

    def check_gradients(self) -> None:
        """Raise RuntimeError where ``grad`` of a parameter is not its view of the gradient any more."""
        for name, view in self._gradients.items():
            if self.places[name].parameter.grad is not view:
                raise RuntimeError(f"{name}.grad was replaced; add to it in place, and never zero_grad() a step")

    def restore_copy(self) -> None:
        """Let the network compute with the master's values again."""
        write_copy(self.master, self.narrow, self.wide)

    def weights(self) -> dict[str, Tensor]:
        """Return the network's state dict with the master's values."""
        names = {id(place.parameter): name for name, place in self.places.items()}
        return {
            name: self.places[names[id(tensor)]].of(self.master) if id(tensor) in names else tensor
            for name, tensor in self.model.state_dict(keep_vars=True).items()
        }

    def load_weights(self, tensors: Mapping[str, Tensor], source: Path) -> None:
        """Copy ``tensors`` into the master; raises InputError that names one that does not fit."""
        own = self.weights()
        check_tensors(shapes(tensors), shapes(own), source)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
        self.restore_copy()

    def state_tensors(self) -> dict[str, Tensor]:
        """Return moments and step count of every parameter, as AdamW of PyTorch has them: ``exp_avg.<name>``, …"""
        buffers = dict(zip(MOMENTS, (self.exp_avg, self.exp_avg_sq), strict=True))
        applied = self.counts[APPLIED].float().cpu()
        state: dict[str, Tensor] = {}
        for name, _ in self.model.named_parameters():
            state[f"step.{name}"] = applied.clone()
            for key, buffer in buffers.items():
                state[f"{key}.{name}"] = self.places[name].of(buffer)
        return state

    def load_state_tensors(self, state: Mapping[str, Tensor], source: Path) -> None:
        """Restore what :meth:`state_tensors` returned, or nothing (before the first update).

        Raises InputError that names a tensor that is missing, unexpected, misshapen or of another step.
        """
        if not state:
            return
        own = self.state_tensors()
        check_tensors(shapes(state), shapes(own), source)
        steps = {name: float(tensor) for name, tensor in state.items() if name.startswith("step.")}
        applied = max(steps.values())
        for name, count in steps.items():
            if count != applied:
                raise InputError(
                    f"{source}: {name} is {count:g}, that of others {applied:g}; expected one count for all"
                )
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self.counts[APPLIED] = int(applied)


def _linear_parameters(model: nn.Module) -> set[int]:
    """Return the identities of weights and biases of linear layers: what autocast casts, and nothing else is."""
    return {id(p) for module in model.modules() if isinstance(module, Linear) for p in module.parameters()}

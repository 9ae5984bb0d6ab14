"""Arena: all parameters of a network in one flat float32 buffer, its gradient and moments in others alike.

Ranks share the master and the moments: each has an equal slice of every :class:`bucket <.arena_layout.Bucket>`, and
computes with a whole copy. A rank alone has everything.

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
from .arena_layout import ArenaLayout
from .distributed import World
from .pieces import join_pieces, piece_name

MOMENTS = ("exp_avg", "exp_avg_sq")
BUCKET_BYTES = 32 * 2**20
"""Of the gradient that ranks sum at once, where nothing else is asked for."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are updated alike: their decoupled weight decay and the factor of their learning rate."""

    names: Sequence[str]
    weight_decay: float
    rate_factor: float = 1.0


class Arena:
    """The flat buffers of a network on its device, and the network's parameters as views of them.

    Whole on every rank: ``gradient`` ``[N]``; ``narrow`` and ``wide``, the copy. A rank's share, ``[N / ranks]``:
    ``master``, ``exp_avg`` and ``exp_avg_sq``; ``own_gradient``; ``own_narrow`` and ``own_wide``, what it writes of the
    copy for all to gather; ``groups`` and ``table``, who is updated how. ``layout`` says where what lies. ``counts``:
    see :mod:`~.kernels.adamw`. Parameters that a network shares lie there once. A parameter begins at a multiple of
    SEGMENT elements; what is between two is zero and stays so.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ParameterGroup],
        linear_dtype: torch.dtype | None,
        world: World | None = None,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        """Move the parameters of ``model`` into buffers of their dtype; ``linear_dtype`` of the copy of Linear's.

        The ranks of ``world``, all with the same parameters, share master and moments; without one nothing is shared.
        They exchange about ``bucket_bytes`` of the gradient at once.
        """
        parameters = dict(model.named_parameters())
        dtypes, devices = {p.dtype for p in parameters.values()}, {p.device for p in parameters.values()}
        if len(dtypes) != 1 or len(devices) != 1:
            raise ValueError(f"Arena: expected parameters of one dtype on one device, got {dtypes} on {devices}")
        (dtype,), (device,) = dtypes, devices
        self.model = model
        self.world = world or World(0, 1, device)
        narrow = _linear_parameters(model) if linear_dtype not in (None, dtype) else set()
        group_of = {name: number for number, group in enumerate(groups) for name in group.names}
        bucket_elements = bucket_bytes // dtype.itemsize
        self.layout = layout = ArenaLayout.of(parameters, narrow, group_of, self.world.size, bucket_elements)
        self.places = layout.places
        narrow_elements, elements = layout.narrow_elements, layout.elements

        self.gradient = torch.zeros(elements, dtype=dtype, device=device)
        self.narrow = torch.zeros(narrow_elements, dtype=linear_dtype or dtype, device=device)
        self.wide = torch.zeros(elements - narrow_elements, dtype=dtype, device=device)
        flat = torch.zeros(elements, dtype=dtype, device=device)
        for place in self.places.values():
            place.of(flat).copy_(place.parameter.detach())
            place.parameter.data = place.of(self.narrow) if place.is_narrow else place.of(self.wide, narrow_elements)
        write_copy(flat, self.narrow, self.wide)
        numbers = torch.tensor(layout.groups, dtype=torch.uint8).repeat_interleave(SEGMENT)
        self.master, self.own_gradient, self.own_narrow, self.own_wide = flat, self.gradient, self.narrow, self.wide
        if self.world.size > 1:
            self.master, numbers = (layout.cut(whole, self.world.rank) for whole in (flat, numbers))
            self.own_gradient = torch.zeros_like(self.master)
            self.own_narrow = self.narrow.new_zeros(len(self.narrow) // self.world.size)
            self.own_wide = self.wide.new_zeros(len(self.wide) // self.world.size)
        self.exp_avg, self.exp_avg_sq = (torch.zeros_like(self.master) for _ in range(2))
        self.groups = numbers[::SEGMENT].contiguous().to(device)
        table = [[group.weight_decay, group.rate_factor] for group in groups]
        self.table = torch.tensor(table, dtype=dtype, device=device)
        self.counts = torch.zeros(COUNTS, dtype=torch.int64, device=device)
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

    def gather_copy(self) -> None:
        """Let every rank compute with what each wrote into its share of the copy."""
        for bucket in self.layout.buckets:
            whole, own = (self.narrow, self.own_narrow) if bucket.is_narrow else (self.wide, self.own_wide)
            before, own_before = (0, 0) if bucket.is_narrow else (len(self.narrow), len(self.own_narrow))
            self.world.gather_shares(
                whole[bucket.whole.start - before : bucket.whole.stop - before],
                own[bucket.own.start - own_before : bucket.own.stop - own_before],
            )

    def restore_copy(self) -> None:
        """Let the network compute with the master's values again; all ranks call it."""
        write_copy(self.master, self.own_narrow, self.own_wide)
        self.gather_copy()

    def weights(self) -> dict[str, Tensor]:
        """Return the network's state dict with the master's values; all ranks call it.

        Views of the master where a rank is alone, else of a whole one that is gathered for it.
        """
        whole = self.master
        if self.world.size > 1:
            whole = torch.empty_like(self.gradient)
            for bucket in self.layout.buckets:
                self.world.gather_shares(whole[bucket.whole], self.master[bucket.own])
        names = {id(place.parameter): name for name, place in self.places.items()}
        return {
            name: self.places[names[id(tensor)]].of(whole) if id(tensor) in names else tensor
            for name, tensor in self.model.state_dict(keep_vars=True).items()
        }

    def load_weights(self, tensors: Mapping[str, Tensor], source: Path) -> None:
        """Copy ``tensors`` into the master; raises InputError that names one that does not fit."""
        own = self.model.state_dict(keep_vars=True)
        check_tensors(shapes(tensors), shapes(own), source)
        names = {id(place.parameter): name for name, place in self.places.items()}
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
                if id(tensor) in names:
                    self._load(self.master, names[id(tensor)], tensors[name])

    def state_tensors(self) -> dict[str, Tensor]:
        """Return moments and step count of every parameter, as AdamW of PyTorch has them: ``exp_avg.<name>``, …

        Of a parameter that lies on several ranks, this rank's :mod:`piece <.pieces>`; its count is where it begins.
        """
        applied = self.counts[APPLIED].float().cpu()
        state: dict[str, Tensor] = {}
        for name, _ in self.model.named_parameters():
            place, elements = self.places[name], self.places[name].shape.numel()
            first, last, at = self.layout.overlap(place, self.world.rank)
            if first == 0 < last:
                state[f"step.{name}"] = applied.clone()
            for key in MOMENTS:
                piece = getattr(self, key)[at : at + last - first]
                if (first, last) == (0, elements):
                    state[f"{key}.{name}"] = piece.view(place.shape)
                elif first < last:
                    state[piece_name(f"{key}.{name}", first, last)] = piece
        return state

    def load_state_tensors(self, state: Mapping[str, Tensor], source: Path) -> None:
        """Restore what :meth:`state_tensors` returned on all ranks, or nothing (before the first update).

        Raises InputError that names a tensor that is missing, unexpected, misshapen or of another step.
        """
        if not state:
            return
        expected = {
            f"{key}.{name}": () if key == "step" else tuple(place.shape)
            for name, place in self.places.items()
            for key in ("step", *MOMENTS)
        }
        state = join_pieces(state, expected, source)
        check_tensors(shapes(state), expected, source)
        steps = {name: float(tensor) for name, tensor in state.items() if name.startswith("step.")}
        applied = max(steps.values())
        for name, count in steps.items():
            if count != applied:
                raise InputError(
                    f"{source}: {name} is {count:g}, that of others {applied:g}; expected one count for all"
                )
        for name in self.places:
            for key in MOMENTS:
                self._load(getattr(self, key), name, state[f"{key}.{name}"])
        self.counts[APPLIED] = int(applied)

    def _load(self, buffer: Tensor, name: str, tensor: Tensor) -> None:
        """Copy this rank's elements of the whole ``tensor`` of parameter ``name`` into its share, ``buffer``."""
        first, last, at = self.layout.overlap(self.places[name], self.world.rank)
        buffer[at : at + last - first].copy_(tensor.flatten()[first:last])


def _linear_parameters(model: nn.Module) -> set[int]:
    """Return the identities of weights and biases of linear layers: what autocast casts, and nothing else is."""
    return {id(p) for module in model.modules() if isinstance(module, Linear) for p in module.parameters()}

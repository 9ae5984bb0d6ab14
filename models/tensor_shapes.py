"""Named tensors and networks: whether one fits the other, told by shapes, and copying what fits."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ..errors import InputError

Shape = tuple[int, ...]


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Return the shape of every tensor by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_tensors(found: Mapping[str, Shape], expected: Mapping[str, Shape], source: Path) -> None:
    """Raise InputError that names the first tensor that is missing, unexpected or of another shape."""
    for name, shape in expected.items():
        if name not in found:
            raise InputError(f"{source}: tensor {name} is missing; is this a checkpoint of another model or stage?")
        if found[name] != shape:
            raise InputError(f"{source}: tensor {name} has shape {found[name]}, the model expects {shape}")
    for name in found:
        if name not in expected:
            raise InputError(f"{source}: tensor {name} is not in the model; is this a checkpoint of another model?")


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy ``tensors`` into ``module``'s parameters.

    Raises InputError that names the first tensor that is missing, unexpected or of another shape.
    """
    check_tensors(shapes(tensors), shapes(module.state_dict()), source)
    module.load_state_dict(dict(tensors))

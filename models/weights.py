"""Named tensors in safetensors files. No pickle."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors; equal tensors give equal bytes."""
    # transformers refuses a file that does not say which framework's layout it has.
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors would have it readable by its owner alone


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; raises InputError where it is missing, truncated or not one."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: is missing, truncated or not safetensors ({error})") from None

"""Files of tensors: damage and misfits are named, nothing is half loaded."""

from pathlib import Path

import pytest
import torch
from cacophony.errors import InputError
from cacophony.models.tensor_shapes import load_into
from cacophony.models.weights import load_tensors, save_tensors
from safetensors.torch import save_file
from torch import Tensor, nn


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, share: float):
    path = tmp_path / "model.safetensors"
    save_tensors(network(0).state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"model\.safetensors.*truncated"):
        load_tensors(path)


@pytest.mark.parametrize("content", [None, b"PK\x03\x04" + bytes(100), b"\x80\x02}q\x00."])
def test_a_file_that_is_missing_or_a_pickle_is_refused(tmp_path: Path, content: bytes | None):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors.*missing.*not safetensors"):
        load_tensors(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": torch.zeros(3, 4)}, r"0\.weight.*\(3, 4\).*\(4, 3\)"),
        ({"0.weight": None}, r"0\.weight is missing"),
        ({"2.weight": torch.zeros(1)}, r"2\.weight is not in the model"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_nothing_is_loaded(
    tmp_path: Path, change: dict[str, Tensor | None], message: str
):
    path, model = tmp_path / "model.safetensors", network(0)
    tensors: dict[str, Tensor | None] = {name: t + 1.0 for name, t in network(0).state_dict().items()}
    save_file({name: t for name, t in (tensors | change).items() if t is not None}, path)
    with pytest.raises(InputError, match=rf"model\.safetensors: tensor {message}"):
        load_into(model, load_tensors(path), path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), network(0).parameters(), strict=True))

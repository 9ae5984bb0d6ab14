"""What the golden tests share: the stored arrays, the networks with the authors' weights, inputs in both layouts."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cacophony.kernels.backend import choices, use_backend
from cacophony.kernels.layout import Layout, LayoutName, Packed, Padded, Patches, PatchPositions, pad, padded_layout
from cacophony.kernels.patch_mask import MaskedPatches
from cacophony.models.audio_mae import AudioMAE
from cacophony.models.audio_text import AudioText
from cacophony.models.config import AudioMAEConfig, AudioTextConfig
from cacophony.models.convert import from_authors, infer_config, to_authors
from cacophony.models.flax_file import read_tree
from cacophony.models.generate import PAD
from torch import Tensor, nn

from .sampling import Deviation, Places, Tree, deviations

HERE = Path(__file__).parent
CPU = torch.device("cpu")

ENCODER_OPS = ("patch_embed", "layer_norm", "linear", "mlp", "attention")
MAE_OPS = (*ENCODER_OPS, "mae_decoder_input")
MODEL_OPS = (*ENCODER_OPS, "attention_pool")
LOSS_OPS = (*MODEL_OPS, "info_nce", "caption_loss")
UPDATE_OPS = ("gradient_norm", "sam_perturb", "adamw")


def fused_ops(device: torch.device) -> list[str]:
    """Ops that have a fused implementation for tensors on ``device`` here."""
    with use_backend("fused"):
        return [choice.op for choice in choices(device) if choice.path == "fused"]


def run_on(*ops: str, interpreted: bool = True) -> pytest.MarkDecorator:
    """Run a test of a path through ``ops`` with the reference, and with fused ops where any of these is fused.

    The fixture ``device`` says where. A path that has no fused op on this machine gets no such test, not a skipped one;
    nor does one that is not ``interpreted``, because Triton's interpreter would be slow and another test has it in all.
    """
    assert set(ops) <= {choice.op for choice in choices(CPU)}, "an op is called otherwise"
    devices = [torch.device(name) for name in ("cpu", "cuda") if name == "cpu" or torch.cuda.is_available()]
    devices = [device for device in devices if interpreted or device.type == "cuda"]
    fused = [("fused", device) for device in devices if set(ops) & set(fused_ops(device))]
    paths = [("reference", CPU), *fused]
    return pytest.mark.parametrize("device", paths, indirect=True, ids=[f"{name}-{device}" for name, device in paths])


class Golden:
    """One file of stored arrays."""

    def __init__(self, name: str) -> None:
        with np.load(HERE / f"{name}.npz", allow_pickle=False) as file:
            self.arrays: dict[str, np.ndarray] = {key: file[key] for key in file.files}

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def tensor(self, key: str, device: torch.device = CPU) -> Tensor:
        """Return an array as a tensor, integers as int64."""
        tensor = torch.from_numpy(self.arrays[key]).to(device)
        return tensor if tensor.is_floating_point() else tensor.long()

    def places(self, group: str) -> Places:
        """Return where the trees of ``group`` are sampled."""
        prefix = f"{group}/places/"
        return Places.of({k.removeprefix(prefix): a for k, a in self.arrays.items() if k.startswith(prefix)})

    def values(self, group: str, variant: str) -> dict[str, np.ndarray]:
        """Return a sampled tree's entries at its group's places."""
        return self.places(group).split(self[f"{group}/{variant}/values"])

    def deviations(self, group: str, tree: Mapping[str, Tensor] | Tree, variant: str = "") -> list[Deviation]:
        """Compare ``tree`` with a sampled one."""
        prefix = f"{group}/{variant}" if variant else group
        found = {name: numpy(array) for name, array in tree.items()}
        values, summaries = self[f"{prefix}/values"], self[f"{prefix}/summaries"]
        return list(deviations(found, self.places(group), values, summaries))


def numpy(array: Tensor | np.ndarray) -> np.ndarray:
    """Return a tensor's values on the host."""
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else array


def worst(found: Iterable[Deviation]) -> tuple[float, str]:
    """Return the largest error and whose it is."""
    return max((deviation.error, deviation.name) for deviation in found)


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what ``module`` returns."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.append(output)

    handle = module.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def assert_within(found: Tensor, expected: np.ndarray, budget: float) -> None:
    """Hold every element to ``budget``."""
    torch.testing.assert_close(found.detach().cpu(), torch.from_numpy(expected), rtol=0.0, atol=budget)


@lru_cache
def golden(name: str) -> Golden:
    """Return a file of stored arrays, read once."""
    return Golden(name)


@lru_cache
def authors_tree(name: str) -> dict[str, np.ndarray]:
    """Return the parameters in one of the authors' checkpoint files: path joined by ``/``."""
    return read_tree(HERE / f"{name}.ckpt")


def audio_mae(device: torch.device) -> AudioMAE:
    """Return a fresh masked autoencoder with the authors' weights."""
    tree = authors_tree("AudioMAE_small_orbax_aggregate")
    config = infer_config(tree)
    assert isinstance(config, AudioMAEConfig)
    model = AudioMAE(config)
    model.load_state_dict(from_authors(tree, config))
    return model.to(device)


def audio_text(device: torch.device) -> AudioText:
    """Return a fresh audio-text model with the authors' weights."""
    tree = authors_tree("Cacophony_small")
    config = infer_config(tree, text_heads=4, pool_heads=4)
    assert isinstance(config, AudioTextConfig)
    model = AudioText(config)
    model.load_state_dict(from_authors(tree, config))
    return model.to(device)


def authors_parameters(model: AudioMAE | AudioText) -> dict[str, np.ndarray]:
    """Return the parameters under the authors' names."""
    return to_authors(model.state_dict(), model.config)


def authors_gradient(model: AudioMAE | AudioText) -> dict[str, np.ndarray]:
    """Return the gradient under the authors' names: renaming, splitting and transposing are linear."""
    # A copy: the update zeroes what it has used.
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return to_authors(gradient, model.config)


def masked_patches(layout: LayoutName, device: torch.device, clips: slice = slice(None)) -> MaskedPatches:
    """Return visible and restore patches of the masked autoencoder's batch, or of some of its clips."""
    stored = golden("audio_mae")
    return MaskedPatches(*(_patches(stored, side, layout, device, clips) for side in ("visible", "restore")))


def audio_patches(layout: LayoutName, device: torch.device, clips: slice = slice(None)) -> Patches:
    """Return the patches of the audio-text model's batch, or of some of its clips."""
    return _patches(golden("audio_text"), "audio", layout, device, clips)


def laid_out(values: Tensor, positions: PatchPositions, layout: LayoutName) -> Patches:
    """Return packed patches in ``layout``."""
    packed = positions.layout
    if layout == "packed" or isinstance(packed, Padded):
        return Patches(values, positions)
    padded = PatchPositions(pad(positions.time, packed), pad(positions.freq, packed), padded_layout(packed))
    return Patches(pad(values, packed), padded)


def captions(layout: LayoutName, device: torch.device) -> tuple[Tensor, Layout]:
    """Return token ids and layout of the audio-text model's batch."""
    stored = golden("audio_text")
    packed, token_ids = _packed(stored, "text", device), stored.tensor("text/token_ids", device)
    if layout == "packed":
        return token_ids, packed
    padded = padded_layout(packed)
    return torch.where(padded.mask, pad(token_ids, packed), PAD), padded


def _patches(stored: Golden, name: str, layout: LayoutName, device: torch.device, clips: slice) -> Patches:
    every = _packed(stored, name, CPU)
    rows = torch.isin(every.sequence_ids, torch.arange(every.batch_size)[clips])
    packed = Packed.from_lengths(every.lengths[clips], device)
    values, time, freq = (stored.tensor(f"{name}/{key}")[rows].to(device) for key in ("values", "time", "freq"))
    return laid_out(values, PatchPositions(time, freq, packed), layout)


def _packed(stored: Golden, name: str, device: torch.device) -> Packed:
    return Packed.from_lengths(stored.tensor(f"{name}/lengths"), device)

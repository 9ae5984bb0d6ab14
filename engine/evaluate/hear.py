"""Audio embeddings behind the API of the HEAR benchmark, of either stage.

>>> from cacophony.engine.evaluate import hear
>>> model = hear.load_model("runs/caco").to("cuda")
>>> scenes = hear.get_scene_embeddings(audio, model)  # audio: [sounds, samples] at model.sample_rate
>>> events, milliseconds = hear.get_timestamp_embeddings(audio, model)

The API (HEAR 2021, "common API"): a module with these three functions, and a model that says its sample rate and the
sizes of its embeddings.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ...errors import InputError
from ...kernels.layout import Patches
from ...kernels.log_mel import FREQ_PATCHES, HOP, PATCH_SIDE, SAMPLE_RATE, WINDOW, num_patches
from ...models.audio_mae import AudioMAE
from ...models.audio_text import AudioText
from ...models.clip_patches import clip_patches
from ...models.model_directory import read_model

_PATCH_SAMPLES = PATCH_SIDE * HOP
_PATCHES_AT_ONCE = 8192


class HearModel(nn.Module):
    """An audio encoder, and the pooler where there is one, with the attributes that the HEAR API asks for."""

    def __init__(self, network: AudioMAE | AudioText, fixed_seconds: float | None = None) -> None:
        """Take the audio side of ``network``; ``fixed_seconds``: see :func:`load_model`."""
        super().__init__()
        if fixed_seconds is not None and not fixed_seconds * SAMPLE_RATE >= _PATCH_SAMPLES:
            raise InputError(f"fixed_seconds is {fixed_seconds}; expected at least {_PATCH_SAMPLES / SAMPLE_RATE}")
        self.fixed_samples = None if fixed_seconds is None else round(fixed_seconds * SAMPLE_RATE)
        self.sample_rate = SAMPLE_RATE
        if isinstance(network, AudioText):
            self.encoder, self.pooler = network.audio_encoder, network.audio_pooler
            width, self.scene_embedding_size = network.config.audio.width, network.config.projection_width
        else:
            self.encoder, self.pooler = network.encoder, None
            width = self.scene_embedding_size = network.config.encoder.width
        self.timestamp_embedding_size = width
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.patch.weight.device

    def patches(self, audio: Tensor) -> Patches:
        """Return all patches of sounds ``[n, samples]``, cut or followed by silence where their length is fixed."""
        samples = audio.shape[1] if self.fixed_samples is None else self.fixed_samples
        samples = max(samples, _PATCH_SAMPLES)  # silence behind what is too short for a patch
        waves = pad(audio[:, :samples], (0, max(0, samples - audio.shape[1])))
        return clip_patches(list(waves), num_patches(samples), self.device)


def load_model(model_file_path: str | Path = "", *, fixed_seconds: float | None = None) -> HearModel:
    """Load the audio encoder of a model directory (a run of either stage, a converted checkpoint), on the host.

    A sound is seen whole, whatever its length. So it is in the authors' HEAR code (``src/eval/heareval``, commit
    9e5cfce) up to a length that their list gives for each task: the slots behind a shorter one are masked, and of a
    longer one a random subset of patches is seen. With ``fixed_seconds`` every sound is made exactly that long: the
    beginning of a longer one, a shorter one followed by silence, which then counts as sound. That is how we read "fixed
    length" in the paper's table XII; the authors' code has no such setting.

    Raises InputError where the path is no model directory or ``fixed_seconds`` is shorter than a patch.
    """
    return HearModel(read_model(Path(model_file_path)), fixed_seconds)


@torch.no_grad()  # not inference_mode: what is trained on an embedding may keep it for its backward
def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Return one embedding of each sound, float32 ``[n, scene_embedding_size]`` on the model's device.

    Stage 2 gives the unit embedding of its pooler, stage 1 the mean over the patches of the sound. (For stage 1 the
    authors' code averages over the empty slots behind a sound of less than ten seconds, too.)

    Args:
        audio: float ``[n, samples]`` at the model's sample rate, in [-1, 1].
        model: what :func:`load_model` gave.

    Raises InputError where ``audio`` is not of that shape.
    """
    parts = []
    for sounds in _parts(audio, model):
        patches = model.patches(sounds)
        hidden = model.encoder(patches)
        # All sounds are of one length, so no slot is padding.
        parts.append(hidden.mean(dim=1) if model.pooler is None else model.pooler(hidden, patches.layout))
    return torch.cat(parts).float() if parts else torch.zeros(0, model.scene_embedding_size, device=model.device)


@torch.no_grad()  # not inference_mode: what is trained on an embedding may keep it for its backward
def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Return an embedding every 160 ms, float32 ``[n, T, timestamp_embedding_size]``, and their times ``[n, T]``.

    An embedding is the mean of the encoder's hidden states over the eight patches of equal time, as in the authors'
    code. Its time is where the middle of the patch lies, float32 in milliseconds: 87.5, 247.5, … (the authors spread
    the times evenly from 0 to the end). What is left behind the last whole patch, under 160 ms, has no embedding.

    Args:
        audio: float ``[n, samples]`` at the model's sample rate, in [-1, 1].
        model: what :func:`load_model` gave.

    Raises InputError where ``audio`` is not of that shape.
    """
    parts = [
        model.encoder(model.patches(sounds)).unflatten(1, (-1, FREQ_PATCHES)).mean(2) for sounds in _parts(audio, model)
    ]
    nothing = torch.zeros(0, 0, model.timestamp_embedding_size, device=model.device)
    embeddings = torch.cat(parts).float() if parts else nothing
    times = timestamps(embeddings.shape[1]).to(model.device)
    return embeddings, times.expand(len(embeddings), -1).contiguous()


def timestamps(count: int) -> Tensor:
    """Return the times of so many embeddings of one sound, float32 ``[count]`` in milliseconds."""
    middle = ((PATCH_SIDE - 1) * HOP + WINDOW) / 2
    return ((torch.arange(count) * _PATCH_SAMPLES + middle) * (1000 / SAMPLE_RATE)).float()


def _parts(audio: Tensor, model: HearModel) -> list[Tensor]:
    """Divide sounds ``[n, samples]`` into groups of about as many patches as the encoder should see at once."""
    if audio.dim() != 2:
        raise InputError(f"audio has shape {tuple(audio.shape)}; expected [sounds, samples] at {model.sample_rate} Hz")
    samples = audio.shape[1] if model.fixed_samples is None else model.fixed_samples
    sounds = max(1, _PATCHES_AT_ONCE // max(1, num_patches(samples)))
    return list(audio.to(model.device, torch.float32).split(sounds)) if len(audio) else []

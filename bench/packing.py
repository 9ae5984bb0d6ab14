"""What padding costs: a tower's forward and backward on packed tokens against the same on padded ones."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import nn

from ..kernels.backend import Backend, use_backend
from ..kernels.layout import Layout, Packed, Patches, PatchPositions, pad, padded_layout
from ..kernels.log_mel import FREQ_PATCHES, PATCH_PIXELS
from ..models.audio_mae import AudioEncoder
from ..models.config import MAX_TEXT_TOKENS, AudioTextConfig
from ..models.layers import init_weights
from ..models.text import TextEncoder

Tower = Literal["text", "audio"]

FULL_PATCHES = 512  # 10.24 s
FULL_SHARE = 0.4  # of the clips; the others' lengths are uniform from 1 s on
SHORTEST_PATCHES = 48
CAPTION_TOKENS = (6, 30)  # uniform: mean 18 of the 77 slots


@dataclass(frozen=True)
class PackingFigures:
    """Median seconds of both layouts, how many times as long padded takes, and what each computes on."""

    ratio: float
    packed_seconds: float
    padded_seconds: float
    valid_tokens: int
    padded_tokens: int


def bench_packing(
    config: AudioTextConfig, clips: int, rounds: int, device: torch.device, backend: Backend
) -> dict[Tower, PackingFigures]:
    """Time forward + backward of both towers of ``config`` on ``clips`` sequences, the layouts taking turns."""
    rng = np.random.default_rng(0)
    text_lengths = rng.integers(CAPTION_TOKENS[0], CAPTION_TOKENS[1] + 1, clips)
    audio_lengths = clip_lengths(clips, rng)
    with use_backend(backend):
        return {
            "text": _compare(_text_step(config, text_lengths, device), text_lengths, MAX_TEXT_TOKENS, rounds, device),
            "audio": _compare(_audio_step(config, audio_lengths, device), audio_lengths, FULL_PATCHES, rounds, device),
        }


def clip_lengths(clips: int, rng: np.random.Generator) -> np.ndarray:
    """Return patches of each clip: FULL_SHARE of the clips are full, the others uniform in whole time patches."""
    full = round(FULL_SHARE * clips)
    columns = rng.integers(SHORTEST_PATCHES // FREQ_PATCHES, FULL_PATCHES // FREQ_PATCHES, clips - full)
    return np.concatenate((np.full(full, FULL_PATCHES), FREQ_PATCHES * columns))


Step = Callable[[Literal["packed", "padded"]], None]


def _text_step(config: AudioTextConfig, lengths: np.ndarray, device: torch.device) -> Step:
    text = replace(config.text, dropout=0.0)
    encoder = _ready(TextEncoder(text), device)
    packed, padded = _layouts(lengths, MAX_TEXT_TOKENS, device)
    token_ids = torch.randint(5, text.vocab_size, (packed.total,), generator=torch.Generator().manual_seed(0)).to(
        device
    )
    inputs: dict[str, tuple[torch.Tensor, Layout]] = {
        "packed": (token_ids, packed),
        "padded": (_slots(token_ids, packed, MAX_TEXT_TOKENS), padded),
    }

    def step(layout: Literal["packed", "padded"]) -> None:
        ids, its_layout = inputs[layout]
        hidden = encoder(ids, its_layout, stash=10)
        hidden.backward(torch.ones_like(hidden))

    return step


def _audio_step(config: AudioTextConfig, lengths: np.ndarray, device: torch.device) -> Step:
    encoder = _ready(AudioEncoder(config.audio), device)
    packed, padded = _layouts(lengths, FULL_PATCHES, device)
    values = torch.randn((packed.total, PATCH_PIXELS), generator=torch.Generator().manual_seed(0)).to(device)
    numbers = packed.positions
    positions = PatchPositions(numbers // FREQ_PATCHES, numbers % FREQ_PATCHES, packed)
    time_slots, freq_slots = (_slots(x, packed, FULL_PATCHES) for x in (positions.time, positions.freq))
    inputs = {
        "packed": Patches(values, positions),
        "padded": Patches(_slots(values, packed, FULL_PATCHES), PatchPositions(time_slots, freq_slots, padded)),
    }

    def step(layout: Literal["packed", "padded"]) -> None:
        hidden = encoder(inputs[layout], stash=10)
        hidden.backward(torch.ones_like(hidden))

    return step


def _ready(network: nn.Module, device: torch.device) -> nn.Module:
    init_weights(network, 0)
    return network.to(device)


def _layouts(lengths: Sequence[int] | np.ndarray, slots: int, device: torch.device) -> tuple[Packed, Layout]:
    packed = Packed.from_lengths([int(length) for length in lengths], device)
    return packed, padded_layout(replace(packed, max_len=slots))


def _slots(tokens: torch.Tensor, packed: Packed, slots: int) -> torch.Tensor:
    return pad(tokens, replace(packed, max_len=slots))


def _compare(step: Step, lengths: np.ndarray, slots: int, rounds: int, device: torch.device) -> PackingFigures:
    seconds: dict[str, list[float]] = {"packed": [], "padded": []}
    for number in range(rounds + 1):
        for layout in ("packed", "padded"):
            _wait(device)
            started = time.perf_counter()
            step(layout)
            _wait(device)
            if number:  # the first warms up
                seconds[layout].append(time.perf_counter() - started)
    packed, padded = (float(np.median(seconds[layout])) for layout in ("packed", "padded"))
    return PackingFigures(padded / packed, packed, padded, int(lengths.sum()), len(lengths) * slots)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

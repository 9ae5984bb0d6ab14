"""How many clips a second a GPU would take in, and how many cores it then takes to load them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..data.noise import CAPTION_TOKENS
from ..engine.build import build_model
from ..engine.config import MaeRunConfig
from ..engine.gpus import GPUS
from ..engine.presets import PRESETS
from ..engine.step_cost import gradient_flops, gradients_per_step
from ..engine.step_memory import META
from ..kernels.log_mel import SAMPLE_RATE, num_patches

MFU = 0.5
_LOADER = "loader"


@dataclass(frozen=True)
class Demand:
    """Clips a second that one ``gpu`` would train on with ``preset`` at an MFU of 50 %."""

    preset: str
    gpu: str
    clips_per_s: float


def demands(clip_seconds: float) -> list[Demand]:
    """Return what every preset for GPUs would take in on every GPU, of clips of so many seconds.

    Captions have 18 tokens. Raises ValueError for clips that have no whole patch.
    """
    found = []
    for presets in PRESETS.values():
        for name, preset in presets.items():
            config = preset()
            if config.precision != "bf16":  # the demo's, for CPUs
                continue
            seconds = min(clip_seconds, config.data.crop_seconds) if isinstance(config, MaeRunConfig) else clip_seconds
            patches = num_patches(round(seconds * SAMPLE_RATE))
            if not patches:
                raise ValueError(f"demands: clip_seconds is {clip_seconds}, expected at least 0.16")
            with META:
                model = build_model(config)
            lengths = [torch.full((config.batch_size,), n) for n in (patches, sum(CAPTION_TOKENS) // 2)]
            flops = gradients_per_step(config) * gradient_flops(model, config, lengths[0], lengths[1]).model
            found += [Demand(name, gpu.name, MFU * gpu.bf16_flops * config.batch_size / flops) for gpu in GPUS.values()]
    return found


def cores(demand: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return by provider how many cores its loader keeps busy for ``demand``, from rows as in the JSON."""
    return {
        row["provider"]: demand["clips_per_s"] * row["rates"]["cpu_seconds_per_clip"]
        for row in rows
        if row["what"] == _LOADER and row["rates"]
    }


def data_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a JSON file holds of the data bench: its rows, the clips' mean length and the demand for such clips.

    Where nothing was measured there is no length and no demand.
    """
    lengths = [row["rates"]["clip_seconds"] for row in rows if row["rates"]]
    found = [asdict(demand) for demand in demands(lengths[0])] if lengths else []
    return {"clip_seconds": lengths[0] if lengths else None, "rows": rows, "demands": found}

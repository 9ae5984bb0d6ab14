"""Cacophony Engine: train and use an audio-text model (masked autoencoder, then contrastive + captioning with SAM).

>>> import cacophony
>>> model = cacophony.load("runs/stage2")
>>> model.embed_audio(["rain.wav"]) @ model.embed_text(["rain on a tin roof"]).T
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.inference import Cacophony as Cacophony
    from .engine.inference import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the inference API on first use: kernels and benches must import where audio libraries are missing."""
    if name in ("Cacophony", "load"):
        from .engine import inference

        return getattr(inference, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What a run reads: which clips, in what batches, and what makes tokens of its captions."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..data.loader import LoaderConfig
from ..data.shards import Shards
from ..data.tokens import TOKENIZER_FILE, CaptionTokenizer, resolve_tokenizer
from ..errors import InputError
from .build import Config
from .config import ContrastiveRunConfig, MaeRunConfig
from .distributed import World
from .initialisation import tokenizer_spec


def check_batch(config: Config, world: World) -> None:
    """Raise InputError where the ranks cannot share the batch."""
    if config.batch_size % world.size:
        raise InputError(f"batch_size {config.batch_size} is not divisible by {world.size} ranks; change batch_size")


def describe_sources(sources: Sequence[str]) -> str:
    """Say of which sources the clips are drawn."""
    return f"sources {', '.join(sources)}" if sources else "all sources"


def loader_config(config: Config, device: torch.device) -> LoaderConfig:
    """Return how a run's clips become batches."""
    text = config.data if isinstance(config, ContrastiveRunConfig) else None
    return LoaderConfig(
        batch_size=config.batch_size,
        crop_seconds=config.data.crop_seconds if isinstance(config, MaeRunConfig) else None,
        fixed_seconds=config.data.fixed_seconds or None,
        max_text_tokens=text.max_text_tokens if text else None,
        synthetic_probability=text.synthetic_probability if text else 0.0,
        seed=config.seed,
        workers=config.data.workers,
        prefetch_batches=config.data.prefetch_batches,
        max_bad_share=config.data.max_bad_share,
        pin_memory=device.type == "cuda",
    )


def run_tokenizer(
    config: Config, shards: Shards, init: Path | None, continued_run: Path | None
) -> tuple[CaptionTokenizer | None, str]:
    """Return what makes tokens of captions, None in stage 1, and how it was chosen.

    Raises InputError for shards without captions, and as :func:`~..data.tokens.resolve_tokenizer`.
    """
    if not isinstance(config, ContrastiveRunConfig):
        return None, ""
    if not shards.has_captions:
        raise InputError("the shards have no captions, stage 2 needs them: pack with --captions captions.csv")
    if continued_run is not None and (continued_run / TOKENIZER_FILE).is_file():
        return CaptionTokenizer.load(continued_run), "tokenizer: the run's own"
    return resolve_tokenizer(tokenizer_spec(config, init), shards.captions(), config.model.text.vocab_size)

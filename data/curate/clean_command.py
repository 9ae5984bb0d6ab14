"""The command `curate clean`."""

from pathlib import Path

import tyro

from .actors import ActorFlags, Actors
from .clean import clean, summary
from .manifest import read_manifest
from .variants import Dtype, Sampling


def clean_command(
    manifest: tyro.conf.Positional[Path],
    /,
    *,
    cleaner: Path,
    out: Path,
    variants: int = 5,
    temperature: float = 1.0,
    top_p: float = 0.95,
    max_new_tokens: int = 64,
    batch_tokens: int = 16_384,
    seed: int = 0,
    dtype: Dtype | None = None,
    actors: ActorFlags = Actors(),  # noqa: B008  (frozen)
) -> int:
    """Make captions of every noisy description, and flag what does not belong in one.

    Interrupted or killed, the same command continues. Nothing is dropped: flags are for whoever picks texts later.

    Args:
        manifest: Manifest to read.
        cleaner: Directory of `cacophony curate finetune`, or of another T5-family model.
        out: Directory to write; must not exist or be empty.
        variants: Captions for each description.
        temperature: Of the draws.
        top_p: Share of the probability that is drawn from.
        max_new_tokens: Longest caption.
        batch_tokens: Tokens in a batch; what fits into memory.
        seed: Of the draws, with source and id of the clip.
        dtype: Of the weights; bfloat16 on a GPU and float32 on a CPU by default.
        actors: Where to work.
    """
    sampling = Sampling(
        variants=variants,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        seed=seed,
    )
    result = clean(read_manifest(manifest), out, cleaner, sampling, actors, dtype=dtype)
    print("\n".join([*summary(result), str(out)]))
    return 0

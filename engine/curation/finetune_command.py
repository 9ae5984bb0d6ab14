"""The command `curate finetune`."""

from pathlib import Path
from typing import Annotated

import tyro

from ...data.curate.scores import ROUGE
from ...data.curate.variants import Dtype
from ..distributed import join_world
from .finetune_config import Finetuning

FinetuningFlags = Annotated[Finetuning, tyro.conf.arg(name="")]


def finetune_command(
    pairs: tyro.conf.Positional[Path],
    /,
    *,
    out: Path,
    model: str = "google/flan-t5-large",
    device: str = "auto",
    dtype: Dtype | None = None,
    config: FinetuningFlags = Finetuning(),  # noqa: B008  (frozen)
) -> int:
    """Train a T5-family model to make captions of noisy descriptions, and score it on pairs that it did not see.

    Interrupted or killed, the same command continues after the last whole epoch. With torchrun -m cacophony, weights
    and optimiser are sharded over the ranks' GPUs.

    Args:
        pairs: The pairs.jsonl of `cacophony curate label`.
        out: Directory to write, as transformers reads it; must not exist or be empty.
        model: Directory or name on the hub, with weights in safetensors.
        device: auto, cpu, cuda or cuda:N.
        dtype: Of the products; bfloat16 on a GPU and float32 on a CPU by default.
        config: How to train.
    """
    from .finetune import finetune  # torch's sharding takes most of a second to import: not for every command

    world = join_world(device)
    try:
        scores = finetune(pairs, model, out, config, world, dtype=dtype)
    finally:
        world.close()
    if scores is not None and world.is_main:
        rouge = ", ".join(f"{name} {scores[name]:.3f}" for name in ROUGE)
        print(f"epoch {scores['epoch'] + 1}, {scores['texts']} held-out pairs: {rouge}")
        print(f"length {scores['length_ratio']:.2f} of what was wanted, {scores['copied']:.1%} copied")
        for flag, shares in scores["residue"].items():
            print(f"  {flag:12} {shares['captions']:7.1%} of captions, {shares['inputs']:7.1%} of descriptions")
        print(out)
    return 0

"""The command `shards stats`: numbers of a packed directory, as text, JSON and a picture."""

from pathlib import Path

import tyro

from ..data.shards import Shards
from ..data.shards_stats import shards_stats
from ..data.tokens import resolve_tokenizer
from ..json_file import check_writable, write_json
from .figures import corpus_histograms

_VOCABULARY = 50_265


def shards_stats_command(
    folder: tyro.conf.Positional[Path],
    /,
    *,
    json: Path | None = None,
    png: Path | None = None,
    tokenizer: str = "auto",
) -> int:
    """Hours, lengths of clips, captions per clip and tokens per caption of a packed directory; nothing is decoded.

    Args:
        folder: Packed directory.
        json: File for the numbers, with the whole histogram of tokens.
        png: File for a picture of both distributions.
        tokenizer: A directory, a name on the Hugging Face hub, "train", or "auto": what `train contrastive` would take.
    """
    for path in (json, png):
        if path is not None:
            check_writable(path)
    with Shards.open(folder) as shards:
        chosen, how = None, "tokenizer: none, there are no captions."
        if any(True for _ in shards.captions()):
            chosen, how = resolve_tokenizer(tokenizer, shards.captions(), _VOCABULARY)
        stats = shards_stats(shards, chosen)
    if json is not None:
        write_json(json, {"folder": str(folder), "tokenizer": how} | stats.content())
    if png is not None:
        corpus_histograms(png, stats.seconds, stats.tokens)
    print("\n".join([*stats.lines(), how]))
    return 0

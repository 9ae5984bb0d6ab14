"""The command `curate mix`: the mix, its card and its pictures."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import tyro

from ...data.curate.manifest import Manifest, read_manifest
from ...data.curate.mix import Preset, Recipe, mix
from ...data.curate.residue import FLAGS
from ...data.shard_writer import write_atomically
from ...data.tokens import resolve_tokenizer
from ...errors import InputError
from ..figures import corpus_histograms
from .card import LENGTHS_PNG, SOURCES_PNG, card
from .mix_figure import SourceBar, source_bars
from .mix_stats import MixStats, captions_of, mix_stats

CARD_NAME = "card.md"
_VOCABULARY = 50_265


def mix_command(
    manifests: tyro.conf.Positional[list[Path]],
    /,
    *,
    out: Path,
    preset: Preset = "v3",
    weight: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=NUMBER")] = (),
    allow_flag: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FLAG")] = (),
    seed: int = 0,
    tokenizer: str = "auto",
) -> int:
    """Choose the clips that are trained on, how often, and with which captions; write a card with pictures beside them.

    What the mix holds, `cacophony pack` packs. Killed, the same command makes the same mix.

    Args:
        manifests: Manifests, of which the clips are taken in this order.
        out: Directory to write; must not exist or be empty.
        preset: v1 takes clean clips, v2 also noisy ones with cleaned texts, v3 also those that a model captioned.
        weight: How often clips of a source, or of a kind, are taken: 0.5 takes half of them, 3 each thrice, encoded and
            stored three times.
        allow_flag: Flag with which a cleaned text may still be a caption; every other flag keeps it out.
        seed: Decides which clips a weight such as 0.5 takes.
        tokenizer: What counts tokens for the card: a directory, a name on the Hugging Face hub, "train", or "auto".
    """
    unknown = sorted(set(allow_flag) - set(FLAGS))
    if unknown:
        raise InputError(f"flag {unknown[0]!r:.40} is none; expected some of {', '.join(FLAGS)}")
    recipe = Recipe(preset=preset, weights=weights(weight), allowed_flags=allow_flag, seed=seed)
    mixed = mix([read_manifest(folder) for folder in manifests], out, recipe)
    stats = write_card(mixed, tokenizer)
    print("\n".join(summary(mixed, stats)))
    return 0


def weights(given: Iterable[str]) -> dict[str, float]:
    """The weights of `NAME=NUMBER`; raises `InputError` where one is none."""
    found: dict[str, float] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise InputError(f"weight {text!r:.80}: expected NAME=NUMBER, such as freesound=0.5 or clean=2")
    return found


def write_card(mixed: Manifest, tokenizer: str) -> MixStats:
    """Write card.md and its pictures into the mix's directory; raises `InputError` where there is no such tokenizer."""
    chosen, how = resolve_tokenizer(tokenizer, captions_of(mixed), _VOCABULARY)
    stats = mix_stats(mixed, chosen)
    bars = [SourceBar(name, kind, s.clips, s.seconds / 3600) for (name, kind), s in stats.shares.items()]
    source_bars(mixed.folder / SOURCES_PNG, bars)
    corpus_histograms(mixed.folder / LENGTHS_PNG, stats.seconds, stats.tokens)
    write_atomically(mixed.folder / CARD_NAME, card(mixed, stats, how).encode())
    return stats


def summary(mixed: Manifest, stats: MixStats) -> list[str]:
    """Lines for the terminal."""
    total = stats.total
    lines = [
        f"{total.clips} clips, {total.seconds / 3600:.2f} h, {total.captions} captions, {total.synthetic} synthetic, "
        f"in {mixed.folder}"
    ]
    for (source, kind), share in stats.shares.items():
        lines.append(f"{share.clips:10} {kind:9} {share.seconds / 3600:10.2f} h  {source}")
    lines += [f"{count:10} {what}" for what, count in sorted(mixed.counts.items())]
    return [*lines, f"described in {mixed.folder / CARD_NAME}; pack it with cacophony pack {mixed.folder} --out …"]

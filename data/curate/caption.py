"""Captions that a model makes of the audio: of clips without any text, or of all kinds."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import InputError
from .actors import Actors
from .audio_batches import decoded_batches
from .captioner import Captioner
from .manifest import KINDS, Kind, Manifest, Row
from .parts import run_stage


@dataclass(frozen=True)
class Captioning:
    """What a stage does with a part of a manifest."""

    captioner: Captioner
    kinds: Sequence[Kind]
    captions: int
    seed: int

    def __call__(self, rows: list[Row], counts: Counter[str]) -> list[Row]:
        """Fill `synthetic_text` of the rows of the wanted kinds where it is empty, and count what came of it."""
        todo = []
        for row in rows:
            if row["excluded"]:
                counts["left as it is: excluded"] += 1
            elif row["kind"] not in self.kinds:
                counts[f"left as it is: {row['kind']}"] += 1
            elif row["synthetic_text"]:
                counts["left as it is: has captions of a model"] += 1
            else:
                todo.append(row)

        def failed(number: int, reason: str) -> None:
            del number
            counts[f"not captioned: {reason}"] += 1

        paths, seconds = [row["path"] for row in todo], [row["seconds"] for row in todo]
        for batch in decoded_batches(paths, seconds, failed):
            waves = [wave for _, wave in batch]
            batch_rows = [todo[number] for number, _ in batch]
            for caption in range(self.captions):
                seeds = [clip_seed(self.seed, row, caption) for row in batch_rows]
                for row, text in zip(batch_rows, self.captioner(waves, seeds), strict=True):
                    _add(row, " ".join(text.split()), counts)
            for row in batch_rows:
                counts["captioned" if row["synthetic_text"] else "not captioned: the model said nothing"] += 1
        return rows


def _add(row: Row, text: str, counts: Counter[str]) -> None:
    if not text:
        counts["captions without a word"] += 1
    elif text in row["synthetic_text"]:
        counts["captions that a clip has twice"] += 1
    else:
        row["synthetic_text"].append(text)
        counts["captions"] += 1


def clip_seed(seed: int, row: Row, caption: int) -> int:
    """A seed in [0, 2^63) for a caption of a clip, whatever part or batch it is in."""
    key = json.dumps([seed, row["source"], row["id"], caption]).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1


def caption(
    source: Manifest,
    out: Path,
    *,
    make_captioner: Callable[[], Captioner],
    model: Mapping[str, Any],
    kinds: Sequence[Kind] = ("unlabeled",),
    captions: int = 1,
    seed: int = 0,
    actors: Actors,
    progress: bool = True,
) -> Manifest:
    """Write to `out` the rows of `source` with captions in `synthetic_text`.

    Args:
        source: What is read.
        out: Directory of the result.
        make_captioner: Called in each process that works; see `run_stage`.
        model: What decides the captions besides the clips: the model and how it decodes, as JSON.
        kinds: Of the clips that get captions.
        captions: For each clip; equal ones are kept once.
        seed: Of what is drawn.
        actors: Where and on how many processes.
        progress: Show a bar where stderr is a terminal.

    Raises:
        InputError: no kind, or fewer captions than 1; and as `run_stage`.
    """
    if captions < 1:
        raise InputError(f"captions is {captions}; expected at least 1")
    if not kinds:
        raise InputError(f"kinds is empty; expected some of {', '.join(KINDS)}")
    settings = {"model": dict(model), "kinds": sorted(kinds), "captions": captions, "seed": seed}
    make = partial(_make, make_captioner, tuple(kinds), captions, seed)
    return run_stage(source, out, stage="caption", settings=settings, make=make, actors=actors, progress=progress)


def _make(make_captioner: Callable[[], Captioner], kinds: Sequence[Kind], captions: int, seed: int) -> Captioning:
    return Captioning(make_captioner(), kinds, captions, seed)

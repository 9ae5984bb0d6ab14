"""The stage `clean`: captions that a cleaner makes of every noisy description, and what is wrong with each."""

from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...errors import InputError
from ..shard_writer import sha256_of
from .actors import Actors
from .manifest import Manifest, Row, Variant
from .noisy_text import cleaner_inputs, digest_of, is_cut
from .parts import run_stage
from .residue import residue
from .variants import Cleaner, Dtype, Sampling, default_dtype

_READ = ("*.safetensors", "*.json", "*.model", "*.txt")


@dataclass(frozen=True)
class CleanWork:
    """Cleans the noisy rows of a part, which is what is batched by length."""

    cleaner: Cleaner
    sampling: Sampling

    def __call__(self, rows: list[Row], counts: Counter[str]) -> list[Row]:
        """The same rows, with `cleaned` of the noisy ones that are not excluded."""
        inputs = [(row, text, number) for row in rows for number, text in enumerate(_inputs(row, counts))]
        keys = [clip_key(self.sampling.seed, row["source"], row["id"], number) for row, _, number in inputs]
        made = self.cleaner.sample([text for _, text, _ in inputs], keys, self.sampling)
        for (row, _, _), captions in zip(inputs, made, strict=True):
            variants = [Variant(text=text, flags=residue(text)) for text in captions]
            row["cleaned"].extend(variants)
            counts["descriptions"] += 1
            counts["variants"] += len(variants)
            counts["unflagged variants"] += sum(not variant["flags"] for variant in variants)
            counts["descriptions without an unflagged variant"] += all(variant["flags"] for variant in variants)
            counts.update(f"flag {flag}" for variant in variants for flag in variant["flags"])
        return rows


def clean(
    source: Manifest,
    out: Path,
    cleaner: Path,
    sampling: Sampling,
    actors: Actors,
    *,
    dtype: Dtype | None = None,
    progress: bool = True,
) -> Manifest:
    """Write to `out` the rows of `source` with `cleaned`; no row is dropped, flagged or not.

    Args:
        source: What is read.
        out: Directory of the result.
        cleaner: Directory of `curate finetune`, or any T5-family model's.
        sampling: How captions are drawn.
        actors: Where; each actor that has a share of a GPU works on that, and this process on a GPU where there is one.
        dtype: Of the weights; bfloat16 on a GPU and float32 on a CPU by default.
        progress: Show a bar.

    Raises:
        InputError: `cleaner` is no such directory, `source` is cleaned already, or see `run_stage`.
    """
    if source.stage == "clean":
        raise InputError(f"{source.folder}: is cleaned already; give the manifest that it was made of")
    on_gpu = actors.gpus_per_worker > 0 if actors.workers else torch.cuda.is_available()
    # Actors' GPUs may be elsewhere; they are taken to be of today.
    chosen = dtype or (
        "bfloat16" if on_gpu and actors.workers else default_dtype(torch.device("cuda" if on_gpu else "cpu"))
    )
    settings = {"cleaner": cleaner_digest(cleaner), "dtype": chosen} | asdict(sampling)
    return run_stage(
        source,
        out,
        stage="clean",
        settings=settings,
        make=partial(make_work, cleaner.absolute(), sampling, on_gpu, chosen),
        actors=actors,
        progress=progress,
    )


def make_work(cleaner: Path, sampling: Sampling, on_gpu: bool, dtype: Dtype) -> CleanWork:
    """Load the cleaner in the process that works; raises `InputError` where it shall use a GPU and has none."""
    if on_gpu and not torch.cuda.is_available():
        raise InputError("a worker sees no GPU; leave out --gpus-per-worker to clean on CPUs")
    return CleanWork(Cleaner(cleaner, torch.device("cuda" if on_gpu else "cpu"), dtype), sampling)


def cleaner_digest(folder: Path) -> str:
    """SHA-256 over the files of a transformers directory that decide what it writes, hexadecimal."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no cleaner (no config.json); make one with cacophony curate finetune")
    files = sorted({path for pattern in _READ for path in folder.glob(pattern)} - {folder / "scores.json"})
    return digest_of([(path.name, sha256_of(path)) for path in files])


def clip_key(seed: int, source: str, id: str, number: int) -> int:
    """64 bits for a clip's description `number`."""
    return int(digest_of(seed, source, id, number)[:16], 16)


def _inputs(row: Row, counts: Counter[str]) -> list[str]:
    if row["kind"] != "noisy":
        return []
    if row["excluded"]:
        counts["excluded clips"] += 1
        return []
    if row["cleaned"]:
        raise InputError(
            f"clip {row['id']!r:.80} of {row['source']!r:.80} is cleaned already; give the manifest before"
        )
    texts = cleaner_inputs(row)
    counts["noisy clips"] += 1
    counts["clips without any text"] += not texts
    counts["descriptions cut"] += sum(map(is_cut, row["texts"]))
    return texts


def summary(manifest: Manifest) -> list[str]:
    """What a cleaned manifest holds, in lines."""
    counts: dict[str, Any] = manifest.counts
    lines = [
        f"{counts.get('variants', 0)} captions of {counts.get('descriptions', 0)} descriptions, "
        f"{counts.get('unflagged variants', 0)} without a flag"
    ]
    flagged = [(count, name) for name, count in counts.items() if name.startswith("flag ")]
    lines += [f"  {count:8}  {name.removeprefix('flag ')}" for count, name in sorted(flagged, reverse=True)]
    return lines

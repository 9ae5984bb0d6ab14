"""Clips and texts of a corpus through a model: by length, read ahead by threads, what is done kept in a store."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from rich.progress import track

from ..inference import Cacophony, Method
from .datasets.corpus import Clip
from .store import Store

CLIPS_AT_ONCE = 64
"""Clips in memory, and in one file of the store; twice as many while the next are read."""


@dataclass(frozen=True)
class Decoding:
    """How captions are generated; the defaults are the paper's."""

    method: Method = "sample"
    temperature: float = 0.1
    beams: int = 3
    seed: int = 0


def embed_clips(model: Cacophony, clips: Sequence[Clip], store: Store, *, progress: bool = False) -> np.ndarray:
    """Return unit embeddings float32 ``[N, P]`` of whole clips, in their order.

    They do not depend on that order, nor on how much of them the store already had. Raises InputError for a file that
    cannot be decoded.
    """
    embeddings = np.zeros((len(clips), model.model.config.projection_width), np.float32)
    pieces = _pieces(clips)
    keys = [_key(model, clips, piece) for piece in pieces]
    absent = [not store.has("audio", key, ".safetensors") for key in keys]
    waves = _read_ahead(clips, [piece for piece, wanted in zip(pieces, absent, strict=True) if wanted])
    steps = zip(pieces, keys, strict=True)
    for piece, key in track(steps, "embedding audio", len(pieces), disable=not progress, transient=True):
        embeddings[piece] = store.array("audio", key, lambda: model.embed_audio(next(waves)))
    return embeddings


def embed_texts(model: Cacophony, texts: Sequence[str], store: Store) -> np.ndarray:
    """Return unit embeddings float32 ``[M, P]`` of ``texts``, in their order; equal texts have equal ones."""
    distinct = sorted(set(texts))
    rows = store.array("text", [str(model.max_text_tokens), *distinct], lambda: model.embed_text(distinct))
    number = {text: row for row, text in enumerate(distinct)}
    return rows[[number[text] for text in texts]]


def caption_clips(
    model: Cacophony, clips: Sequence[Clip], decoding: Decoding, store: Store, *, progress: bool = False
) -> list[str]:
    """Return a caption of each clip, in their order.

    Raises InputError for a file that cannot be decoded, and where the model has no tokenizer.
    """
    captions = [""] * len(clips)
    pieces = _pieces(clips)
    keys = [[repr(decoding), *_key(model, clips, piece)] for piece in pieces]
    absent = [not store.has("captions", key, ".json") for key in keys]
    waves = _read_ahead(clips, [piece for piece, wanted in zip(pieces, absent, strict=True) if wanted])
    options = vars(decoding)
    steps = zip(pieces, keys, strict=True)
    for piece, key in track(steps, "captioning", len(pieces), disable=not progress, transient=True):
        texts = store.texts("captions", key, lambda: model.caption(next(waves), **options))
        for row, text in zip(piece, texts, strict=True):
            captions[row] = text
    return captions


def _pieces(clips: Sequence[Clip]) -> list[list[int]]:
    """Rows of the clips, those of like length together, in a form that depends on the clips alone."""
    order = sorted(range(len(clips)), key=lambda row: (clips[row].samples, clips[row].name))
    return [order[start : start + CLIPS_AT_ONCE] for start in range(0, len(order), CLIPS_AT_ONCE)]


def _key(model: Cacophony, clips: Sequence[Clip], piece: Sequence[int]) -> list[str]:
    return [str(model.max_patches), *(clips[row].identity for row in piece)]


def _read_ahead(clips: Sequence[Clip], pieces: Sequence[Sequence[int]]) -> Iterator[list[np.ndarray]]:
    """Decode piece after piece in threads, the next one while its predecessor is in use."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:

        def begin(piece: Sequence[int]) -> list[Future[np.ndarray]]:
            return [pool.submit(clips[row].read) for row in piece]

        waiting = begin(pieces[0]) if pieces else []
        for index in range(len(pieces)):
            reading, waiting = waiting, begin(pieces[index + 1]) if index + 1 < len(pieces) else []
            yield [future.result() for future in reading]

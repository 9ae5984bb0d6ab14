"""The clips of the evaluation sets: where they are, what they are compared by, kept on disk and held in memory."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ...extras import require
from ..audio import AUDIO_SUFFIXES, UNREAD, AudioError, printable, probe_seconds
from ..captions import is_utf8
from ..corpus import is_audio, is_unread, walk_files
from ..progress import progress_bar
from .actors import Actors, on_actors
from .audio_features import AudioFeatures, Passes, audio_features
from .fingerprint import Fingerprint
from .fingerprint_index import FingerprintIndex, Nearest
from .manifest import MANIFEST_NAME, Row, arrow, read_manifest, write_table

CLIPS_IN_PART = 128
"""What is computed at a time, and again after a kill."""

_FORMAT = 1  # changes with what a part holds


@dataclass(frozen=True)
class EvaluationClip:
    """One file."""

    name: str
    """As it stands in reports."""
    path: str


def list_clips(folders: Sequence[Path]) -> list[EvaluationClip]:
    """The clips of manifests, and all audio files of other folders, each in order.

    Raises `InputError` for a folder that is not there, cannot be listed or has no clip.
    """
    clips: list[EvaluationClip] = []
    for folder in folders:
        before = len(clips)
        if (folder / MANIFEST_NAME).is_file():
            named = (EvaluationClip(f"{row['source']}/{row['id']}", row["path"]) for row in read_manifest(folder))
            clips.extend(named)
        elif folder.is_dir():
            names = sorted(walk_files(folder))
            if unread := next(filter(is_unread, names), None):
                raise InputError(
                    f"{folder / printable(unread)}: {UNREAD}; it cannot be compared with anything as it is"
                )
            clips.extend(
                EvaluationClip(
                    f"{folder.name}/{name if is_utf8(name) else printable(name)}",
                    os.path.join(os.path.abspath(folder), name),
                )
                for name in filter(is_audio, names)
            )
        else:
            raise InputError(f"{folder}: no such folder; expected one with audio files, or a manifest")
        if len(clips) == before:
            raise InputError(f"{folder}: holds no clip; expected files that end in {', '.join(AUDIO_SUFFIXES)}")
    return clips


def manifest_rows(folders: Sequence[Path]) -> Iterator[tuple[str, Iterator[Row]]]:
    """Name and rows of those folders that are manifests."""
    for folder in folders:
        if (folder / MANIFEST_NAME).is_file():
            yield folder.name, iter(read_manifest(folder))


@dataclass(frozen=True)
class EvaluationParts:
    """The features of all clips, in files that are named after what they were computed from."""

    clips: list[EvaluationClip]
    cache: Path
    passes: Passes
    model: str
    """Digest of the model behind the embeddings; empty without one."""

    @property
    def count(self) -> int:
        """How many parts there are."""
        return -(-len(self.clips) // CLIPS_IN_PART)

    def of(self, number: int) -> list[EvaluationClip]:
        """The clips of a part."""
        return self.clips[number * CLIPS_IN_PART : (number + 1) * CLIPS_IN_PART]

    def path(self, number: int) -> Path:
        """Where a part is, or will be."""
        files = [[clip.name, clip.path, *_identity(clip.path)] for clip in self.of(number)]
        wanted = [_FORMAT, self.passes.pcm, self.passes.fingerprint, self.model]
        return self.cache / f"{hashlib.sha256(json.dumps([wanted, files]).encode()).hexdigest()[:32]}.parquet"

    def digest(self) -> str:
        """Equal where clips, files and passes are."""
        names = [self.path(number).name for number in range(self.count)]
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()

    def start(self) -> Callable[[int], int]:
        """Make the model; the result computes and writes a part and returns how many clips it has."""
        embedder = self.passes.make_embedder() if self.passes.make_embedder else None

        def run(number: int) -> int:
            clips = self.of(number)
            rows: list[dict[str, Any]] = [{"name": clip.name, "reason": ""} | _NOTHING for clip in clips]

            def failed(clip: int, reason: str) -> None:
                rows[clip]["reason"] = reason

            paths = [clip.path for clip in clips]
            for batch in audio_features(paths, _seconds(paths), self.passes, embedder, failed, phases=1):
                for clip, features in batch:
                    rows[clip] |= _columns(features)
            write_table(self.path(number), arrow().Table.from_pylist(rows, schema=_schema()))
            return len(clips)

        return run


@dataclass(frozen=True)
class Evaluation:
    """Everything a training clip is compared with, in memory."""

    names: list[str]
    """Of the clips that could be decoded."""
    paths: list[str]
    """Their files."""
    pcm: dict[bytes, int]
    fingerprints: FingerprintIndex | None
    embeddings: Any
    """A faiss index of inner products, or None. Exact: at 50 000 clips a thousand searches take about a second."""

    def same_samples(self, features: AudioFeatures) -> int | None:
        """The clip with the same samples."""
        return self.pcm.get(features.pcm) if features.pcm else None

    def same_sound(self, features: AudioFeatures) -> list[Nearest]:
        """The clips whose fingerprints are nearest, the nearest first."""
        return self.fingerprints.nearest(features.phases) if self.fingerprints and features.phases else []

    def nearest_embeddings(self, clips: Sequence[AudioFeatures]) -> list[Nearest | None]:
        """For each clip the one with the largest cosine; None where embeddings are not compared."""
        vectors = [clip.embedding for clip in clips if clip.embedding is not None]
        if self.embeddings is None or not vectors:
            return [None] * len(clips)
        scores, numbers = self.embeddings.search(np.stack(vectors).astype(np.float32), 1)
        return [Nearest(int(number), float(score)) for number, score in zip(numbers[:, 0], scores[:, 0], strict=True)]


def compute(parts: EvaluationParts, actors: Actors, *, progress: bool = True) -> None:
    """Compute the parts that are not there yet."""
    parts.cache.mkdir(parents=True, exist_ok=True)
    todo = [number for number in range(parts.count) if not parts.path(number).is_file()]
    done = len(parts.clips) - sum(len(parts.of(number)) for number in todo)
    with progress_bar(progress, "clips") as bar:
        task = bar.add_task("evaluation clips", total=len(parts.clips), completed=done)
        for clips in on_actors(parts, todo, actors) if actors.workers else map(parts.start(), todo) if todo else ():
            bar.advance(task, clips)


def load(parts: EvaluationParts) -> Evaluation:
    """Read the parts, which are all there, into memory; raises `InputError` for one that is damaged."""
    names: list[str] = []
    paths: list[str] = []
    pcm: dict[bytes, int] = {}
    fingerprints: list[Fingerprint] = []
    vectors: list[npt.NDArray[np.float32]] = []
    for number in range(parts.count):
        clips = parts.of(number)
        for clip, row in zip(clips, _read(parts.path(number), len(clips)), strict=True):
            if row["reason"]:
                continue
            if row["pcm"]:
                pcm.setdefault(row["pcm"], len(names))
            signs, heard = (np.frombuffer(row[column], "<u4").astype(np.uint32) for column in ("signs", "heard"))
            fingerprints.append(Fingerprint(signs, heard))
            vectors.append(np.frombuffer(row["embedding"], "<f4"))
            names.append(clip.name)
            paths.append(clip.path)
    index = None
    if parts.passes.make_embedder and names:
        faiss: Any = require("faiss", "faiss-cpu", "finding near-duplicates by embedding", extra="curate")
        index = faiss.IndexFlatIP(len(vectors[0]))
        index.add(np.stack(vectors))
    searched = FingerprintIndex(fingerprints) if parts.passes.fingerprint else None
    return Evaluation(names, paths, pcm, searched, index)


def failures(parts: EvaluationParts) -> dict[str, str]:
    """Name and reason of each evaluation clip that could not be decoded; the parts have to be there."""
    rows = (row for number in range(parts.count) for row in _read(parts.path(number), len(parts.of(number))))
    return {row["name"]: row["reason"] for row in rows if row["reason"]}


_NOTHING: dict[str, Any] = {"pcm": b"", "signs": b"", "heard": b"", "embedding": b""}


def _columns(features: AudioFeatures) -> dict[str, bytes]:
    clip = features.phases[0] if features.phases else None
    return {
        "pcm": features.pcm,
        "signs": clip.signs.astype("<u4").tobytes() if clip else b"",
        "heard": clip.heard.astype("<u4").tobytes() if clip else b"",
        "embedding": b"" if features.embedding is None else features.embedding.astype("<f4").tobytes(),
    }


def _schema() -> Any:
    pa = arrow()
    texts = [(name, pa.string()) for name in ("name", "reason")]
    return pa.schema([*texts, *((name, pa.binary()) for name in _NOTHING)])


def _read(path: Path, clips: int) -> list[dict[str, Any]]:
    pq = require("pyarrow.parquet", "pyarrow", "a manifest", extra="curate")
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, arrow().ArrowException) as error:
        raise InputError(
            f"{path}: cannot be read as Parquet ({error}); remove it, it will be computed again"
        ) from error
    if not table.schema.equals(_schema(), check_metadata=False) or table.num_rows != clips:
        raise InputError(f"{path}: not the features of {clips} clips; remove it, it will be computed again")
    return cast("list[dict[str, Any]]", table.to_pylist())


def _identity(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # fails again when it is decoded
        return (-1, -1)
    return status.st_size, status.st_mtime_ns


def _seconds(paths: Sequence[str]) -> list[float]:
    seconds = []
    for path in paths:
        try:
            seconds.append(probe_seconds(path))
        except AudioError:
            seconds.append(0.0)  # fails again when it is decoded
    return seconds

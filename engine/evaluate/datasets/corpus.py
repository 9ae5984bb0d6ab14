"""What an evaluation dataset gives: clips by name, their captions or labels, and what is missing."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ....data.audio import SAMPLE_RATE, AudioError, printable, probe_seconds, read_audio
from ....errors import InputError

_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")


@dataclass(frozen=True)
class Clip:
    """One audio clip, not yet decoded."""

    name: str
    """What the dataset calls it; no two clips of a corpus share it."""
    samples: int
    """About how long it is at 16 kHz, by its header: clips of like length are embedded together."""
    identity: str
    """Changes when the audio does: what has been computed from the clip is kept under it."""
    read: Callable[[], np.ndarray]
    """Decodes the whole clip: 16 kHz mono, float32 in [-1, 1] or int16."""


@dataclass(frozen=True)
class Missing:
    """A clip that the dataset lists and that cannot be used."""

    name: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    """A dataset's clips, ordered by name: nothing depends on the order of files or of rows."""

    dataset: str
    """Name of the dataset, as `--dataset` takes it."""
    directory: Path
    clips: tuple[Clip, ...]
    missing: tuple[Missing, ...]


@dataclass(frozen=True)
class CaptionCorpus(Corpus):
    """Clips with the captions that people gave them."""

    captions: tuple[tuple[str, ...], ...]
    """Of each clip, at least one; none is empty."""


@dataclass(frozen=True)
class LabelCorpus(Corpus):
    """Clips with one label each."""

    labels: tuple[int, ...]
    """Of each clip, an index into `classes`."""
    classes: tuple[str, ...]
    """All classes of the dataset, also those without a clip here."""
    class_texts: tuple[str, ...]
    """Each class as it stands in a template."""
    template: str
    """The paper's template; `{}` stands for the class."""


def caption_corpus(
    dataset: str,
    directory: Path,
    captions: dict[str, tuple[str, ...]],
    find: Callable[[str], Path | None],
) -> CaptionCorpus:
    """Look up the clips of ``captions`` (name → texts); raises InputError where there is none."""
    clips, missing = _look_up(dataset, directory, captions, find)
    return CaptionCorpus(dataset, directory, clips, missing, tuple(captions[clip.name] for clip in clips))


def label_corpus(
    dataset: str,
    directory: Path,
    labels: dict[str, str],
    classes: Sequence[str],
    find: Callable[[str], Path | None],
    *,
    template: str,
    text_of_class: Callable[[str], str] = str,
) -> LabelCorpus:
    """Look up the clips of ``labels`` (name → class).

    Raises InputError where a label is none of ``classes``, or there is no clip.
    """
    unknown = sorted(set(labels.values()) - set(classes))
    if unknown:
        name = min(name for name, label in labels.items() if label == unknown[0])
        raise InputError(
            f"{directory}: label {unknown[0]!r} of {printable(name)} is none of the {len(classes)} classes of {dataset}"
            f"{f' (nor are {len(unknown) - 1} other labels)' if unknown[1:] else ''}; "
            f"expected one of {', '.join(classes[:10])}{', …' if classes[10:] else ''}: correct the metadata"
        )
    clips, missing = _look_up(dataset, directory, labels, find)
    number = {label: index for index, label in enumerate(classes)}
    return LabelCorpus(
        dataset,
        directory,
        clips,
        missing,
        labels=tuple(number[labels[clip.name]] for clip in clips),
        classes=tuple(classes),
        class_texts=tuple(text_of_class(label) for label in classes),
        template=template,
    )


def files_by_stem(directory: Path) -> Callable[[str], Path | None]:
    """Return a look-up of the audio files in ``directory`` by name without the extension; of several, .wav is taken."""
    found: dict[str, Path] = {}
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        suffix = path.suffix.lower()
        if suffix in _SUFFIXES:
            taken = found.setdefault(path.stem, path)
            if _SUFFIXES.index(suffix) < _SUFFIXES.index(taken.suffix.lower()):
                found[path.stem] = path
    return found.get


def file_clip(name: str, path: Path) -> Clip:
    """Return the clip in an audio file; raises AudioError where its header cannot be read."""
    seconds = probe_seconds(path)
    status = path.stat()
    samples = round(seconds * SAMPLE_RATE) if np.isfinite(seconds) else 0
    return Clip(name, samples, f"{name} {status.st_size} {status.st_mtime_ns}", partial(read_audio, path))


def _look_up(
    dataset: str, directory: Path, names: Iterable[str], find: Callable[[str], Path | None]
) -> tuple[tuple[Clip, ...], tuple[Missing, ...]]:
    clips: list[Clip] = []
    missing: list[Missing] = []
    for name in sorted(names):
        path = find(name)
        if path is None:
            missing.append(Missing(name, "no audio file"))
            continue
        try:
            clips.append(file_clip(name, path))
        except AudioError as error:
            missing.append(Missing(name, error.reason))
    if not clips:
        why = f"{missing[0].reason}: {printable(missing[0].name)}" if missing else "its metadata lists none"
        raise InputError(f"{directory}: none of {len(missing)} clips of {dataset} is usable ({why}); check the audio")
    return tuple(clips), tuple(missing)

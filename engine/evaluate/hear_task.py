"""A task as HEAR's preprocessing leaves it: one directory with metadata, label vocabulary, splits and audio.

``task_metadata.json``, ``labelvocabulary.csv`` (idx, label), for each split ``<split>.json`` (file name to labels, or
to events with label, start and end in milliseconds) and its sounds in ``<sample rate>/<split>/``.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import InputError
from ...json_file import read_json
from ...kernels.log_mel import SAMPLE_RATE

METADATA_FILE = "task_metadata.json"
VOCABULARY_FILE = "labelvocabulary.csv"
_LAYOUT = f"a task that HEAR's preprocessing made: {METADATA_FILE}, {VOCABULARY_FILE}, a .json for each split and audio"


@dataclass(frozen=True)
class Event:
    """A label and when it sounds, in milliseconds."""

    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Sound:
    """A sound of a split: its labels (scene tasks) or its events (event tasks), the other empty."""

    path: Path
    labels: tuple[str, ...]
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Rotation:
    """Which splits train, stop and test a probe."""

    train: tuple[str, ...]
    valid: str
    test: str


@dataclass(frozen=True)
class HearTask:
    """A prepared task."""

    name: str
    kind: Literal["scene", "event"]
    multilabel: bool
    labels: tuple[str, ...]
    """The vocabulary, in the order of its indices."""
    scores: tuple[str, ...]
    """What the task is scored by, the most important first."""
    rotations: tuple[Rotation, ...]
    """One, or as many as there are folds: each tests once, the next one stops, the others train."""
    splits: dict[str, tuple[Sound, ...]]
    """The sounds that are there, by split, in the order of their names."""
    missing: tuple[str, ...]
    """Sounds that a split names and the audio folder does not have."""


def read_task(directory: Path) -> HearTask:
    """Read a task directory.

    Raises InputError that says what was looked for where it is none, a label is outside the vocabulary, a scene with
    one class has not one label, or a split has no sound.
    """
    metadata = read_json(_file(directory, METADATA_FILE))
    kind = _one_of(directory, metadata, "embedding_type", ("scene", "event"))
    prediction = _one_of(directory, metadata, "prediction_type", ("multiclass", "multilabel"))
    mode = _one_of(directory, metadata, "split_mode", ("trainvaltest", "new_split_kfold", "presplit_kfold"))
    scores = metadata.get("evaluation")
    if not isinstance(scores, list) or not scores:
        raise InputError(f"{directory / METADATA_FILE}: evaluation is {scores!r}; expected a list of scores")
    labels = _read_vocabulary(_file(directory, VOCABULARY_FILE))
    if mode == "trainvaltest":
        rotations = (Rotation(("train",), "valid", "test"),)
    else:
        rotations = _rotations(directory, metadata.get("splits"))
    names = sorted({name for turn in rotations for name in (*turn.train, turn.valid, turn.test)})
    splits: dict[str, tuple[Sound, ...]] = {}
    missing: list[str] = []
    for name in names:
        there, absent = _read_split(directory, name, kind, prediction == "multiclass", labels)
        if not there:
            raise InputError(f"{directory}: split {name} has no sound; expected the files that {name}.json names")
        splits[name], missing = there, missing + absent
    return HearTask(
        str(metadata.get("task_name", directory.name)),
        "scene" if kind == "scene" else "event",
        prediction == "multilabel",
        labels,
        tuple(map(str, scores)),
        rotations,
        splits,
        tuple(missing),
    )


def _file(directory: Path, name: str) -> Path:
    if not (directory / name).is_file():
        raise InputError(f"{directory}: has no {name}; expected {_LAYOUT}")
    return directory / name


def _one_of(directory: Path, metadata: dict[str, Any], name: str, allowed: tuple[str, ...]) -> str:
    value = metadata.get(name)
    if value not in allowed:
        raise InputError(f"{directory / METADATA_FILE}: {name} is {value!r}; expected {' or '.join(allowed)}")
    return value


def _rotations(directory: Path, folds: Any) -> tuple[Rotation, ...]:
    if not isinstance(folds, list) or len(set(map(str, folds))) != len(folds) or len(folds) < 3:
        raise InputError(f"{directory / METADATA_FILE}: splits is {folds!r}; expected at least three names of folds")
    names = sorted(map(str, folds))
    turns = []
    for at, test in enumerate(names):
        valid = names[(at + 1) % len(names)]
        turns.append(Rotation(tuple(name for name in names if name not in (test, valid)), valid, test))
    return tuple(turns)


def _read_vocabulary(path: Path) -> tuple[str, ...]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        by_index = {int(row["idx"]): str(row["label"]) for row in rows}
    except (KeyError, ValueError, TypeError):
        raise InputError(f"{path}: is not a vocabulary; expected the columns idx and label") from None
    if not rows or sorted(by_index) != list(range(len(rows))) or len(set(by_index.values())) != len(rows):
        raise InputError(f"{path}: idx and label must each be unique, and idx count from 0")
    return tuple(by_index[index] for index in range(len(rows)))


def _read_split(
    directory: Path, name: str, kind: str, one_label: bool, labels: tuple[str, ...]
) -> tuple[tuple[Sound, ...], list[str]]:
    path = _file(directory, f"{name}.json")
    folder = _audio_folder(directory, name)
    known = set(labels)
    sounds, missing = [], []
    for file, content in sorted(read_json(path).items()):
        try:
            if kind == "event":
                events = tuple(Event(str(e["label"]), float(e["start"]), float(e["end"])) for e in content)
                sound = Sound(folder / file, (), events)
            else:
                sound = Sound(folder / file, tuple(map(str, content if isinstance(content, list) else [content])), ())
        except (TypeError, KeyError, ValueError):
            raise InputError(f"{path}: {file} has {str(content)[:60]}; expected labels, or events with times") from None
        unknown = ({event.label for event in sound.events} | set(sound.labels)) - known
        if unknown:
            raise InputError(f"{path}: {file} has label {min(unknown)!r}, which {VOCABULARY_FILE} does not have")
        if kind == "scene" and one_label and len(sound.labels) != 1:
            raise InputError(f"{path}: {file} has {len(sound.labels)} labels; expected one, the task is multiclass")
        if sound.path.is_file():
            sounds.append(sound)
        else:
            missing.append(f"{name}/{file}")
    return tuple(sounds), missing


def _audio_folder(directory: Path, split: str) -> Path:
    """Take the folder of our sample rate, or of the highest one, which is then resampled."""
    rates = sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit() and (path / split).is_dir())
    if not rates:
        raise InputError(f"{directory}: has no audio of split {split}; expected a folder {SAMPLE_RATE}/{split}")
    return directory / str(SAMPLE_RATE if SAMPLE_RATE in rates else rates[-1]) / split

"""Questions about audio in the layouts their authors distribute: Clotho-AQA, and the audio questions of MUSIC-AVQA."""

import csv
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ...errors import InputError

Dataset = Literal["clotho-aqa", "music-aqa"]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Agreement = Literal["all", "majority", "unanimous"]
"""Which of a question's answers count: every one by itself, the one most gave, or the one all gave."""

MARKERS: dict[Dataset, tuple[str, ...]] = {
    "clotho-aqa": tuple(f"clotho_aqa_{split}.csv" for split in SPLITS),
    "music-aqa": tuple(f"{folder}avqa-{split}.json" for split in SPLITS for folder in ("", "json/")),
}
"""Paths of which any is there says that a directory may be the dataset."""

BINARY_ANSWERS = frozenset({"yes", "no"})
_AUDIO_SUFFIXES = (".wav", ".flac", ".mp3")


@dataclass(frozen=True, order=True)
class Question:
    """A question about a clip, and one answer, in lower case."""

    audio: Path
    text: str
    answer: str

    @property
    def is_binary(self) -> bool:
        """Whether the answer is yes or no."""
        return self.answer in BINARY_ANSWERS


@dataclass(frozen=True)
class Questions:
    """The questions of a dataset by split, sorted, so that the order of the file's rows has no say."""

    dataset: Dataset
    splits: dict[Split, tuple[Question, ...]]
    missing: dict[Split, tuple[str, ...]]
    """Names of the clips that are asked about and are not there; their questions are left out."""


def read_questions(directory: Path, dataset: Dataset, agreement: Agreement = "all") -> Questions:
    """Read the three splits of a dataset.

    Clotho-AQA: ``clotho_aqa_{train,val,test}.csv`` with the columns file_name, QuestionText and answer, and the clips
    in ``audio_files/``; three people answered each question. Music-AQA: ``avqa-{train,val,test}.json`` of MUSIC-AVQA,
    in the directory or in ``json/``, of which the questions of type Audio that were not deleted count, and the videos'
    sound in ``audio/<video_id>.wav`` (or .flac, .mp3).

    Raises InputError that says what was looked for where a file is missing or of another form, or a split has no clip.
    """
    splits: dict[Split, tuple[Question, ...]] = {}
    missing: dict[Split, tuple[str, ...]] = {}
    for split in SPLITS:
        asked = _clotho(directory, split) if dataset == "clotho-aqa" else _music(directory, split)
        there = {path for path in {question.audio for question in asked} if path.is_file()}
        splits[split] = tuple(sorted(question for question in _agreed(asked, agreement) if question.audio in there))
        missing[split] = tuple(sorted({question.audio.name for question in asked if question.audio not in there}))
        if not there:
            where = asked[0].audio.parent if asked else directory
            raise InputError(f"{directory}: split {split} has none of its {len(missing[split])} clips in {where}")
    return Questions(dataset, splits, missing)


def _clotho(directory: Path, split: Split) -> list[Question]:
    path = directory / f"clotho_aqa_{split}.csv"
    if not path.is_file():
        raise InputError(f"{directory}: has no {path.name}; expected Clotho-AQA: clotho_aqa_*.csv and audio_files/")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")  # the published files hold a few such characters
    rows = list(csv.DictReader(text.splitlines()))
    columns = ("file_name", "QuestionText", "answer")
    for number, row in enumerate(rows, start=2):
        if not all(isinstance(row.get(column), str) and str(row[column]).strip() for column in columns):
            raise InputError(f"{path}: line {number} lacks one of {', '.join(columns)}; expected a value in each")
    return [
        Question(
            directory / "audio_files" / row["file_name"].strip(), row["QuestionText"].strip(), _plain(row["answer"])
        )
        for row in rows
    ]


def _music(directory: Path, split: Split) -> list[Question]:
    name = f"avqa-{split}.json"
    path = next((p for p in (directory / name, directory / "json" / name) if p.is_file()), None)
    if path is None:
        raise InputError(f"{directory}: has no {name}, nor json/{name}; expected MUSIC-AVQA's questions and audio/")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        kept = [
            record
            for record in records
            if not record.get("question_deleted") and json.loads(record["type"])[0] == "Audio"
        ]
        return [
            Question(
                _music_clip(directory / "audio", str(record["video_id"])), _filled(record), _plain(record["anser"])
            )
            for record in kept
        ]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(
            f"{path}: is not a list of MUSIC-AVQA questions ({type(error).__name__}: {error}); expected records with "
            "video_id, type, question_content, templ_values and anser"
        ) from None


def _music_clip(folder: Path, video: str) -> Path:
    candidates = [folder / f"{video}{suffix}" for suffix in _AUDIO_SUFFIXES]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _filled(record: dict[str, Any]) -> str:
    """Put the values of a question template where its <words> are, in their order."""
    values = iter(json.loads(record["templ_values"]))
    template = " ".join(record["question_content"].split())
    return re.sub("<[^<>]*>", lambda word: str(next(values, word.group())), template)


def _plain(answer: Any) -> str:
    return " ".join(str(answer).lower().split())


def _agreed(asked: list[Question], agreement: Agreement) -> list[Question]:
    if agreement == "all":
        return asked
    answers: defaultdict[tuple[Path, str], Counter[str]] = defaultdict(Counter)
    for question in asked:
        answers[question.audio, question.text][question.answer] += 1
    kept = []
    for (audio, text), counted in answers.items():
        answer, votes = counted.most_common(1)[0]
        if votes == counted.total() if agreement == "unanimous" else 2 * votes > counted.total():
            kept.append(Question(audio, text, answer))
    return kept

"""Small datasets of questions about tones, in the layouts of Clotho-AQA and MUSIC-AVQA."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .hear_tasks import PITCHES, tone, write_sound

SPLITS = {"train": 20, "val": 20, "test": 6}
"""Clips of each split: every second one is high."""
PITCH_QUESTION = "what pitch is it"
HIGH_QUESTION = "is it a high tone"

Row = tuple[str, str, str, str]


def clotho_rows(split: str) -> list[Row]:
    """Two questions to each clip, answered by three people, who agree."""
    rows = []
    for i in range(SPLITS[split]):
        label = list(PITCHES)[i % 2]
        for question, answer in ((PITCH_QUESTION, label), (HIGH_QUESTION, "yes" if label == "high" else "no")):
            rows += [(f"{split}{i}.wav", question, answer, "yes")] * 3
    return rows


def write_clotho_csv(directory: Path, split: str, rows: Iterable[Row]) -> None:
    with (directory / f"clotho_aqa_{split}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file_name", "QuestionText", "answer", "confidence"), *rows])


def write_clotho_aqa(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number, split in enumerate(SPLITS):
        write_clotho_csv(directory, split, clotho_rows(split))
        for i in range(SPLITS[split]):
            pitch = PITCHES[list(PITCHES)[i % 2]]
            write_sound(directory / "audio_files", f"{split}{i}.wav", tone(pitch, 8_000, 100 * number + i))


def music_record(video: str, question: str, values: list[str], answer: str, **changes: Any) -> dict[str, Any]:
    record = {
        "video_id": video,
        "question_id": 1,
        "type": '["Audio", "Comparative"]',
        "question_content": question,
        "templ_values": json.dumps(values),
        "question_deleted": 0,
        "anser": answer,
    }
    return record | changes


def write_music_aqa(directory: Path) -> None:
    (directory / "json").mkdir(parents=True, exist_ok=True)
    for number, split in enumerate(SPLITS):
        records = []
        for i in range(SPLITS[split]):
            video, label = f"{number:04}{i:04}", list(PITCHES)[i % 2]
            write_sound(directory / "audio", f"{video}.wav", tone(PITCHES[label], 8_000, 100 * number + i))
            yes = "yes" if label == "high" else "no"
            records.append(music_record(video, "Is the <Object> louder than the <Object>?", ["cello", "flute"], yes))
            records.append(music_record(video, "How many <Object>s sound?", ["cello"], "one" if yes == "no" else "two"))
            records.append(music_record(video, "What is left of it?", [], "flute", type='["Visual", "Location"]'))
            records.append(music_record(video, "Gone?", [], "yes", question_deleted=1))
        (directory / "json" / f"avqa-{split}.json").write_text(json.dumps(records))

"""Reading a prepared HEAR task: what it holds, and what is said where it does not."""

import json
from pathlib import Path
from typing import Any

import pytest
from cacophony.engine.evaluate.hear_task import Event, Rotation, read_task
from cacophony.errors import InputError

from .hear_tasks import tone, write_events, write_scenes, write_sound, write_task

TVT = ("train", "valid", "test")


def test_a_scene_task(tmp_path: Path):
    write_scenes(tmp_path, TVT, each=2)
    task = read_task(tmp_path)
    assert (task.name, task.kind, task.multilabel, task.labels) == ("tones", "scene", False, ("low", "high"))
    assert task.rotations == (Rotation(("train",), "valid", "test"),)
    assert [sound.path.name for sound in task.splits["test"]] == ["test0.wav", "test1.wav"]
    assert [sound.labels for sound in task.splits["test"]] == [("low",), ("high",)]
    assert task.missing == ()


def test_an_event_task(tmp_path: Path):
    write_events(tmp_path, each=1)
    (sound,) = read_task(tmp_path).splits["train"]
    assert sound.events == (Event("low", 160.0, 1_280.0), Event("high", 1_920.0, 3_040.0))


def test_every_fold_tests_once_and_the_next_one_stops(tmp_path: Path):
    folds = ["fold00", "fold01", "fold02", "fold03"]
    write_scenes(tmp_path, folds, each=2, split_mode="presplit_kfold")
    turns = read_task(tmp_path).rotations
    assert [turn.test for turn in turns] == folds
    assert [turn.valid for turn in turns] == [*folds[1:], folds[0]]
    for turn in turns:
        assert sorted((*turn.train, turn.valid, turn.test)) == folds


def test_missing_sounds_are_named(tmp_path: Path):
    write_scenes(tmp_path, TVT, each=4)
    (tmp_path / "16000/valid/valid2.wav").unlink()
    task = read_task(tmp_path)
    assert task.missing == ("valid/valid2.wav",)
    assert len(task.splits["valid"]) == 3


def test_our_rate_is_taken_and_else_the_highest(tmp_path: Path):
    content = {split: {"a.wav": "low"} for split in TVT}  # a label by itself is one, too
    write_task(tmp_path, content)
    for rate in ("22050", "48000", "16000"):
        for split in TVT:
            write_sound(tmp_path / rate / split, "a.wav", tone(200.0, 1_000, 0))
        taken = read_task(tmp_path).splits["train"][0].path.parent.parent.name
        assert taken == rate


def change_json(directory: Path, name: str, change: dict[str, Any]) -> None:
    path = directory / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("task_metadata.json", {"embedding_type": "seld"}, "embedding_type is 'seld'; expected scene or event"),
        ("task_metadata.json", {"split_mode": "new_split_kfold", "splits": ["a", "b"]}, "at least three"),
        ("task_metadata.json", {"evaluation": []}, "expected a list of scores"),
        ("test.json", {"test0.wav": ["middle"]}, "test0.wav has label 'middle', which labelvocabulary.csv"),
        ("test.json", {"test0.wav": ["low", "high"]}, "2 labels; expected one"),
        ("test.json", {"test0.wav": None}, "which labelvocabulary.csv does not have"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, file: str, change: dict[str, Any], message: str):
    write_scenes(tmp_path, TVT, each=2)
    change_json(tmp_path, file, change)
    with pytest.raises(InputError, match=message):
        read_task(tmp_path)


@pytest.mark.parametrize("file", ["task_metadata.json", "labelvocabulary.csv", "valid.json"])
def test_a_directory_of_another_form_is_refused(tmp_path: Path, file: str):
    write_scenes(tmp_path, TVT, each=2)
    (tmp_path / file).unlink()
    with pytest.raises(InputError, match=f"has no {file}; expected a task that HEAR's preprocessing made"):
        read_task(tmp_path)


def test_a_task_without_audio_is_refused(tmp_path: Path):
    write_task(tmp_path, {split: {"a.wav": ["low"]} for split in TVT})
    with pytest.raises(InputError, match="no audio of split"):
        read_task(tmp_path)
    for split in TVT:
        (tmp_path / "16000" / split).mkdir(parents=True)
    with pytest.raises(InputError, match="has no sound"):
        read_task(tmp_path)


def test_a_vocabulary_with_gaps_is_refused(tmp_path: Path):
    write_scenes(tmp_path, TVT, each=2)
    for text in ("idx,label\n0,low\n2,high", "idx,name\n0,low", "idx,label\n0,low\n1,low"):
        (tmp_path / "labelvocabulary.csv").write_text(text)
        with pytest.raises(InputError, match="vocabulary"):
            read_task(tmp_path)

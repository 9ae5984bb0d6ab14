"""The two layouts of questions: which questions count, which answers, which clips."""

import json
from pathlib import Path

import pytest
from cacophony.engine.evaluate.aqa_layouts import Agreement, Question, read_questions
from cacophony.errors import InputError

from .aqa_corpora import (
    HIGH_QUESTION,
    clotho_rows,
    music_record,
    write_clotho_aqa,
    write_clotho_csv,
    write_music_aqa,
)


@pytest.fixture
def clotho(tmp_path: Path) -> Path:
    write_clotho_aqa(tmp_path)
    return tmp_path


@pytest.fixture
def music(tmp_path: Path) -> Path:
    write_music_aqa(tmp_path)
    return tmp_path


def test_clotho_aqa(clotho: Path):
    read = read_questions(clotho, "clotho-aqa")
    assert {split: len(questions) for split, questions in read.splits.items()} == {"train": 120, "val": 120, "test": 36}
    assert Question(clotho / "audio_files/test1.wav", HIGH_QUESTION, "yes") in read.splits["test"]
    assert sum(question.is_binary for question in read.splits["test"]) == 18
    assert not any(read.missing.values())


@pytest.mark.parametrize(("agreement", "answers"), [("all", 120), ("majority", 40), ("unanimous", 39)])
def test_people_may_disagree(clotho: Path, agreement: Agreement, answers: int):
    rows = clotho_rows("train")
    rows[0] = (*rows[0][:2], "  HIGH ", "maybe")  # one of three says high, two say low
    write_clotho_csv(clotho, "train", rows)
    found = read_questions(clotho, "clotho-aqa", agreement).splits["train"]
    assert len(found) == answers
    pitch = {q.answer for q in found if q.audio.name == "train0.wav" and not q.is_binary}
    assert pitch == {"all": {"high", "low"}, "majority": {"low"}, "unanimous": set()}[agreement]


def test_without_a_majority_a_question_is_left_out(clotho: Path):
    rows = [("test0.wav", "what", answer, "yes") for answer in ("a", "b", "c")]
    write_clotho_csv(clotho, "test", rows)
    assert read_questions(clotho, "clotho-aqa", "majority").splits["test"] == ()


def test_the_order_of_rows_has_no_say(clotho: Path):
    before = read_questions(clotho, "clotho-aqa")
    for split in before.splits:
        write_clotho_csv(clotho, split, reversed(clotho_rows(split)))
    assert read_questions(clotho, "clotho-aqa") == before


def test_characters_of_the_published_files_are_read(clotho: Path):
    path = clotho / "clotho_aqa_val.csv"
    path.write_bytes(path.read_bytes() + b"val0.wav,what\x92s that,caf\xe9,yes\n")
    texts = {(q.text, q.answer) for q in read_questions(clotho, "clotho-aqa").splits["val"]}
    assert ("what’s that", "café") in texts


def test_music_aqa_has_the_audio_questions_that_were_kept(music: Path):
    read = read_questions(music, "music-aqa")
    assert {question.text for question in read.splits["test"]} == {
        "Is the cello louder than the flute?",
        "How many cellos sound?",
    }
    assert {question.answer for question in read.splits["test"] if not question.is_binary} == {"one", "two"}
    assert len(read.splits["train"]) == 40
    assert read.splits["val"][0].audio == music / "audio/00010000.wav"


def test_music_aqa_without_a_folder_for_json(music: Path):
    before = read_questions(music, "music-aqa")
    for path in (music / "json").iterdir():
        path.rename(music / path.name)
    assert read_questions(music, "music-aqa") == before


def test_missing_clips_are_named_and_their_questions_left_out(clotho: Path):
    (clotho / "audio_files/test3.wav").unlink()
    read = read_questions(clotho, "clotho-aqa")
    assert read.missing == {"train": (), "val": (), "test": ("test3.wav",)}
    assert len(read.splits["test"]) == 30


def test_a_split_without_clips_is_refused(clotho: Path):
    for path in (clotho / "audio_files").glob("val*"):
        path.unlink()
    with pytest.raises(InputError, match=r"split val has none of its 20 clips in .*audio_files"):
        read_questions(clotho, "clotho-aqa")


def test_another_layout_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"has no clotho_aqa_train.csv; expected Clotho-AQA"):
        read_questions(tmp_path, "clotho-aqa")
    with pytest.raises(InputError, match=r"has no avqa-train.json, nor json/avqa-train.json; expected MUSIC-AVQA"):
        read_questions(tmp_path, "music-aqa")


def test_rows_of_another_form_are_named(clotho: Path):
    write_clotho_csv(clotho, "train", [("train0.wav", "what", "", "yes")])
    with pytest.raises(InputError, match=r"clotho_aqa_train.csv: line 2 lacks one of file_name, QuestionText, answer"):
        read_questions(clotho, "clotho-aqa")


@pytest.mark.parametrize("content", ["{", "[1]", '[{"type": "[\\"Audio\\"]"}]', '[{"type": "Audio"}]'])
def test_json_of_another_form_is_named(music: Path, content: str):
    (music / "json/avqa-val.json").write_text(content)
    with pytest.raises(InputError, match=r"avqa-val.json: is not a list of MUSIC-AVQA questions"):
        read_questions(music, "music-aqa")


def test_a_template_with_too_few_values_keeps_its_words(music: Path):
    record = music_record("00010000", "Is the <Object> a <Object>?", ["cello"], "no")
    (music / "json/avqa-val.json").write_text(json.dumps([record]))
    (question,) = read_questions(music, "music-aqa").splits["val"]
    assert question.text == "Is the cello a <Object>?"

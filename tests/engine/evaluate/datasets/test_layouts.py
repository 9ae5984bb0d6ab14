"""Datasets as their authors lay them out: what is there is found, what is not is said."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from cacophony.engine.evaluate.datasets.corpus import CaptionCorpus, Corpus, LabelCorpus
from cacophony.engine.evaluate.datasets.layouts import CAPTIONED as CAPTION_LAYOUTS
from cacophony.engine.evaluate.datasets.layouts import LABELLED as LABEL_LAYOUTS
from cacophony.engine.evaluate.datasets.layouts import read_captioned, read_labelled
from cacophony.errors import InputError

from ..corpora import CAPTIONED, LABELLED, VGG_CLASSES, Made, write_rows

DATASETS = [*CAPTIONED, *LABELLED]


def make(dataset: str, root: Path, clips: int = 12) -> Made:
    return {**CAPTIONED, **LABELLED}[dataset](root, clips)


def read(dataset: str, root: Path) -> CaptionCorpus | LabelCorpus:
    return {**CAPTION_LAYOUTS, **LABEL_LAYOUTS}[dataset].read(root)


def contents(corpus: Corpus) -> dict[str, Any]:
    """All that a corpus says, without the functions that read its clips."""
    clips = [(clip.name, clip.samples, clip.identity) for clip in corpus.clips]
    return {**vars(corpus), "clips": clips}


@pytest.mark.parametrize("dataset", CAPTIONED)
def test_all_clips_are_found_with_their_captions(dataset: str, made: Callable[[str], Made]):
    truth = made(dataset)
    corpus = read_captioned(truth.root)
    assert (corpus.dataset, corpus.missing) == (dataset, ())
    assert {clip.name: list(texts) for clip, texts in zip(corpus.clips, corpus.captions, strict=True)} == truth.captions


@pytest.mark.parametrize("dataset", LABELLED)
def test_all_clips_are_found_with_their_labels(dataset: str, made: Callable[[str], Made]):
    truth = made(dataset)
    corpus = read_labelled(truth.root)
    assert (corpus.dataset, corpus.missing) == (dataset, ())
    labels = {clip.name: corpus.classes[label] for clip, label in zip(corpus.clips, corpus.labels, strict=True)}
    assert labels == truth.labels
    sizes = {"esc50": 50, "urbansound8k": 10, "tut2017": 15, "vggsound": len(VGG_CLASSES)}
    assert len(set(corpus.classes)) == len(corpus.class_texts) == sizes[dataset]


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_clip_is_the_audio_of_its_name(dataset: str, made: Callable[[str], Made]):
    truth = made(dataset)
    for clip in read(dataset, truth.root).clips[::40]:
        wave = soundfile.read(truth.audio[clip.name], dtype="float32")[0]
        np.testing.assert_array_equal(clip.read(), wave)
        assert clip.samples == len(wave)


def test_classes_stand_in_templates_as_the_authors_write_them(made: Callable[[str], Made]):
    texts = {name: read_labelled(made(name).root) for name in LABELLED}
    assert "air conditioner" in texts["urbansound8k"].class_texts
    assert "chirping_birds" in texts["esc50"].class_texts
    assert "city center" in texts["tut2017"].class_texts
    assert {name: corpus.template for name, corpus in texts.items()} == {
        "esc50": "This is a sound of {}",
        "urbansound8k": "This is a sound of {}",
        "tut2017": "This is a sound on {}",
        "vggsound": "This is a sound of {}",
    }


@pytest.mark.parametrize("dataset", DATASETS)
def test_rows_reversed_shuffled_and_repeated_give_the_same_corpus(dataset: str, tmp_path: Path):
    truth = make(dataset, tmp_path)
    expected = contents(read(dataset, tmp_path))
    for change in (lambda rows: rows[::-1], lambda rows: random.Random(1).sample(rows, len(rows)), lambda r: r + r[:9]):
        truth.rewrite(change)
        assert contents(read(dataset, tmp_path)) == expected


@pytest.mark.parametrize("dataset", DATASETS)
def test_clips_that_cannot_be_used_are_counted_with_the_reason(dataset: str, tmp_path: Path):
    truth = make(dataset, tmp_path)
    names = sorted(truth.audio)
    truth.audio[names[3]].unlink()
    truth.audio[names[7]].write_bytes(b"no audio")
    truth.audio[names[8]].write_bytes(b"")
    corpus = read(dataset, tmp_path)
    assert {one.name: one.reason for one in corpus.missing} == {
        names[3]: "no audio file",
        names[7]: "not an audio file libsndfile can read",
        names[8]: "empty file (0 bytes)",
    }
    assert [clip.name for clip in corpus.clips] == [name for i, name in enumerate(names) if i not in (3, 7, 8)]


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_dataset_without_any_clip_is_refused(dataset: str, tmp_path: Path):
    for path in make(dataset, tmp_path, clips=3).audio.values():
        path.unlink()
    with pytest.raises(InputError, match=r"none of 3 clips.*no audio file"):
        read(dataset, tmp_path)


@pytest.mark.parametrize("dataset", DATASETS)
def test_another_layout_is_refused_with_what_was_looked_for(dataset: str, tmp_path: Path):
    with pytest.raises(
        InputError,
        match=rf"not laid out as {dataset}: no .*expected .*(csv|txt) .*(audio|test|evaluation)/",
    ):
        read(dataset, tmp_path)
    with pytest.raises(InputError, match="no such directory"):
        read(dataset, tmp_path / "absent")


def test_a_layout_that_is_none_or_ambiguous_is_refused_with_all_that_was_looked_for(tmp_path: Path):
    for reader, markers in (
        (read_captioned, ("index.json", "test.csv", "clotho_captions_evaluation.csv")),
        (read_labelled, ("meta/esc50.csv", "metadata/UrbanSound8K.csv", "meta.txt", "vggsound.csv")),
    ):
        with pytest.raises(InputError) as raised:
            reader(tmp_path)
        assert all(marker in str(raised.value) for marker in markers)
    for name in ("audiocaps", "clotho"):
        make(name, tmp_path / name, 2)
        shutil.copytree(tmp_path / name, tmp_path / "both", dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"may be audiocaps or clotho.*--dataset"):
        read_captioned(tmp_path / "both")
    assert read_captioned(tmp_path / "both", "clotho").dataset == "clotho"


@pytest.mark.parametrize("dataset", LABELLED)
def test_a_label_outside_the_classes_is_named(dataset: str, tmp_path: Path):
    truth = make(dataset, tmp_path, 3)
    name = min(truth.labels)
    truth.rewrite(
        lambda rows: [row.replace(truth.labels[name], "zebra") if Path(name).stem[:11] in row else row for row in rows]
    )
    with pytest.raises(InputError, match=rf"label 'zebra' of .* is none of the \d+ classes of {dataset}"):
        read(dataset, tmp_path)


@pytest.mark.parametrize("dataset", CAPTIONED)
def test_an_empty_caption_is_named(dataset: str, tmp_path: Path):
    truth = make(dataset, tmp_path, 3)
    truth.rewrite(lambda rows: [*rows[:-1], rows[-1].rpartition(",")[0] + ", "])
    with pytest.raises(InputError, match=r"csv, line \d+: a reference caption of .* is empty"):
        read(dataset, tmp_path)


def test_rows_that_contradict_each_other_are_named(tmp_path: Path):
    truth = make("esc50", tmp_path, 3)
    name, label = next(iter(truth.labels.items()))
    other = "cat" if label != "cat" else "dog"
    truth.rewrite(lambda rows: [*rows, rows[0].replace(label, other)])
    with pytest.raises(InputError, match=rf"line 5: the category of {name} is '{other}', above it was '{label}'"):
        read("esc50", tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"filename,label\n1.wav,dog\n", "no column category; found filename, label"),
        (b"", "no column filename, category; found none"),
        (b"filename,category\n1.wav\n", "line 2: 1 fields"),
        ("filename,category\n1.wav,caf\u00e9\n".encode("latin-1"), "is not UTF-8"),
        (b'filename,category\n"1.wav,dog\n', "line 2"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, content: bytes, expected: str):
    make("esc50", tmp_path, 2).table.write_bytes(content)
    with pytest.raises(InputError, match=expected):
        read("esc50", tmp_path)


def test_a_clip_in_another_format_is_found_and_wav_is_preferred(tmp_path: Path):
    truth = make("vggsound", tmp_path, 3)
    first, second, _ = sorted(truth.audio)
    soundfile.write(truth.audio[first].with_suffix(".flac"), np.zeros(8_000), 16_000)
    truth.audio[first].unlink()
    soundfile.write(truth.audio[second].with_suffix(".flac"), np.zeros(8_000), 16_000)
    clips = {clip.name: clip for clip in read("vggsound", tmp_path).clips}
    assert not clips[first].read().any()
    assert clips[second].read().any()


def test_both_sets_of_tut_are_read_where_both_are_there(tmp_path: Path):
    truth = make("tut2017", tmp_path, 4)
    development = tmp_path / "TUT-acoustic-scenes-2017-development"
    shutil.copytree(truth.table.parent / "audio", development / "audio")
    write_rows(development / "meta.txt", [("audio/0.wav", "tram", "t1"), ("audio/1.wav", "beach", "b1")], "\t")
    corpus = read_labelled(tmp_path)
    assert len(corpus.clips) == 6
    assert len(read_labelled(development).clips) == 2

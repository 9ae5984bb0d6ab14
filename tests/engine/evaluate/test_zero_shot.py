"""Zero-shot classification of a model on corpora: each figure is computed a second time here, from scores."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from cacophony.data.audio import read_audio
from cacophony.engine.evaluate.datasets.layouts import read_labelled
from cacophony.engine.evaluate.store import Store
from cacophony.engine.evaluate.zero_shot import embed_classes, evaluate_zero_shot
from cacophony.engine.inference import Cacophony
from cacophony.errors import InputError

from .corpora import LABELLED, Made


def class_sentences(dataset: str, classes: tuple[str, ...]) -> list[str]:
    """The paper's sentences, written out here."""
    start = "This is a sound on " if dataset == "tut2017" else "This is a sound of "
    spaced = dataset in ("urbansound8k", "tut2017")
    return [start + (name.replace("_", " ") if spaced else name) for name in classes]


@pytest.mark.parametrize("dataset", LABELLED)
def test_figures_on_200_clips_equal_a_second_computation(model: Cacophony, made: Callable[[str], Made], dataset: str):
    truth = made(dataset)
    corpus = read_labelled(truth.root)
    metrics = evaluate_zero_shot(model, corpus, progress=False).metrics

    names = sorted(truth.audio)
    audio = np.concatenate([model.embed_audio([read_audio(truth.audio[name])]) for name in names])
    text = np.concatenate([model.embed_text([line]) for line in class_sentences(dataset, corpus.classes)])
    order = np.argsort(-(audio.astype(np.float64) @ text.astype(np.float64).T), axis=1)
    true = np.array([corpus.classes.index(truth.labels[name]) for name in names])
    place = (order == true[:, None]).argmax(axis=1)
    assert metrics["top_1"] == pytest.approx((place < 1).mean())
    assert metrics["top_5"] == pytest.approx((place < 5).mean())
    confusion = np.zeros((len(corpus.classes), len(corpus.classes)), int)
    for row, column in zip(true, order[:, 0], strict=True):
        confusion[row, column] += 1
    assert metrics["confusion"] == confusion.tolist()
    for index, scores in enumerate(metrics["classes"]):
        mine = place[true == index]
        assert (scores["name"], scores["clips"]) == (corpus.classes[index], len(mine))
        assert scores["top_1"] == (pytest.approx((mine < 1).mean()) if len(mine) else None)
        assert scores["top_5"] == (pytest.approx((mine < 5).mean()) if len(mine) else None)


@pytest.mark.parametrize("dataset", LABELLED)
def test_the_order_of_files_and_rows_is_of_no_account(model: Cacophony, tmp_path: Path, dataset: str):
    truth = LABELLED[dataset](tmp_path, 40)
    expected = evaluate_zero_shot(model, read_labelled(tmp_path), progress=False).metrics
    for change in (lambda rows: rows[::-1], lambda rows: Random(3).sample(rows, len(rows)), lambda rows: 2 * rows):
        truth.rewrite(change)
        assert evaluate_zero_shot(model, read_labelled(tmp_path), progress=False).metrics == expected


def test_missing_clips_are_in_the_record(model: Cacophony, tmp_path: Path):
    truth = LABELLED["esc50"](tmp_path, 20)
    gone = sorted(truth.audio)[:2]
    for name in gone:
        truth.audio[name].unlink()
    record = json.loads(json.dumps(evaluate_zero_shot(model, read_labelled(tmp_path), progress=False).record()))
    assert [one["name"] for one in record["missing"]] == gone
    assert record["found"] == record["clips"] == 18
    assert record["templates"] == ["This is a sound of {}"]


def test_an_ensemble_is_the_mean_of_its_templates_at_length_one(model: Cacophony):
    classes, templates = ["dog", "rain"], ["a {}", "the sound of {}, far away", "{}"]
    ensemble = embed_classes(model, classes, templates, Store())
    for index, name in enumerate(classes):
        mean = model.embed_text([template.replace("{}", name) for template in templates]).mean(axis=0)
        np.testing.assert_allclose(ensemble[index], mean / np.linalg.norm(mean), atol=1e-6)


def test_own_templates_take_the_place_of_the_papers(model: Cacophony, made: Callable[[str], Made]):
    corpus = read_labelled(made("urbansound8k").root)
    result = evaluate_zero_shot(model, corpus, templates=["{} rings", "a {}"], progress=False)
    assert result.templates == ("{} rings", "a {}")
    np.testing.assert_allclose(
        result.class_embeddings, embed_classes(model, corpus.class_texts, ["{} rings", "a {}"], Store())
    )


@pytest.mark.parametrize("template", ["a sound", "{} and {}", ""])
def test_a_template_without_one_place_for_the_class_is_refused(model: Cacophony, template: str):
    with pytest.raises(InputError, match=r"places for the class; expected \{\} once"):
        embed_classes(model, ["dog"], [template], Store())


def test_braces_of_another_kind_are_text(model: Cacophony):
    embed_classes(model, ["dog"], ["a {} {0.__class__}"], Store())

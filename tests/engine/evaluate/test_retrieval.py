"""Retrieval of a model on corpora: each figure is computed a second time here, from scores."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from cacophony.data.audio import read_audio
from cacophony.data.shards import Shards
from cacophony.engine.evaluate.datasets.corpus import CaptionCorpus
from cacophony.engine.evaluate.datasets.layouts import read_captioned
from cacophony.engine.evaluate.datasets.packed import read_packed
from cacophony.engine.evaluate.retrieval import evaluate_retrieval
from cacophony.engine.evaluate.retrieval_metrics import format_table
from cacophony.engine.inference import Cacophony
from cacophony.errors import InputError

from .corpora import CAPTIONED, Made

Flags = list[list[bool]]


def average(flags: Flags) -> dict[str, float]:
    """The authors' figures from the hit flags of each query's first ten."""
    precisions = []
    for row in flags:
        positions = np.arange(1, 11)[: len(row)][np.asarray(row)]
        precisions.append(np.mean(np.arange(1, len(positions) + 1) / positions) if len(positions) else 0.0)
    recalls = {f"r@{k}": float(np.mean([any(row[:k]) for row in flags])) for k in (1, 5, 10)}
    return {**recalls, "map@10": float(np.mean(precisions))}


def audio_to_text(scores: np.ndarray, captions: list[str], carried: list[set[str]]) -> dict[str, float]:
    """By the authors' definition: of the clip's own texts, each counts where it first appears."""
    flags: Flags = []
    for clip, row in enumerate(scores):
        seen: set[str] = set()
        hits = []
        for candidate in np.argsort(-row, kind="stable")[:10]:
            text = captions[candidate]
            hits.append(text in carried[clip] and text not in seen)
            seen |= {text} & carried[clip]
        flags.append(hits)
    return average(flags)


def text_to_audio(scores: np.ndarray, captions: list[str], carried: list[set[str]]) -> dict[str, float]:
    rankings = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    return average([[captions[i] in carried[clip] for clip in ranking] for i, ranking in enumerate(rankings)])


def second_computation(model: Cacophony, truth: Made) -> dict[str, dict[str, float]]:
    """From the files as they were made, clip by clip and caption by caption."""
    names = sorted(truth.audio)
    captions = [text for name in names for text in truth.captions[name]]
    audio = np.concatenate([model.embed_audio([read_audio(truth.audio[name])]) for name in names])
    text = np.concatenate([model.embed_text([caption]) for caption in captions])
    # Equal texts come out of two calls with equal bits, so that ties are ties.
    scores = text.astype(np.float64) @ audio.astype(np.float64).T
    carried = [set(truth.captions[name]) for name in names]
    return {
        "text_to_audio": text_to_audio(scores, captions, carried),
        "audio_to_text": audio_to_text(scores.T, captions, carried),
    }


@pytest.mark.parametrize("dataset", CAPTIONED)
def test_figures_on_200_clips_equal_a_second_computation(model: Cacophony, made: Callable[[str], Made], dataset: str):
    truth = made(dataset)
    result = evaluate_retrieval(model, read_captioned(truth.root), progress=False)
    shared = [text for texts in truth.captions.values() for text in set(texts)]
    assert len(set(shared)) < len(shared)  # texts stand on several clips
    for direction, figures in second_computation(model, truth).items():
        assert result.metrics[direction] == pytest.approx(figures, abs=1e-9)
    assert (result.metrics["clips"], result.metrics["captions"]) == (200, 1000)


def test_figures_are_the_authors_where_no_text_stands_on_two_clips(model: Cacophony, made: Callable[[str], Made]):
    """Their code gives a text shared by clips to the last one of the directory's order; ours to all that carry it."""
    corpus = read_captioned(made("audiocaps").root)
    captions = tuple(
        tuple(f"{text} number {clip}" for text in (*texts[:4], texts[0])) for clip, texts in enumerate(corpus.captions)
    )
    result = evaluate_retrieval(model, replace(corpus, captions=captions), progress=False)
    assert len({text for texts in captions for text in texts}) == sum(len(set(texts)) for texts in captions)
    all_audio = [clip.name for clip in corpus.clips]
    all_text = [text for texts in captions for text in texts]
    of_audio = dict(zip(all_audio, captions, strict=True))
    of_text = {text: name for name, texts in of_audio.items() for text in texts}
    scores = result.text_embeddings.astype(np.float64) @ result.audio_embeddings.astype(np.float64).T

    flags = [
        [of_text[query] == all_audio[i] for i in np.argsort(-row, kind="stable")[:10]]
        for query, row in zip(all_text, scores, strict=True)
    ]
    assert result.metrics["text_to_audio"] == pytest.approx(average(flags), abs=1e-9)
    flags = []
    for query, row in zip(all_audio, scores.T, strict=True):
        found: list[str] = []
        hits = []
        for predicted in (all_text[i] for i in np.argsort(-row, kind="stable")[:10]):
            hits.append(predicted not in found and predicted in of_audio[query])
            if hits[-1]:
                found.append(predicted)
        flags.append(hits)
    assert result.metrics["audio_to_text"] == pytest.approx(average(flags), abs=1e-9)


def test_figures_on_shards_equal_a_second_computation(model: Cacophony, shards: Path):
    result = evaluate_retrieval(model, read_packed(shards), progress=False)
    with Shards.open(shards) as opened:
        clips = sorted((opened.clip(i) for i in range(len(opened))), key=lambda clip: clip.source)
        audio = np.concatenate([model.embed_audio([opened.read(clip.index)]) for clip in clips])
    texts = [list(clip.captions or clip.synthetic_captions) for clip in clips]
    captions = [text for group in texts for text in group]
    scores = model.embed_text(captions).astype(np.float64) @ audio.astype(np.float64).T
    carried = [set(group) for group in texts]
    assert result.metrics["text_to_audio"] == pytest.approx(text_to_audio(scores, captions, carried), abs=1e-9)
    assert result.metrics["audio_to_text"] == pytest.approx(audio_to_text(scores.T, captions, carried), abs=1e-9)
    assert any(clip.synthetic_captions for clip in clips)
    assert result.captions == captions


@pytest.mark.parametrize("dataset", CAPTIONED)
def test_the_order_of_files_and_rows_is_of_no_account(model: Cacophony, tmp_path: Path, dataset: str):
    truth = CAPTIONED[dataset](tmp_path, 40)
    expected = evaluate_retrieval(model, read_captioned(tmp_path), progress=False).metrics
    for change in (lambda rows: rows[::-1], lambda rows: Random(3).sample(rows, len(rows)), lambda rows: 2 * rows):
        truth.rewrite(change)
        assert evaluate_retrieval(model, read_captioned(tmp_path), progress=False).metrics == expected


def test_missing_clips_are_counted_and_the_others_evaluated(model: Cacophony, tmp_path: Path):
    truth = CAPTIONED["clotho"](tmp_path, 20)
    gone = sorted(truth.audio)[4]
    truth.audio.pop(gone).unlink()
    result = evaluate_retrieval(model, read_captioned(tmp_path), progress=False)
    record = json.loads(json.dumps(result.record()))
    assert record["missing"] == [{"name": gone, "reason": "no audio file"}]
    assert (record["found"], record["clips"], record["captions"]) == (19, 19, 95)
    assert record["text_to_audio"] == pytest.approx(second_computation(model, truth)["text_to_audio"])


def test_intervals_hold_their_figures_and_shrink_with_more_clips(model: Cacophony, made: Callable[[str], Made]):
    corpus = read_captioned(made("audiocaps").root)
    widths = []
    for clips in (50, 200):
        part = replace(corpus, clips=corpus.clips[:clips], captions=corpus.captions[:clips])
        metrics = evaluate_retrieval(model, part, progress=False).metrics
        for direction in ("text_to_audio", "audio_to_text"):
            for name, (low, high) in metrics["intervals"][direction].items():
                assert 0 <= low <= metrics[direction][name] <= high <= 1
        low, high = metrics["intervals"]["text_to_audio"]["r@10"]
        widths.append((high - low) / metrics["text_to_audio"]["r@10"])
        assert f"{100 * low:.1f} to {100 * high:.1f}" in format_table(metrics)
    assert widths[1] < widths[0]


def test_whole_clips_are_embedded_in_the_order_of_their_names(model: Cacophony, held_out_shards: Path):
    result = evaluate_retrieval(model, read_packed(held_out_shards), progress=False)
    with Shards.open(held_out_shards) as opened:
        waves = {opened.clip(i).source: opened.read(i) for i in range(len(opened))}
    names = [clip.name for clip in result.corpus.clips]
    assert names == sorted(waves)
    np.testing.assert_allclose(result.audio_embeddings, model.embed_audio([waves[n] for n in names]), atol=1e-5)


def test_shards_without_captions_are_refused(mute_shards: Path):
    with pytest.raises(InputError, match=r"no captions.*--captions"):
        read_captioned(mute_shards)


def test_a_caption_shared_by_all_clips_hits_every_one(model: Cacophony, made: Callable[[str], Made]):
    corpus: CaptionCorpus = read_captioned(made("clotho").root)
    same = replace(corpus, captions=tuple(("a dog barks",) for _ in corpus.clips))
    metrics = evaluate_retrieval(model, same, progress=False).metrics
    assert metrics["text_to_audio"] == dict.fromkeys(metrics["text_to_audio"], 1.0)
    assert metrics["audio_to_text"]["map@10"] == 1.0

import json
from pathlib import Path

import numpy as np
import pytest
from cacophony.data.shards import Shards
from cacophony.engine.evaluate.retrieval import evaluate_retrieval
from cacophony.engine.evaluate.retrieval_metrics import format_table
from cacophony.engine.inference import Cacophony, load
from cacophony.errors import InputError

FIGURES = {"r@1", "r@5", "r@10", "map@10"}


@pytest.fixture(scope="module")
def model(contrastive_run: Path) -> Cacophony:
    return load(contrastive_run, device="cpu")


def test_the_metrics_are_json_of_the_documented_form(model: Cacophony, held_out_shards: Path):
    metrics = evaluate_retrieval(model, held_out_shards, progress=False).metrics
    read = json.loads(json.dumps(metrics))
    assert {"text_to_audio", "audio_to_text", "clips", "captions"} <= set(read)
    assert (read["clips"], read["captions"]) == (8, 8)
    for direction in ("text_to_audio", "audio_to_text"):
        figures = read[direction]
        assert set(figures) == FIGURES
        assert 0 <= figures["r@1"] <= figures["r@5"] <= figures["r@10"] == 1.0  # 8 candidates
        assert figures["r@1"] <= figures["map@10"] <= 1.0
    assert "R@10" in format_table(metrics).replace("r@10", "R@10")


def test_recall_is_that_of_the_embeddings_it_returns(model: Cacophony, held_out_shards: Path):
    result = evaluate_retrieval(model, held_out_shards, progress=False)
    similarity = result.text_embeddings @ result.audio_embeddings.T
    rank = (similarity > similarity[np.arange(8), result.clip_of_caption][:, None]).sum(axis=1)
    for k in (1, 5):
        assert result.metrics["text_to_audio"][f"r@{k}"] == pytest.approx(float((rank < k).mean()))


def test_whole_clips_are_embedded_in_the_order_of_the_shards(model: Cacophony, held_out_shards: Path):
    result = evaluate_retrieval(model, held_out_shards, progress=False)
    with Shards.open(held_out_shards) as shards:
        clips = [shards.clip(i) for i in range(len(shards))]
        waves = [shards.read(i) for i in range(len(shards))]
    assert result.sources == [clip.source for clip in clips]
    assert result.captions == [caption for clip in clips for caption in clip.captions]
    np.testing.assert_allclose(result.audio_embeddings, model.embed_audio(waves), atol=1e-5)


def test_human_captions_count_and_synthetic_ones_where_there_are_none(model: Cacophony, shards: Path):
    result = evaluate_retrieval(model, shards, progress=False)
    with Shards.open(shards) as opened:
        clips = [opened.clip(i) for i in range(len(opened))]
    assert any(clip.synthetic_captions for clip in clips)
    assert result.captions == [c for clip in clips for c in clip.captions or clip.synthetic_captions]
    assert result.metrics["clips"] == 40


def test_shards_without_captions_are_refused(model: Cacophony, mute_shards: Path):
    with pytest.raises(InputError, match=r"no captions.*--captions"):
        evaluate_retrieval(model, mute_shards, progress=False)

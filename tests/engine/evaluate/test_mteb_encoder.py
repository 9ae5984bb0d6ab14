"""The encoder as mteb calls it: batches of text and audio in, unit embeddings and cosines out."""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cacophony.engine.evaluate.mteb_encoder import CacophonyEncoder
from cacophony.errors import InputError

TASK = {"task_metadata": None, "hf_split": "test", "hf_subset": "default", "prompt_type": None, "batch_size": 2}
RATE = 16_000


@pytest.fixture(scope="module")
def encoder(contrastive_run: Path) -> CacophonyEncoder:
    return CacophonyEncoder(contrastive_run, revision="r1", device="cpu")


def item(seconds: float, seed: int, rate: int = RATE, channels: int | None = None) -> dict:
    shape = (round(seconds * rate),) if channels is None else (channels, round(seconds * rate))
    return {"array": np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32), "sampling_rate": rate}


def test_batches_of_either_kind_are_embedded_in_their_order(encoder: CacophonyEncoder):
    texts = ["a dog", "rain on a roof", "a bell"]
    clips = [item(0.5, 0), item(1.1, 1), item(0.8, 2)]
    text = encoder.encode([{"text": texts[:2]}, {"text": texts[2:]}], **TASK)
    audio = encoder.encode([{"audio": clips[:2]}, {"audio": clips[2:]}], **TASK)
    np.testing.assert_allclose(text, encoder.model.embed_text(texts), atol=1e-5)
    np.testing.assert_allclose(audio, encoder.model.embed_audio([clip["array"] for clip in clips]), atol=1e-5)


def test_both_kinds_together_are_added_and_normalised(encoder: CacophonyEncoder):
    clips, texts = [item(0.5, 0), item(0.7, 1)], ["a dog", "rain"]
    both = encoder.encode([{"text": texts, "audio": clips}], **TASK)
    total = encoder.model.embed_text(texts) + encoder.model.embed_audio([clip["array"] for clip in clips])
    np.testing.assert_allclose(both, total / np.linalg.norm(total, axis=1, keepdims=True), atol=1e-6)


def test_channels_and_rates_are_brought_to_ours(encoder: CacophonyEncoder):
    """Budget 0.02 of a cosine: a tone survives resampling, up to its ends."""
    embeddings = []
    for rate in (16_000, 44_100):
        tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
        embeddings.append(encoder.encode([{"audio": [{"array": np.stack([tone, tone]), "sampling_rate": rate}]}]))
    assert float(encoder.similarity(*embeddings)) > 0.98
    stereo = item(0.6, 3, channels=2)
    mono = {"array": stereo["array"].mean(axis=0), "sampling_rate": RATE}
    np.testing.assert_array_equal(encoder.encode([{"audio": [stereo]}]), encoder.encode([{"audio": [mono]}]))


def test_similarities_are_cosines(encoder: CacophonyEncoder):
    a, b = np.random.default_rng(0).normal(size=(2, 3, 16))
    cosines = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(encoder.similarity(a, torch.from_numpy(b)), cosines, atol=1e-6)
    np.testing.assert_allclose(encoder.similarity_pairwise(a, b), np.diag(cosines), atol=1e-6)
    assert encoder.similarity(a[0], b).shape == (1, 3)


def test_nothing_gives_nothing_and_something_else_is_refused(encoder: CacophonyEncoder):
    assert encoder.encode([]).shape == (0, 16)
    with pytest.raises(InputError, match="a batch has image; expected text, audio or both"):
        encoder.encode([{"image": [None]}])


def test_without_mteb_only_the_card_is_missing(contrastive_run: Path, monkeypatch: pytest.MonkeyPatch):
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    encoder = CacophonyEncoder(contrastive_run, device="cpu")
    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(InputError, match=r"needs mteb .*pip install 'cacophony-engine\[evaluate\]'"):
        _ = encoder.mteb_model_meta
    assert len(encoder.encode([{"text": ["a dog"]}])) == 1


def positional(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def test_mteb_takes_it_for_an_encoder(encoder: CacophonyEncoder):
    protocols = pytest.importorskip("mteb.models.models_protocols")
    assert isinstance(encoder, protocols.EncoderProtocol)
    for name in ("encode", "similarity", "similarity_pairwise"):
        theirs, ours = (positional(getattr(owner, name)) for owner in (protocols.EncoderProtocol, CacophonyEncoder))
        assert ours == theirs
    meta = encoder.mteb_model_meta
    assert (meta.revision, meta.embed_dim, set(meta.modalities)) == ("r1", 16, {"audio", "text"})


@pytest.mark.filterwarnings("ignore")  # mteb's and its dependencies' own
def test_mteb_scores_a_task_of_local_data(encoder: CacophonyEncoder):
    """Text to audio over twelve clips: hit rates as they follow from the embeddings."""
    mteb, datasets = pytest.importorskip("mteb"), pytest.importorskip("datasets")
    retrieval = importlib.import_module("mteb.abstasks.retrieval")
    metadata = importlib.import_module("mteb.abstasks.task_metadata").TaskMetadata
    clips = [item(0.5 + 0.05 * i, seed=i) for i in range(12)]
    texts = [f"sound number {i}" for i in range(12)]

    class Local(retrieval.AbsTaskRetrieval):
        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            names = [str(i) for i in range(12)]
            rows = [{**clip, "array": clip["array"].tolist()} for clip in clips]
            split = {
                "corpus": datasets.Dataset.from_dict({"id": names, "audio": rows}),
                "queries": datasets.Dataset.from_dict({"id": names, "text": texts}),
                "relevant_docs": {name: {name: 1} for name in names},
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    Local.metadata = metadata(
        name="LocalT2ARetrieval",
        description="twelve clips",
        dataset={"path": "local/local", "revision": "1"},
        type="Any2AnyRetrieval",
        category="t2a",
        modalities=["text", "audio"],
        eval_langs=["eng-Latn"],
        main_score="hit_rate_at_5",
        reference=None,
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation="",
    )
    result = mteb.evaluate(encoder, Local(), cache=None, encode_kwargs={"batch_size": 5}, show_progress_bar=False)
    scores = result.task_results[0].scores["test"][0]
    similarity = encoder.model.embed_text(texts) @ encoder.model.embed_audio([c["array"] for c in clips]).T
    ranks = (similarity > np.diag(similarity)[:, None]).sum(axis=1)
    for k in (1, 5, 10):
        assert scores[f"hit_rate_at_{k}"] == pytest.approx(np.mean(ranks < k), abs=1e-4)

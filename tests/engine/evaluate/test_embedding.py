"""Clips through a model by length: the numbers are those of each clip alone, and what is kept is not computed again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cacophony.engine.evaluate.datasets.corpus import Clip
from cacophony.engine.evaluate.datasets.layouts import read_captioned
from cacophony.engine.evaluate.embedding import CLIPS_AT_ONCE, Decoding, caption_clips, embed_clips, embed_texts
from cacophony.engine.evaluate.store import Store
from cacophony.engine.inference import Cacophony, Method
from cacophony.errors import InputError

from .corpora import Made, make_clotho


@pytest.fixture
def clips(made: Callable[[str], Made]) -> tuple[Clip, ...]:
    return read_captioned(made("clotho").root).clips


def unreadable(clip: Clip) -> Clip:
    def read() -> np.ndarray:
        raise AssertionError(f"{clip.name} was decoded")

    return replace(clip, read=read)


def test_batches_by_length_give_the_numbers_of_each_clip_alone(model: Cacophony, clips: tuple[Clip, ...]):
    """Budget 1e-5."""
    alone = np.concatenate([model.embed_audio([clip.read()]) for clip in clips])
    np.testing.assert_allclose(embed_clips(model, clips, Store()), alone, atol=1e-5)


def test_the_order_of_clips_decides_nothing_but_the_order_of_rows(model: Cacophony, clips: tuple[Clip, ...]):
    rows = embed_clips(model, clips, Store())
    order = np.random.default_rng(0).permutation(len(clips))
    np.testing.assert_array_equal(embed_clips(model, [clips[i] for i in order], Store()), rows[order])


def test_equal_texts_have_equal_embeddings(model: Cacophony):
    texts = ["a dog barks", "rain", "a dog barks", ""]
    rows = embed_texts(model, texts, Store())
    assert (rows[0] == rows[2]).all()
    np.testing.assert_allclose(rows, model.embed_text(texts), atol=1e-5)


def test_what_is_kept_is_not_computed_again(model: Cacophony, clips: tuple[Clip, ...], tmp_path: Path):
    store = Store(tmp_path, "checkpoint")
    rows = embed_clips(model, clips, store)
    np.testing.assert_array_equal(embed_clips(model, [unreadable(clip) for clip in clips], store), rows)
    captions = caption_clips(model, clips, Decoding(method="greedy"), store)
    assert caption_clips(model, [unreadable(clip) for clip in clips], Decoding(method="greedy"), store) == captions
    with pytest.raises(AssertionError, match="was decoded"):
        caption_clips(model, [unreadable(clip) for clip in clips], Decoding(), store)
    with pytest.raises(AssertionError, match="was decoded"):
        embed_clips(model, [unreadable(clip) for clip in clips], Store(tmp_path, "another checkpoint"))


def test_an_interrupted_embedding_goes_on_where_it_was(model: Cacophony, clips: tuple[Clip, ...], tmp_path: Path):
    store, longest = Store(tmp_path, "checkpoint"), max(clips, key=lambda clip: clip.samples)
    with pytest.raises(AssertionError, match="was decoded"):
        embed_clips(model, [unreadable(clip) if clip is longest else clip for clip in clips], store)
    assert len(list(tmp_path.iterdir())) == len(clips) // CLIPS_AT_ONCE
    done = sorted(clips, key=lambda clip: clip.samples)[: CLIPS_AT_ONCE // 2]
    again = embed_clips(model, [unreadable(clip) if clip in done else clip for clip in clips], store)
    np.testing.assert_array_equal(again, embed_clips(model, clips, Store()))


def test_a_file_that_changed_is_computed_again(model: Cacophony, tmp_path: Path):
    truth = make_clotho(tmp_path / "data", 3)
    store = Store(tmp_path / "kept", "checkpoint")
    before = embed_clips(model, read_captioned(truth.root).clips, store)
    first, second, _ = (truth.audio[name] for name in sorted(truth.audio))
    first.write_bytes(second.read_bytes())
    after = embed_clips(model, read_captioned(truth.root).clips, store)
    assert (np.abs(after - before).max(axis=1) > 1e-3).tolist() == [True, False, False]


def test_a_clip_damaged_inside_is_named(model: Cacophony, tmp_path: Path):
    truth = make_clotho(tmp_path, 3)
    name = min(truth.audio)
    truth.audio[name].write_bytes(truth.audio[name].read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"Rain, part 0 .*truncated"):
        embed_clips(model, read_captioned(tmp_path).clips, Store())


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_captions_come_in_the_order_of_the_clips(model: Cacophony, clips: tuple[Clip, ...], method: Method):
    some = clips[:5]
    together = caption_clips(model, some, Decoding(method=method), Store())
    assert together == [model.caption([clip.read()], method=method)[0] for clip in some]
    assert caption_clips(model, some[::-1], Decoding(method=method), Store()) == together[::-1]

"""Clips of named sources alone, on both loaders: who is drawn, how a run goes on, what is refused."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cacophony.data.loader import Loader
from cacophony.data.shards import Shards
from cacophony.errors import InputError

from .conftest import noise, write_shards

MakeLoader = Callable[..., Loader]


@pytest.fixture(scope="module")
def lengths() -> list[int]:
    """Of the clips of `many`, whose every third is from "land", the others from "sea"."""
    return np.random.default_rng(1).integers(800, 8_000, 330).tolist()


@pytest.fixture(scope="module")
def land_alone(lengths: list[int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips that `many` has from "land", in shards of their own."""
    return write_shards(tmp_path_factory.mktemp("land") / "shards", noise(lengths)[::3], lengths[::3])


def test_a_source_is_drawn_as_if_nothing_else_had_been_packed(
    many: Path, land_alone: Path, make_loader: MakeLoader, path: str
):
    chosen = make_loader(many, path, sources=["land"], max_text_tokens=None)
    alone = make_loader(land_alone, path, max_text_tokens=None)
    assert chosen.steps_per_epoch == alone.steps_per_epoch == 110 // 8
    for a, b in itertools.islice(zip(chosen, alone, strict=False), 16):
        assert torch.equal(a.wave, b.wave)
        assert torch.equal(a.sample_index, b.sample_index)


def test_captions_are_those_of_the_chosen_clips(many: Path, make_loader: MakeLoader, path: str):
    shards = Shards.open(many, ["land"])
    assert [shards.clip(i).source for i in range(len(shards))] == [f"land/{i}.wav" for i in range(0, 330, 3)]
    assert sorted(shards.captions()) == sorted(f"caption {n} of clip {i}" for i in range(0, 330, 3) for n in range(2))
    assert [shards.key(i) for i in (0, 1, 109)] == ["000000", "000003", "000327"]
    assert shards.has_captions
    batch = next(make_loader(many, path, sources=["land"]))
    assert batch.token_lengths.min() > 2


def test_two_sources_are_all_there_are(many: Path, make_loader: MakeLoader, path: str):
    both = make_loader(many, path, sources=["sea", "land"])
    for a, b in itertools.islice(zip(both, make_loader(many, path), strict=False), 4):
        assert torch.equal(a.wave, b.wave)
        assert torch.equal(a.token_ids, b.token_ids)


def test_a_run_goes_on_with_the_same_sources_alone(many: Path, make_loader: MakeLoader, path: str):
    whole = make_loader(many, path, sources=["sea"])
    batches = [next(whole) for _ in range(4)]
    head = make_loader(many, "native", sources=["sea"])
    for _ in range(2):
        next(head)
    tail = make_loader(many, path, sources=["sea"])
    tail.load_state_dict(head.state_dict())
    for batch in batches[2:]:
        assert torch.equal(next(tail).wave, batch.wave)
    for others in ([], ["land"], ["sea", "land"]):
        with pytest.raises(InputError, match="fingerprint"):
            make_loader(many, path, sources=others).load_state_dict(head.state_dict())


def test_a_damaged_clip_is_replaced_by_one_of_the_sources(
    damaged: Callable[[dict[int, str]], Path], make_loader: MakeLoader, path: str
):
    folder = damaged({3: "flipped"})
    land = Shards.open(folder, ["land"])
    loader = make_loader(folder, path, sources=["land"], crop_seconds=None)
    lengths = {land.clip(i).samples for i in range(len(land))}
    for batch in itertools.islice(loader, loader.steps_per_epoch):
        assert set(batch.wave_lengths.tolist()) <= lengths
    assert loader.damage.by_source == {"land": 1}


def test_a_clip_whose_record_is_damaged_is_left_out_and_named(
    damaged: Callable[[dict[int, str]], Path], caplog: pytest.LogCaptureFixture
):
    shards = Shards.open(damaged({6: "json"}), ["land"])
    assert len(shards) == 109
    assert "000006.json is damaged" in caplog.text
    assert "its source is not known" in caplog.text


def test_a_source_that_is_not_there_is_refused_with_those_that_are(many: Path):
    with pytest.raises(InputError, match=r"no clip is from source lake; expected some of sea \(220\), land \(110\)"):
        Shards.open(many, ["land", "lake"])

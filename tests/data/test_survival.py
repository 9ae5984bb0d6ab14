"""Members damaged after packing: replaced alike on both paths, counted, named once; too many of them stop a run."""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cacophony.data import flac
from cacophony.data.dali import dali_problem
from cacophony.data.loader import Loader
from cacophony.errors import InputError
from cacophony.native_library import NativeLibrary

KINDS = ("truncated", "zero-length", "flipped", "json")
# 3 % of 330.
DAMAGE = {i: KINDS[i % 4] for i in (3, 40, 77, 102, 119, 160, 201, 230, 258, 329)}

MakeLoader = Callable[..., Loader]


@pytest.fixture
def shards(damaged: Callable[[dict[int, str]], Path]) -> Path:
    return damaged(DAMAGE)


def epochs(loader: Loader, count: int) -> list[tuple[list[int], torch.Tensor, torch.Tensor]]:
    batches = [next(loader) for _ in range(count * loader.steps_per_epoch)]
    return [(batch.sample_index.tolist(), batch.wave, batch.token_ids) for batch in batches]


@pytest.mark.parametrize("crop_seconds", [None, 0.2])
def test_an_epoch_ends_and_nothing_but_the_damaged_clips_changed(
    many: Path, shards: Path, make_loader: MakeLoader, path: str, crop_seconds: float | None
) -> None:
    values = {"crop_seconds": crop_seconds, "batch_size": 30}
    loader = make_loader(shards, path, **values)
    for (clips, wave, ids), (wanted, _, _) in zip(
        epochs(loader, 2), epochs(make_loader(many, "native", **values), 2), strict=True
    ):
        assert not set(clips) & set(DAMAGE)
        for clip, was in zip(clips, wanted, strict=True):
            assert clip == was or (was in DAMAGE and clip not in wanted)
        assert wave.numel() > 0
        assert ids.numel() > 0
    assert loader.damage.by_source == Counter("sea" if i % 3 else "land" for i in DAMAGE if DAMAGE[i] != "json") + (
        Counter(unknown=sum(kind == "json" for kind in DAMAGE.values()))
    )


@pytest.mark.skipif(bool(dali_problem()), reason=dali_problem() or "DALI is here")
def test_both_paths_replace_alike_on_any_number_of_ranks(shards: Path, make_loader: MakeLoader) -> None:
    native = epochs(make_loader(shards, "native", batch_size=30), 2)
    for rank in range(3):
        loader = make_loader(shards, "dali", rank, 3, batch_size=30)
        for (clips, wave, _), (part_clips, part_wave, _) in zip(native, epochs(loader, 2), strict=True):
            assert part_clips == clips[10 * rank : 10 * (rank + 1)]
            assert torch.isin(part_wave, wave).all()
    dali = epochs(make_loader(shards, "dali", batch_size=30), 2)
    assert all(torch.equal(a[1], b[1]) and torch.equal(a[2], b[2]) for a, b in zip(native, dali, strict=True))


def test_without_our_own_decoder_the_batches_are_the_same(
    shards: Path, make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crops, whole clips and silence behind short ones; 3 % are replaced."""
    for lengths in ({"crop_seconds": 0.2}, {"crop_seconds": None}, {"crop_seconds": None, "fixed_seconds": 0.3}):
        native = epochs(make_loader(shards, "native", batch_size=30, **lengths), 1)
        with monkeypatch.context() as patch:
            patch.setattr(flac, "flac_library", lambda: NativeLibrary(None, "not here"))
            for a, b in zip(native, epochs(make_loader(shards, "native", batch_size=30, **lengths), 1), strict=True):
                assert a[0] == b[0]
                assert torch.equal(a[1], b[1])
                assert torch.equal(a[2], b[2])


def test_each_member_is_named_once(
    shards: Path, make_loader: MakeLoader, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        epochs(make_loader(shards, path, batch_size=110), 3)
    assert len(caplog.messages) == len(DAMAGE)
    for i, kind in DAMAGE.items():
        name = f"member {i:06d}.{'json' if kind == 'json' else 'flac'} is damaged ("
        (line,) = (message for message in caplog.messages if name in message)
        assert line.endswith("): replaced by another clip; pack again")


def test_replacing_survives_a_restart(shards: Path, make_loader: MakeLoader, path: str) -> None:
    whole = epochs(make_loader(shards, path, batch_size=30), 1)
    for stop in range(1, len(whole), 3):
        loader = make_loader(shards, path, batch_size=30)
        loader.load_state_dict(loader.state_dict() | {"step": stop})
        assert torch.equal(next(loader).wave, whole[stop][1])


def test_too_large_a_share_stops_with_one_line(shards: Path, make_loader: MakeLoader, path: str) -> None:
    loader = make_loader(shards, path, batch_size=30, max_bad_share=0.02)
    with pytest.raises(InputError) as stopped:
        epochs(loader, 1)
    line = str(stopped.value)
    assert "\n" not in line
    assert "7 damaged members among the 330 clips of an epoch, more than data.max_bad_share (0.02)" in line
    assert "sea: " in line
    epochs(make_loader(shards, path, batch_size=30, max_bad_share=0.04), 2)
    with pytest.raises(InputError, match="1 damaged members"):
        epochs(make_loader(shards, path, batch_size=30, max_bad_share=0.0), 1)


def test_a_corpus_that_is_all_damaged_stops_at_once(
    damaged: Callable[[dict[int, str]], Path], make_loader: MakeLoader, path: str
) -> None:
    loader = make_loader(damaged(dict.fromkeys(range(330), "zero-length")), path, max_bad_share=1.0)
    with pytest.raises(InputError, match=r"100 clips in a row are damaged.*pack again"):
        next(loader)
    assert loader.state_dict()["step"] == 0


def test_a_tar_that_cannot_be_read_is_no_damaged_member(shards: Path, make_loader: MakeLoader) -> None:
    loader = make_loader(shards, "native", batch_size=330)
    for tar in shards.glob("*.tar"):
        tar.unlink()
    with pytest.raises(InputError, match="No such file"):
        next(loader)


@pytest.mark.parametrize("count", [3, 8])
def test_a_member_that_never_decoded_ends_no_pipeline(
    tmp_path: Path, make_loader: MakeLoader, path: str, count: int, write_members: Callable[..., Path]
) -> None:
    """Packed as it is, its checksum is right: the decoder itself refuses it, and DALI's pipeline with it."""
    samples = np.random.default_rng(2).integers(800, 3_000, 200).tolist()
    bad = list(range(0, 200, 200 // count))[:count]
    shards = write_members(tmp_path / "undecodable", samples, bad)
    loader = make_loader(shards, path, batch_size=20, crop_seconds=None)
    seen = [clip for clips, _, _ in epochs(loader, 1) for clip in clips]
    assert set(range(200)) - set(seen) == set(bad)
    assert len(seen) == 200
    assert sum(loader.damage.by_source.values()) == count

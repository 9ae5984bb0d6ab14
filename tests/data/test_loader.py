"""The loader: order, crops and captions are functions of the seed; stopping, ranks and threads change nothing."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from cacophony.data.batch import AudioTextBatch
from cacophony.data.loader import Loader, LoaderConfig
from cacophony.data.pack import pack
from cacophony.data.shards import Shards
from cacophony.data.tokens import CaptionTokenizer
from cacophony.errors import InputError

CLIPS = 11
TOKENIZER = CaptionTokenizer.train(["real synthetic 0 1 2 3 4 5 6 7 8 9"], 300)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("loader")
    lines = ["file,caption,synthetic"]
    for i in range(CLIPS):
        (folder / "audio").mkdir(exist_ok=True)
        # The samples count up, so that a crop tells where it was taken.
        sf.write(folder / "audio" / f"{i:02}.wav", np.arange(16_000 + 400 * i, dtype=np.int16), 16_000)
        lines += [f"{i:02}.wav,real {i} {n}," for n in range(2) if i != 3]
        lines += [f"{i:02}.wav,synthetic {i} {n},1" for n in range(3) if i != 4]
    (folder / "c.csv").write_text("\n".join(lines))
    pack(folder / "audio", folder / "out", captions=folder / "c.csv", clips_per_shard=4)
    pack(folder / "audio", folder / "mute")
    return Shards.open(folder / "out")


def config(**values: object) -> LoaderConfig:
    defaults = {"batch_size": 4, "crop_seconds": 1.0, "max_text_tokens": 20, "seed": 5, "workers": 2}
    return LoaderConfig(**{**defaults, **values})  # pyright: ignore[reportArgumentType]


def take(shards: Shards, count: int, state: dict | None = None, rank: int = 0, world: int = 1, **values: object):
    loader = Loader(shards, config(**values), TOKENIZER, rank, world)
    if state is not None:
        loader.load_state_dict(state)
    batches = [next(loader) for _ in range(count)]
    loader.close()
    return batches, loader.state_dict()


def tensors(batch: AudioTextBatch) -> list[torch.Tensor]:
    return [batch.wave, batch.wave_offsets, batch.sample_index, batch.token_ids, batch.token_offsets]


def same(a: AudioTextBatch, b: AudioTextBatch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def texts(batch: AudioTextBatch) -> list[str]:
    return [TOKENIZER.decode(ids.tolist()) for ids in batch.token_ids.split(batch.token_lengths.tolist())]


@pytest.mark.parametrize("stop", range(6))
def test_a_run_continues_bit_for_bit_from_any_step(shards: Shards, stop: int) -> None:
    whole, _ = take(shards, 6)
    head, state = take(shards, stop, prefetch_batches=3)
    assert state["step"] == stop
    tail, _ = take(shards, 6 - stop, state, workers=1, prefetch_batches=1)
    assert all(same(a, b) for a, b in zip(whole, head + tail, strict=True))


def test_a_loader_may_be_set_back_while_it_reads_ahead(shards: Shards) -> None:
    loader = Loader(shards, config(), TOKENIZER)
    first, state = next(loader), loader.state_dict()
    second = next(loader)
    next(loader)
    loader.load_state_dict(state)
    assert same(next(loader), second)
    loader.load_state_dict(state | {"step": 0})
    assert same(next(loader), first)
    loader.close()


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_divide_the_global_batch(shards: Shards, world: int) -> None:
    whole, _ = take(shards, 3)
    _, state = take(shards, 1, rank=1, world=2)
    for rank in range(world):
        parts, _ = take(shards, 2, state, rank, world)
        rows = 4 // world
        for batch, part in zip(whole[1:], parts, strict=True):
            assert same(batch.select(rank * rows, (rank + 1) * rows), part)


def test_an_epoch_holds_every_clip_once_but_the_remainder(shards: Shards) -> None:
    batches, _ = take(shards, 20)
    left_out = Counter()
    orders = set()
    for epoch in range(10):
        seen = torch.cat([batch.sample_index for batch in batches[2 * epoch : 2 * epoch + 2]]).tolist()
        assert len(set(seen)) == len(seen) == 8
        left_out.update(set(range(CLIPS)) - set(seen))
        orders.add(tuple(seen))
    assert len(orders) == 10
    assert len(left_out) > 6


def test_crops_have_their_length_and_lie_anywhere(shards: Shards) -> None:
    batches, _ = take(shards, 30, crop_seconds=0.5)
    starts = []
    for batch in batches:
        assert batch.wave_lengths.tolist() == [8_000] * 4
        for crop, clip in zip(batch.wave.view(4, -1), batch.sample_index.tolist(), strict=True):
            assert torch.equal(crop, torch.arange(int(crop[0]), int(crop[0]) + 8_000).to(torch.int16))
            starts.append(int(crop[0]) / (8_000 + 400 * clip))
    assert 0.4 < np.mean(starts) < 0.6
    assert min(starts) < 0.1
    assert max(starts) > 0.9


def test_a_fixed_length_crops_long_clips_and_lets_silence_follow_short_ones(shards: Shards) -> None:
    """Clip c counts 0, 1, … for 16000 + 400 c samples; the fixed length is 1.1 s, that of clip 4."""
    batches, _ = take(shards, 12, fixed_seconds=1.1, crop_seconds=None)
    assert {int(i) for batch in batches for i in batch.sample_index} == set(range(CLIPS))
    for batch in batches:
        assert batch.wave_lengths.tolist() == [17_600] * 4
        for wave, clip in zip(batch.wave.view(4, -1), batch.sample_index.tolist(), strict=True):
            sounding = min(17_600, 16_000 + 400 * clip)
            first = int(wave[0])
            assert torch.equal(wave[:sounding], torch.arange(first, first + sounding).to(torch.int16))
            assert not wave[sounding:].any()
            assert first == 0 or clip > 4


def test_short_clips_and_no_crop_give_whole_clips(shards: Shards) -> None:
    for seconds in (None, 60.0):
        (batch,), _ = take(shards, 1, crop_seconds=seconds)
        assert batch.wave_lengths.tolist() == (16_000 + 400 * batch.sample_index).tolist()


def test_captions_belong_to_their_clips_and_are_mostly_synthetic(shards: Shards) -> None:
    batches, _ = take(shards, 150, crop_seconds=0.01, batch_size=8)
    kinds, choices = Counter(), Counter()
    for batch in batches:
        for clip, text in zip(batch.sample_index.tolist(), texts(batch), strict=True):
            kind, number, choice = text.split()
            assert int(number) == clip
            assert kind == {3: "synthetic", 4: "real"}.get(clip, kind)
            if clip not in (3, 4):
                kinds[kind] += 1
                choices[kind, choice] += 1
    assert abs(kinds["synthetic"] / kinds.total() - 0.8) < 0.05
    assert all(abs(choices["synthetic", str(n)] / kinds["synthetic"] - 1 / 3) < 0.06 for n in range(3))
    assert abs(choices["real", "0"] / kinds["real"] - 1 / 2) < 0.12


@pytest.mark.parametrize(("probability", "kind"), [(0.0, "real"), (1.0, "synthetic")])
def test_the_share_of_synthetic_captions_is_a_setting(shards: Shards, probability: float, kind: str) -> None:
    batches, _ = take(shards, 6, synthetic_probability=probability)
    for batch in batches:
        for clip, text in zip(batch.sample_index.tolist(), texts(batch), strict=True):
            assert text.startswith(kind) or clip in (3, 4)


def test_without_text_there_are_no_tokens(shards: Shards) -> None:
    mute = Shards.open(shards.path.parent / "mute")
    for source in (shards, mute):
        batch = next(Loader(source, config(max_text_tokens=None)))
        assert batch.token_ids.numel() == 0
        assert batch.token_offsets.tolist() == [0] * 5
    with pytest.raises(InputError, match=r"mute have no captions: pack with --captions"):
        Loader(mute, config(), TOKENIZER)


@pytest.mark.parametrize("field", ["fingerprint", "batch_size", "seed"])
def test_a_state_of_another_run_is_refused(shards: Shards, field: str) -> None:
    loader = Loader(shards, config(), TOKENIZER)
    with pytest.raises(InputError, match=f"{field} was 77 and is now"):
        loader.load_state_dict(loader.state_dict() | {field: 77})
    with pytest.raises(InputError, match=f"has no {field}"):
        loader.load_state_dict({name: value for name, value in loader.state_dict().items() if name != field})
    with pytest.raises(InputError, match="step is -1"):
        loader.load_state_dict(loader.state_dict() | {"step": -1})
    loader.close()


@pytest.mark.parametrize(
    ("values", "world", "message"),
    [
        ({"batch_size": 12}, 1, "batch_size is 12.*11 clips"),
        ({"batch_size": 4}, 3, "batch_size is 4; expected a multiple of the 3"),
        ({"batch_size": 0}, 1, "batch_size is 0"),
        ({"crop_seconds": 0.0}, 1, "crop_seconds is 0.0"),
        ({"fixed_seconds": 0.0}, 1, "fixed_seconds is 0.0"),
        ({"max_text_tokens": 1}, 1, "max_text_tokens is 1"),
        ({"synthetic_probability": 1.5}, 1, "synthetic_probability is 1.5"),
        ({"workers": 0}, 1, "workers is 0"),
    ],
)
def test_wrong_settings_are_refused(shards: Shards, values: dict, world: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Loader(shards, config(**values), TOKENIZER, 0, world)


def test_what_went_wrong_surfaces_from_next_and_the_step_is_kept(shards: Shards, tmp_path: Path) -> None:
    copy = shutil.copytree(shards.path, tmp_path / "copy")
    tar = copy / "shard-000001.tar"
    loader = Loader(Shards.open(copy), config(batch_size=11), TOKENIZER)
    tar.rename(tmp_path / "away")
    for _ in range(2):
        with pytest.raises(InputError, match=r"shard-000001\.tar: No such file"):
            next(loader)
    assert loader.state_dict()["step"] == 0
    (tmp_path / "away").rename(tar)
    (expected,), _ = take(shards, 1, batch_size=11)
    assert same(next(loader), expected)
    loader.close()

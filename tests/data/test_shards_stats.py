"""Numbers of packed shards, against a count by hand."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from cacophony.data.pack import pack
from cacophony.data.shards import Shards
from cacophony.data.shards_stats import shards_stats
from cacophony.data.tokens import CaptionTokenizer


def test_every_number_is_the_one_counted_by_hand(tmp_path: Path) -> None:
    lines = ["file,caption,synthetic"]
    for i, seconds in enumerate((1.0, 2.0, 4.0)):
        path = tmp_path / "audio" / "ab"[i // 2] / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, np.random.default_rng(i).uniform(-0.3, 0.3, round(16_000 * seconds)), 16_000)
        lines += [f"{'ab'[i // 2]}/{i}.wav,{'x' * (i + 1)},", f"{'ab'[i // 2]}/{i}.wav,yyyy,yes"][: 1 + i % 2]
    (tmp_path / "c.csv").write_text("\n".join(lines))
    pack(tmp_path / "audio", tmp_path / "out", captions=tmp_path / "c.csv", workers=1)
    tokenizer = CaptionTokenizer.train([], 261)  # bytes alone: a token for each letter
    with Shards.open(tmp_path / "out") as shards:
        stats = shards_stats(shards, tokenizer)
    content = stats.content()
    assert (content["clips"], content["captions"], content["synthetic_captions"]) == (3, 3, 1)
    assert content["hours"] == pytest.approx(7 / 3600)
    assert content["hours_by_source"] == pytest.approx({"a": 3 / 3600, "b": 4 / 3600})
    assert content["captions_per_clip"] == {"1": 2, "2": 1}
    assert content["seconds_percentiles"]["50"] == 2.0
    assert stats.tokens.tolist() == [3, 4, 5, 6]
    assert content["tokens_histogram"] == {"3": 1, "4": 1, "5": 1, "6": 1}
    assert content["tokens_mean"] == 4.5
    assert "0.00 h, 3 captions" in stats.lines()[0]


def test_shards_without_captions_have_lengths(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    sf.write(tmp_path / "audio" / "a.wav", np.zeros(16_000), 16_000)
    pack(tmp_path / "audio", tmp_path / "out", workers=1)
    with Shards.open(tmp_path / "out") as shards:
        stats = shards_stats(shards, None)
    assert stats.content()["tokens_histogram"] == {}
    assert not any(line.startswith("tokens") for line in stats.lines())

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cacophony.data.synthesis import BACKGROUNDS, MOTIONS, PITCHES, RHYTHMS, SAMPLE_RATE, Scene, render_scene
from cacophony.data.synthetic import MIN_TRAIN_CLIPS, SOURCES, Corpus, make_corpus, split_scenes
from cacophony.errors import InputError
from numpy.typing import NDArray

VALUES = {"source": SOURCES, "pitch": PITCHES, "motion": MOTIONS, "rhythm": RHYTHMS, "background": BACKGROUNDS}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), train_clips=60, test_clips=60, seed=3)


def read_captions(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_seeds_write_equal_files_and_others_do_not(tmp_path: Path):
    arguments = {"train_clips": MIN_TRAIN_CLIPS, "test_clips": 5}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_corpus(tmp_path / name, **arguments, seed=seed)
    first, again, other = (contents(tmp_path / name) for name in "abc")
    assert len(first) == MIN_TRAIN_CLIPS + 5 + 2
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


def test_two_renderings_of_a_scene_differ():
    scene = Scene("bell", "low", "steady", "single", "silence")
    rng = np.random.default_rng(0)
    first, second = render_scene(scene, 2.0, rng), render_scene(scene, 2.0, rng)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.9


@pytest.mark.parametrize(("train_clips", "test_clips"), [(MIN_TRAIN_CLIPS, 1400), (300, 150), (3000, 1000)])
def test_split_by_combination_covers_every_value_with_every_source(train_clips: int, test_clips: int):
    train, test = split_scenes(train_clips, test_clips, np.random.default_rng(0))
    assert (len(train), len(test), len(set(test))) == (train_clips, test_clips, test_clips)
    assert not set(train) & set(test)
    for name, values in VALUES.items():
        heard = {(scene.source, getattr(scene, name)) for scene in train}
        expected = {(source, value) for source in SOURCES for value in values}
        assert heard == (expected if name != "source" else {(source, source) for source in SOURCES})


def test_clips_are_short_finite_and_unclipped_at_mixed_rates(corpus: Corpus):
    rates, channels = set(), set()
    for path in sorted(corpus.train_dir.glob("*.wav")) + sorted(corpus.test_dir.glob("*.wav")):
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
        rates.add(rate)
        channels.add(wave.shape[1])
        assert 2.0 <= len(wave) / rate <= 3.01
        assert np.isfinite(wave).all()
        assert 0.25 < np.abs(wave).max() < 0.99
    assert rates == {16_000, 22_050, 44_100, 48_000}
    assert channels == {1, 2}


def test_every_source_renders_over_every_background():
    for source in SOURCES:
        for background in BACKGROUNDS:
            wave = render_scene(Scene(source, "high", "rising", "fast", background), 2.0, np.random.default_rng(0))
            assert wave.dtype == np.float32
            assert wave.shape == (2 * SAMPLE_RATE,)
            assert np.isfinite(wave).all()
            assert 0.29 < np.abs(wave).max() < 0.91


def test_captions_name_the_source_and_test_captions_are_distinct(corpus: Corpus):
    test_rows = read_captions(corpus.test_captions)
    assert list(test_rows[0]) == ["file", "caption", "synthetic"]
    assert len({row["caption"] for row in test_rows}) == len(test_rows) == 60
    assert {row["file"] for row in test_rows} == corpus.attributes.keys()
    for row in test_rows:
        attributes = corpus.attributes[row["file"]]
        assert {name: attributes[name] in values for name, values in VALUES.items()} == dict.fromkeys(VALUES, True)
        assert [source for source in SOURCES if source in row["caption"].split()] == [attributes["source"]]
        assert row["synthetic"] == "false"


def test_train_clips_have_one_human_and_sometimes_another_synthetic_caption(corpus: Corpus):
    by_file: dict[str, list[dict[str, str]]] = {}
    for row in read_captions(corpus.train_captions):
        by_file.setdefault(row["file"], []).append(row)
    assert by_file.keys() == {path.name for path in corpus.train_dir.glob("*.wav")}
    flags = [[row["synthetic"] for row in rows] for rows in by_file.values()]
    assert all(row in (["false"], ["false", "true"]) for row in flags)
    assert 15 < sum(len(row) == 2 for row in flags) < 45
    assert all(len({row["caption"] for row in rows}) == len(rows) for rows in by_file.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_clips": MIN_TRAIN_CLIPS - 1, "test_clips": 1}, "train_clips"),
        ({"train_clips": 100, "test_clips": 0}, "test_clips"),
        ({"train_clips": 100, "test_clips": 1401}, "test_clips"),
        ({"train_clips": 100, "test_clips": 1, "seed": -1}, "seed"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, int], message: str):
    with pytest.raises(InputError, match=message):
        make_corpus(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_ridge_classifier_hears_every_attribute():
    rng = np.random.default_rng(1)
    train, test = split_scenes(300, 150, rng)
    features = np.stack([listen(render_scene(scene, rng.uniform(2.0, 3.0), rng)) for scene in train + test])
    features = (features - features[:300].mean(0)) / (features[:300].std(0) + 1e-2)
    # The kernel of the features and all their products.
    kernel = (1 + features @ features.T / features.shape[1]) ** 2
    # Chance is 0.1 for the source, 0.25 to 0.33 for the others.
    floors = {"source": 0.9, "pitch": 0.75, "motion": 0.55, "rhythm": 0.75, "background": 0.75}
    accuracy = {}
    for name, values in VALUES.items():
        labels = np.array([values.index(getattr(scene, name)) for scene in train + test])
        accuracy[name] = ridge_accuracy(kernel, labels, train_clips=300)
    assert {name: figure for name, figure in accuracy.items() if figure < floors[name]} == {}, accuracy


def ridge_accuracy(kernel: NDArray, labels: NDArray, train_clips: int) -> float:
    """Test accuracy of ridge regression from a kernel `[clips, clips]` to one-hot labels."""
    targets = np.eye(labels.max() + 1)[labels[:train_clips]]
    fitted = kernel[:train_clips, :train_clips] + 0.1 * np.eye(train_clips)
    scores = kernel[train_clips:, :train_clips] @ np.linalg.solve(fitted, targets - targets.mean(0)) + targets.mean(0)
    return float(np.mean(scores.argmax(1) == labels[train_clips:]))


def listen(wave: NDArray[np.floating]) -> NDArray[np.floating]:
    """Log-spectrum statistics over time, spacing of its partials, loudness modulation, and its shifts over time."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, 400)[::320] * np.hanning(400).astype(np.float32)
    magnitude = np.abs(np.fft.rfft(frames, 512)[:, 1:])
    # Bands even in log frequency from 60 Hz to 8 kHz: a change of pitch is a shift.
    distance = np.abs(np.log(np.arange(1, 257)[:, None] * 31.25 / np.geomspace(60, 8000, 80)))
    bands = np.maximum(0, 1 - distance / 0.1).astype(np.float32)
    # einsum and not a matrix product: BLAS threads that wait for a busy core make these small ones ten times slower.
    level = np.log(np.einsum("tf,fb->tb", magnitude, bands) + 1e-2)
    ordered = np.sort(level.T)
    quantiles = ordered.T[(np.array([0.05, 0.2, 0.5, 0.9, 0.98]) * len(level)).astype(int)]
    cycles = np.exp(-2j * np.pi * np.outer(np.arange(0.5, 8, 0.25), np.arange(len(level)) * 0.02))
    modulation = np.abs(np.einsum("mt,t->m", cycles, level.mean(1) - level.mean())) / len(level)

    above = np.maximum(level - quantiles[1], 0)
    above -= above.mean(1, keepdims=True)
    alike = np.einsum("tb,tc->bc", above, above)
    spacing = np.array([np.trace(alike, k) / (80 - k) for k in range(50)])
    peaks, shifts = np.maximum(above, 0), []
    for lag in (5, 8, 30, 50):
        together = np.einsum("tb,tc->bc", peaks[:-lag], peaks[lag:])
        agreement = np.array([np.trace(together, k) for k in range(-10, 11)])
        shifts.append(agreement / agreement.sum())
    average = [level.mean(0), level.std(0), *quantiles, quantiles[-1] - quantiles[0], above.mean(0)]
    varying = [np.abs(np.diff(level, axis=0)).mean(0), modulation, *shifts]
    return np.concatenate([*average, spacing / spacing[0], *varying])

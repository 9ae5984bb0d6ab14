import struct
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from cacophony.engine.embedding_figures import confusion_matrix, embedding_map, gap_curves, modality_gap
from cacophony.engine.figures import corpus_histograms, loss_curves, mel_reconstruction
from cacophony.engine.projection import Plane
from cacophony.errors import InputError


def assert_picture(path: Path):
    """A complete PNG at 120 dpi, with something drawn, and no unfinished file beside it."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    at = data.index(b"pHYs") + 4
    assert struct.unpack(">II", data[at : at + 8]) == (round(120 / 0.0254), round(120 / 0.0254))
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 400
    assert pixels[..., :3].std() > 0.02
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("with_learning_rate", [False, True])
def test_loss_curves_survive_values_that_are_not_finite(tmp_path: Path, with_learning_rate: bool):
    steps = list(range(200))
    loss = 3 * np.exp(-np.arange(200) / 40) + 0.01
    loss[[0, 7, 199]] = np.nan, np.inf, -np.inf
    series = {"total": loss.tolist(), "never": [float("nan")] * 200, "signed": np.linspace(1, -1, 200).tolist()}
    if with_learning_rate:
        series["learning_rate"] = np.linspace(0, 1e-4, 200).tolist()
    loss_curves(tmp_path / "loss.png", steps, series, "Stage 1")
    assert_picture(tmp_path / "loss.png")


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_loss_curves_of_a_run_that_has_hardly_begun(tmp_path: Path, count: int):
    values = [1.0, 0.5, 0.05][:count]
    loss_curves(tmp_path / "loss.png", list(range(count)), {"a": values, "learning_rate": values}, "Start")
    assert_picture(tmp_path / "loss.png")


def test_loss_curves_replace_an_older_picture_and_make_the_folder(tmp_path: Path):
    path = tmp_path / "figures" / "loss.png"
    loss_curves(path, [0, 1], {"a": [1, 2]}, "One")
    first = path.read_bytes()
    loss_curves(path, [0, 1], {"a": [1, 2]}, "One")
    assert path.read_bytes() == first
    loss_curves(path, [0, 1], {"a": [1, 2]}, "Two")
    assert path.read_bytes() != first
    assert_picture(path)


def test_loss_curves_refuse_a_series_of_another_length(tmp_path: Path):
    with pytest.raises(InputError, match="'a'"):
        loss_curves(tmp_path / "loss.png", [0, 1, 2], {"a": [1, 2]}, "Loss")
    assert not list(tmp_path.iterdir())


def test_modality_gap_is_the_distance_of_the_means():
    audio = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    assert modality_gap(audio, audio) == 0.0
    assert modality_gap(audio, np.array([[3.5, 4.5]])) == pytest.approx(5.0)
    with pytest.raises(InputError, match="shapes"):
        modality_gap(audio, np.zeros((2, 3)))
    with pytest.raises(InputError, match="shapes"):
        modality_gap(audio, np.zeros((0, 2)))


@pytest.mark.parametrize(("pairs", "kinds"), [(1, 1), (5, 5), (90, 12)])
def test_embedding_map_draws_few_and_many_pairs(tmp_path: Path, pairs: int, kinds: int):
    rng = np.random.default_rng(0)
    audio, text = rng.normal(size=(2, pairs, 16)).astype(np.float32)
    if pairs > 1:
        audio[1] = np.nan
    embedding_map(tmp_path / "map.png", audio, text, [f"kind {i % kinds}" for i in range(pairs)])
    assert_picture(tmp_path / "map.png")


def test_embedding_map_without_labels_on_a_plane_of_the_callers(tmp_path: Path):
    rng = np.random.default_rng(0)
    audio, text = rng.normal(size=(2, 7, 5))
    seen: list[np.ndarray] = []

    def project(rows: np.ndarray) -> Plane:
        seen.append(rows)
        return Plane(rows[:, :2], ("left to right", "up"))

    embedding_map(tmp_path / "map.png", audio, text, None, project)
    assert_picture(tmp_path / "map.png")
    np.testing.assert_array_equal(seen[0], np.concatenate([audio, text]))


def test_gap_curves_draw_runs_of_one_and_of_many_checkpoints(tmp_path: Path):
    curves = {"a": [(100.0, 1.2)], "b": [(100.0, 1.1), (200.0, 0.9), (300.0, 0.8)]}
    gap_curves(tmp_path / "gap.png", curves, "Modality gap")
    assert_picture(tmp_path / "gap.png")


def test_embedding_map_of_collapsed_embeddings(tmp_path: Path):
    embedding_map(tmp_path / "map.png", np.ones((6, 4)), np.ones((6, 4)), ["a"] * 6)
    assert_picture(tmp_path / "map.png")


def test_embedding_map_refuses_what_it_cannot_draw(tmp_path: Path):
    good = np.ones((3, 4))
    cases = [
        (good, good[:2], ["a"] * 3, "shapes"),
        (good, good, ["a"] * 2, "labels"),
        (good[:, :1], good[:, :1], ["a"] * 3, "shapes"),
        (good * np.nan, good, ["a"] * 3, "finite"),
    ]
    for audio, text, labels, message in cases:
        with pytest.raises(InputError, match=message):
            embedding_map(tmp_path / "map.png", audio, text, labels)
    assert not list(tmp_path.iterdir())


def test_mel_reconstruction_survives_values_that_are_not_finite(tmp_path: Path):
    rng = np.random.default_rng(0)
    target, prediction = rng.normal(size=(2, 48, 128)).astype(np.float32)
    target[3, 3], prediction[:, 5] = np.nan, np.inf
    visible = np.kron(rng.random((3, 8)) < 0.3, np.ones((16, 16))) > 0
    mel_reconstruction(tmp_path / "mel.png", target, visible, prediction)
    assert_picture(tmp_path / "mel.png")


def test_mel_reconstruction_of_silence_and_of_nothing_visible(tmp_path: Path):
    mel_reconstruction(tmp_path / "mel.png", np.zeros((16, 128)), np.zeros((16, 128), bool), np.full((16, 128), np.nan))
    assert_picture(tmp_path / "mel.png")


def test_mel_reconstruction_refuses_other_shapes(tmp_path: Path):
    for target, prediction in ((np.zeros((16, 64)), np.zeros((16, 64))), (np.zeros((16, 128)), np.zeros((15, 128)))):
        with pytest.raises(InputError, match="shapes"):
            mel_reconstruction(tmp_path / "mel.png", target, np.ones(target.shape, bool), prediction)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seconds", "tokens"),
    [([1.0], []), ([5.0] * 4, [3]), ([1.0, 10.0, 300.0], [2, 18, 18, 77]), ([2.0, 3.0], [2, 20_000])],
)
def test_corpus_histograms_draw_few_and_equal_and_far_values(tmp_path: Path, seconds: list[float], tokens: list[int]):
    corpus_histograms(tmp_path / "a.png", np.array(seconds), np.array(tokens, np.int32))
    assert matplotlib.image.imread(tmp_path / "a.png").std() > 0.01


def test_corpus_histograms_refuse_no_clips(tmp_path: Path):
    with pytest.raises(InputError, match="no clips"):
        corpus_histograms(tmp_path / "a.png", np.zeros(0), np.zeros(0, np.int32))


@pytest.mark.parametrize("classes", [1, 10, 309])
def test_a_confusion_matrix_is_drawn_also_with_classes_that_have_no_clip(tmp_path: Path, classes: int):
    counts = np.random.default_rng(0).integers(0, 9, (classes, classes)) + 5 * np.eye(classes, dtype=int)
    counts[classes // 2 :] *= classes == 1
    confusion_matrix(tmp_path / "confusion.png", counts, [f"class {i}" for i in range(classes)], "A title")
    assert_picture(tmp_path / "confusion.png")


def test_a_confusion_matrix_of_another_shape_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"\(2, 3\) for 2 classes"):
        confusion_matrix(tmp_path / "confusion.png", np.ones((2, 3), int), ["a", "b"], "A title")
    assert not list(tmp_path.iterdir())

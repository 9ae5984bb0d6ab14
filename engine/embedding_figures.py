"""Figures of embeddings and of classes, as PNG files: both modalities, the gap between them, a confusion matrix."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ..errors import InputError
from .drawing import COLOURS, FAINT, GRID, INK, plain, save
from .projection import Plane, principal_plane

_BY_MODALITY = (COLOURS[0], COLOURS[1], FAINT)
"""Of audio, of text, and of the lines between."""
_MAX_PAIR_LINES = 60
_MAX_NAMED_CLASSES = 60


def modality_gap(audio_embeddings: NDArray[np.floating], text_embeddings: NDArray[np.floating]) -> float:
    """Distance between the mean of the audio embeddings `[N, D]` and the mean of the text embeddings `[M, D]`.

    Raises:
        InputError: a shape does not fit, or one side has no rows.
    """
    audio, text = np.asarray(audio_embeddings, np.float64), np.asarray(text_embeddings, np.float64)
    if audio.ndim != 2 or text.ndim != 2 or audio.shape[1] != text.shape[1] or not len(audio) or not len(text):
        raise InputError(f"embeddings have shapes {audio.shape} and {text.shape}; expected rows [N, D], [M, D]")
    return float(np.linalg.norm(audio.mean(axis=0) - text.mean(axis=0)))


def gap_curves(path: str | Path, curves: Mapping[str, Sequence[tuple[float, float]]], title: str) -> None:
    """Draw the modality gap over the steps, a line for each run with its checkpoints as dots.

    Args:
        path: PNG file to write; replaced at once when complete.
        curves: run → (step, gap) of its checkpoints, steps ascending.
        title: heading of the figure.
    """
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for index, (run, points) in enumerate(curves.items()):
        steps, gaps = zip(*points, strict=True)
        axes.plot(steps, gaps, color=COLOURS[index % len(COLOURS)], linewidth=2.2, marker="o", markersize=5, label=run)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    plain(axes)
    axes.set_title(title, loc="left", color=INK, fontsize=13, fontweight="bold", pad=10)
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("‖mean audio − mean text‖", color=INK)
    figure.legend(frameon=False, fontsize=9, labelcolor=INK, loc="outside lower left")
    save(figure, path)


def embedding_map(
    path: str | Path,
    audio_embeddings: NDArray[np.floating],
    text_embeddings: NDArray[np.floating],
    labels: Sequence[str] | None,
    project: Callable[[NDArray[np.floating]], Plane] = principal_plane,
) -> None:
    """Draw both modalities on one plane, with the modality gap in the title.

    Audio is a circle, text a cross, coloured by label, or by modality where there are none; thin lines join up to 60
    pairs. Pairs with a value that is not finite are left out.

    Args:
        path: PNG file to write; replaced at once when complete.
        audio_embeddings: float `[N, D]`.
        text_embeddings: float `[N, D]`, row i the pair of audio row i.
        labels: N labels, or None; beyond ten different ones, colours repeat.
        project: what lays the `[2 N, D]` rows of both on a plane.

    Raises:
        InputError: shapes differ, D is below 2, or no pair is finite.
    """
    audio, text = np.asarray(audio_embeddings, np.float64), np.asarray(text_embeddings, np.float64)
    named = len(audio) if labels is None else len(labels)
    if audio.shape != text.shape or audio.ndim != 2 or audio.shape[1] < 2 or named != len(audio):
        raise InputError(
            f"embeddings have shapes {audio.shape} and {text.shape} for {named} labels; expected [N, D], D > 1"
        )
    kept = np.flatnonzero(np.isfinite(np.concatenate([audio, text], axis=1)).all(axis=1))
    if not len(kept):
        raise InputError("no pair of embeddings is finite; the model that made them cannot be drawn")
    audio, text = audio[kept], text[kept]
    names = [] if labels is None else [labels[i] for i in kept.tolist()]
    colour_of = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(sorted(set(names)))}
    colours = [colour_of[name] for name in names]
    of_audio, of_text, of_line = (
        (colours, colours, colours) if labels is not None else ([c] * len(audio) for c in _BY_MODALITY)
    )
    plane = project(np.concatenate([audio, text]))
    audio_xy, text_xy = plane.points[: len(audio)], plane.points[len(audio) :]

    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.add_subplot()
    for i in np.unique(np.linspace(0, len(audio) - 1, _MAX_PAIR_LINES).astype(int)):
        axes.plot(*np.stack([audio_xy[i], text_xy[i]]).T, color=of_line[i], linewidth=0.7, alpha=0.45, zorder=1)
    axes.scatter(*audio_xy.T, s=34, c=of_audio, marker="o", alpha=0.8, edgecolors="white", linewidths=0.6, zorder=2)
    axes.scatter(*text_xy.T, s=34, c=of_text, marker="x", alpha=0.9, linewidths=1.4, zorder=3)
    axes.set_aspect("equal", adjustable="datalim")
    title = f"Audio and text embeddings, modality gap {modality_gap(audio, text):.3f}"
    axes.set_title(title, loc="left", color=INK, fontsize=13, fontweight="bold", pad=10)
    axes.set_xlabel(plane.axes[0], color=INK)
    axes.set_ylabel(plane.axes[1], color=INK)
    plain(axes)
    audio_ink, text_ink = (INK, INK) if labels is not None else _BY_MODALITY[:2]
    handles = [
        Line2D([], [], linestyle="", marker="o", color=audio_ink, markersize=6, label="audio"),
        Line2D([], [], linestyle="", marker="x", color=text_ink, markersize=6, markeredgewidth=1.4, label="text"),
        *(Line2D([], [], linestyle="", marker="s", color=colour, label=name) for name, colour in colour_of.items()),
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9, labelcolor=INK)
    save(figure, path)


def confusion_matrix(
    path: str | Path, counts: NDArray[np.integer] | Sequence[Sequence[int]], classes: Sequence[str], title: str
) -> None:
    """Draw a confusion matrix: rows the true class, columns the class given, as shares of each row; empty rows blank.

    Args:
        path: PNG file to write; replaced at once when complete.
        counts: int `[C, C]`, numbers of clips.
        classes: C names; written out where there are at most 60.
        title: heading of the figure.

    Raises:
        InputError: counts is not `[C, C]`.
    """
    numbers = np.asarray(counts, np.float64)
    if numbers.shape != (len(classes), len(classes)) or not len(classes):
        raise InputError(f"counts have shape {numbers.shape} for {len(classes)} classes; expected [C, C]")
    totals = numbers.sum(axis=1, keepdims=True)
    shares = np.ma.masked_where(np.broadcast_to(totals == 0, numbers.shape), numbers / np.maximum(totals, 1))
    named = len(classes) <= _MAX_NAMED_CLASSES
    size = float(np.clip(2.5 + 0.2 * len(classes), 5, 14)) if named else 9.0
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor(GRID)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    if named:
        places = list(range(len(classes)))
        axes.set_xticks(places, list(classes), rotation=90)
        axes.set_yticks(places, list(classes))
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=7, length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", color=INK, fontsize=13, fontweight="bold", pad=10)
    axes.set_xlabel("class given", color=INK)
    axes.set_ylabel("true class", color=INK)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, pad=0.015)
    bar.set_label("share of the class's clips", color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=8, length=2)
    save(figure, path)

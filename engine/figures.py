"""Figures, as PNG files: loss curves, both modalities and their gap, a masked reconstruction, and a corpus.

Only matplotlib's object interface is used, so nothing needs a display and no state outlives a call.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from ..errors import InputError
from .projection import Plane, principal_plane

_DPI = 120
INK, FAINT, _GRID = "#22262b", "#8a9099", "#e6e8eb"
COLOURS = (
    "#2f6fb0", "#d9662b", "#3a9158", "#b8434e", "#7a5aa6", "#a8842c", "#2a9d9d", "#c86a9f", "#6b7a3a", "#5b6675",
)  # fmt: skip
_BY_MODALITY = (COLOURS[0], COLOURS[1], FAINT)
"""Of audio, of text, and of the lines between."""
_LEARNING_RATE = "learning_rate"
_MAX_PAIR_LINES = 60
_MAX_TOKEN_BINS = 100
_FRAME_S = 0.01
_MEL_BANDS = 128
_TICKS_KHZ = (0.5, 1, 2, 4, 6)


def loss_curves(path: str | Path, steps: Sequence[float], series: Mapping[str, Sequence[float]], title: str) -> None:
    """Draw each series over the steps, thin as recorded and thick when smoothed; non-finite values are skipped.

    The axis is logarithmic when all values are positive and span more than a factor of ten. A series called
    `learning_rate` gets a panel of its own below.

    Args:
        path: PNG file to write; replaced at once when complete.
        steps: S step numbers, ascending.
        series: name → S values.
        title: heading of the figure.

    Raises:
        InputError: a series has not as many values as there are steps.
    """
    x = np.asarray(steps, dtype=np.float64)
    values = {name: np.asarray(numbers, dtype=np.float64) for name, numbers in series.items()}
    for name, numbers in values.items():
        if numbers.shape != x.shape:
            raise InputError(f"series {name!r} has shape {numbers.shape} for steps of shape {x.shape}; make them equal")
    rate = values.pop(_LEARNING_RATE, None)

    figure = Figure(figsize=(8, 4.6 if rate is None else 5.6), layout="constrained")
    if rate is None:
        axes = bottom = figure.add_subplot()
    else:
        axes, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        axes.tick_params(labelbottom=False)
    for index, (name, numbers) in enumerate(values.items()):
        colour, kept = COLOURS[index % len(COLOURS)], np.isfinite(numbers)
        smooth = smoothed(numbers[kept]) if kept.any() else numbers[kept]
        axes.plot(x[kept], numbers[kept], color=colour, linewidth=0.7, alpha=0.35)
        label = f"{name}  {smooth[-1]:.4g}" if kept.any() else f"{name}  (no finite value)"
        axes.plot(x[kept], smooth, color=colour, linewidth=2.2, solid_capstyle="round", label=label)
    finite = np.concatenate([numbers[np.isfinite(numbers)] for numbers in values.values()] or [np.empty(0)])
    if finite.size and finite.min() > 0 and finite.max() > 10 * finite.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    plain_axes(axes)
    axes.set_title(title, loc="left", color=INK, fontsize=13, fontweight="bold", pad=10)
    axes.set_ylabel("loss", color=INK)
    if values:
        axes.legend(frameon=False, fontsize=9, loc="upper right", labelcolor=INK)
    if rate is not None:
        kept = np.isfinite(rate)
        bottom.fill_between(x[kept], rate[kept], color=FAINT, alpha=0.2, linewidth=0)
        bottom.plot(x[kept], rate[kept], color=FAINT, linewidth=1.4)
        bottom.set_ylim(bottom=0)
        bottom.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
        bottom.yaxis.get_offset_text().set(fontsize=8, color=FAINT)
        bottom.set_ylabel("learning\nrate", color=INK)
        plain_axes(bottom)
    bottom.set_xlabel("step", color=INK)
    bottom.margins(x=0.01)
    save_figure(figure, path)


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
    plain_axes(axes)
    axes.set_title(title, loc="left", color=INK, fontsize=13, fontweight="bold", pad=10)
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("‖mean audio − mean text‖", color=INK)
    figure.legend(frameon=False, fontsize=9, labelcolor=INK, loc="outside lower left")
    save_figure(figure, path)


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
    plain_axes(axes)
    audio_ink, text_ink = (INK, INK) if labels is not None else _BY_MODALITY[:2]
    handles = [
        Line2D([], [], linestyle="", marker="o", color=audio_ink, markersize=6, label="audio"),
        Line2D([], [], linestyle="", marker="x", color=text_ink, markersize=6, markeredgewidth=1.4, label="text"),
        *(Line2D([], [], linestyle="", marker="s", color=colour, label=name) for name, colour in colour_of.items()),
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9, labelcolor=INK)
    save_figure(figure, path)


def mel_reconstruction(
    path: str | Path, target: NDArray[np.floating], visible_mask: NDArray[np.bool_], prediction: NDArray[np.floating]
) -> None:
    """Draw a log-mel spectrogram, what of it the encoder saw, and the reconstruction, on one colour scale.

    Args:
        path: PNG file to write; replaced at once when complete.
        target: `[T, 128]`, frames of 10 ms; values that are not finite stay blank, here and in the prediction.
        visible_mask: `[T, 128]`, true where the encoder saw the target.
        prediction: `[T, 128]`.

    Raises:
        InputError: a shape is not `[T, 128]` or they differ.
    """
    shapes = [np.shape(array) for array in (target, visible_mask, prediction)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or shapes[0][1] != _MEL_BANDS or not shapes[0][0]:
        raise InputError(f"target, mask and prediction have shapes {shapes}; expected [T, {_MEL_BANDS}] thrice")
    finite = target[np.isfinite(target)]
    low, high = np.percentile(finite, (1, 99.8)) if finite.size else (0.0, 1.0)

    figure = Figure(figsize=(8, 6.4), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True, sharey=True)
    contents = {
        "Original": target,
        f"What the encoder saw ({np.mean(visible_mask):.0%})": np.where(visible_mask, target, np.nan),
        "Reconstruction": prediction,
    }
    images = []
    for axes, (title, values) in zip(panels, contents.items(), strict=True):
        axes.set_facecolor(_GRID)
        image = axes.imshow(
            np.ma.masked_invalid(values.T),
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            cmap="magma",
            vmin=low,
            vmax=max(high, low + 1e-6),
            extent=(0, len(target) * _FRAME_S, 0, _MEL_BANDS),
        )
        images.append(image)
        axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
        axes.set_yticks([_band(1000 * khz) for khz in _TICKS_KHZ], [f"{khz:g}" for khz in _TICKS_KHZ])
        axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=9, length=3)
        axes.spines[:].set_visible(False)
    panels[1].set_ylabel("frequency, kHz", color=INK)
    panels[2].set_xlabel("time, s", color=INK)
    bar = figure.colorbar(images[0], ax=panels, shrink=0.5, aspect=30, pad=0.015)
    bar.set_label("log-mel", color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=8, length=2)
    save_figure(figure, path)


def corpus_histograms(path: str | Path, seconds: NDArray[np.floating], tokens: NDArray[np.integer]) -> None:
    """Draw how long clips are and how many tokens captions have; without captions the lengths alone.

    Args:
        path: PNG file to write; replaced at once when complete.
        seconds: duration of each clip, `[N]`.
        tokens: tokens of each caption, `[M]`.

    Raises:
        InputError: there are no clips.
    """
    if not len(seconds):
        raise InputError("no clips, so there is nothing to draw")
    figure = Figure(figsize=(8, 5.6 if len(tokens) else 3.2), layout="constrained")
    panels = figure.subplots(2 if len(tokens) else 1, 1, squeeze=False)[:, 0]
    # Clips are a second to minutes long, and most corpora cut theirs to one length: even steps of the logarithm.
    edges = np.geomspace(min(seconds), max(max(seconds), 1.001 * min(seconds)), 61)
    panels[0].hist(seconds, edges, color=COLOURS[0])
    panels[0].set_xscale("log")
    panels[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0].xaxis.set_minor_formatter(NullFormatter())
    panels[0].set(xlabel="seconds", ylabel="clips")
    hours = np.sum(seconds, dtype=np.float64) / 3600
    titles = [f"{len(seconds)} clips, {hours:.2f} h, median {np.median(seconds):.1f} s"]
    if len(tokens):
        width = -(-int(tokens.max()) // _MAX_TOKEN_BINS)
        panels[1].hist(tokens, np.arange(0.5, tokens.max() + width, width), color=COLOURS[1])
        panels[1].set(xlabel="tokens, <s> and </s> included", ylabel="captions")
        titles.append(f"{len(tokens)} captions, {tokens.mean():.1f} tokens on average")
    for axes, title in zip(panels, titles, strict=True):
        plain_axes(axes)
        axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
    save_figure(figure, path)


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average over a bell-shaped window of about a twentieth of the values, cut off at both ends."""
    # Centred, because an average over the past alone lies above a falling curve.
    window = np.hanning(2 * (len(values) // 40) + 3)
    half = len(window) // 2
    total, weight = (np.convolve(rows, window)[half : half + len(rows)] for rows in (values, np.ones_like(values)))
    return total / weight


def _band(hz: float) -> float:
    """Where a frequency lies on the axis of mel bands: the centre of band b is at b + 0.5."""
    # The front-end's bands have 130 edges, even in mel from 0 to 8 kHz; band 0 is centred on the second.
    return 129 * np.log1p(hz / 700) / np.log1p(8000 / 700) - 0.5


def plain_axes(axes: Axes) -> None:
    """A light grid behind the data and no frame."""
    axes.set_axisbelow(True)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", colors=FAINT, labelcolor=INK, labelsize=9, length=0)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write under another name first, so that a reader never meets half a picture."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            FigureCanvasAgg(figure).print_figure(file, format="png", dpi=_DPI)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)

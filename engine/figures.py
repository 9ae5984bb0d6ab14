"""Figures of a run and of a corpus, as PNG files: loss curves, a masked reconstruction, lengths."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from ..errors import InputError
from .drawing import COLOURS, FAINT, GRID, INK, plain, save

_LEARNING_RATE = "learning_rate"
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
        smooth = _smoothed(numbers[kept]) if kept.any() else numbers[kept]
        axes.plot(x[kept], numbers[kept], color=colour, linewidth=0.7, alpha=0.35)
        label = f"{name}  {smooth[-1]:.4g}" if kept.any() else f"{name}  (no finite value)"
        axes.plot(x[kept], smooth, color=colour, linewidth=2.2, solid_capstyle="round", label=label)
    finite = np.concatenate([numbers[np.isfinite(numbers)] for numbers in values.values()] or [np.empty(0)])
    if finite.size and finite.min() > 0 and finite.max() > 10 * finite.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    plain(axes)
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
        plain(bottom)
    bottom.set_xlabel("step", color=INK)
    bottom.margins(x=0.01)
    save(figure, path)


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
        axes.set_facecolor(GRID)
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
    save(figure, path)


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
        plain(axes)
        axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
    save(figure, path)


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
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

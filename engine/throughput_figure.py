"""The picture of a run's throughput: clips a second, and what share of the time is used and lost."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .drawing import COLOURS, INK, plain_axes, save_figure, smoothed

SHARES = {
    "mfu": "MFU",
    "hfu": "hardware FLOPs",
    "sam_share": "SAM, of the step",
    "data_wait_share": "waiting for data",
    "communication_share": "waiting for ranks",
}
"""Series of the lower panel, and what the legend calls them."""


def throughput_curves(
    path: str | Path, steps: Sequence[float], series: Mapping[str, Sequence[float]], title: str
) -> None:
    """Draw ``clips_per_s`` over the steps, and below it those of SHARES that ``series`` has; NaN is left out.

    The PNG file at ``path`` is replaced at once when complete.
    """
    x = np.asarray(steps, dtype=np.float64)
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for index, (name, numbers) in enumerate(series.items()):
        values = np.asarray(numbers, dtype=np.float64)
        kept = np.isfinite(values)
        if not kept.any():
            continue
        axes, label = (lower, SHARES[name]) if name in SHARES else (upper, "clips/s")
        colour, smooth = COLOURS[index % len(COLOURS)], smoothed(values[kept])
        last = f"{smooth[-1]:.1%}" if name in SHARES else f"{smooth[-1]:.4g}"
        axes.plot(x[kept], values[kept], color=colour, linewidth=0.7, alpha=0.35)
        axes.plot(x[kept], smooth, color=colour, linewidth=2.2, solid_capstyle="round", label=f"{label}  {last}")
    for axes in (upper, lower):
        plain_axes(axes)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.01)
        if axes.has_data():
            axes.legend(frameon=False, fontsize=9, loc="best", labelcolor=INK)
    upper.tick_params(labelbottom=False)
    upper.set_title(f"{title}: throughput", loc="left", color=INK, fontsize=13, fontweight="bold", pad=10)
    upper.set_ylabel("clips/s", color=INK)
    lower.yaxis.set_major_formatter(PercentFormatter(1.0))
    lower.set_ylabel("share of the time", color=INK)
    lower.set_xlabel("step", color=INK)
    save_figure(figure, path)

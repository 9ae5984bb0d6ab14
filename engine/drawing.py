"""What figures share: colours, plain axes, and writing a PNG whole or not at all.

Only matplotlib's object interface is used, so nothing needs a display and no state outlives a call.
"""

import os
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

_DPI = 120
INK, FAINT, GRID = "#22262b", "#8a9099", "#e6e8eb"
COLOURS = (
    "#2f6fb0", "#d9662b", "#3a9158", "#b8434e", "#7a5aa6", "#a8842c", "#2a9d9d", "#c86a9f", "#6b7a3a", "#5b6675",
)  # fmt: skip


def plain_axes(axes: Axes) -> None:
    """A light grid behind the data and no frame."""
    axes.set_axisbelow(True)
    axes.grid(color=GRID, linewidth=0.8)
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


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average over a bell-shaped window of about a twentieth of the values, cut off at both ends."""
    # Centred, because an average over the past alone lies above a falling curve.
    window = np.hanning(2 * (len(values) // 40) + 3)
    half = len(window) // 2
    total, weight = (np.convolve(rows, window)[half : half + len(rows)] for rows in (values, np.ones_like(values)))
    return total / weight

"""What figures share: colours, plain axes, and writing a PNG whole or not at all.

Only matplotlib's object interface is used, so nothing needs a display and no state outlives a call.
"""

import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_DPI = 120
INK, FAINT, GRID = "#22262b", "#8a9099", "#e6e8eb"
COLOURS = (
    "#2f6fb0", "#d9662b", "#3a9158", "#b8434e", "#7a5aa6", "#a8842c", "#2a9d9d", "#c86a9f", "#6b7a3a", "#5b6675",
)  # fmt: skip


def plain(axes: Axes) -> None:
    """A light grid behind the data and no frame."""
    axes.set_axisbelow(True)
    axes.grid(color=GRID, linewidth=0.8)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", colors=FAINT, labelcolor=INK, labelsize=9, length=0)


def save(figure: Figure, path: str | Path) -> None:
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

"""How much of a data set each source is: hours and clips side by side, coloured by kind."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ...errors import InputError
from ..drawing import COLOURS, INK, plain_axes, save_figure

MAX_BARS = 30
_COLOUR = {"clean": COLOURS[2], "noisy": COLOURS[1], "unlabeled": COLOURS[0]}


class SourceBar(NamedTuple):
    """One source and kind."""

    name: str
    kind: str
    clips: int
    hours: float


def source_bars(path: str | Path, bars: Sequence[SourceBar]) -> None:
    """Draw clips and hours of each source, the largest first; of many sources the smallest are drawn as one.

    Args:
        path: PNG file to write; replaced at once when complete.
        bars: what there is, at least one.

    Raises:
        InputError: there is no source.
    """
    if not bars:
        raise InputError("no sources, so there is nothing to draw")
    ordered = sorted(bars, key=lambda bar: (-bar.hours, bar.name))
    if len(ordered) > MAX_BARS:
        rest = ordered[MAX_BARS - 1 :]
        others = SourceBar(f"{len(rest)} others", "", sum(b.clips for b in rest), sum(b.hours for b in rest))
        ordered = [*ordered[: MAX_BARS - 1], others]
    figure = Figure(figsize=(8, 1.4 + 0.34 * len(ordered)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    at, colours = np.arange(len(ordered)), [_COLOUR.get(bar.kind, COLOURS[-1]) for bar in ordered]
    for axes, values, name in (
        (left, [bar.hours for bar in ordered], "hours"),
        (right, [bar.clips for bar in ordered], "clips"),
    ):
        axes.barh(at, values, color=colours, height=0.72)
        plain_axes(axes)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, 1.22 * max(*values, 1e-9))
        for y, value in zip(at, values, strict=True):
            axes.annotate(
                f"{value:,.2f}" if name == "hours" and value < 100 else f"{value:,.0f}",
                (value, y),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=INK,
            )
        total = f"{sum(values):,.2f}" if name == "hours" else f"{sum(values):,}"
        axes.set_title(f"{total} {name}", loc="left", color=INK, fontsize=11, fontweight="bold")
    # A name of others is no formula.
    left.set_yticks(at, [bar.name.replace("$", r"\$") for bar in ordered])
    left.invert_yaxis()
    kinds = [kind for kind in _COLOUR if any(bar.kind == kind for bar in ordered)]
    figure.legend(
        handles=[Patch(color=_COLOUR[kind], label=kind) for kind in kinds],
        frameon=False,
        ncols=3,
        loc="outside lower center",
        fontsize=9,
        labelcolor=INK,
    )
    save_figure(figure, path)

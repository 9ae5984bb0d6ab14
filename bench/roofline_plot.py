"""The picture of a kernel bench: measured time over the least time, both logarithmic. Needs Matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .harness import PASSES

_MARKERS = dict(zip(PASSES, ("o", "s", "^"), strict=True))
_COLOURS = ("#2f6fb0", "#8a9099", "#d9662b", "#3a9158", "#b8434e", "#7a5aa6", "#a8842c", "#2a9d9d")


def draw_rooflines(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw a point for every timed pass of ``rows`` (as in the bench's JSON) whose share of the roof is known.

    Its least time is that of the op's compulsory bytes and operations at the measured rates: on the lowest line an
    implementation could not be faster.
    """
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_yscale("log")
    providers = list(dict.fromkeys(row["provider"] for row in rows if row["passes"]))
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(providers)}
    floors = []
    for row in rows:
        for name, figures in row["passes"].items():
            if not figures["roof_share"]:
                continue
            measured = figures["timing"]["ms_p50"]
            floor = figures["roof_share"] * measured
            floors.append(floor)
            axes.plot(floor, measured, _MARKERS[name], color=colours[row["provider"]], markersize=6, alpha=0.85)
            if row["provider"] == providers[0]:
                label = f"{row['op']}, {row['case']}"
                axes.annotate(label, (floor, measured), (5, -3), textcoords="offset points", fontsize=6)
    if floors:
        ends = [min(floors) / 1.5, max(floors) * 1.5]
        for factor, style in ((1.0, "-"), (2.0, "--"), (4.0, ":")):
            axes.plot(ends, [factor * end for end in ends], style, color="#22262b", linewidth=1, zorder=0)
            axes.annotate(f"{1 / factor:.0%} of the roof", (ends[1], factor * ends[1]), fontsize=7, ha="right")
    axes.set_xlabel("least time at the measured roofs, ms")
    axes.set_ylabel("measured time, ms (median)")
    axes.set_title(title, loc="left", fontsize=11)
    shapes = [Line2D([], [], marker=mark, linestyle="", color="#22262b", label=name) for name, mark in _MARKERS.items()]
    dots = [Line2D([], [], marker="o", linestyle="", color=colour, label=name) for name, colour in colours.items()]
    axes.legend(handles=[*dots, *shapes], frameon=False, fontsize=8)
    FigureCanvasAgg(figure)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=130)
    temporary.replace(path)

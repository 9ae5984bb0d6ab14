"""The picture of a soak: resident memory and open file descriptors over time."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..engine.drawing import COLOURS, FAINT, INK, plain_axes, save_figure
from .soak import MIB, Soak


def soak_plot(path: Path, measured: Soak, warm_up_minutes: float, title: str) -> None:
    """Draw every sample thin, the rounds as points, and where the warm-up ends; the file is replaced when complete."""
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))

    def draw(axes, of_samples: Sequence[float], of_rounds: Sequence[float], colour: str, name: str) -> None:
        axes.plot([one.seconds / 60 for one in measured.samples], of_samples, color=colour, linewidth=0.8, alpha=0.5)
        axes.plot([one.seconds / 60 for one in measured.rounds], of_rounds, "o", color=colour, markersize=4, label=name)
        axes.axvline(warm_up_minutes, color=FAINT, linewidth=1.0, linestyle="--")
        axes.set_ylim(bottom=0)
        plain_axes(axes)
        axes.legend(frameon=False, fontsize=9, loc="lower right", labelcolor=INK)

    resident = [one.resident_bytes / MIB for one in measured.samples], [x.resident_bytes / MIB for x in measured.rounds]
    descriptors = [one.descriptors for one in measured.samples], [one.descriptors for one in measured.rounds]
    draw(upper, *resident, COLOURS[0], "median of a round")
    draw(lower, *descriptors, COLOURS[1], "after a round")
    upper.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold", pad=10)
    upper.set_ylabel("resident memory, MiB", color=INK)
    lower.set_ylabel("file descriptors", color=INK)
    lower.set_xlabel("minutes (dashed: end of the warm-up)", color=INK)
    save_figure(figure, path)

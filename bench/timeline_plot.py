"""The picture of a profile: of every path the phases of its step over the time, and below them the ops."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..engine.figures import COLOURS, FAINT, INK, plain_axes, save_figure
from ..engine.phases import PHASES
from .step_trace import BETWEEN, OTHER, StepTrace


def draw_timelines(path: str | Path, traces: Mapping[str, StepTrace], title: str) -> None:
    """Draw each path's step on one axis of time; on a GPU what is blank, it was idle."""
    figure = Figure(figsize=(10, 1.6 + 1.6 * len(traces)), layout="constrained")
    axes = figure.add_subplot()
    phases = {phase: COLOURS[index] for index, phase in enumerate(PHASES)}
    ops = sorted({s.op for trace in traces.values() for s in trace.stretches} - {OTHER})
    op_colours = {op: COLOURS[(index + len(PHASES)) % len(COLOURS)] for index, op in enumerate(ops)}
    ticks = []
    for index, (name, trace) in enumerate(traces.items()):
        top = -2.6 * index
        for lane, (label, colours) in enumerate((("phases", phases | {BETWEEN: FAINT}), ("ops", op_colours))):
            bottom = top - lane
            ticks.append((bottom + 0.45, f"{name}, {label}"))
            for key, colour in colours.items():
                spans = [
                    (s.start / 1e3, s.duration / 1e3)
                    for s in trace.stretches
                    if (s.phase if label == "phases" else s.op) == key
                ]
                axes.broken_barh(spans, (bottom, 0.9), facecolors=colour, linewidth=0)
    plain_axes(axes)
    axes.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
    axes.set_xlim(0, max(trace.microseconds for trace in traces.values()) / 1e3)
    axes.set_xlabel("time under the profiler, ms", color=INK)
    axes.set_title(title, loc="left", color=INK, fontsize=13, fontweight="bold", pad=10)
    handles = [Patch(color=colour, label=label) for label, colour in (phases | op_colours).items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8, labelcolor=INK)
    save_figure(figure, path)

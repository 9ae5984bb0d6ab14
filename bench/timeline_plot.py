"""The picture of a profile: of every path the phases of its step over the time, and below them the ops."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..engine.drawing import COLOURS, INK, plain_axes, save_figure
from ..engine.phases import PHASES
from .step_trace import OTHER, StepTrace

_GREYS = ("#dfe3e8", "#b4bcc6", "#8a94a0", "#616b78", "#3a434e")


def draw_timelines(path: str | Path, traces: Mapping[str, StepTrace], title: str) -> None:
    """Draw each path's step on one axis of time; on a GPU what is blank, it was idle."""
    figure = Figure(figsize=(10, 1.6 + 1.6 * len(traces)), layout="constrained")
    axes = figure.add_subplot()
    phases = dict(zip(PHASES, _GREYS, strict=True))
    spent: Counter[str] = Counter()
    for trace in traces.values():
        for stretch in trace.stretches:
            spent[stretch.op] += round(stretch.duration)
    del spent[OTHER]
    # The longest have a colour of their own; beyond ten they repeat.
    op_colours = {op: COLOURS[index % len(COLOURS)] for index, (op, _) in enumerate(spent.most_common())}
    ticks = []
    for index, (name, trace) in enumerate(traces.items()):
        top = -2.6 * index
        for lane, (label, colours) in enumerate((("phases", phases), ("ops", op_colours))):
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

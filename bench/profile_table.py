"""A profile as a Markdown table: a line for each phase, below it one for each of its ops, the paths side by side."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ..engine.config import Precision
from ..engine.phases import PHASES
from ..kernels.spec import Work
from .profile import compulsory_work, sorted_cells
from .roofline import Roofs
from .step_trace import BETWEEN
from .tables import table

ALL = "all"
_DTYPES: dict[Precision, str] = {"fp32": "float32", "bf16": "bfloat16"}

Key = tuple[str, str]


def profile_table(profiles: Sequence[Mapping[str, Any]], roofs: Mapping[str, Any] | None, precision: Precision) -> str:
    """Return the table of one stage's ``profiles``, as they are in the JSON.

    Bytes and FLOPs are those the ops cannot do without, and "of roof" the share of the time that they would take under
    the measured ``roofs``; empty where an op's are not known. Ratios are times: fused over reference.
    """
    work, dtype = compulsory_work(profiles), _DTYPES[precision]
    measured = Roofs(**roofs) if roofs else None
    work = {key: row for key, row in work.items() if row["bytes"] or row["flops"]}
    seconds = {profiled["path"]: _seconds(profiled) for profiled in profiles}
    calls = {profiled["path"]: _calls(profiled) for profiled in profiles}
    keys = {key for found in seconds.values() for key in found}
    longest = {key: max(found.get(key, 0.0) for found in seconds.values()) for key in keys}
    columns = ["phase", "op", "GB", "GFLOP"]
    for path in seconds:
        columns += [f"{path} ms", "share", "launches" if profiles[0]["on_device"] else "calls", "of roof"]
    both = len(seconds) == 2
    lines = []
    for phase, op in _lines(longest):
        row = work.get((phase, op))
        line = [phase, op] if op == ALL else ["", op]
        line += ["", ""] if row is None else [f"{row['bytes'] / 1e9:.3g}", f"{row['flops'] / 1e9:.3g}"]
        for path, found in seconds.items():
            spent = found.get((phase, op))
            if spent is None:
                line += ["", "", "", ""]
                continue
            floor = measured.floor_ms(Work(row["bytes"], row["flops"]), dtype) if measured and row else None
            of_roof = "" if floor is None or not spent else f"{floor / (1e3 * spent):.0%}"
            share = spent / found["step", ALL]
            line += [f"{1e3 * spent:.3f}", f"{share:.1%}", str(calls[path].get((phase, op), 0)), of_roof]
        if both:
            reference, fused = (seconds[path].get((phase, op)) for path in ("reference", "fused"))
            line.append(f"{fused / reference:.2f}" if reference and fused else "")
        lines.append(line)
    return table([*columns, *(["fused/reference"] if both else [])], lines)


def step_lines(profiles: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line a path: its step without the profiler, and what the device did under it."""
    lines = []
    for profiled in profiles:
        step, busy = profiled["profiled_seconds"], sum(cell["seconds"] for cell in profiled["cells"])
        idle = f", the device idle for {max(1 - busy / step, 0.0):.0%} of it" if profiled["on_device"] else ""
        lines.append(
            f"{profiled['stage']}, {profiled['path']}: a step takes {profiled['seconds']:.4f} s; under the profiler "
            f"{step:.4f} s{idle}"
        )
    return lines


def _seconds(profiled: Mapping[str, Any]) -> dict[Key, float]:
    found: defaultdict[Key, float] = defaultdict(float)
    for cell in profiled["cells"]:
        found[cell["phase"], cell["op"]] = cell["seconds"]
        found[cell["phase"], ALL] += cell["seconds"]
        found["step", ALL] += cell["seconds"]
    return dict(found)


def _calls(profiled: Mapping[str, Any]) -> dict[Key, int]:
    found: defaultdict[Key, int] = defaultdict(int)
    for cell in profiled["cells"]:
        found[cell["phase"], cell["op"]] = cell["calls"]
        found[cell["phase"], ALL] += cell["calls"]
        found["step", ALL] += cell["calls"]
    return dict(found)


def _lines(longest: Mapping[Key, float]) -> list[Key]:
    """Return the table's lines in order: each phase and its ops, the longest first, and the step at the end."""
    phases = [phase for phase in (*PHASES, BETWEEN) if (phase, ALL) in longest]
    cells = {key: seconds for key, seconds in longest.items() if key[1] != ALL}
    ordered = [key for key, _ in sorted_cells(cells)]
    return [
        *(key for phase in phases for key in ((phase, ALL), *(key for key in ordered if key[0] == phase))),
        ("step", ALL),
    ]

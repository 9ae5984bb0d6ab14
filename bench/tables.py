"""Figures of the bench, as they are in its JSON files, as Markdown tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .harness import PASSES

KERNEL_COLUMNS = (
    "op",
    "case",
    "dtype",
    "provider",
    "pass",
    "ms",
    "p20-p80",
    "GB/s",
    "TFLOP/s",
    "of roof",
    "× reference",
    "extra MB",
    "launches",
)
BLOCK_COLUMNS = (
    *("sequences", "layers", "provider", "fwd ms", "bwd ms", "both ms", "p20-p80"),
    *("TFLOP/s", "of roof", "peak GB", "× stash10"),
)
STEP_COLUMNS = ("stage", "provider", "layout", "step s", "p20-p80", "clips/s", "tokens/s", "TFLOP/s", "MFU", "peak GB")

UPDATE_COLUMNS = (
    *("lengths", "provider", "clips", "micro-batch", "stash", "update s", "p20-p80", "rounds", "clips/s", "tokens/s"),
    *("MFU", "peak GiB", "SAM / plain", "SAM + AdamW ms", "× copying"),
)
UPDATE_GOALS = {"fused_over_gradcache": 2.5, "fused_over_compile": 1.6}
"""How many times as many clips a second ours is to reach, at realistic lengths."""


def kernel_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of the kernel bench, one line a provider and pass; no time, then the reason."""
    reference = {
        (row["op"], row["case"], row["dtype"], name): row["passes"][name]["timing"]["ms_p50"]
        for row in rows
        if row["provider"] == "reference"
        for name in row["passes"]
    }
    lines = []
    for row in rows:
        place = (row["op"], row["case"], row["dtype"])
        if row["reason"]:
            lines.append((*place, row["provider"], row["reason"]))
        for name in PASSES:
            if name not in row["passes"]:
                continue
            figures = row["passes"][name]
            timing = figures["timing"]
            before = reference.get((*place, name))
            lines.append(
                (
                    *place,
                    row["provider"],
                    name + (" (host waits)" if name == "forward" and row["waits_for_device"] else ""),
                    f"{timing['ms_p50']:.4f}",
                    f"{timing['ms_p20']:.4f}-{timing['ms_p80']:.4f}",
                    f"{figures['gb_per_s']:.0f}",
                    f"{figures['tflop_per_s']:.1f}",
                    "" if figures["roof_share"] is None else f"{figures['roof_share']:.0%}",
                    "" if before is None else f"{before / timing['ms_p50']:.2f}",
                    "" if timing["extra_bytes"] is None else f"{timing['extra_bytes'] / 1e6:.1f}",
                    "" if row["launches"].get(name) is None else str(row["launches"][name]),
                )
            )
    return table(KERNEL_COLUMNS, lines)


def block_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of the block bench, one line a case and provider; no time, then the reason.

    Rates, percentiles and ``× stash10``, the time over that of the fused blocks that keep everything, are of both
    passes together.
    """
    fused = {
        (row["sequences"], row["layers"]): row["passes"]["both"]["timing"]["ms_p50"]
        for row in rows
        if row["provider"] == "stash10" and row["passes"]
    }
    lines = []
    for row in rows:
        name = (row["sequences"], str(row["layers"]), row["provider"])
        if row["reason"]:
            lines.append((*name, row["reason"]))
            continue
        both = row["passes"]["both"]
        timing = both["timing"]
        before = fused.get((row["sequences"], row["layers"]))
        lines.append(
            (
                *name,
                *(f"{row['passes'][pass_]['timing']['ms_p50']:.3f}" for pass_ in ("forward", "backward", "both")),
                f"{timing['ms_p20']:.3f}-{timing['ms_p80']:.3f}",
                f"{both['tflop_per_s']:.4g}",
                "" if both["roof_share"] is None else f"{both['roof_share']:.0%}",
                "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f}",
                "" if before is None else f"{timing['ms_p50'] / before:.2f}",
            )
        )
    return table(BLOCK_COLUMNS, lines)


def step_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of the step bench, one line a stage and variant; no time, then the reason."""
    lines = []
    for row in rows:
        name, t = (row["stage"], row["provider"], row["layout"]), row["timing"]
        if t is None:
            lines.append((*name, row["reason"]))
            continue
        lines.append(
            (
                *name,
                f"{t['seconds']:.3f}",
                f"{t['seconds_p20']:.3f}-{t['seconds_p80']:.3f}",
                f"{t['clips_per_s']:.1f}",
                f"{t['valid_tokens_per_s']:.0f}",
                f"{t['model_tflops_per_s']:.4g}",
                "" if t["mfu"] is None else f"{t['mfu']:.1%}",
                "" if t["peak_bytes"] is None else f"{t['peak_bytes'] / 1e9:.1f}",
            )
        )
    return table(STEP_COLUMNS, lines)


def update_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of the update bench, one line a batch and provider; no time, then the reason.

    ``× copying`` is the time of norm, perturbation and AdamW alone over that in which their bytes are copied.
    """
    lines = []
    for row in rows:
        name, t = (row["lengths"], row["provider"], str(row["clips"])), row["timing"]
        if t is None:
            lines.append((*name, row["reason"]))
            continue
        copying = t["sam_and_adamw_over_copy"]
        lines.append(
            (
                *name,
                str(row["micro_batch_size"]),
                str(row["stash"]),
                f"{t['seconds']:.3f}",
                f"{t['seconds_p20']:.3f}-{t['seconds_p80']:.3f}",
                str(t["rounds"]),
                f"{t['clips_per_s']:.1f}",
                f"{t['valid_tokens_per_s']:.0f}",
                "" if t["mfu"] is None else f"{t['mfu']:.1%}",
                "" if t["peak_bytes"] is None else f"{t['peak_bytes'] / 2**30:.1f}",
                f"{t['sam_over_plain']:.2f}",
                f"{1e3 * t['sam_and_adamw_seconds']:.2f}",
                "" if copying is None else f"{copying:.2f}",
            )
        )
    return table(UPDATE_COLUMNS, lines)


def update_goals(rows: Sequence[Mapping[str, Any]], ratios: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return a line for every goal of our update at realistic lengths that was measured, and whether it is met."""
    found: list[tuple[str, float, str, float, bool]] = []
    for name, ratio in ratios.get("realistic", {}).items():
        if name in UPDATE_GOALS:
            what = f"clips/s of {name.replace('_over_', ' over ')}"
            found.append((what, ratio, "at least", UPDATE_GOALS[name], ratio >= UPDATE_GOALS[name]))
    for row in rows:
        if row["provider"] != "fused" or row["lengths"] != "realistic" or not row["timing"]:
            continue
        t = row["timing"]
        at_most = {"time over that of a step without SAM": (t["sam_over_plain"], 2.05)}
        if t["sam_and_adamw_over_copy"] is not None:
            at_most["SAM + AdamW, time over copying"] = (t["sam_and_adamw_over_copy"], 1.2)
        if t["peak_bytes"] is not None:
            at_most[f"peak GiB at {row['clips']} clips"] = (t["peak_bytes"] / 2**30, 80.0)
        found += [(what, figure, "at most", goal, figure <= goal) for what, (figure, goal) in at_most.items()]
        if t["mfu"] is not None:
            found.append(("MFU", t["mfu"], "at least", 0.5, t["mfu"] >= 0.5))
    return [
        f"- {what}: {figure:.3g}, goal {bound} {goal:g}{'' if met else ': MISSED'}"
        for what, figure, bound, goal, met in found
    ]


def roof_line(roofs: Mapping[str, Any]) -> str:
    """Return the measured roofs in one line."""
    products = ", ".join(f"{name} {rate:.3g} TFLOP/s" for name, rate in roofs["matmul_tflop_per_s"].items())
    return f"copying {roofs['copy_gb_per_s']:.0f} GB/s; multiplying {products}"


def table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose columns also line up where Markdown is not rendered; short lines are filled up."""
    cells = [[*line, *[""] * (len(columns) - len(line))] for line in lines]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in [list(columns), *cells]]
    # A reason may be longer than its column: it does not widen it.
    widths = [max(len(line[i]) for line in escaped if len(line[i]) <= 32) for i in range(len(columns))]
    head, *body = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in escaped
    ]
    return "\n".join([head, f"|{'|'.join('-' * (width + 2) for width in widths)}|", *body])

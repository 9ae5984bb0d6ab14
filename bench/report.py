"""The report of a whole bench: a page and a picture beside its JSON file."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .data_tables import data_page
from .tables import block_table, kernel_table, roof_line, step_table, update_goals, update_table


def write_report(json_file: Path, figures: Mapping[str, Any]) -> tuple[Path, str]:
    """Write the Markdown page and the picture beside ``json_file``; returns its path and the picture's, or why none."""
    page, picture = json_file.with_suffix(".md"), json_file.with_suffix(".png")
    page.write_text(markdown(figures), encoding="utf-8")
    if not figures["roofs"] or not any(row["passes"] for row in figures["kernels"]):
        return page, "none: no op was timed under a measured roof"
    if importlib.util.find_spec("matplotlib") is None:
        return page, "none: matplotlib is not installed; `cacophony bench report` draws it from the JSON elsewhere"
    from .roofline_plot import draw_rooflines

    about = figures["machine"]
    draw_rooflines(picture, figures["kernels"], f"{about['device']}, {about['date'][:10]}")
    return page, str(picture)


def markdown(figures: Mapping[str, Any]) -> str:
    """Return the page that shows ``figures``, as they are in the JSON file."""
    about = figures["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    driver = f", driver {about['driver']}" if about["driver"] else ""
    lines = [
        f"# {about['device']}, {about['date']}",
        "",
        f"{versions}{driver}, commit {about['commit'] or 'unknown'}.",
        "",
        *(
            f"- {name}: {part['status']} in {part['seconds']:.0f} s{': ' + part['reason'] if part['reason'] else ''}"
            for name, part in figures["parts"].items()
        ),
    ]
    if figures["tests"]:
        lines += ["", f"Tests: {figures['tests']['summary']}", *(f"- {line}" for line in figures["tests"]["broken"])]
    if figures["roofs"]:
        lines += ["", f"Roofs: {roof_line(figures['roofs'])}."]
    if figures["kernels"]:
        lines += ["", "## Ops", "", kernel_table(figures["kernels"])]
    if figures["blocks"]:
        lines += ["", "## Blocks", "", block_table(figures["blocks"])]
    if figures["steps"]:
        lines += ["", "## Steps", "", step_table(figures["steps"])]
        for stage, ratios in figures["step_ratios"].items():
            lines += ["", f"{stage}: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())]
    if figures["data"]:
        lines += ["", "## Data", "", data_page(figures["data"])]
    if figures["updates"]:
        lines += ["", "## Stage 2's whole update", "", update_table(figures["updates"])]
        for lengths, ratios in figures["update_ratios"].items():
            said = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
            lines += ["", f"{lengths} lengths, clips/s: {said}"]
        lines += ["", *update_goals(figures["updates"], figures["update_ratios"])]
    return "\n".join(lines) + "\n"

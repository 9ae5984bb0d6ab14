"""Figures of the data bench, as they are in its JSON, as Markdown tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from .data_demand import MFU, cores
from .tables import table

RATE_COLUMNS = ("what", "provider", "workers", "clips/s", "audio h/s", "MB/s", "CPU ms/clip", "per core, against torch")
_RIVAL = "torch"


def rate_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rates of loaders and stages, one line each; no rates, then the reason.

    The last column is how many times as many clips a core's second gives as the same of the rival's.
    """
    rival = {
        row["what"]: row["rates"]["cpu_seconds_per_clip"]
        for row in rows
        if row["provider"] == _RIVAL and row["rates"] is not None
    }
    lines = []
    for row in rows:
        name, rates = (row["what"], row["provider"], str(row["workers"])), row["rates"]
        if rates is None:
            lines.append((*name, row["reason"]))
            continue
        lines.append(
            (
                *name,
                f"{rates['clips_per_s']:.0f}",
                f"{rates['audio_hours_per_s']:.2f}",
                f"{rates['bytes_per_s'] / 1e6:.1f}",
                f"{1e3 * rates['cpu_seconds_per_clip']:.3f}",
                f"{rival[row['what']] / rates['cpu_seconds_per_clip']:.2f}" if row["what"] in rival else "",
            )
        )
    return table(RATE_COLUMNS, lines)


def demand_table(demands: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what presets would take in on GPUs, and the cores it takes each provider's loader to feed one of them."""
    providers = [row["provider"] for row in rows if row["what"] == "loader" and row["rates"]]
    columns = ("preset", "GPU", f"clips/s at {MFU:.0%} MFU", *(f"cores: {provider}" for provider in providers))
    lines = []
    for demand in demands:
        needed = cores(demand, rows)
        figures = (f"{needed[provider]:.1f}" for provider in providers)
        lines.append((demand["preset"], demand["gpu"], f"{demand['clips_per_s']:.0f}", *figures))
    return table(columns, lines)


def data_page(data: Mapping[str, Any]) -> str:
    """Return both tables and what they say of: the figures as they stand in the JSON."""
    lines = [rate_table(data["rows"])]
    if data["demands"]:
        lines = [
            f"Clips of {data['clip_seconds']:.3g} s; a stage alone in one thread. MB are of FLAC, after decoding of "
            "int16 samples.",
            "",
            *lines,
            "",
            f"What one GPU would take in at {MFU:.0%} MFU (model FLOPs of a step, its rate from the data sheet), and "
            "the cores of the machine measured that each loader then keeps busy:",
            "",
            demand_table(data["demands"], data["rows"]),
        ]
    return "\n".join(lines)

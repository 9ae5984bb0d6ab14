"""Figures that the authors publish for their checkpoint, to stand beside those of a run.

From ``src/eval/README.md`` of github.com/gzhu06/Cacophony: their JAX checkpoint, run by their evaluation code, as
shares in [0, 1]. What is not listed here is shown as unknown.
"""

SOURCE = "github.com/gzhu06/Cacophony, src/eval/README.md (JAX checkpoint)"

FIGURES: dict[tuple[str, str], float] = {
    ("clotho", "text to audio r@1"): 0.200,
    ("esc50", "top_1"): 0.934,
}
"""(dataset, figure) → share."""

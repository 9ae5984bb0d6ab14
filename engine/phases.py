"""What the stretches of a step are called, for whoever listens to :func:`~cacophony.kernels.spans.span`."""

STEP = "step"
"""All of an optimiser step but the wait for its batch."""
LOADING = "loading"
"""The wait for a batch: where the device has work meanwhile, only what comes after that."""

PREPARE = "prepare"
"""Log-mel, patch subsets, targets."""
FORWARD = "forward"
"""Networks forward, again where nothing was kept."""
LOSS = "loss"
"""Losses and, where they are computed at once, their gradients."""
BACKWARD = "backward"
"""Networks backward, with what they compute again."""
UPDATE = "update"
"""Gradient norm, SAM's perturbation, AdamW."""
PHASES = (PREPARE, FORWARD, LOSS, BACKWARD, UPDATE)
"""A step, cut up: none of them holds another."""

ASCENT = "ascent"
"""What SAM adds: its first gradient, with that one's phases, and the perturbation."""
COLLECTIVE = "collective"
"""Where computation waits for other ranks; within a phase, or between two."""

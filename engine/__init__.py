"""Runs: configuration, objectives, the update, training, evaluation and inference."""

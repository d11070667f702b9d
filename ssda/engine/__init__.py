"""Training loop, checkpoints, evaluation."""

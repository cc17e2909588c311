"""Checkpoints in real architectures with random weights."""

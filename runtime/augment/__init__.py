"""Training data for detectors: from a YOLO dataset to a larger one, see docs/augment.md."""

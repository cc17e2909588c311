"""All that a check on a GPU needs, packed beforehand for a machine without a network (docs/gpu-check.md)."""

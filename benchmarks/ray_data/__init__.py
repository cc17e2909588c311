"""What a dataset by a Ray cluster costs beside one process, and what bounds it on many GPUs (docs/ray-data.md)."""

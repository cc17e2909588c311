"""What tests of controlled runs share: random pictures, the last latent of a run, and how far two are apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from latentrt import Pipeline, Request


def picture(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Random uint8 [H, W, 3]; `size` is (width, height)."""
    width, height = size
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def last_latent(pipe: Pipeline, *requests: Request) -> np.ndarray:
    """Float32 [B, C, h, w]."""
    for step in pipe.steps(*requests):
        latent = step.latent()
    return latent


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def asked_of_diffusers(scales: Sequence[float], spans: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Scale and part of the run of each control, as a pipeline of diffusers takes those of one or of several."""
    starts, ends = zip(*spans, strict=True)
    return {
        "controlnet_conditioning_scale": list(scales) if len(scales) > 1 else scales[0],
        "control_guidance_start": list(starts),
        "control_guidance_end": list(ends),
    }

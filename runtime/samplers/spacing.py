"""How a run is spread over the training levels: timestep spacings and ramps of sigma.

The spacings are those of Lin et al. 2023 (arXiv 2305.08891, table 2), in the two readings that diffusers
has: over all the levels (k-diffusion and DDIM samplers), or over one more step than asked for, the last of
which is left out (DPM-Solver and its kin). The ramps are shapes in sigma between two ends.
"""

from __future__ import annotations

import math

import numpy as np

from latentrt.samplers.levels import Float64

RHO = 7.0
"""Karras et al. 2022 (arXiv 2206.00364), equation 5."""

BETA_SHAPE = 0.6
"""Both parameters of the beta distribution (Lee et al. 2024, arXiv 2407.12173)."""


def spaced_over_ends(spacing: str, steps: int, total: int, offset: int) -> Float64:
    """Falling timesteps float64 [n]; `linspace` reaches both ends and is not rounded."""
    if spacing == "linspace":
        return np.linspace(0, total - 1, steps)[::-1]
    if spacing == "leading":
        return np.arange(steps, dtype=np.float64)[::-1] * (total // steps) + offset
    return _trailing(steps, total)


def spaced_short_of_end(spacing: str, steps: int, total: int, offset: int) -> Float64:
    """Falling whole timesteps float64 [n], spaced as if one more step followed."""
    if spacing == "linspace":
        return np.linspace(0, total - 1, steps + 1).round()[:0:-1]
    if spacing == "leading":
        return np.arange(1, steps + 1, dtype=np.float64)[::-1] * (total // (steps + 1)) + offset
    return _trailing(steps, total)


def spaced_as_distilled(steps: int, total: int, original_steps: int) -> Float64:
    """Evenly chosen timesteps of those that a consistency model was distilled at, float64 [n]."""
    distilled = np.arange(original_steps, 0, -1, dtype=np.float64) * (total // original_steps) - 1
    return np.take(distilled, np.linspace(0, original_steps, steps, endpoint=False).astype(int))


def _trailing(steps: int, total: int) -> Float64:
    return np.arange(total, 0, -total / steps).round() - 1


def ramp(shape: str, high: float, low: float, steps: int) -> Float64:
    """Falling sigmas float64 [n] from high to low: `karras`, `exponential` or `beta`."""
    if shape == "karras":
        ends = high ** (1 / RHO), low ** (1 / RHO)
        result: Float64 = (ends[0] + np.linspace(0, 1, steps) * (ends[1] - ends[0])) ** RHO
        return result
    if shape == "exponential":
        return np.exp(np.linspace(math.log(high), math.log(low), steps))
    quantiles = [beta_quantile(p, BETA_SHAPE) for p in 1 - np.linspace(0, 1, steps)]
    return low + np.array(quantiles) * (high - low)


def beta_quantile(p: float, shape: float) -> float:
    """Quantile of the symmetric beta distribution, to 1e-14 relative.

    Newton's iteration on the power series of the incomplete beta function (Abramowitz and Stegun 26.5.4),
    which converges fast in the lower half; symmetry gives the upper.
    """
    if p > 0.5:
        return 1 - beta_quantile(1 - p, shape)
    norm = math.gamma(shape) ** 2 / math.gamma(2 * shape)
    terms = np.arange(60)
    series = np.cumprod(np.concatenate([[1.0], (terms[1:] - shape) / terms[1:]])) / (terms + shape)
    x = (p * shape * norm) ** (1 / shape)
    for _ in range(8):
        if x == 0:
            return 0.0
        excess = x**shape / norm * float(series @ x**terms) - p
        x -= excess * norm * (x * (1 - x)) ** (1 - shape)
    return float(x)

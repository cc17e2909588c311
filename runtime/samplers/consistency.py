"""Samplers for distilled models: each call jumps to an image, or near it, and noise takes it back up."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from latentrt.samplers.calls import Call, D, N, SamplerRun, X, rows

SIGMA_DATA = 0.5


def lcm(run: SamplerRun) -> Iterator[Call]:
    """Luo et al. 2023 (arXiv 2310.04378), Algorithm 3, with the boundary condition of equation 9;
    LCMScheduler."""
    for i in run.steps:
        now, then = run.levels[i], run.levels[i + 1]
        scaled = run.timesteps[i] * run.noise.timestep_scaling
        spread = scaled**2 + SIGMA_DATA**2
        image = scaled / math.sqrt(spread) * D + SIGMA_DATA**2 / spread * X
        if i + 1 == run.count:
            yield Call(now, run.timesteps[i], rows(image))
        else:
            yield Call(now, run.timesteps[i], rows(then.alpha * image + then.sigma * N), draws=True)


def tcd(run: SamplerRun) -> Iterator[Call]:
    """Zheng et al. 2024 (arXiv 2402.19159), Algorithm 4, strategic stochastic sampling: down to a level below
    the next, then noise up to it; eta is the paper's gamma. TCDScheduler."""
    for i in run.steps:
        now, then = run.levels[i], run.levels[i + 1]
        last = i + 1 == run.count
        below = run.training.level(_below(0.0 if last else run.timesteps[i + 1], run.eta))
        x = below.alpha * D + below.sigma / now.sigma * (X - now.alpha * D)
        if last or run.eta == 0:
            yield Call(now, run.timesteps[i], rows(x))
        else:
            kept = then.alpha / below.alpha
            x = kept * x + math.sqrt(max(1 - kept**2, 0.0)) * N
            yield Call(now, run.timesteps[i], rows(x), draws=True)


def _below(timestep: float, eta: float) -> float:
    """Whole timestep below, in float32: in float64 some products would fall on the other side of a whole."""
    return float(np.floor(np.float32(1 - eta) * np.float32(timestep)))

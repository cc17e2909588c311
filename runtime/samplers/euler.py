"""Samplers that follow dx/dsigma = (x - denoised) / sigma, the probability flow for alpha linear in sigma.

That holds in variance-exploding space (Karras et al. 2022, arXiv 2206.00364, equation 4 with s = 1) and on
the straight line of flow models: `flow-euler` and `flow-heun` are the same formulas on other levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from latentrt.samplers.calls import M1, M2, M3, Call, D, N, SamplerRun, X, rows
from latentrt.samplers.levels import Float64, Level, variance_exploding

LMS_ORDER = 4


def _slope(level: Level) -> Float64:
    return (X - D) / level.sigma


def euler(run: SamplerRun) -> Iterator[Call]:
    """arXiv 2206.00364, Algorithm 1 without its second-order part; EulerDiscreteScheduler, and
    FlowMatchEulerDiscreteScheduler on flow levels."""
    for i in run.steps:
        now, then = run.levels[i], run.levels[i + 1]
        yield Call(now, run.timesteps[i], rows(X + (then.sigma - now.sigma) * _slope(now)))


def euler_ancestral(run: SamplerRun) -> Iterator[Call]:
    """Euler to a lower level, then noise back up (k-diffusion `sample_euler_ancestral`, eta 1);
    EulerAncestralDiscreteScheduler, which draws noise after the last step as well."""
    for i in run.steps:
        now, then = run.levels[i], run.levels[i + 1]
        down = then.sigma**2 / now.sigma
        up = then.sigma * math.sqrt(1 - (then.sigma / now.sigma) ** 2)
        x = X + (down - now.sigma) * _slope(now) + up * N
        yield Call(now, run.timesteps[i], rows(x), draws=True)


def heun(run: SamplerRun) -> Iterator[Call]:
    """arXiv 2206.00364, Algorithm 1: Euler, then the mean of the slopes at both ends; the last step is Euler.
    HeunDiscreteScheduler, and FlowMatchHeunDiscreteScheduler on flow levels."""
    for i in run.steps:
        now, then = run.levels[i], run.levels[i + 1]
        h = then.sigma - now.sigma
        yield Call(now, run.timesteps[i], rows(X + h * _slope(now), X + h / 2 * _slope(now)))
        if i + 1 < run.count:
            yield Call(then, run.timesteps[i + 1], rows(M1 + h / 2 * _slope(then)))


def dpm2(run: SamplerRun) -> Iterator[Call]:
    """Midpoint step with the middle taken in log(sigma): DPM-Solver-2 (arXiv 2206.00927, Algorithm 1) as
    k-diffusion's `sample_dpm_2` has it; the last step is Euler. KDPM2DiscreteScheduler."""
    for i in run.steps:
        now, then = run.levels[i], run.levels[i + 1]
        h = then.sigma - now.sigma
        if i + 1 == run.count:
            yield Call(now, run.timesteps[i], rows(X + h * _slope(now)))
            return
        middle = variance_exploding(math.sqrt(now.sigma * then.sigma))
        timestep = float(run.training.timesteps_of(np.array([middle.sigma]))[0])
        yield Call(now, run.timesteps[i], rows(X + (middle.sigma - now.sigma) * _slope(now), X))
        yield Call(middle, timestep, rows(M1 + h * _slope(middle)))


def dpm2_ancestral(run: SamplerRun) -> Iterator[Call]:
    """DPM-Solver-2 to a lower level, then noise back up (k-diffusion `sample_dpm_2_ancestral`, eta 1); the last step is
    Euler. KDPM2AncestralDiscreteScheduler."""
    for i in run.steps:
        now, then = run.levels[i], run.levels[i + 1]
        if i + 1 == run.count:
            yield Call(now, run.timesteps[i], rows(X + (then.sigma - now.sigma) * _slope(now)))
            return
        down = then.sigma**2 / now.sigma
        up = then.sigma * math.sqrt(1 - (then.sigma / now.sigma) ** 2)
        middle = variance_exploding(math.sqrt(now.sigma * down))
        timestep = float(run.training.timesteps_of(np.array([middle.sigma]))[0])
        yield Call(now, run.timesteps[i], rows(X + (middle.sigma - now.sigma) * _slope(now), X))
        yield Call(middle, timestep, rows(M1 + (down - now.sigma) * _slope(middle) + up * N), draws=True)


def lms(run: SamplerRun) -> Iterator[Call]:
    """Adams-Bashforth on uneven levels: the last four slopes, as a polynomial in sigma, integrated over the
    step (k-diffusion `sample_lms`); LMSDiscreteScheduler, order 4."""
    past = M1, M2, M3
    for i in run.steps:
        order = min(i + 1, LMS_ORDER)
        sigmas = [run.levels[i - k].sigma for k in range(order)]
        slopes = _slope(run.levels[i]), *past
        weights = _lagrange_integrals(sigmas, run.levels[i + 1].sigma)
        x = X + sum(weight * slope for weight, slope in zip(weights, slopes, strict=False))
        yield Call(run.levels[i], run.timesteps[i], rows(x, *slopes[:-1]))


def _lagrange_integrals(nodes: list[float], end: float) -> list[float]:
    """Integrals from nodes[0] to end of the Lagrange polynomials on the nodes.

    Two Gauss points are exact up to degree 3, hence for four nodes.
    """
    half, centre = (end - nodes[0]) / 2, (end + nodes[0]) / 2
    points = centre - half / math.sqrt(3), centre + half / math.sqrt(3)

    def polynomial(j: int, x: float) -> float:
        return math.prod((x - node) / (nodes[j] - node) for k, node in enumerate(nodes) if k != j)

    return [half * sum(polynomial(j, x) for x in points) for j in range(len(nodes))]

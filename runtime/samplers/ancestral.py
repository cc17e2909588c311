"""Samplers that walk training timesteps in variance-preserving space: DDIM, DDPM and PNDM."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from latentrt.samplers.calls import M1, M2, M3, Call, D, N, SamplerRun, X, rows
from latentrt.samplers.levels import Float64, Level

ADAMS_BASHFORTH = np.array(
    [
        [1, 0, 0, 0],
        [3 / 2, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
)
"""Weights of the newest output and the three before it, by the number of outputs at hand, from one."""


def ddim(run: SamplerRun) -> Iterator[Call]:
    """Song et al. 2020 (arXiv 2010.02502), equations 12 and 16; DDIMScheduler.

    On evenly spaced timesteps a step ends one stride below its start, which is not always where the next one
    begins (`linspace` spacing): diffusers has it so.
    """
    for i in run.steps:
        now = run.levels[i]
        then = run.levels[i + 1] if run.stride is None else run.stride_below(run.timesteps[i])
        noise = (X - now.alpha * D) / now.sigma
        fresh = run.eta * math.sqrt(1 - (now.alpha / then.alpha) ** 2) / now.sigma
        kept = math.sqrt(max(1 - fresh**2, 0.0))
        x = then.alpha * D + then.sigma * (kept * noise + fresh * N)
        yield Call(now, run.timesteps[i], rows(x), draws=run.eta > 0)


def ddpm(run: SamplerRun) -> Iterator[Call]:
    """Ho et al. 2020 (arXiv 2006.11239), equation 7, with the posterior's variance or, as `fixed_large`, the
    forward one; DDPMScheduler. The variance is kept above 1e-20, as there."""
    for i in run.steps:
        now, then, timestep = run.levels[i], run.levels[i + 1], run.timesteps[i]
        kept = now.alpha / then.alpha
        forward = 1 - kept**2
        shrink = (then.sigma / now.sigma) ** 2
        x = then.alpha * forward / now.sigma**2 * D + kept * shrink * X
        variance = forward if run.noise.variance_type == "fixed_large" else max(shrink * forward, 1e-20)
        fresh = math.sqrt(variance) if timestep > 0 else 0.0
        yield Call(now, timestep, rows(x + fresh * N), draws=timestep > 0)


def pndm(run: SamplerRun) -> Iterator[Call]:
    """Liu et al. 2022 (arXiv 2202.09778), equations 9 and 12: four-step Adams-Bashforth on the network's
    output, started by a step that is taken twice; PNDMScheduler with skip_prk_steps."""
    times = [*run.timesteps[:2], *run.timesteps[1:]][run.begin :]
    for k, timestep in enumerate(times):
        at = run.training.level(timestep)
        output = _network_output(at, run.noise.prediction_type)
        if k == 1:
            # Again over the first step, now with the mean of the outputs at its two ends. M2 holds its start.
            start = run.training.level(min(timestep + (run.stride or 0), len(run.training) - 1))
            x = _transfer((output + M1) / 2, M2, start, at, run.noise.prediction_type)
            yield Call(at, timestep, rows(x, M1))
            continue
        blend = ADAMS_BASHFORTH[min(max(k, 1), 4) - 1] @ np.stack([output, M1, M2, M3])
        x = _transfer(blend, X, at, run.stride_below(timestep), run.noise.prediction_type)
        yield Call(at, timestep, rows(x, output, X) if k == 0 else rows(x, output, M1, M2))


def _network_output(level: Level, prediction_type: str) -> Float64:
    _, c_skip, c_out = level.scalings(prediction_type)
    return (D - c_skip * X) / c_out


def _transfer(output: Float64, x: Float64, now: Level, then: Level, prediction_type: str) -> Float64:
    """arXiv 2202.09778, equation 9: from `x` at one level to another along the predicted noise."""
    noise = output if prediction_type == "epsilon" else now.alpha * output + now.sigma * x
    scale = then.alpha / now.alpha
    return scale * x + (then.sigma - scale * now.sigma) * noise

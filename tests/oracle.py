"""The basis-vector oracle: what a diffusers scheduler computes, as exact coefficients, without a network.

A scheduler is linear in the latent, the network's outputs and the noise it draws. Run on basis vectors instead
of latents, in float64, each of its samples *is* its row of coefficients. The same vectors go through a step
table, and the rows are compared.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Coefficients over the basis (start latent, n network outputs, n noises), float64.

    Attributes:
        samples: [n, 1 + 2n], the latent after each call.
        inputs: [n, 1 + 2n], what the network saw at each call.
        draws: bool [n], whether noise was drawn at each call.
    """

    samples: np.ndarray
    inputs: np.ndarray
    draws: np.ndarray


class _DoubleTorch(ModuleType):
    """Torch, with float64 where a scheduler asks for float32: some cast the latent down on every step."""

    def __init__(self) -> None:
        super().__init__("torch")

    def __getattr__(self, name: str) -> Any:
        return torch.float64 if name == "float32" else getattr(torch, name)


@contextmanager
def _patched(module: ModuleType, **names: Any) -> Iterator[None]:
    saved = {name: getattr(module, name) for name in names if hasattr(module, name)}
    for name in saved:
        setattr(module, name, names[name])
    try:
        yield
    finally:
        for name, value in saved.items():
            setattr(module, name, value)


def widen(scheduler: Any) -> Any:
    """Turn the scheduler's float32 tables into float64, values unchanged."""
    for name in ("sigmas", "alphas_cumprod", "final_alpha_cumprod", "one"):
        if isinstance(getattr(scheduler, name, None), torch.Tensor):
            setattr(scheduler, name, getattr(scheduler, name).double())
    if hasattr(scheduler, "sigmas_interpol"):
        # The middle levels of DPM2, by its own rule but from the float64 values.
        logs = steps_of(scheduler).log()
        if hasattr(scheduler, "sigmas_down"):
            _widen_ancestral(scheduler, logs.exp())
            return scheduler
        middle = torch.lerp(logs, logs.roll(1), 0.5).exp()
        scheduler.sigmas_interpol = torch.cat([middle[:1], middle[1:].repeat_interleave(2), middle[-1:]])
    return scheduler


def _widen_ancestral(scheduler: Any, sigmas: torch.Tensor) -> None:
    """The levels of ancestral DPM2, by its own rule but from the float64 values."""
    after = torch.cat([sigmas[1:], torch.zeros(1, dtype=torch.float64)])
    up = (after**2 * (sigmas**2 - after**2) / sigmas.clamp(min=1e-30) ** 2).clamp(min=0).sqrt()
    down = (after**2 - up**2).clamp(min=0).sqrt()
    middle = torch.lerp(sigmas.log(), down.log(), 0.5).exp()
    middle[-2:] = 0
    for name, values in (("sigmas_up", up), ("sigmas_down", down), ("sigmas_interpol", middle)):
        setattr(scheduler, name, torch.cat([values[:1], values[1:].repeat_interleave(2), values[-1:]]))


def steps_of(scheduler: Any) -> torch.Tensor:
    """The scheduler's sigmas, one a step and the end, where it stores them once a call."""
    sigmas = scheduler.sigmas
    if hasattr(scheduler, "sigmas_interpol"):
        return torch.cat([sigmas[:1], sigmas[1:-1:2]])
    if scheduler.order == 2:
        return torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])
    return sigmas


def trace_scheduler(scheduler: Any, *, begin: int = 0, step: Mapping[str, Any] | None = None) -> Trace:
    """Run a scheduler, timesteps set, on basis vectors.

    Args:
        scheduler: a diffusers scheduler after `set_timesteps`; its tables are widened in place.
        begin: first call, counted in the scheduler's timesteps.
        step: further keyword arguments of its `step`.
    """
    widen(scheduler)
    timesteps = scheduler.timesteps[begin:]
    count = len(timesteps)
    basis = torch.eye(1 + 2 * count, dtype=torch.float64)[:, None, None, None, :]
    drawn = 0
    draws = np.zeros(count, dtype=bool)

    def draw(shape: Any, **_: Any) -> torch.Tensor:
        nonlocal drawn
        draws[k] = True
        drawn += 1
        return basis[count + drawn]

    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    sample = basis[0]
    samples, inputs = [], []
    with _patched(sys.modules[type(scheduler).__module__], torch=_DoubleTorch(), randn_tensor=draw):
        for k, timestep in enumerate(timesteps):
            time = timestep.item()
            scale = getattr(scheduler, "scale_model_input", lambda x, _: x)
            inputs.append(scale(sample, time))
            sample = scheduler.step(basis[1 + k], time, sample, **(step or {})).prev_sample
            samples.append(sample)
    return Trace(*(torch.cat(rows).reshape(count, -1).numpy() for rows in (samples, inputs)), draws)


def trace_table(scalings: np.ndarray, transition: np.ndarray, draws: np.ndarray) -> Trace:
    """Run a step table on the same basis vectors, by the contract of one engine call."""
    count = len(draws)
    basis = np.eye(1 + 2 * count)
    state = np.zeros((4, 1 + 2 * count))
    state[0] = basis[0]
    drawn = 0
    samples, inputs = [], []
    for k, (c_in, c_skip, c_out) in enumerate(scalings):
        denoised = c_skip * state[0] + c_out * basis[1 + k]
        drawn += draws[k]
        noise = basis[count + drawn] if draws[k] else np.zeros(1 + 2 * count)
        inputs.append(c_in * state[0])
        state = transition[k] @ np.vstack([state, denoised, noise])
        samples.append(state[0])
    return Trace(np.array(samples), np.array(inputs), np.asarray(draws))


def discrepancy(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference, as a share of the largest reference coefficient."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    assert np.isfinite(theirs).all(), "the reference is not finite"
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())

"""The vocabulary that samplers are written in.

A sampler is a generator: it walks the noise levels of a `SamplerRun` and yields one `Call` for each evaluation of
the network. A call's rows say how the next state is mixed from what is at hand: `X` (the latent), `M1`, `M2`,
`M3` (the sampler's own memory, zero at first), `D` (what the network just denoised) and `N` (fresh noise).
Rows are plain vectors, so that a formula is written as in its paper: `r * X + (1 - r) * D`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentrt.samplers.levels import Float64, Level, TrainedLevels
from latentrt.samplers.noise_schedule import SECOND_ORDER, NoiseSchedule, Solver

SLOTS = 4
"""Latents in the state: x and up to three of memory."""

X, M1, M2, M3, D, N = np.eye(SLOTS + 2)


def rows(x: Float64, *memory: Float64) -> Float64:
    """The transition [4, 6] that sets the latent to `x` and the memory to `memory`; unused memory is zero."""
    transition = np.zeros((SLOTS, SLOTS + 2))
    transition[: 1 + len(memory)] = x, *memory
    return transition


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One evaluation of the network and what follows from it.

    Attributes:
        level: noise level of the latent that the network sees.
        timestep: what the network is told about that level.
        transition: float64 [4, 6], from (x, m1, m2, m3, denoised, noise) to (x, m1, m2, m3).
        draws: whether fresh noise is drawn for this call. Samplers that draw noise and then weigh it with
            zero say so too, since the draw moves the generator on.
    """

    level: Level
    timestep: float
    transition: Float64
    draws: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class SamplerRun:
    """The levels that one run visits.

    Attributes:
        levels: n + 1 levels; step i goes from level i to level i + 1.
        timesteps: n timesteps, one a step.
        trained: the training levels; None for flow models.
        begin: first step that is taken; more than 0 where a run starts from an image.
        eta: share of fresh noise, for the samplers that have a choice.
        stride: training timesteps between steps where these are evenly spaced, else None.
        solver: how a multistep solver steps.
    """

    levels: Sequence[Level]
    timesteps: Sequence[float]
    noise: NoiseSchedule
    trained: TrainedLevels | None = None
    begin: int = 0
    eta: float = 0.0
    stride: int | None = None
    solver: Solver = SECOND_ORDER

    @property
    def count(self) -> int:
        """Number of steps of the whole schedule."""
        return len(self.timesteps)

    @property
    def steps(self) -> range:
        """Indices of the steps that are taken."""
        return range(self.begin, self.count)

    @property
    def training(self) -> TrainedLevels:
        """The training levels, for samplers that need them."""
        if self.trained is None:
            raise TypeError("this sampler walks training timesteps, which a flow model does not have")
        return self.trained

    def stride_below(self, timestep: float) -> Level:
        """Level one stride below a timestep: the last level of the run where that lies below zero."""
        below = timestep - (self.stride or 0)
        return self.levels[-1] if below < 0 else self.training.level(below)

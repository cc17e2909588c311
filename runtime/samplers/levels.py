"""Noise levels: how much signal and how much noise a latent holds, and what the network makes of it.

A latent at a level is `x = alpha * x0 + sigma * n`, with x0 clean and n standard normal. Three spaces occur:

    variance preserving   alpha^2 + sigma^2 = 1   DDIM, DPM-Solver, the network's own input
    variance exploding    alpha = 1               Euler, Heun, LMS: the latent is divided by alpha
    flow                  alpha = 1 - sigma       rectified flow

The first two hold the same latents up to a factor, and share the ratio sigma / alpha, which diffusers calls
sigma everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from latentrt.errors import RequestError
from latentrt.samplers.noise_schedule import NoiseSchedule

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Level:
    """One noise level.

    Attributes:
        alpha, sigma: the latent is `alpha * x0 + sigma * n`.
        c_in: factor that takes the latent to the network's input.
    """

    alpha: float
    sigma: float
    c_in: float = 1.0

    @property
    def log_snr(self) -> float:
        """lambda of DPM-Solver: log(alpha / sigma); infinite for a clean latent."""
        if self.sigma == 0:
            return math.inf
        if self.alpha == 0:
            return -math.inf
        return math.log(self.alpha) - math.log(self.sigma)

    def scalings(self, prediction_type: str) -> tuple[float, float, float]:
        """(c_in, c_skip, c_out) such that `denoised = c_skip * x + c_out * network(c_in * x)`.

        Sources: epsilon, arXiv 2006.11239 equation 15; v, arXiv 2202.00512 appendix D; flow, arXiv 2403.03206
        section 2; the c_* notation, arXiv 2206.00364 equation 7."""
        if prediction_type == "sample":
            return self.c_in, 0.0, 1.0
        if prediction_type == "flow_prediction":
            return self.c_in, 1.0, -self.sigma
        if prediction_type == "v_prediction":
            return self.c_in, self.c_in * self.c_in * self.alpha, -self.c_in * self.sigma
        if self.alpha == 0:
            raise RequestError(
                "the run starts at pure noise, where an epsilon network says nothing about the image",
                expected="a v_prediction checkpoint, or a start below pure noise",
                hint="choose the schedule leading, or explicit timesteps below the last one",
            )
        return self.c_in, 1 / self.alpha, -self.sigma / self.alpha


CLEAN = Level(1.0, 0.0)


def variance_preserving(ratio: float) -> Level:
    """Level of a given sigma / alpha, scaled to unit variance."""
    alpha = 1 / math.sqrt(ratio * ratio + 1)
    return Level(alpha, ratio * alpha)


def variance_exploding(ratio: float) -> Level:
    """Level of a given sigma / alpha, scaled to unit signal."""
    return Level(1.0, ratio, 1 / math.sqrt(ratio * ratio + 1))


def flow(sigma: float) -> Level:
    """Level on the straight line from image to noise."""
    return Level(1 - sigma, sigma)


@dataclass(frozen=True, slots=True, eq=False)
class TrainedLevels:
    """The discrete levels that a network was trained at, indexed by timestep.

    Attributes:
        alphas_cumprod: share of signal variance, float64 [T] (values of float32 precision).
        ratios: sigma / alpha, float64 [T], rising.
    """

    alphas_cumprod: Float64
    ratios: Float64 = field(init=False)
    _logs: Float64 = field(init=False)

    def __post_init__(self) -> None:
        signal = self.alphas_cumprod.astype(np.float32)
        with np.errstate(divide="ignore"):
            ratios = np.sqrt((np.float32(1) - signal) / signal)
        object.__setattr__(self, "ratios", ratios.astype(np.float64))
        object.__setattr__(self, "_logs", np.log(ratios).astype(np.float64))

    @classmethod
    def of(cls, noise: NoiseSchedule, *, keep_signal: bool) -> TrainedLevels:
        """Levels of a checkpoint. `keep_signal` leaves a trace of signal at a zero-SNR end, so that its ratio
        is finite (2^-24, the value diffusers takes)."""
        levels = noise.alphas_cumprod().astype(np.float64)
        if keep_signal and noise.rescale_betas_zero_snr:
            levels[-1] = 2.0**-24
        return cls(levels)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def level(self, timestep: float) -> Level:
        """Variance-preserving level at a timestep, in between by interpolation of the ratio."""
        if timestep == int(timestep):
            signal = float(self.alphas_cumprod[int(timestep)])
            return Level(math.sqrt(signal), math.sqrt(1 - signal))
        return variance_preserving(float(self.ratios_at([timestep])[0]))

    def ratios_at(self, timesteps: Sequence[float] | Float64) -> Float64:
        """sigma / alpha at any timesteps, linear in between, float64 [n]."""
        return np.interp(timesteps, np.arange(len(self)), self.ratios)

    def timesteps_of(self, ratios: Float64) -> Float64:
        """Inverse of `ratios_at`, but linear in log(sigma), as in k-diffusion's `sigma_to_t`, float64 [n]."""
        logs = np.log(np.maximum(ratios, 1e-10))
        low = np.clip(np.searchsorted(self._logs, logs, side="right") - 1, 0, len(self) - 2)
        weight = np.clip((self._logs[low] - logs) / (self._logs[low] - self._logs[low + 1]), 0, 1)
        return (1 - weight) * low + weight * (low + 1)

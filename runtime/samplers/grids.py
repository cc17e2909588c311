"""From a checkpoint and a request to the levels of a run.

One function per kind of sampler, all with the same signature; each follows the diffusers schedulers of its
kind down to the rounding, since high-order samplers magnify small differences between levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from latentrt.errors import RequestError
from latentrt.samplers.calls import SamplerRun
from latentrt.samplers.levels import CLEAN, Float64, Level, TrainedLevels, flow, variance_exploding, variance_preserving
from latentrt.samplers.noise_schedule import RAMPS, NoiseSchedule
from latentrt.samplers.spacing import ramp, spaced_as_distilled, spaced_over_ends, spaced_short_of_end


@dataclass(frozen=True, slots=True)
class GridRequest:
    """What was asked for, checked. Exactly one of `schedule`, `sigmas` and `timesteps` decides the levels.

    Attributes:
        schedule: a spacing, a ramp, or `own` for the kind of sampler's own (distilled timesteps, flow).
        spacing: the timestep spacing that gives a ramp its ends, and the convention of the start noise.
        end: where the run ends: `zero`, `trained` (training level 0) or `hold` (the last level again).
        whole: how timesteps that a ramp falls between are made whole: not at all, `round` or `floor`.
    """

    noise: NoiseSchedule
    steps: int
    schedule: str
    spacing: str
    end: str
    whole: str | None = None
    sigmas: tuple[float, ...] | None = None
    timesteps: tuple[float, ...] | None = None


Grid = Callable[[GridRequest], SamplerRun]


def over_sigma(plan: GridRequest) -> SamplerRun:
    """Levels of the k-diffusion samplers, variance exploding: a ramp runs between the spacing's own ends."""
    trained = TrainedLevels.of(plan.noise, keep_signal=True)
    timesteps = _explicit(plan) if plan.timesteps else _spaced(plan, spaced_over_ends)
    timesteps = _as_float32(timesteps)
    ratios = trained.ratios_at(timesteps)
    return _sigma_run(plan, trained, timesteps, ratios, ends=(ratios[0], ratios[-1]), level=variance_exploding)


def over_log_snr(plan: GridRequest) -> SamplerRun:
    """Levels of DPM-Solver and its kin, variance preserving: a ramp runs over all the training levels."""
    trained = TrainedLevels.of(plan.noise, keep_signal=True)
    timesteps = _explicit(plan) if plan.timesteps else _spaced(plan, spaced_short_of_end)
    ratios = trained.ratios_at(timesteps)
    ends = trained.ratios[-1], trained.ratios[0]
    return _sigma_run(plan, trained, timesteps, ratios, ends=ends, level=variance_preserving)


def over_timesteps(plan: GridRequest) -> SamplerRun:
    """Whole training timesteps, variance preserving; with a ramp or explicit sigmas, levels in between."""
    trained = TrainedLevels.of(plan.noise, keep_signal=False)
    last = CLEAN if plan.end == "zero" else trained.level(0)
    if plan.sigmas or plan.schedule in RAMPS:
        return over_log_snr(plan)
    if plan.timesteps:
        timesteps, stride = _explicit(plan), None
    elif plan.schedule == "own":
        timesteps, stride = _distilled(plan), None
    else:
        timesteps = _spaced(plan, spaced_over_ends).round()
        stride = plan.noise.num_train_timesteps // plan.steps
    _refuse_out_of_range(timesteps, len(trained))
    levels = [*(trained.level(t) for t in timesteps), last]
    return SamplerRun(levels, timesteps.tolist(), plan.noise, trained, stride=stride)


def over_flow(plan: GridRequest) -> SamplerRun:
    """Levels of rectified flow: evenly spaced, then shifted towards noise; FlowMatchEulerDiscreteScheduler.

    The even spacing ends at the shifted last training level, and the shift is applied to it again: so does
    diffusers.
    """
    total, shift = plan.noise.num_train_timesteps, plan.noise.shift
    if plan.sigmas:
        sigmas = np.array(plan.sigmas)
    elif plan.timesteps:
        sigmas = np.append(_explicit(plan) / total, 0.0)
    else:
        first, last = _as_float32(_shifted(_as_float32(np.array([1.0, 1 / total])), shift))
        sigmas = _shifted(np.linspace(first * total, last * total, plan.steps) / total, shift)
        if plan.schedule in RAMPS:
            high = sigmas[0] if plan.noise.sigma_max is None else plan.noise.sigma_max
            low = sigmas[-1] if plan.noise.sigma_min is None else plan.noise.sigma_min
            sigmas = ramp(plan.schedule, high, low, plan.steps)
        sigmas = np.append(sigmas, 0.0)
    sigmas = _as_float32(sigmas)
    timesteps = _as_float32(sigmas[:-1] * total)
    return SamplerRun([flow(sigma) for sigma in sigmas.tolist()], timesteps.tolist(), plan.noise)


def _sigma_run(
    plan: GridRequest,
    trained: TrainedLevels,
    timesteps: Float64,
    ratios: Float64,
    *,
    ends: tuple[float, float],
    level: Callable[[float], Level],
) -> SamplerRun:
    """A run over ratios sigma / alpha, whether given, ramped or read off at timesteps."""
    if plan.sigmas:
        ratios, last = np.array(plan.sigmas[:-1]), plan.sigmas[-1]
        timesteps = _made_whole(trained.timesteps_of(ratios), plan.whole)
    else:
        if plan.schedule in RAMPS and not plan.timesteps:
            high = ends[0] if plan.noise.sigma_max is None else plan.noise.sigma_max
            low = ends[1] if plan.noise.sigma_min is None else plan.noise.sigma_min
            ratios = ramp(plan.schedule, high, low, plan.steps)
            timesteps = _made_whole(trained.timesteps_of(ratios), plan.whole)
        last = {"zero": 0.0, "trained": trained.ratios[0], "hold": ratios[-1]}[plan.end]
    levels = [level(ratio) for ratio in _as_float32(np.append(ratios, last)).tolist()]
    return SamplerRun(levels, _as_float32(timesteps).tolist(), plan.noise, trained)


def _explicit(plan: GridRequest) -> Float64:
    timesteps = np.array(plan.timesteps, dtype=np.float64)
    _refuse_out_of_range(timesteps, plan.noise.num_train_timesteps + plan.noise.is_flow)
    return timesteps


def _spaced(plan: GridRequest, spaced: Callable[[str, int, int, int], Float64]) -> Float64:
    return spaced(plan.spacing, plan.steps, plan.noise.num_train_timesteps, plan.noise.steps_offset)


def _distilled(plan: GridRequest) -> Float64:
    original = plan.noise.original_inference_steps
    if plan.steps > original:
        raise RequestError(
            f"{plan.steps} steps",
            expected=f"at most {original}, the steps that the model was distilled from",
            hint="ask for fewer steps, or choose another sampler",
        )
    return spaced_as_distilled(plan.steps, plan.noise.num_train_timesteps, original)


def _refuse_out_of_range(timesteps: Float64, total: int) -> None:
    if timesteps.max() > total - 1 or timesteps.min() < 0:
        raise RequestError(
            f"timesteps from {timesteps.max():g} to {timesteps.min():g}",
            expected=f"timesteps between {total - 1} and 0",
            hint="give timesteps in that range, or ask for fewer steps",
        )


def _made_whole(timesteps: Float64, how: str | None) -> Float64:
    return timesteps if how is None else timesteps.round() if how == "round" else np.floor(timesteps)


def _shifted(sigmas: Float64, shift: float) -> Float64:
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def _as_float32(values: Float64) -> Float64:
    """Values as diffusers stores them: rounded to float32, then used as they are."""
    return values.astype(np.float32).astype(np.float64)

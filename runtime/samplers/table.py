"""`step_table`: a sampler and its schedule as coefficients, a few floats for each call of the engine."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import numpy as np
import numpy.typing as npt

from latentrt.errors import RequestError
from latentrt.names import SamplerName, ScheduleName
from latentrt.samplers.calls import SamplerRun
from latentrt.samplers.grids import GridRequest, over_flow, over_sigma
from latentrt.samplers.levels import Float64
from latentrt.samplers.noise_schedule import RAMPS, SPACINGS, NoiseSchedule
from latentrt.samplers.registry import SAMPLERS, Sampler
from latentrt.values import Instance

SCHEDULES = ("default", *SPACINGS, *RAMPS)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StepTable:
    """Everything that the host says to the engine about sampling, for the n calls of one run.

    Attributes:
        timestep: float64 [n], what the network is told.
        scalings: float64 [n, 3], (c_in, c_skip, c_out).
        transition: float64 [n, 4, 6], from (state 0..3, denoised, noise) to the next state 0..3.
        draws_noise: bool [n], whether fresh noise is drawn from the image's generator for this call. True
            also where diffusers draws noise and gives it no weight.
        levels: float64 [n + 1, 2], (alpha, sigma) of state 0 before each call and after the last:
            state 0 = alpha * x0 + sigma * n.
        start_signal, start_noise: state 0 at the start is `start_signal * image + start_noise * noise`;
            without an image, start_signal is 0 and start_noise is diffusers' `init_noise_sigma`.
    """

    sampler: str
    timestep: Float64
    scalings: Float64
    transition: Float64
    draws_noise: npt.NDArray[np.bool_]
    levels: Float64
    start_signal: float
    start_noise: float

    def __len__(self) -> int:
        return len(self.timestep)

    def first(self, calls: int) -> StepTable:
        """The first calls alone."""
        return replace(
            self,
            timestep=self.timestep[:calls],
            scalings=self.scalings[:calls],
            transition=self.transition[:calls],
            draws_noise=self.draws_noise[:calls],
            levels=self.levels[: calls + 1],
        )


def sampler_names(noise: NoiseSchedule | None = None) -> tuple[SamplerName, ...]:
    """Names that `step_table` takes as `sampler`: all, or those that fit a checkpoint's prediction type."""
    if noise is None:
        return cast("tuple[SamplerName, ...]", tuple(SAMPLERS))
    Instance((NoiseSchedule,)).read("noise", noise)
    names = [name for name, row in SAMPLERS.items() if (row.grid is over_flow) == noise.is_flow]
    if noise.prediction_type == "sample":
        # Its multistep formula blends network outputs at different levels, which must hold noise.
        names.remove("pndm")
    return cast("tuple[SamplerName, ...]", tuple(names))


def schedule_names() -> tuple[ScheduleName, ...]:
    """Names that `step_table` takes as `schedule`."""
    return cast("tuple[ScheduleName, ...]", SCHEDULES)


def step_table(
    noise: NoiseSchedule,
    *,
    sampler: str,
    steps: int | None = None,
    schedule: str = "default",
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
    eta: float | None = None,
    strength: float | None = None,
    denoising_start: float | None = None,
    denoising_end: float | None = None,
) -> StepTable:
    """The coefficients of a run.

    Args:
        steps: number of steps; may be left out with `sigmas` or `timesteps`.
        schedule: one of `schedule_names()`; `default` is what the sampler's diffusers class makes of the
            checkpoint's configuration.
        sigmas: explicit noise levels as sigma / alpha (flow models: sigma), falling, one more than steps:
            the last is where the run ends, normally 0. Taken as they are, without a flow model's shift.
        timesteps: explicit training timesteps, falling, one a step.
        eta: share of fresh noise in [0, 1], for `ddim` (0 by default) and `tcd` (0.3 by default; 0 where it stands for
            the checkpoint's own scheduler, which diffusers' pipelines call so).
        strength: None starts from noise alone. A number in (0, 1] starts from an image and takes the last
            `int(steps * strength)` steps, as diffusers' image-to-image does.
        denoising_start: instead: share of the steps, to the nearest, that the start latent has behind it. It is taken
            as it is: start_signal is 1 and start_noise 0.
        denoising_end: share of the steps, to the nearest, after which the run ends, where one with this
            `denoising_start` goes on. None takes all.

    Raises:
        RequestError: an unknown name, a value out of range, or a combination that makes no sense.
    """
    row = SAMPLERS[_known("sampler", sampler, SAMPLERS)]
    _known("schedule", schedule, SCHEDULES)
    if sampler not in (fitting := sampler_names(noise)):
        raise RequestError(
            f"the sampler {sampler} with a network that predicts {noise.prediction_type}",
            expected="one of " + ", ".join(fitting),
        )
    plan = _plan(noise, sampler, row, _checked_steps(steps, sigmas, timesteps), schedule, sigmas, timesteps)
    own = noise.solver if sampler == noise.default_sampler else None
    run = replace(row.grid(plan), solver=row.solver if own is None else own)
    if strength is not None:
        run = replace(run, begin=_begin(plan.steps, strength, rounds_up=row.grid is over_flow))
    if denoising_start is not None:
        run = replace(run, begin=_handover(plan.steps, denoising_start))
    if eta is not None or row.eta is not None:
        usual = 0.0 if sampler == noise.default_sampler else row.eta
        run = replace(run, eta=_checked_eta(sampler, row, eta, usual=usual))
    table = _tabulate(sampler, row, run, plan, from_image=strength is not None)
    if denoising_end is not None:
        left = replace(run, begin=_stop(plan.steps, denoising_end, begin=run.begin))
        table = table.first(len(table) - len(list(row.calls(left))) if left.begin < plan.steps else len(table))
    return table if denoising_start is None else replace(table, start_signal=1.0, start_noise=0.0)


def _tabulate(sampler: str, row: Sampler, run: SamplerRun, plan: GridRequest, *, from_image: bool) -> StepTable:
    try:
        calls = list(row.calls(run))
    except ZeroDivisionError as error:
        raise RequestError(
            f"{plan.steps} steps on the schedule {plan.schedule} put two steps on one noise level",
            expected="falling noise levels",
            hint="ask for fewer steps, or choose another schedule",
        ) from error
    start = calls[0].level
    levels = [*(call.level for call in calls), run.levels[-1]]
    return StepTable(
        sampler=sampler,
        timestep=np.array([call.timestep for call in calls]),
        scalings=np.array([call.level.scalings(run.noise.prediction_type) for call in calls]),
        transition=np.stack([call.transition for call in calls]),
        draws_noise=np.array([call.draws for call in calls]),
        levels=np.array([(level.alpha, level.sigma) for level in levels]),
        start_signal=start.alpha if from_image else 0.0,
        start_noise=start.sigma if from_image else _start_noise(row, run, plan.spacing),
    )


def _start_noise(row: Sampler, run: SamplerRun, spacing: str) -> float:
    """Standard deviation of a start without an image: diffusers' `init_noise_sigma`."""
    if row.grid is not over_sigma:
        return 1.0
    sigma = run.levels[0].sigma
    return math.hypot(sigma, 1.0) if spacing == "leading" else sigma


def _plan(
    noise: NoiseSchedule,
    sampler: str,
    row: Sampler,
    steps: int,
    schedule: str,
    sigmas: Sequence[float] | None,
    timesteps: Sequence[float] | None,
) -> GridRequest:
    spacing = (noise.timestep_spacing if row.obeys_spacing else None) or row.spacing
    if schedule in SPACINGS:
        spacing = schedule
    if schedule == "default":
        schedule = noise.ramp if row.obeys_ramp and noise.ramp else spacing
    if sigmas is not None or timesteps is not None:
        schedule = "sigmas" if sigmas is not None else "timesteps"
    elif not noise.is_flow and steps > noise.num_train_timesteps:
        raise RequestError(f"{steps} steps", expected=f"at most {noise.num_train_timesteps}")
    if row.for_uneven is not None and schedule not in SPACINGS:
        raise RequestError(
            f"the sampler {sampler} with the schedule {schedule}",
            expected=f"evenly spaced timesteps: {', '.join(SPACINGS)}",
            hint=f"the sampler {row.for_uneven} is its counterpart for uneven levels",
        )
    if row.grid is over_flow and schedule in ("leading", "trailing"):
        raise RequestError(
            f"the schedule {schedule} with the sampler {sampler}",
            expected=f"default or one of {', '.join(RAMPS)}",
            hint="flow models have no training timesteps to space over; sigmas= gives the levels directly",
        )
    return GridRequest(
        noise=noise,
        steps=steps,
        schedule=schedule,
        spacing=spacing,
        end=row.end(noise, schedule),
        whole=row.whole.get(schedule),
        sigmas=None if sigmas is None else tuple(map(float, sigmas)),
        timesteps=None if timesteps is None else tuple(map(float, timesteps)),
    )


def _known(kind: str, name: str, names: Iterable[str]) -> str:
    if name in names:
        return name
    usual = name.lower().replace("+", "p").replace("_", "-").replace(" ", "-")
    near = difflib.get_close_matches(usual, names, n=1, cutoff=0.4)
    raise RequestError(
        f"unknown {kind} {name!r}",
        expected="one of " + ", ".join(names),
        hint=f"did you mean {near[0]}?" if near else None,
    )


def _checked_steps(steps: int | None, sigmas: Sequence[float] | None, timesteps: Sequence[float] | None) -> int:
    """The number of steps, from whichever argument states it."""
    if sigmas is not None and timesteps is not None:
        raise RequestError("both sigmas and timesteps", expected="at most one of them")
    if sigmas is not None:
        _check_falling("sigmas", sigmas, at_least=2)
    if timesteps is not None:
        _check_falling("timesteps", timesteps, at_least=1)
    listed = len(sigmas) - 1 if sigmas is not None else len(timesteps) if timesteps is not None else None
    if listed is not None and steps not in (None, listed):
        raise RequestError(
            f"{steps} steps, and explicit levels for {listed}",
            expected=f"steps={listed}, or steps left out",
            hint="sigmas holds one value more than there are steps, timesteps as many",
        )
    count = steps if listed is None else listed
    if count is None or count < 1:
        raise RequestError(f"steps is {count}", expected="a number of steps, at least 1")
    return count


def _check_falling(kind: str, values: Sequence[float], *, at_least: int) -> None:
    falling = all(first > second for first, second in pairwise(values))
    if len(values) < at_least or not falling or not all(0 <= value < math.inf for value in values):
        raise RequestError(
            f"{kind} are {list(values)}",
            expected=f"at least {at_least} numbers, each below the one before, none negative",
        )


def _checked_eta(sampler: str, row: Sampler, eta: float | None, *, usual: float | None) -> float:
    if row.eta is None:
        choices = ", ".join(name for name, other in SAMPLERS.items() if other.eta is not None)
        raise RequestError(f"eta with the sampler {sampler}", expected=f"eta only with {choices}")
    value = usual if eta is None else eta
    if value is None or not 0 <= value <= 1:
        raise RequestError(f"eta is {value}", expected="a number from 0 to 1")
    return value


def _begin(steps: int, strength: float, *, rounds_up: bool) -> int:
    """First step of a run that starts from an image. The flow pipelines of diffusers count a step more where
    the product is no whole number."""
    if not 0 < strength <= 1:
        raise RequestError(f"strength is {strength}", expected="a number above 0, at most 1")
    begin = int(steps - steps * strength) if rounds_up else steps - int(steps * strength)
    if begin == steps:
        raise RequestError(
            f"strength {strength} of {steps} steps leaves no step to take",
            expected=f"a strength of at least {1 / steps:.3g}",
        )
    return begin


def _handover(steps: int, begin: float) -> int:
    """First step after the share `begin` of them."""
    done = round(steps * begin)
    if not 0 <= done < steps:
        raise RequestError(f"denoising_start {begin} of {steps} steps leaves no step to take", expected="0 to below 1")
    return done


def _stop(steps: int, stop: float, *, begin: int) -> int:
    """The step after the last of those that are taken."""
    end = round(steps * stop)
    if not begin < end <= steps:
        raise RequestError(
            f"denoising_end {stop} of {steps} steps leaves no step to take"
            if stop <= 1
            else f"denoising_end is {stop}",
            expected=f"above {begin / steps:g}, at most 1",
        )
    return end

"""The samplers by name: a formula, a kind of grid, and the conventions of the diffusers class it equals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from latentrt.samplers import ancestral, consistency, euler, exponential
from latentrt.samplers.calls import Call, SamplerRun
from latentrt.samplers.grids import Grid, over_flow, over_log_snr, over_sigma, over_timesteps
from latentrt.samplers.noise_schedule import RAMPS, SECOND_ORDER, NoiseSchedule, Solver

End = Callable[[NoiseSchedule, str], str]


def _at_zero(_noise: NoiseSchedule, _schedule: str) -> str:
    return "zero"


def _at_trained(_noise: NoiseSchedule, _schedule: str) -> str:
    return "trained"


def _at_final_sigma(noise: NoiseSchedule, _schedule: str) -> str:
    return "zero" if noise.final_sigmas_type == "zero" else "trained"


def _at_alpha_one(noise: NoiseSchedule, _schedule: str) -> str:
    return "trained" if noise.set_alpha_to_one is False else "zero"


def _at_alpha_one_if_said(noise: NoiseSchedule, _schedule: str) -> str:
    return "zero" if noise.set_alpha_to_one else "trained"


def _at_lowest(_noise: NoiseSchedule, schedule: str) -> str:
    return "hold" if schedule in RAMPS else "trained"


_ROUNDED_KARRAS = MappingProxyType({"karras": "round"})
_WHOLE = MappingProxyType({"karras": "round", "sigmas": "round", "exponential": "floor", "beta": "floor"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """One sampler.

    Attributes:
        calls: the formula.
        grid: where its levels come from.
        spacing: its timestep spacing where the checkpoint does not say.
        obeys_spacing, obeys_ramp: whether `default` follows these settings of the checkpoint.
        end: where a run ends, by checkpoint and schedule.
        whole: how timesteps between training timesteps are made whole, by schedule.
        eta: default share of fresh noise; None where there is no choice.
        for_uneven: what takes its place where timesteps are not evenly spaced; None: it takes any.
        solver: how it steps; a checkpoint whose own sampler it is may ask for another way.
        stochastic: whether it draws fresh noise while it runs, where `eta` leaves it the choice by default.
    """

    calls: Callable[[SamplerRun], Iterator[Call]]
    grid: Grid
    spacing: str = "linspace"
    obeys_spacing: bool = True
    obeys_ramp: bool = True
    end: End = _at_zero
    whole: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    eta: float | None = None
    for_uneven: str | None = None
    solver: Solver = SECOND_ORDER
    stochastic: bool = False


def _solver(
    calls: Callable[[SamplerRun], Iterator[Call]],
    *,
    end: End,
    obeys_spacing: bool = True,
    order: int = 2,
    stochastic: bool = False,
) -> Sampler:
    return Sampler(
        calls=calls,
        grid=over_log_snr,
        end=end,
        whole=_WHOLE,
        obeys_spacing=obeys_spacing,
        solver=Solver(order=order),
        stochastic=stochastic,
    )


def _walker(
    calls: Callable[[SamplerRun], Iterator[Call]],
    *,
    end: End,
    spacing: str = "leading",
    eta: float | None = None,
    for_uneven: str | None = None,
    stochastic: bool = False,
) -> Sampler:
    return Sampler(
        calls=calls,
        grid=over_timesteps,
        end=end,
        spacing=spacing,
        eta=eta,
        for_uneven=for_uneven,
        obeys_ramp=False,
        obeys_spacing=spacing != "own",
        stochastic=stochastic,
    )


SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "euler": Sampler(calls=euler.euler, grid=over_sigma, end=_at_final_sigma),
        "euler-a": Sampler(calls=euler.euler_ancestral, grid=over_sigma, obeys_ramp=False, stochastic=True),
        "ddim": _walker(ancestral.ddim, end=_at_alpha_one, eta=0.0),
        "ddpm": _walker(ancestral.ddpm, end=_at_zero, stochastic=True),
        "heun": Sampler(calls=euler.heun, grid=over_sigma),
        "dpm2": Sampler(calls=euler.dpm2, grid=over_sigma, whole=_ROUNDED_KARRAS),
        "dpm2-a": Sampler(calls=euler.dpm2_ancestral, grid=over_sigma, whole=_ROUNDED_KARRAS, stochastic=True),
        "lms": Sampler(calls=euler.lms, grid=over_sigma),
        "pndm": _walker(ancestral.pndm, end=_at_alpha_one_if_said, for_uneven="lms"),
        "dpmpp-2m": _solver(exponential.dpmpp_multistep, end=_at_final_sigma),
        "dpmpp-2m-sde": _solver(exponential.dpmpp_multistep_sde, end=_at_final_sigma, stochastic=True),
        "dpmpp-3m": _solver(exponential.dpmpp_multistep, end=_at_final_sigma, order=3),
        "dpmpp-2s": _solver(exponential.dpmpp_2s, end=_at_final_sigma, obeys_spacing=False),
        "unipc": _solver(exponential.unipc, end=_at_final_sigma),
        "deis": _solver(exponential.deis, end=_at_lowest),
        "lcm": _walker(consistency.lcm, end=_at_zero, spacing="own", stochastic=True),
        "tcd": _walker(consistency.tcd, end=_at_trained, spacing="own", eta=0.3, stochastic=True),
        "flow-euler": Sampler(calls=euler.euler, grid=over_flow, spacing="own", obeys_spacing=False),
        "flow-heun": Sampler(calls=euler.heun, grid=over_flow, spacing="own", obeys_spacing=False, obeys_ramp=False),
    }
)

"""The noise schedule of a checkpoint, as its `scheduler_config.json` states it.

`NoiseSchedule` is everything in that file that changes the numbers; it goes into the bundle's manifest. How
a run is spaced over the schedule, and by which formula it steps, is the business of `latentrt.samplers`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentrt.arrays import FloatArray
from latentrt.errors import BundleError, CheckpointError
from latentrt.samplers.betas import BETA_SHAPES, alphas_cumprod, rescaled_to_zero_snr

log = logging.getLogger(__name__)

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")
SPACINGS = ("linspace", "leading", "trailing")
RAMPS = ("karras", "exponential", "beta")

SAMPLER_OF_SCHEDULER = {
    "DDIMParallelScheduler": "ddim",
    "DDIMScheduler": "ddim",
    "DDPMParallelScheduler": "ddpm",
    "DDPMScheduler": "ddpm",
    "DEISMultistepScheduler": "deis",
    "DPMSolverMultistepScheduler": "dpmpp-2m",
    "DPMSolverSDEScheduler": "dpmpp-2m-sde",
    "DPMSolverSinglestepScheduler": "dpmpp-2s",
    "EulerAncestralDiscreteScheduler": "euler-a",
    "EulerDiscreteScheduler": "euler",
    "FlowMatchEulerDiscreteScheduler": "flow-euler",
    "FlowMatchHeunDiscreteScheduler": "flow-heun",
    "HeunDiscreteScheduler": "heun",
    "KDPM2AncestralDiscreteScheduler": "dpm2-a",
    "KDPM2DiscreteScheduler": "dpm2",
    "LCMScheduler": "lcm",
    "LMSDiscreteScheduler": "lms",
    "PNDMScheduler": "pndm",
    "SASolverScheduler": "dpmpp-2m-sde",
    "TCDScheduler": "tcd",
    "UniPCMultistepScheduler": "unipc",
}
"""The sampler that equals a class of diffusers, or of those without an equal, which export finds out, the nearest."""

# What the diffusers classes assume where the file is silent: (beta_start, beta_end, beta_schedule).
_BETAS = (0.0001, 0.02, "linear")
_BETAS_OF_SCHEDULER = {
    "DPMSolverSDEScheduler": (0.00085, 0.012, "linear"),
    "HeunDiscreteScheduler": (0.00085, 0.012, "linear"),
    "KDPM2AncestralDiscreteScheduler": (0.00085, 0.012, "linear"),
    "KDPM2DiscreteScheduler": (0.00085, 0.012, "linear"),
    "LCMScheduler": (0.00085, 0.012, "scaled_linear"),
    "TCDScheduler": (0.00085, 0.012, "scaled_linear"),
}
_CLIPS_BY_DEFAULT = ("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler")

# Orders that the formula of a sampler has, where a checkpoint may ask for another than its name stands for.
_ORDERS = {"dpmpp-2m": (1, 2, 3), "dpmpp-2m-sde": (1, 2, 3), "dpmpp-3m": (1, 2, 3), "deis": (1, 2, 3), "unipc": (1, 2)}

# Settings that change the numbers and that a coefficient table cannot express, or that are not implemented:
# (key, the values that leave them off). A learned variance needs a second network output.
_MUST_BE_OFF: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("thresholding", (False,)),
    ("use_dynamic_shifting", (False,)),
    ("shift_terminal", (False, 0)),
    ("invert_sigmas", (False,)),
    ("stochastic_sampling", (False,)),
    ("use_lu_lambdas", (False,)),
    ("timestep_type", ("discrete",)),
    ("interpolation_type", ("linear",)),
    ("lambda_min_clipped", (-math.inf,)),
    ("variance_type", ("fixed_small", "fixed_small_log", "fixed_large")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Solver:
    """How a multistep solver steps.

    Attributes:
        order: the highest order of a step, 1 to 3.
        kind: how DPM-Solver++ takes its second-order steps: `midpoint` or `heun`.
        lower_order_final: the last two steps of fewer than 15 have orders 2 and 1 at most.
        euler_at_final: the last step has order 1.
    """

    order: int = 2
    kind: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False


SECOND_ORDER = Solver()
"""What most names of multistep samplers stand for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseSchedule:
    """What a checkpoint's scheduler configuration says about noise.

    `None` means that the file does not say, and that each sampler's own default in diffusers applies.

    Attributes:
        scheduler: class name in the checkpoint.
        prediction_type: `epsilon`, `v_prediction`, `sample` or `flow_prediction`.
        num_train_timesteps: number of training noise levels T; timesteps run from 0 to T - 1.
        beta_start, beta_end, beta_schedule, trained_betas: the training betas (unused for flow models).
        rescale_betas_zero_snr: the last level is pure noise (Lin et al. 2023, arXiv 2305.08891, Algorithm 1).
        timestep_spacing, steps_offset: how `default` spreads steps over the training timesteps.
        ramp: `karras`, `exponential` or `beta` if the checkpoint asks for one, else None.
        sigma_min, sigma_max: ends of a ramp; None takes them from the training levels.
        set_alpha_to_one: DDIM and PNDM end at a clean image rather than at training level 0.
        final_sigmas_type: `zero` or `sigma_min`, where the sigma-space samplers end.
        variance_type: variance of DDPM's noise.
        shift: shift of a flow model's noise levels.
        original_inference_steps, timestep_scaling: how a consistency model was distilled.
        solver_order, stochastic: which DPM-Solver++ the checkpoint names.
        solver: how the checkpoint's own sampler steps, where that is not what the sampler's name stands for.
    """

    scheduler: str
    prediction_type: str = "epsilon"
    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    timestep_spacing: str | None = None
    steps_offset: int = 0
    ramp: str | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    set_alpha_to_one: bool | None = None
    final_sigmas_type: str = "zero"
    variance_type: str = "fixed_small"
    shift: float = 1.0
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    solver_order: int = 2
    stochastic: bool = False
    solver: Solver | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> NoiseSchedule:
        """Read a diffusers `scheduler_config.json`.

        Clipping of the predicted sample (`clip_sample`) is reported with a warning and left out, since latents are not
        confined to [-1, 1]: the pipelines of Stable Diffusion 1 and 2 in diffusers switch it off too.

        Args:
            config: the parsed JSON object.

        Raises:
            CheckpointError: an unknown scheduler, a malformed value, or a setting that is not supported
                (dynamic thresholding, dynamic shifting, learned variance and the like).
        """
        name = str(config.get("_class_name"))
        if name not in SAMPLER_OF_SCHEDULER:
            raise CheckpointError(
                f"the checkpoint's scheduler is {name}",
                expected="one of " + ", ".join(SAMPLER_OF_SCHEDULER),
                hint="save the checkpoint with one of these schedulers",
            )
        _refuse_unsupported(config)
        if _value(config, "clip_sample", name in _CLIPS_BY_DEFAULT):
            log.warning("%s clips predicted latents (clip_sample); left out, since that is not linear", name)
        start, end, shape = _BETAS_OF_SCHEDULER.get(name, _BETAS)
        flow = name.startswith("FlowMatch")
        betas = _value(config, "trained_betas", None)
        noise = cls(
            scheduler=name,
            prediction_type=_choice(
                config, "prediction_type", "flow_prediction" if flow else "epsilon", PREDICTION_TYPES
            ),
            num_train_timesteps=int(_number(config, "num_train_timesteps", 1000)),
            beta_start=_number(config, "beta_start", start),
            beta_end=_number(config, "beta_end", end),
            beta_schedule=_choice(config, "beta_schedule", shape, tuple(BETA_SHAPES)),
            trained_betas=None if betas is None else _numbers("trained_betas", betas),
            rescale_betas_zero_snr=bool(_value(config, "rescale_betas_zero_snr", False)),
            timestep_spacing=_choice(config, "timestep_spacing", "", ("", *SPACINGS)) or None,
            steps_offset=int(_number(config, "steps_offset", 0)),
            ramp=next((r for r in RAMPS if _value(config, f"use_{r}_sigmas", False)), None),
            sigma_min=_optional_number(config, "sigma_min"),
            sigma_max=_optional_number(config, "sigma_max"),
            set_alpha_to_one=_optional_bool(config, "set_alpha_to_one"),
            final_sigmas_type=_choice(config, "final_sigmas_type", "zero", ("zero", "sigma_min")),
            variance_type=str(_value(config, "variance_type", "fixed_small")),
            shift=_number(config, "shift", _number(config, "flow_shift", 1.0)),
            original_inference_steps=int(_number(config, "original_inference_steps", 50)),
            timestep_scaling=_number(config, "timestep_scaling", 10.0),
            solver_order=int(_number(config, "solver_order", 2)),
            stochastic=str(_value(config, "algorithm_type", "")).startswith("sde-"),
        )
        return dataclasses.replace(noise, solver=_own_solver(config, noise.default_sampler))

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> NoiseSchedule:
        """Rebuild from `to_dict`, as read from a manifest. Raises BundleError where it is malformed."""
        known = {field.name for field in dataclasses.fields(cls)}
        if "scheduler" not in entry or not known.issuperset(entry):
            raise BundleError(
                f"the manifest's noise schedule has the keys {sorted(entry)}",
                expected=f"scheduler and any of {sorted(known)}",
                hint="export the checkpoint again",
            )
        betas, solver = entry.get("trained_betas"), entry.get("solver")
        return cls(
            **{
                **entry,
                "trained_betas": None if betas is None else tuple(betas),
                "solver": None if solver is None else _solver_of(solver),
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON object that `from_dict` turns back into an equal schedule."""
        entry = dataclasses.asdict(self)
        if self.trained_betas is not None:
            entry["trained_betas"] = list(self.trained_betas)
        return entry

    @property
    def is_flow(self) -> bool:
        """Whether the network predicts a flow, so that levels mix as (1 - sigma) x0 + sigma n."""
        return self.prediction_type == "flow_prediction"

    @property
    def default_sampler(self) -> str:
        """Name of the sampler that equals the checkpoint's own scheduler, or comes nearest to it."""
        name = SAMPLER_OF_SCHEDULER[self.scheduler]
        if name == "pndm" and self.prediction_type == "sample":
            return "ddim"  # the multistep formula blends outputs at different levels, which must hold noise
        if name == "dpmpp-2m" and self.stochastic:
            name = "dpmpp-2m-sde"
        elif name == "dpmpp-2m" and self.solver_order == 3:
            name = "dpmpp-3m"
        return "flow-euler" if self.is_flow and not name.startswith("flow-") else name

    def alphas_cumprod(self) -> FloatArray:
        """Share of signal variance at each training timestep, float32 [T].

        Computed in float32 with the roundings of torch, since those are the levels the network was trained
        at: one unit in the last place here is visible in the coefficients of high-order samplers.
        """
        if self.trained_betas is not None:
            betas: FloatArray = np.asarray(self.trained_betas, dtype=np.float32)
        else:
            betas = BETA_SHAPES[self.beta_schedule](self.beta_start, self.beta_end, self.num_train_timesteps)
        return alphas_cumprod(rescaled_to_zero_snr(betas) if self.rescale_betas_zero_snr else betas)


def _own_solver(config: Mapping[str, object], sampler: str) -> Solver | None:
    """How the scheduler steps, if there is a choice and the choice is not what the sampler's name stands for."""
    if sampler not in _ORDERS:
        return None
    usual = Solver(order=3 if sampler == "dpmpp-3m" else 2)
    order = int(_number(config, "solver_order", 2))
    kind = str(_value(config, "solver_type", "midpoint"))
    solver = Solver(
        order=order if order in _ORDERS[sampler] else usual.order,
        kind="heun" if kind == "heun" and sampler.startswith("dpmpp") else "midpoint",
        lower_order_final=bool(_value(config, "lower_order_final", True)),
        euler_at_final=bool(_value(config, "euler_at_final", False)),
    )
    return None if solver == usual else solver


def _solver_of(entry: object) -> Solver:
    known = {field.name for field in dataclasses.fields(Solver)}
    if not isinstance(entry, Mapping) or not known.issuperset(entry):
        raise BundleError(
            f"the manifest's noise schedule has the solver {entry!r}",
            expected=f"any of {sorted(known)}",
            hint="export the checkpoint again",
        )
    return Solver(**entry)


def _refuse_unsupported(config: Mapping[str, object]) -> None:
    for key, off in _MUST_BE_OFF:
        if (value := config.get(key)) is not None and value not in off:
            raise CheckpointError(
                f"the scheduler configuration sets {key} to {value!r}",
                expected=" or ".join(repr(choice) for choice in off),
                hint="this setting is not supported; change it in scheduler_config.json if the model allows",
            )


def _value(config: Mapping[str, object], key: str, default: object) -> object:
    """The setting, or the default where it is missing or null."""
    value = config.get(key)
    return default if value is None else value


def _malformed(key: str, value: object, expected: str) -> CheckpointError:
    return CheckpointError(f"the scheduler configuration sets {key} to {value!r}", expected=expected)


def _number(config: Mapping[str, object], key: str, default: float) -> float:
    value = _value(config, key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _malformed(key, value, "a number")
    return float(value)


def _optional_number(config: Mapping[str, object], key: str) -> float | None:
    return None if config.get(key) is None else _number(config, key, 0.0)


def _optional_bool(config: Mapping[str, object], key: str) -> bool | None:
    value = config.get(key)
    return None if value is None else bool(value)


def _numbers(key: str, value: object) -> tuple[float, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _malformed(key, value, "a list of numbers")
    return tuple(_number({key: item}, key, 0.0) for item in value)


def _choice(config: Mapping[str, object], key: str, default: str, choices: tuple[str, ...]) -> str:
    value = str(_value(config, key, default))
    if value not in choices:
        raise _malformed(key, value, "one of " + ", ".join(choice for choice in choices if choice))
    return value

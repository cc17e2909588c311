"""Settings of the schedulers: what `NoiseSchedule` and the samplers follow, class by class.

A key of one class in a file of another is common, left from the scheduler that a checkpoint was saved with first.
diffusers does not hand it to the class that the file names, but does to one that is made of this one's configuration,
as the other samplers are: so every class knows the keys of all.
"""

import math
from collections.abc import Mapping

import diffusers

from latentrt.export.checkpoint.settings.table import Settings
from latentrt.export.checkpoint.settings.values import (
    COUNT,
    FLAG,
    NUMBER,
    POSITIVE,
    WHOLE,
    Values,
    listed,
    only,
    optional,
)
from latentrt.samplers.noise_schedule import PREDICTION_TYPES, SAMPLER_OF_SCHEDULER, SPACINGS

_CARRIED: Mapping[str, Values] = {
    "num_train_timesteps": WHOLE,
    "beta_start": POSITIVE,
    "beta_end": POSITIVE,
    "beta_schedule": only("linear", "scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": optional(listed(NUMBER)),
    "prediction_type": only(*PREDICTION_TYPES),
    "rescale_betas_zero_snr": FLAG,
    "timestep_spacing": only(*SPACINGS),
    "steps_offset": COUNT,
    "clip_sample": FLAG,
    "thresholding": only(False),
    "set_alpha_to_one": FLAG,
    "skip_prk_steps": FLAG,
    "use_karras_sigmas": optional(FLAG),
    "use_exponential_sigmas": optional(FLAG),
    "use_beta_sigmas": optional(FLAG),
    "use_lu_lambdas": optional(only(False)),
    "use_flow_sigmas": optional(FLAG),
    "flow_shift": optional(POSITIVE),
    "shift": POSITIVE,
    "shift_terminal": only(None, False, 0),
    "use_dynamic_shifting": only(False),
    "invert_sigmas": only(False),
    "stochastic_sampling": only(False),
    "sigma_min": optional(NUMBER),
    "sigma_max": optional(NUMBER),
    "final_sigmas_type": only("zero", "sigma_min"),
    "interpolation_type": only("linear"),
    "timestep_type": only("discrete"),
    "variance_type": only(None, "fixed_small", "fixed_small_log", "fixed_large"),
    "original_inference_steps": WHOLE,
    "timestep_scaling": POSITIVE,
    "solver_order": WHOLE,
    "solver_type": Values(lambda value: isinstance(value, str), "a name"),
    "algorithm_type": Values(lambda value: isinstance(value, str), "a name"),
    "lower_order_final": FLAG,
    "euler_at_final": FLAG,
    "lambda_min_clipped": Values(lambda value: value in (None, -math.inf), "-Infinity"),
    "predict_x0": FLAG,
    "disable_corrector": listed(COUNT, empty=True),
    "solver_p": only(None),
    # Of schedulers whose nearest sampler is another: an export says how far it is.
    "predictor_order": WHOLE,
    "corrector_order": WHOLE,
    "tau_func": only(None),
    "noise_sampler_seed": optional(COUNT),
}

# Of what is off: of thresholding, of clipping, of dynamic shifting.
_IDLE = frozenset(
    {
        "base_image_seq_len", "base_shift", "clip_sample_range", "dynamic_thresholding_ratio", "max_image_seq_len",
        "max_shift", "sample_max_value", "time_shift_type",
    }
)  # fmt: skip

_STAND_IN = frozenset({"args", "kwargs"})
"""What diffusers' place holder for a class takes where a package that the class needs is not installed."""

# Where a class reads a key in another way than the rest.
_OWN: Mapping[str, Mapping[str, Values]] = {}


def _row(name: str) -> Settings:
    carried = {**_CARRIED, **_OWN.get(name, {})}
    return Settings(kind=getattr(diffusers, name), carried=carried, idle=_IDLE | _STAND_IN)


SCHEDULERS: Mapping[str, Settings] = {name: _row(name) for name in SAMPLER_OF_SCHEDULER}
"""By the class that scheduler_config.json names."""

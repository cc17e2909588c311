"""The noise schedule against diffusers, its reading of configurations, and the spacings' own maths."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import diffusers
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from latentrt.errors import BundleError, CheckpointError
from latentrt.samplers import sampler_names
from latentrt.samplers.levels import TrainedLevels
from latentrt.samplers.noise_schedule import SAMPLER_OF_SCHEDULER, NoiseSchedule
from latentrt.samplers.spacing import beta_quantile

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SD15 = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
SCHEDULERS = [name for name in SAMPLER_OF_SCHEDULER if name != "DPMSolverSDEScheduler"]  # which asks for torchsde
ULP = 2.0**-23

BETAS: list[tuple[str, dict[str, Any]]] = [
    ("scaled linear", {}),
    ("linear", {"beta_schedule": "linear"}),
    ("cosine", {"beta_schedule": "squaredcos_cap_v2"}),
    ("trained", {"trained_betas": np.linspace(1e-4, 0.02, 500).tolist(), "num_train_timesteps": 500}),
    ("short", {"num_train_timesteps": 128}),
]


@pytest.mark.parametrize("change", [change for _, change in BETAS], ids=[name for name, _ in BETAS])
def test_levels_equal_diffusers_to_an_ulp(change: dict[str, Any]) -> None:
    config = {**SD15, **change}
    reference = diffusers.DDIMScheduler.from_config(config, clip_sample=False)
    ours = NoiseSchedule.from_config(config).alphas_cumprod()
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, reference.alphas_cumprod.numpy(), rtol=ULP)


def test_zero_snr_levels_equal_diffusers() -> None:
    """To 1e-6 absolute: the rescaling divides by small numbers in float32. The last level has no signal."""
    config = {**SD15, "rescale_betas_zero_snr": True}
    noise = NoiseSchedule.from_config(config)
    reference = diffusers.DDIMScheduler.from_config(config, clip_sample=False).alphas_cumprod.numpy()
    np.testing.assert_allclose(noise.alphas_cumprod(), reference, rtol=0, atol=1e-6)
    assert noise.alphas_cumprod()[-1] == 0
    assert TrainedLevels.of(noise, keep_signal=True).ratios[-1] == pytest.approx(4096, rel=1e-6)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_silent_configurations_mean_the_class_defaults(name: str) -> None:
    defaults = getattr(diffusers, name)().config
    if "beta_start" not in defaults:
        pytest.skip("a flow scheduler has no betas")
    noise = NoiseSchedule.from_config({"_class_name": name})
    for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps"):
        assert getattr(noise, key) == defaults[key]


@pytest.mark.parametrize(
    ("config", "warns"),
    [
        ({"_class_name": "DDIMScheduler"}, True),
        ({"_class_name": "DDIMScheduler", "clip_sample": False}, False),
        ({"_class_name": "DDPMScheduler", "clip_sample": None}, True),
        ({"_class_name": "PNDMScheduler"}, False),
        ({"_class_name": "PNDMScheduler", "clip_sample": True}, True),
    ],
)
def test_clipping_is_reported(config: dict[str, Any], warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="latentrt"):
        NoiseSchedule.from_config(config)
    assert bool(caplog.records) == warns


REFUSED: list[dict[str, Any]] = [
    {},
    {"_class_name": "EDMEulerScheduler"},
    {"_class_name": "DDIMScheduler", "thresholding": True},
    {"_class_name": "DDPMScheduler", "variance_type": "learned_range"},
    {"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True},
    {"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -5.1},
    {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"},
    {"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift_terminal": 0.1},
    {"_class_name": "PNDMScheduler", "beta_schedule": "sigmoid"},
    {"_class_name": "PNDMScheduler", "beta_start": "0.1"},
    {"_class_name": "PNDMScheduler", "trained_betas": "0.1"},
    {"_class_name": "PNDMScheduler", "prediction_type": "score"},
]


@pytest.mark.parametrize("config", REFUSED)
def test_refusals(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError) as caught:
        NoiseSchedule.from_config(config)
    assert caught.value.expected is not None


@pytest.mark.parametrize("name", SCHEDULERS)
def test_round_trip_through_json(name: str) -> None:
    """Also reads every default configuration that diffusers writes for these classes."""
    config = {**getattr(diffusers, name)().config, "_class_name": name, "trained_betas": [0.1, 0.2]}
    noise = NoiseSchedule.from_config(config)
    assert NoiseSchedule.from_dict(json.loads(json.dumps(noise.to_dict()))) == noise
    assert noise.default_sampler in sampler_names()


@pytest.mark.parametrize("entry", [{}, {"scheduler": "DDIMScheduler", "colour": "red"}])
def test_malformed_manifest_entry(entry: dict[str, Any]) -> None:
    with pytest.raises(BundleError):
        NoiseSchedule.from_dict(entry)


@pytest.mark.parametrize(
    ("config", "sampler"),
    [
        ({"_class_name": "PNDMScheduler"}, "pndm"),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "dpmpp-2m"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "dpmpp-3m"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}, "dpmpp-2m-sde"),
        ({"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"}, "flow-euler"),
    ],
)
def test_default_sampler(config: dict[str, Any], sampler: str) -> None:
    assert NoiseSchedule.from_config(config).default_sampler == sampler


@given(st.floats(0, 1))
def test_beta_quantile_equals_scipy(p: float) -> None:
    ours, theirs = beta_quantile(p, 0.6), float(scipy.stats.beta.ppf(p, 0.6, 0.6))
    assert math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-15)


@given(st.lists(st.floats(0, 999), min_size=1, max_size=20))
def test_timesteps_and_ratios_are_inverse(timesteps: list[float]) -> None:
    """At whole timesteps to 1e-4 of a timestep (float32 logarithms); in between, where one direction is
    linear in sigma and the other in its logarithm, to half a timestep."""
    trained = TrainedLevels.of(NoiseSchedule.from_config(SD15), keep_signal=True)
    there = np.array(timesteps)
    assert np.abs(trained.timesteps_of(trained.ratios_at(there)) - there).max() < 0.5
    whole = there.round()
    assert np.abs(trained.timesteps_of(trained.ratios_at(whole)) - whole).max() < 1e-4

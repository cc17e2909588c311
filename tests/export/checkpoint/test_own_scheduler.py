"""A bundle's defaults against the scheduler that its checkpoint names: exact coefficients of diffusers' own class, made
of the same configuration, for every class and the values of its settings; and what is said where none of ours is equal.
"""

import copy
import inspect
import json
import logging
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from oracle import discrepancy, trace_scheduler, trace_table

from latentrt.errors import CheckpointError
from latentrt.export.checkpoint.family import read_family, scheduler_config
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.checkpoint.own_scheduler import compare_with_own
from latentrt.export.checkpoint.settings import SCHEDULERS
from latentrt.samplers import step_table
from latentrt.samplers.noise_schedule import NoiseSchedule

diffusers.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

Config = dict[str, Any]
BETAS: Config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SPACINGS = [{"timestep_spacing": spacing} for spacing in ("linspace", "leading", "trailing")]
RAMPS: list[Config] = [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}]
LEVELS: list[Config] = [{"beta_schedule": "linear"}, {"steps_offset": 0}, {"num_train_timesteps": 500}]
V = {"prediction_type": "v_prediction"}
ZERO_SNR = {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SDE = {"algorithm_type": "sde-dpmsolver++"}
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
PLMS = {"skip_prk_steps": True}
UNCLIPPED = {"clip_sample": False}

EQUAL: dict[str, list[Config]] = {
    "DDIMScheduler": [
        {**UNCLIPPED, **more} for more in ({}, *SPACINGS, *LEVELS, V, ZERO_SNR, {"set_alpha_to_one": False})
    ],
    "DDIMParallelScheduler": [UNCLIPPED],
    "DDPMScheduler": [
        {**UNCLIPPED, **more} for more in ({}, *SPACINGS, *LEVELS, V, ZERO_SNR, {"variance_type": "fixed_large"})
    ],
    "DDPMParallelScheduler": [UNCLIPPED],
    "PNDMScheduler": [{**PLMS, **more} for more in ({}, *SPACINGS, *LEVELS, V, {"set_alpha_to_one": True})],
    "LMSDiscreteScheduler": [{}, *SPACINGS, *RAMPS, *LEVELS, V],
    "EulerDiscreteScheduler": [
        {}, *SPACINGS, *RAMPS, *LEVELS, V, ZERO_SNR, SIGMA_MIN,
        {"sigma_min": 0.1, "sigma_max": 10.0, "use_karras_sigmas": True},
    ],
    "EulerAncestralDiscreteScheduler": [{}, *SPACINGS, *LEVELS, V, ZERO_SNR],
    "HeunDiscreteScheduler": [{}, *SPACINGS, *RAMPS, *LEVELS, V],
    # These two spread a thousand steps when they are made, which takes half a second.
    "KDPM2DiscreteScheduler": [SPACINGS[1], {**RAMPS[0], **V}],
    "KDPM2AncestralDiscreteScheduler": [SPACINGS[1], {**RAMPS[0], **V}],
    "DPMSolverMultistepScheduler": [
        {}, *SPACINGS, *RAMPS, *LEVELS, V, ZERO_SNR, SIGMA_MIN, {"solver_type": "heun"}, {**SDE, "solver_type": "heun"},
        *({**kind, "solver_order": order} for kind in ({}, SDE) for order in (1, 2, 3)),
        {"lower_order_final": False, "solver_order": 3}, {**SIGMA_MIN, "lower_order_final": False},
        {**SIGMA_MIN, "euler_at_final": True}, {**SIGMA_MIN, "use_karras_sigmas": True},
        {**SDE, "euler_at_final": True, "use_karras_sigmas": True},
    ],
    "DPMSolverSinglestepScheduler": [{}, *RAMPS, *LEVELS, V, SIGMA_MIN, {"lower_order_final": True}],
    "DEISMultistepScheduler": [
        {}, *SPACINGS, *RAMPS, *LEVELS, V, {"solver_order": 1}, {"solver_order": 3}, {"lower_order_final": False},
    ],
    "UniPCMultistepScheduler": [
        {}, *SPACINGS, *RAMPS, *LEVELS, V, ZERO_SNR, SIGMA_MIN, {"solver_order": 1},
        {"sigma_min": 0.1, "sigma_max": 10.0, "use_karras_sigmas": True},
    ],
    "LCMScheduler": [{}, *LEVELS, V, {"original_inference_steps": 100}, {"timestep_scaling": 5.0}],
    "TCDScheduler": [{}, *LEVELS, V, {"original_inference_steps": 100}],
    "FlowMatchEulerDiscreteScheduler": [{"shift": 1.0}, {"shift": 3.0}, *({"shift": 3.0, **ramp} for ramp in RAMPS)],
    "FlowMatchHeunDiscreteScheduler": [{"shift": 1.0}, {"shift": 3.0}],
}  # fmt: skip


def config_of(scheduler: str, settings: Config) -> Config:
    return {"_class_name": scheduler, **({} if scheduler.startswith("Flow") else BETAS), **settings}


@pytest.mark.parametrize(
    "scheduler",
    [
        pytest.param(
            name,
            marks=pytest.mark.compatibility(kind="scheduler", what=name, recognised="_class_name", outcome="works"),
        )
        for name in EQUAL
    ],
)
def test_defaults_are_the_checkpoints_own_scheduler(scheduler: str) -> None:
    """Coefficients to 1e-4: a level that is a unit of float32 off moves them by so much in high orders."""
    for settings in EQUAL[scheduler]:
        config = config_of(scheduler, settings)
        noise = NoiseSchedule.from_config(config)
        assert NoiseSchedule.from_dict(noise.to_dict()) == noise
        made = getattr(diffusers, scheduler).from_config(config)
        for steps in (7, 20):
            theirs = copy.deepcopy(made)
            theirs.set_timesteps(steps)
            table = step_table(noise, sampler=noise.default_sampler, steps=steps)
            what = f"{settings}, {steps} steps"
            assert len(table) == len(theirs.timesteps), what
            np.testing.assert_allclose(table.timestep, theirs.timesteps.double(), rtol=0, atol=1e-3, err_msg=what)
            assert table.start_noise == pytest.approx(float(getattr(theirs, "init_noise_sigma", 1.0)), rel=1e-6), what
            expected = trace_scheduler(theirs, step={"eta": 0.0} if scheduler == "TCDScheduler" else {})
            found = trace_table(table.scalings, table.transition, table.draws_noise)
            assert np.array_equal(found.draws, expected.draws), what
            assert discrepancy(found.inputs, expected.inputs) <= 1e-4, what
            assert discrepancy(found.samples, expected.samples) <= 1e-4, what
            if steps == 20:
                assert compare_with_own(config, noise, steps=steps).differs is None, what


FAR: list[tuple[str, Config, str]] = [
    ("PNDMScheduler", {}, "calls"),
    ("DDIMScheduler", {"clip_sample": True}, "away"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", **SIGMA_MIN}, "away"),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3}, "away"),
    ("UniPCMultistepScheduler", {"solver_order": 3}, "away"),
    ("UniPCMultistepScheduler", {"disable_corrector": [0, 1]}, "away"),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, "timesteps"),
    ("SASolverScheduler", {}, "away"),
    ("DPMSolverSDEScheduler", {}, "torchsde"),
]


@pytest.mark.parametrize(
    ("scheduler", "settings", "says"),
    [
        pytest.param(
            *row,
            marks=pytest.mark.compatibility(
                kind="scheduler",
                what=" ".join([row[0], *row[1]]),
                recognised="a run of both side by side",
                outcome="warns",
            ),
        )
        for row in FAR
    ],
)
def test_the_nearest_sampler_is_called_so(scheduler: str, settings: Config, says: str) -> None:
    config = config_of(scheduler, settings)
    if says == "torchsde" and diffusers.utils.is_torchsde_available():
        pytest.skip("diffusers makes this scheduler where torchsde is installed")
    found = compare_with_own(config, NoiseSchedule.from_config(config), steps=20)
    assert says in str(found.differs)
    assert scheduler in found.text
    assert "nearest" in found.text


@pytest.mark.parametrize("scheduler", ["EDMEulerScheduler", "IPNDMScheduler", "DDIMInverseScheduler"])
def test_schedulers_of_other_models_are_refused(scheduler: str) -> None:
    with pytest.raises(CheckpointError, match=scheduler):
        NoiseSchedule.from_config({"_class_name": scheduler})


def test_every_scheduler_is_in_a_test() -> None:
    assert {*EQUAL, *(name for name, _, _ in FAR)} == {*SCHEDULERS}


@pytest.mark.parametrize(
    "name", ["StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionXLPipeline"]
)
def test_a_pipeline_overrules_its_scheduler_as_in_diffusers(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The configuration that the pipeline of diffusers leaves in its scheduler."""
    old = {"clip_sample": True, "steps_offset": 0, "beta_schedule": "scaled_linear"}
    folder = tmp_path / "scheduler"
    folder.mkdir()
    (folder / "scheduler_config.json").write_text(json.dumps(old))
    checkpoint = Checkpoint.open(tiny_checkpoint)
    unet = checkpoint.unet()
    unet.register_to_config(in_channels=9 if "Inpaint" in name else 4)
    kind, scheduler = getattr(diffusers, name), diffusers.DDIMScheduler.from_config(old)
    parts = {part: None for part in inspect.signature(kind).parameters if is_asked_for(kind, part)}
    pipe = kind(**parts | {"vae": checkpoint.vae(), "unet": unet, "scheduler": scheduler})
    index = {"_class_name": name, "scheduler": ["diffusers", "DDIMScheduler"]}
    ours = scheduler_config(Checkpoint(tmp_path, "tiny", index))
    assert {key: ours[key] for key in old} == {key: pipe.scheduler.config[key] for key in old}


def is_asked_for(pipeline: type, part: str) -> bool:
    """Whether a pipeline has to be given a part."""
    return inspect.signature(pipeline).parameters[part].default is inspect.Parameter.empty


def test_an_exports_default_is_its_scheduler(shapes_checkpoint: Path) -> None:
    family = read_family(Checkpoint.open(shapes_checkpoint))
    assert (family.defaults.sampler, family.defaults.steps, family.defaults.guidance) == ("ddim", 20, 7.5)


def test_a_solver_of_its_own_is_not_another_samplers() -> None:
    """An own solver changes the checkpoint's own sampler and no other."""
    plain = NoiseSchedule.from_config(config_of("DPMSolverMultistepScheduler", {}))
    bent = NoiseSchedule.from_config(config_of("DPMSolverMultistepScheduler", {"solver_type": "heun"}))
    for sampler in ("dpmpp-2m", "dpmpp-3m", "unipc", "deis", "dpmpp-2m-sde"):
        a, b = (step_table(noise, sampler=sampler, steps=5).transition for noise in (plain, bent))
        assert np.array_equal(a, b) == (sampler != "dpmpp-2m"), sampler


def test_the_word_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    config = config_of("DDIMScheduler", {"clip_sample": True})
    with caplog.at_level(logging.WARNING, logger="latentrt"):
        NoiseSchedule.from_config(config)
    assert "clip_sample" in caplog.text


def test_bundles_of_before_keep_their_meaning() -> None:
    """Without the field `solver` a sampler is what its name says, whatever `solver_order` stands beside it."""
    old = NoiseSchedule.from_config(config_of("DPMSolverMultistepScheduler", {})).to_dict()
    del old["solver"]
    found = NoiseSchedule.from_dict({**old, "solver_order": 1})
    plain = NoiseSchedule.from_config(config_of("DPMSolverMultistepScheduler", {}))
    a, b = (step_table(noise, sampler="dpmpp-2m", steps=5).transition for noise in (found, plain))
    assert np.array_equal(a, b)

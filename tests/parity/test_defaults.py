"""A run without options but for steps and guidance, against the pipeline of diffusers as it loads the checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

import latentrt
from latentrt.bundle import MANIFEST
from latentrt.export.checkpoint.family import read_family
from latentrt.export.checkpoint.folder import Checkpoint

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "its own": {},
    "DPMSolverMultistepScheduler": {**BETAS, "solver_type": "heun", "use_karras_sigmas": True},
    "EulerAncestralDiscreteScheduler": {**BETAS, "timestep_spacing": "trailing"},
    "PNDMScheduler": {**BETAS, "skip_prk_steps": True},
    "TCDScheduler": BETAS,
}
RUN = {"steps": 6, "guidance": 4.0}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_run_without_options_is_that_of_the_pipeline(
    scheduler: str, shapes_checkpoint: Path, shapes_bundle: Path, tmp_path: Path
):
    """The latent, to 2e-3 of its largest value: two engines in float32, whose difference guidance magnifies. The graphs
    do not know the scheduler, so that one bundle serves for all of them."""
    folder = shutil.copytree(shapes_checkpoint, tmp_path / "checkpoint")
    if settings := SCHEDULERS[scheduler]:
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": scheduler, **settings}))
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", scheduler]}))
    bundle = shutil.copytree(shapes_bundle, tmp_path / "bundle")
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["family"] = read_family(Checkpoint.open(folder)).to_dict()
    (bundle / MANIFEST).write_text(json.dumps(manifest))

    with latentrt.load(bundle, backend="onnxruntime") as pipe:
        found = pipe.generate("a red circle", seed=3, output="latent", **RUN).latents
    theirs = DiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        "a red circle",
        num_inference_steps=RUN["steps"],
        guidance_scale=RUN["guidance"],
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images.numpy()
    assert found is not None
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 2e-3 * np.abs(expected).max()

"""Stable Diffusion XL's base hands over to its refiner: the final latent against that of diffusers' two pipelines."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from families.chain import PROMPTS, SEED, SIZE, Chain, chain_name, make_chain
from families.rows import ROWS
from families.test_families import TOLERANCE, distance
from traces import Export

import latentrt
from latentrt.export.quiet import quiet

STEPS = 5
SHARE = 0.6
GUIDANCE = 5.0


@pytest.fixture(scope="module")
def base_and_refiner(once: Callable[..., Any], export_once: Export) -> tuple[Chain, Chain]:
    names = ("tiny-sdxl", "tiny-sdxl-refiner")
    rows = [next(row for row in ROWS if row.architecture == name and row.negative == "") for name in names]
    base, refiner = (
        once(chain_name(row), lambda folder, row=row: make_chain(row, folder, export_once)) for row in rows
    )
    return base, refiner


@pytest.mark.families
@pytest.mark.parametrize("sampler", ["euler", "dpmpp-2m"])
def test_the_latent_of_base_and_refiner_equals_that_of_diffusers(base_and_refiner: tuple[Chain, Chain], sampler: str):
    base, refiner = base_and_refiner
    request = latentrt.Request(
        PROMPTS, seed=SEED, size=SIZE, steps=STEPS, guidance=GUIDANCE, sampler=sampler, output="latent"
    )
    with base.pipeline() as pipe:
        begun = pipe.run(replace(request, denoising_end=SHARE)).latents
    with refiner.pipeline() as pipe:
        ours = pipe.run(replace(request, start=latentrt.Latent(begun, denoising_start=SHARE))).latents
    theirs = expected(base, refiner, sampler)
    assert ours.shape == theirs.shape
    assert distance(ours, theirs) <= TOLERANCE
    assert distance(begun, theirs) >= 10 * TOLERANCE  # so the refiner has done something


SCHEDULERS = {"euler": "EulerDiscreteScheduler", "dpmpp-2m": "DPMSolverMultistepScheduler"}


def expected(base: Chain, refiner: Chain, sampler: str) -> Any:
    """What `denoising_end` and `denoising_start` make."""
    common = {
        "prompt": list(PROMPTS),
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "output_type": "latent",
    }
    width, height = SIZE
    with quiet(), torch.no_grad():
        first = opened(base, sampler)
        generator = [torch.Generator().manual_seed(SEED + i) for i in range(len(PROMPTS))]
        begun = first(**common, generator=generator, denoising_end=SHARE, width=width, height=height).images
        second = opened(refiner, sampler)
        return second(**common, image=begun, denoising_start=SHARE).images.float().numpy()


def opened(chain: Chain, sampler: str) -> Any:
    root = chain.checkpoint
    pipeline = getattr(diffusers, chain.opened().index["_class_name"]).from_pretrained(root)
    pipeline.scheduler = getattr(diffusers, SCHEDULERS[sampler]).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

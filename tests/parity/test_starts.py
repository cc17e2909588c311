"""Image to image and inpainting with the trained checkpoint against diffusers' pipelines, in float32."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from PIL import Image as Pillow

import latentrt
from latentrt import Image, Inpaint, Pipeline
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.family import scheduler_config
from latentrt.export.parity.pipeline import psnr, reference_pipeline
from latentrt.export.parity.schedulers import REFERENCES
from latentrt.export.quiet import quiet

PROMPT, NEGATIVE, GUIDANCE, SEED = "a blue star on a white background", "a purple circle", 4.0, 7
STEPS = 10
LIMIT_DB = 45.0
SAMPLERS = ("euler", "ddim", "dpmpp-2m", "heun")


@dataclass(frozen=True, slots=True)
class Case:
    sampler: str
    strength: float

    def __str__(self) -> str:
        return f"{self.sampler} {self.strength:g}"


def photo() -> np.ndarray:
    """A red circle on a background that is nowhere the same, so that a shift by a pixel would be seen. [96, 128, 3]"""
    y, x = np.mgrid[:96, :128]
    pixels = np.stack([200 + x // 4, 255 - y // 2, 180 + (x + y) // 8], axis=-1).astype(np.uint8)
    pixels[(x - 60) ** 2 + (y - 50) ** 2 < 30**2] = (220, 30, 30)
    return pixels


def mask() -> np.ndarray:
    """Ragged, so that its cells are not those of any other rule. [96, 128]"""
    y, x = np.mgrid[:96, :128]
    return (x - 70) ** 2 / 1.7 + (y - 45) ** 2 < 29**2


@pytest.fixture(scope="module")
def pipe(shapes_bundle: Path) -> Iterator[Pipeline]:
    with latentrt.load(shapes_bundle, backend="onnxruntime") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def reference(shapes_checkpoint: Path):
    """(pipeline class, case) -> what diffusers makes, uint8 [1, H, W, 3]."""
    checkpoint = Checkpoint.open(shapes_checkpoint)
    whole = reference_pipeline(checkpoint)

    @cache
    def made(kind: type, case: Case) -> np.ndarray:
        with quiet():
            pipeline = kind(**whole.components, requires_safety_checker=False)
            pipeline.set_progress_bar_config(disable=True)
            pipeline.scheduler = REFERENCES[case.sampler].build(scheduler_config(checkpoint))
            painted = {"mask_image": Pillow.fromarray(mask().astype(np.uint8) * 255), "width": 128, "height": 96}
            images = pipeline(
                PROMPT,
                negative_prompt=NEGATIVE,
                image=Pillow.fromarray(photo()),
                strength=case.strength,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                generator=torch.Generator().manual_seed(SEED),
                output_type="np",
                **(painted if kind is StableDiffusionInpaintPipeline else {}),
            ).images
        return (images * 255).round().astype(np.uint8)

    return made


def ours(pipe: Pipeline, case: Case, start: latentrt.Image | latentrt.Inpaint) -> np.ndarray:
    made = pipe.generate(
        PROMPT, negative=NEGATIVE, seed=SEED, steps=STEPS, guidance=GUIDANCE, sampler=case.sampler, start=start
    )
    return made.images


@pytest.mark.parametrize("case", [Case(name, s) for name in SAMPLERS for s in (0.3, 0.75, 1.0)], ids=str)
def test_image_to_image_equals_that_of_diffusers(case: Case, pipe: Pipeline, reference):
    found = ours(pipe, case, Image(photo(), case.strength))
    db = psnr(found, reference(StableDiffusionImg2ImgPipeline, case))
    print(f"img2img {case}: {db:.1f} dB")
    assert db >= LIMIT_DB


@pytest.mark.parametrize("case", [Case(name, s) for name in SAMPLERS for s in (0.3, 0.75)], ids=str)
def test_inpainting_equals_that_of_diffusers(case: Case, pipe: Pipeline, reference):
    found = ours(pipe, case, Inpaint(photo(), mask(), case.strength))
    db = psnr(found, reference(StableDiffusionInpaintPipeline, case))
    print(f"inpaint {case}: {db:.1f} dB")
    assert db >= LIMIT_DB

"""Runs with ControlNets against diffusers' pipelines, in float32, on the latent: what a control does to a picture says
little of how exactly it was done."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from controls import asked_of_diffusers, distance, last_latent, picture
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from lora_files import random_layers, write_lora
from PIL import Image

import latentrt
from latentrt import Control, Pipeline, Request
from latentrt.export.checkpoint.family import scheduler_config
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.graphs.modules.control import Control as ControlModule
from latentrt.export.parity.torch.pipeline import reference_pipeline
from latentrt.export.quiet import quiet
from latentrt.export.references.schedulers import REFERENCES

PROMPT, NEGATIVE, SEED, STEPS, SIZE = "a blue star on a white background", "a purple circle", 7, 6, (104, 72)
LIMIT = 1e-4  # of the largest value of the latent
EFFECT = 0.02  # by which a control must change it, so that the limit says something


@dataclass(frozen=True, slots=True)
class Case:
    """One run. `pictures` are the seeds of random ones; several share the ControlNet."""

    name: str
    scales: tuple[float, ...] = (1.0,)
    spans: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    guess: bool = False
    guidance: float = 4.0
    sampler: str = "euler"

    @property
    def controls(self) -> list[Control]:
        return [
            Control("random", picture(index, SIZE), scale, *span, guess=self.guess)
            for index, (scale, span) in enumerate(zip(self.scales, self.spans, strict=True))
        ]

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("one"),
    Case("two", (0.7, 1.3), ((0.0, 1.0), (0.0, 1.0))),
    Case("part of the run", spans=((0.2, 0.7),)),
    Case("two parts of the run", (1.0, 0.5), ((0.0, 0.5), (0.5, 1.0))),
    Case("without a negative branch", guidance=1.0),
    Case("guess", guess=True),
    Case("guess, without a negative branch", guess=True, guidance=1.0),
    Case("two calls a step", spans=((0.3, 0.9),), sampler="heun"),
)


@pytest.fixture(scope="module")
def pipe(controlled_bundle: Path) -> Iterator[Pipeline]:
    with latentrt.load(controlled_bundle, backend="onnxruntime") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def reference(shapes_checkpoint: Path, random_controlnet: Path) -> Callable[[Case], np.ndarray]:
    """What diffusers makes of a case: latent [1, C, h, w]."""
    checkpoint = Checkpoint.open(shapes_checkpoint)
    parts = reference_pipeline(checkpoint).components
    net = ControlNetModel.from_pretrained(random_controlnet)

    def made(case: Case) -> np.ndarray:
        several = len(case.scales) > 1
        images = [Image.fromarray(picture(index, SIZE)) for index in range(len(case.scales))]
        with quiet():
            pipeline = StableDiffusionControlNetPipeline(
                **parts, controlnet=[net] * len(images) if several else net, requires_safety_checker=False
            )
            pipeline.set_progress_bar_config(disable=True)
            pipeline.scheduler = REFERENCES[case.sampler].build(scheduler_config(checkpoint))
            return pipeline(
                PROMPT,
                negative_prompt=NEGATIVE,
                image=images if several else images[0],
                **asked_of_diffusers(case.scales, case.spans),
                width=SIZE[0],
                height=SIZE[1],
                num_inference_steps=STEPS,
                guidance_scale=case.guidance,
                guess_mode=case.guess,
                generator=torch.Generator().manual_seed(SEED),
                output_type="latent",
            ).images.numpy()

    return made


def request(case: Case, controls: list[Control]) -> Request:
    return Request(
        PROMPT,
        negative=NEGATIVE,
        seed=SEED,
        size=SIZE,
        steps=STEPS,
        guidance=case.guidance,
        sampler=case.sampler,
        control=controls,
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_controlled_run_equals_that_of_diffusers(case: Case, pipe: Pipeline, reference):
    expected = reference(case)
    found = last_latent(pipe, request(case, case.controls))
    assert distance(found, expected) <= LIMIT
    assert distance(last_latent(pipe, request(case, [])), expected) >= EFFECT


def test_images_of_a_batch_keep_their_own_controls(pipe: Pipeline):
    one, part, two = CASES[0], CASES[2], CASES[1]
    requests = [request(one, one.controls), request(part, part.controls), request(two, two.controls), request(one, [])]
    together = last_latent(pipe, *requests)
    alone = np.concatenate([last_latent(pipe, each) for each in requests])
    assert distance(together, alone) <= 1e-5


def test_a_scale_of_zero_is_the_plain_run(pipe: Pipeline):
    case = Case("none", scales=(0.0,))
    assert distance(last_latent(pipe, request(case, case.controls)), last_latent(pipe, request(case, []))) <= 1e-6


def test_a_lora_is_in_the_weights_of_a_controlled_run(controlled_bundle: Path, shapes_checkpoint: Path, tmp_path: Path):
    layers = random_layers(reference_pipeline(Checkpoint.open(shapes_checkpoint)))
    path = write_lora(tmp_path / "lora.safetensors", layers)
    case = Case("none", scales=(0.0,))
    with latentrt.load(controlled_bundle, backend="onnxruntime") as pipe:
        before = last_latent(pipe, request(case, case.controls))
        pipe.set_lora([path])
        with_lora = last_latent(pipe, request(case, case.controls))
        assert distance(with_lora, last_latent(pipe, request(case, []))) <= 1e-6
        assert distance(before, with_lora) >= EFFECT
        pipe.set_lora([])
        assert (last_latent(pipe, request(case, case.controls)) == before).all()


def test_sizes_and_pooled_texts_reach_the_controlnet_as_in_diffusers():
    """SDXL's, of which no bundle is made here: the module that is traced."""
    torch.manual_seed(0)
    net = ControlNetModel(
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        layers_per_block=1,
        norm_num_groups=16,
        attention_head_dim=(1, 2),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        cross_attention_dim=80,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=48 + 6 * 8,
        conditioning_embedding_out_channels=(4, 4, 8, 8),
    ).eval()
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=0.2)
    x, context, pooled = torch.randn(2, 4, 9, 13), torch.randn(2, 77, 80), torch.randn(2, 48)
    time_ids, timestep = torch.tensor([[72.0, 104, 0, 0, 72, 104], [64, 64, 8, 8, 64, 64]]), torch.tensor([500.0, 20])
    image = torch.randint(0, 256, (2, 72, 104, 3), dtype=torch.uint8)
    pixels = image.permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        down, middle = net(
            x,
            timestep,
            context,
            pixels,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
            return_dict=False,
        )
        found = ControlModule(net)(
            state=torch.stack([x, *[torch.zeros_like(x)] * 3], dim=1),
            timestep=timestep,
            scalings=torch.tensor([[1.0, 0, 1]] * 2),
            context=context[None],
            image=image,
            scale=torch.ones(1, 2, len(down) + 1),
            pooled=pooled[None],
            time_ids=time_ids[None],
        )
    for ours, theirs in zip(found, (*down, middle), strict=True):
        assert torch.allclose(ours[0], theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))

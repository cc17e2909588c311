"""Prompts and guidance with the trained checkpoint against diffusers, whole pictures in float32."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

import latentrt
from latentrt import Guidance, Pipeline
from latentrt.export.checkpoint.family import scheduler_config
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.parity.metrics import worst_psnr_db
from latentrt.export.parity.torch.pipeline import Images, reference_pipeline
from latentrt.export.quiet import quiet
from latentrt.export.references.schedulers import REFERENCES

PROMPT, OTHER, NEGATIVE = "a red circle on a white background", "a blue star on a black background", "a purple circle"
STEPS, GUIDANCE, SEED = 8, 5.0, 7
GATE_DB = 45.0
MARGIN_DB = 20.0
SKIP = 2


@pytest.fixture(scope="module")
def pipe(shapes_bundle: Path) -> Iterator[Pipeline]:
    with latentrt.load(shapes_bundle, backend="onnxruntime") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def torch_pipeline(shapes_checkpoint: Path) -> StableDiffusionPipeline:
    checkpoint = Checkpoint.open(shapes_checkpoint)
    pipeline = reference_pipeline(checkpoint)
    pipeline.scheduler = REFERENCES["ddim"].build(scheduler_config(checkpoint))
    return pipeline


@pytest.fixture(scope="module")
def reference(torch_pipeline: StableDiffusionPipeline) -> Callable[..., Images]:
    """What diffusers makes of arguments, uint8 [1, H, W, 3]."""

    def made(prompt: str | None = PROMPT, **arguments: Any) -> Images:
        if "negative_prompt_embeds" not in arguments:
            arguments["negative_prompt"] = NEGATIVE
        with quiet():
            image = torch_pipeline(
                prompt,
                width=64,
                height=64,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                generator=torch.Generator().manual_seed(SEED),
                output_type="np",
                **arguments,
            ).images
        return (image * 255).round().astype(np.uint8)

    return made


def images(pipe: Pipeline, prompt: str = PROMPT, **arguments: Any) -> Images:
    return pipe.generate(
        prompt,
        negative=NEGATIVE,
        size=(64, 64),
        steps=STEPS,
        seed=SEED,
        sampler="ddim",
        **{"guidance": GUIDANCE, **arguments},
    ).images


@pytest.fixture(scope="module")
def plain(pipe: Pipeline) -> Images:
    return images(pipe)


def judge(found: Images, expected: Images, plain: Images) -> None:
    """Equal to diffusers, and far less so to the picture without, or the equality says nothing."""
    assert worst_psnr_db(found, expected) >= max(GATE_DB, worst_psnr_db(found, plain) + MARGIN_DB)


def test_clip_skip_equals_diffusers_with_embeddings_of_an_earlier_layer(pipe, torch_pipeline, reference, plain):
    """diffusers' own `clip_skip` leaves out layers for the prompt alone, and fails with transformers 5."""
    text_encoder = torch_pipeline.text_encoder
    norm = getattr(text_encoder, "text_model", text_encoder).final_layer_norm
    ids = torch_pipeline.tokenizer([PROMPT, NEGATIVE], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        contexts = norm(text_encoder(ids, output_hidden_states=True).hidden_states[-1 - SKIP])
    expected = reference(None, prompt_embeds=contexts[:1], negative_prompt_embeds=contexts[1:])
    judge(images(pipe, clip_skip=SKIP), expected, plain)


def test_weights_equal_diffusers_with_embeddings_by_the_formula(pipe: Pipeline, torch_pipeline, reference, plain):
    hidden, negative = torch_pipeline.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)
    empty, _ = torch_pipeline.encode_prompt("", "cpu", 1, True, NEGATIVE)
    ids = torch_pipeline.tokenizer(PROMPT)["input_ids"]
    (red,) = torch_pipeline.tokenizer("red", add_special_tokens=False)["input_ids"]
    weights = torch.ones(1, hidden.shape[1], 1)
    weights[0, ids.index(red)] = -0.8
    expected = reference(None, prompt_embeds=empty + weights * (hidden - empty), negative_prompt_embeds=negative)
    judge(images(pipe, "a (red:-0.8) circle on a white background"), expected, plain)


def test_guidance_that_ends_early_equals_diffusers_changed_on_the_way(pipe: Pipeline, reference, plain: Images):
    def stop(pipeline: Any, index: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index + 1 == STEPS // 4:
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
            pipeline._guidance_scale = 1.0
        return tensors

    expected = reference(callback_on_step_end=stop, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    judge(images(pipe, guidance=Guidance(GUIDANCE, interval=(0.0, 0.25))), expected, plain)


def test_joined_prompts_equal_a_loop_in_torch(pipe: Pipeline, torch_pipeline, plain: Images):
    contexts = torch.cat([torch_pipeline.encode_prompt(text, "cpu", 1, False)[0] for text in (NEGATIVE, PROMPT, OTHER)])
    scheduler = torch_pipeline.scheduler
    scheduler.set_timesteps(STEPS)
    factor = torch_pipeline.vae_scale_factor
    x = torch.randn((1, 4, 64 // factor, 64 // factor), generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        for t in scheduler.timesteps:
            none, first, second = torch_pipeline.unet(x.repeat(3, 1, 1, 1), t, contexts).sample
            guided = none + GUIDANCE * (1.0 * (first - none) + 0.6 * (second - none))
            x = scheduler.step(guided[None], t, x).prev_sample
        decoded = torch_pipeline.vae.decode(x / torch_pipeline.vae.config.scaling_factor).sample
    expected = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    judge(images(pipe, f"{PROMPT} AND {OTHER} :0.6"), expected, plain)


@pytest.mark.parametrize("key", ["emb_params", "<thing>"])
def test_textual_inversion_equals_that_of_diffusers(pipe, torch_pipeline, reference, plain, tmp_path: Path, key: str):
    table = torch_pipeline.text_encoder.get_input_embeddings().weight.detach()
    words = torch_pipeline.tokenizer("blue star", add_special_tokens=False)["input_ids"]
    path = tmp_path / "thing.safetensors"
    save_file({key: 1.1 * table[words]}, path)
    prompt = "a <thing> on a white background"
    try:
        with quiet():
            torch_pipeline.load_textual_inversion(str(path), token="<thing>")
        expected = reference(prompt)
    finally:
        torch_pipeline.unload_textual_inversion()
    pipe.add_embedding("thing", path)
    judge(images(pipe, prompt), expected, plain)

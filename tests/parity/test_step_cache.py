"""Runs with step caching against a plain loop over diffusers' modules, in float32, on the final latent."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from controls import distance, last_latent, picture
from diffusers import ControlNetModel, StableDiffusionPipeline
from lora_files import random_layers, write_lora
from prepared import assert_ready_for
from step_caching import cached

import latentrt
from latentrt import Control, Guidance, Image, Inpaint, Pipeline, Request, StepCache, Upscale
from latentrt.bundle import Bundle
from latentrt.errors import RequestError
from latentrt.export.bundles.step_cache import add_step_cache
from latentrt.export.checkpoint.family import scheduler_config
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.convert.precision import convert_bundle
from latentrt.export.parity.torch.pipeline import reference_pipeline
from latentrt.export.quiet import quiet
from latentrt.export.references.schedulers import REFERENCES

PROMPT, NEGATIVE, SEED, STEPS, SIZE, SCALE = "a blue star", "a purple circle", 7, 6, (104, 72), 4.0
LIMIT = 1e-3  # of the largest value of the latent
EFFECT = 0.02  # by which caching must change it, so that the limit says something
BACKENDS = ("onnxruntime", "openvino")
WHOLE, TENTHS = (0.0, 1.0), (0.0, 0.7)


@dataclass(frozen=True, slots=True)
class Case:
    """One run, and the calls of it that have to be deep."""

    name: str
    cache: int | tuple[int, ...]
    deep: tuple[int, ...]
    layers: int = 1
    sampler: str = "euler"
    interval: tuple[float, float] = WHOLE
    guided: tuple[int, ...] = tuple(range(2 * STEPS))
    control: tuple[float, float] | None = None
    controlled: tuple[int, ...] = ()
    strength: float | None = None

    def __str__(self) -> str:
        return self.name

    def request(self, **changes: Any) -> Request:
        guidance = SCALE if self.interval == WHOLE else Guidance(SCALE, interval=self.interval)
        control = [] if self.control is None else [Control("random", picture(0, SIZE), 1.0, *self.control)]
        given = {
            "prompt": PROMPT,
            "negative": NEGATIVE,
            "seed": SEED,
            "size": SIZE,
            "steps": STEPS,
            "guidance": guidance,
            "sampler": self.sampler,
            "control": control,
            "cache": self.cache,
        }
        if self.strength is not None:
            given |= {"start": Image(picture(1, SIZE), self.strength)}
        return Request(**given | changes)


CASES = (
    Case("interval 2", 2, (0, 2, 4)),
    Case("interval 3, two layers", 3, (0, 3), layers=2),
    Case("a list", (4, 0, 1), (0, 1, 4)),
    Case("an interval beyond the run", 50, (0,)),
    Case("a sampler with memory", 2, (0, 2, 4), sampler="dpmpp-2m"),
    Case("two calls a step", 3, (0, 3, 6, 9), sampler="heun"),
    Case("guidance in the middle", 3, (0, 2, 4), interval=(0.3, 0.6), guided=(2, 3)),
    Case("guidance at the end, a list", (0,), (0, 3), interval=(0.5, 1.0), guided=(3, 4, 5)),
    Case("control", 3, (0, 3), control=WHOLE, controlled=tuple(range(STEPS))),
    Case("control, two layers", 2, (0, 2, 4), layers=2, control=WHOLE, controlled=tuple(range(STEPS))),
    Case("control at first", 3, (0, 3, 4), control=TENTHS, controlled=(0, 1, 2, 3)),
    Case("image to image", 2, (0, 2), strength=0.6),
)


@pytest.fixture(scope="module")
def bundles(cached_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By the layers of shallow calls."""
    two = tmp_path_factory.mktemp("cached") / "two"
    return {1: cached_bundle, 2: add_step_cache(Bundle.open(cached_bundle), two, layers=2).root}


@pytest.fixture(scope="module")
def pipes(bundles: dict[int, Path]) -> Iterator[Callable[..., Pipeline]]:
    opened: dict[tuple[str, int], Pipeline] = {}

    def get(layers: int = 1, backend: str = "onnxruntime") -> Pipeline:
        if (backend, layers) not in opened:
            opened[backend, layers] = latentrt.load(bundles[layers], backend=backend)
        return opened[backend, layers]

    yield get
    for pipe in opened.values():
        pipe.close()


@pytest.fixture(scope="module")
def parts(shapes_checkpoint: Path) -> StableDiffusionPipeline:
    return reference_pipeline(Checkpoint.open(shapes_checkpoint))


@pytest.fixture(scope="module")
def reference(parts: StableDiffusionPipeline, shapes_checkpoint: Path, random_controlnet: Path):
    """What diffusers' modules make of a case, latent [1, C, h, w]."""
    net = ControlNetModel.from_pretrained(random_controlnet)

    def made(case: Case) -> np.ndarray:
        scheduler = REFERENCES[case.sampler].build(scheduler_config(Checkpoint.open(shapes_checkpoint)))
        scheduler.set_timesteps(STEPS)
        draw = torch.Generator().manual_seed(SEED)
        with torch.no_grad(), quiet(), cached(parts.unet, layers=case.layers, deep=case.deep):
            prompts = torch.cat(parts.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)[::-1])
            x, timesteps = start(case, parts, scheduler, draw)
            residuals: dict[str, Any] = {}
            for i, t in enumerate(timesteps):
                guided = i in case.guided
                context = prompts if guided else prompts[1:]
                seen = scheduler.scale_model_input(torch.cat([x] * len(context)), t)
                if i in case.deep:  # the ControlNet runs in no other call
                    residuals = control(net, seen, t, context) if i in case.controlled else {}
                outputs = parts.unet(seen, t, encoder_hidden_states=context, **residuals).sample.split(1)
                output = outputs[0] + SCALE * (outputs[1] - outputs[0]) if guided else outputs[0]
                x = scheduler.step(output, t, x).prev_sample
        return x.numpy()

    return made


def start(case: Case, parts: StableDiffusionPipeline, scheduler: Any, draw: torch.Generator) -> tuple[Any, Any]:
    shape = (1, 4, SIZE[1] // 8, SIZE[0] // 8)
    if case.strength is None:
        return torch.randn(shape, generator=draw) * scheduler.init_noise_sigma, scheduler.timesteps
    pixels = torch.from_numpy(picture(1, SIZE).transpose(2, 0, 1)[None] / np.float32(127.5) - 1)
    known = parts.vae.encode(pixels).latent_dist.sample(draw) * parts.vae.config.scaling_factor
    begin = STEPS - int(STEPS * case.strength)
    scheduler.set_begin_index(begin)
    noise = torch.randn(shape, generator=draw)
    return scheduler.add_noise(known, noise, scheduler.timesteps[begin : begin + 1]), scheduler.timesteps[begin:]


def control(net: ControlNetModel, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> dict[str, Any]:
    image = torch.from_numpy(picture(0, SIZE).transpose(2, 0, 1)[None] / np.float32(255))
    down, middle = net(
        x, t, encoder_hidden_states=context, controlnet_cond=torch.cat([image] * len(x)), return_dict=False
    )
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_cached_run_equals_a_loop_over_diffusers_modules(case: Case, pipes, reference):
    pipe, request = pipes(case.layers), case.request()
    assert tuple(np.flatnonzero(pipe.plan([request]).deep)) == case.deep
    found = last_latent(pipe, request)
    assert distance(found, reference(case)) <= LIMIT
    assert distance(found, last_latent(pipe, case.request(cache=None))) >= EFFECT


@pytest.mark.parametrize("name", ["interval 2", "control"])
def test_openvino_equals_it_as_well(name: str, pipes, reference):
    case = next(case for case in CASES if case.name == name)
    assert distance(last_latent(pipes(case.layers, "openvino"), case.request()), reference(case)) <= LIMIT


@pytest.mark.parametrize("changes", [{}, {"control": [Control("random", picture(0, SIZE))]}])
def test_an_interval_of_one_is_the_plain_run_to_the_bit(changes: dict[str, Any], pipes, controlled_bundle: Path):
    request = CASES[0].request(**changes)
    plain = last_latent(pipes(), CASES[0].request(cache=None, **changes))
    np.testing.assert_array_equal(last_latent(pipes(), CASES[0].request(cache=StepCache(1), **changes)), plain)
    with latentrt.load(controlled_bundle, backend="onnxruntime") as without:
        np.testing.assert_array_equal(last_latent(without, CASES[0].request(cache=1, **changes)), plain)
        with pytest.raises(RequestError, match="latentrt convert BUNDLE -o OTHER --step-cache"):
            without.generate(request)


def test_images_of_a_batch_are_cached_as_alone(pipes):
    pipe = pipes()
    few, many = CASES[0].request(), CASES[0].request(seed=9, steps=8, prompt="a red ring")
    together = last_latent(pipe, few, many)
    assert distance(together, np.concatenate([last_latent(pipe, few), last_latent(pipe, many)])) <= 1e-5


def test_a_lora_is_in_the_weights_of_shallow_calls(pipes, bundles, parts, reference, tmp_path: Path):
    """One that changes the layers which these compute, and no others."""
    case = CASES[0]
    layers = {
        key: value
        for key, value in random_layers(parts).items()
        if key[1].startswith(f"up_blocks.{len(parts.unet.up_blocks) - 1}.attentions.")
    }
    path = write_lora(tmp_path / "lora.safetensors", layers)
    with latentrt.load(bundles[1], backend="onnxruntime") as pipe:
        before = last_latent(pipe, case.request())
        pipe.set_lora([path])
        found = last_latent(pipe, case.request())
        pipe.set_lora([])
        np.testing.assert_array_equal(last_latent(pipe, case.request()), before)
    assert distance(found, before) >= EFFECT
    parts.load_lora_weights(path)
    try:
        assert distance(found, reference(case)) <= LIMIT
    finally:
        parts.unload_lora_weights()


def test_a_cache_without_a_shallow_call_is_refused_before_the_work(pipes):
    for changes in ({"steps": 1, "cache": 3}, {"cache": range(STEPS)}):
        with pytest.raises(RequestError, match="leaves no shallow call"):
            pipes().generate(CASES[0].request(**changes))


def test_upscaling_is_cached_in_both_passes(pipes):
    """A second pass of one call has no shallow one, which is no fault."""
    made = [pipes().generate(PROMPT, seed=SEED, size=(64, 64), steps=3, upscale=Upscale(2), cache=c) for c in (None, 2)]
    assert made[1].images.shape == (1, 128, 128, 3)
    assert not np.array_equal(made[0].images, made[1].images)


@pytest.mark.parametrize("controls", [(), ("random",)])
def test_engines_are_made_ready_for_shallow_calls(controls: tuple[str, ...], bundles):
    control = [Control(name, picture(0, SIZE)) for name in controls]
    request = CASES[0].request(steps=2, control=control)
    prepared = assert_ready_for(request, Bundle.open(bundles[1]), guided=True, controls=controls, cached=True)
    assert ("step-control-shallow" if controls else "step-shallow") in prepared


def test_inpainting_keeps_what_is_known(pipes):
    mask = np.zeros(SIZE[::-1], bool)
    mask[24:56, 32:80] = True
    start = Inpaint(picture(1, SIZE), mask, 0.8)
    plain, found = (last_latent(pipes(), CASES[0].request(start=start, cache=cache)) for cache in (None, 2))
    cells = mask[::8, ::8]
    assert distance(found[..., ~cells], plain[..., ~cells]) <= 1e-5
    assert distance(found[..., cells], plain[..., cells]) >= EFFECT


def test_a_bundle_in_fp16_is_cached_alike(bundles, pipes, tmp_path: Path):
    half = convert_bundle(Bundle.open(bundles[1]), tmp_path / "half", precision={"step": "fp16"}, range_check="none")
    assert half.component("step-shallow").precision == "fp16"
    case = CASES[0]
    with latentrt.load(half.root, backend="onnxruntime") as pipe:
        assert distance(last_latent(pipe, case.request()), last_latent(pipes(), case.request())) <= 0.05

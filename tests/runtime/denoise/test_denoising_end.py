"""Runs that stop early and give latents, and runs that go on with them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from latentrt import Image, Latent, Pipeline, Request, RequestError, Upscale
from latentrt.samplers import sampler_names, step_table
from latentrt.samplers.noise_schedule import NoiseSchedule
from latentrt.testing import fake_pipeline

STEPS = 6
NOISE = NoiseSchedule(scheduler="EulerDiscreteScheduler")
PHOTO = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    return fake_pipeline(tmp_path)


@pytest.mark.parametrize("begin", [None, 0.25])
@pytest.mark.parametrize("sampler", sampler_names(NOISE))
def test_a_table_that_stops_early_is_the_first_part_of_the_whole(sampler: str, begin: float | None):
    settings = {"sampler": sampler, "steps": 8, "denoising_start": begin}
    whole, part = step_table(NOISE, **settings), step_table(NOISE, **settings, denoising_end=0.5)
    calls = len(part)
    assert 0 < calls < len(whole)
    for name in ("timestep", "scalings", "transition", "draws_noise"):
        assert np.array_equal(getattr(part, name), getattr(whole, name)[:calls]), name
    assert np.array_equal(part.levels, whole.levels[: calls + 1])
    rest = step_table(NOISE, **{**settings, "denoising_start": 0.5})
    assert calls + len(rest) == len(whole)
    assert np.array_equal(rest.levels[0], part.levels[-1])


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
def test_latents_of_a_run_that_stopped_go_on_to_the_whole_run(pipe: Pipeline, sampler: str):
    request = Request("a fox", seed=7, images=2, sampler=sampler, steps=STEPS, size=(64, 128))
    *_, last = [step.latent() for step in pipe.steps(request)]
    first = pipe.run(replace(request, denoising_end=0.5, output="latent"))
    assert first.images.shape == (0, 128, 64, 3)
    assert first.latents is not None
    assert (first.latents.shape, first.latents.dtype) == ((2, 4, 16, 8), np.float32)
    assert len(first.timings.steps_ms) == STEPS // 2
    second = pipe.run(replace(request, start=Latent(first.latents, denoising_start=0.5), output="latent"))
    assert np.allclose(second.latents, last, atol=1e-6)
    whole = pipe.run(request)
    assert whole.latents is None
    assert np.array_equal(pipe.decode(last), whole.images)


def test_nothing_is_decoded_where_latents_are_asked_for(pipe: Pipeline):
    pipe.generate("a fox", seed=7, output="latent")
    assert not pipe.engines["decoder"].calls
    assert pipe.generate("a fox", seed=7, denoising_end=0.5).images.shape == (1, 64, 64, 3)


def test_a_photo_is_taken_on_until_the_stop(pipe: Pipeline):
    photo = {"start": Image(PHOTO, strength=0.5), "steps": 8, "sampler": "euler"}
    timesteps = [step.index for step in pipe.steps(Request("a fox", **photo, denoising_end=0.75))]
    assert timesteps == [0, 1]


BAD = [
    ({"denoising_end": 0.0}, "denoising_end is 0.0; expected a number above 0, at most 1"),
    ({"denoising_end": 1.5}, "denoising_end is 1.5; expected a number above 0, at most 1"),
    ({"denoising_end": 0.25, "start": Image(PHOTO, strength=0.5)}, "expected above 0.5, at most 1"),
    ({"output": "latents"}, "output is 'latents'; expected image or latent"),
    ({"denoising_end": 0.5, "upscale": Upscale()}, "upscaling with denoising_end"),
    ({"output": "latent", "upscale": Upscale()}, "upscaling with denoising_end or another output"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_stop_or_output_is_refused_before_any_work(settings: dict, message: str, pipe: Pipeline):
    with pytest.raises(RequestError) as caught:
        pipe.generate("a fox", steps=STEPS, **settings)
    assert message in str(caught.value)
    assert not pipe.engines["text_encoder"].calls


def test_images_and_latents_are_no_batch(pipe: Pipeline):
    with pytest.raises(RequestError, match="a batch of images and latents"):
        pipe.run(Request("a fox"), Request("an owl", output="latent"))

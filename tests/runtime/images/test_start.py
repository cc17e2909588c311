"""Start values on fakes: what the encoder and the step are fed, in which order noise is drawn, what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import latentrt
from latentrt import Image, Inpaint, Latent, Outpaint, Pipeline, Request, RequestError, Text, Upscale
from latentrt.engine import EngineSet
from latentrt.graph import GraphFile, TensorSpec
from latentrt.samplers import step_table
from latentrt.samplers.torch_rng import Generator
from latentrt.testing import FakeEngine, fake_pipeline

SHAPE = (1, 4, 8, 8)
PHOTO = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
MASK = np.zeros((64, 64), np.bool_)
MASK[16:40, 21:50] = True
LATENT = Generator(99).randn(SHAPE)[0]


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    return fake_pipeline(tmp_path)


def with_extra(pipe: Pipeline) -> Pipeline:
    """The same, its step taking mask and masked picture as inpainting models do."""
    step = pipe.engines["step"]
    inputs = {**step.inputs, "extra": TensorSpec("float32", (None, 5, None, None))}
    engines = {**pipe.engines, "step": FakeEngine(inputs, step.outputs, step.function, component="step")}
    return Pipeline(pipe.bundle, engines)


def calls(pipe: Pipeline, component: str) -> list:
    return pipe.engines[component].calls


def encoded(pipe: Pipeline, image: np.ndarray, noise: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
    keep = np.ones((*image.shape[:2], 1), np.float32) if keep is None else keep
    return pipe.engines["encoder"].function({"image": image[None], "keep": keep[None], "noise": noise})["latent"][0]


def table(pipe: Pipeline, **settings):
    family = pipe.bundle.family
    return step_table(family.noise, sampler="euler", steps=4, **settings)


def graphs_of(pipe: Pipeline):
    return {name: GraphFile(name, path=Path(f"{name}.onnx"), inputs={}, outputs={}) for name in pipe.engines}


def test_text_to_image_opens_no_encoder(pipe: Pipeline):
    def refuse(graphs):
        raise AssertionError(graphs)

    engines = {name: engine for name, engine in pipe.engines.items() if name != "encoder"}
    plain = Pipeline(pipe.bundle, EngineSet(engines, graphs=graphs_of(pipe), opens=refuse))
    plain.prepare()
    assert np.array_equal(plain.generate("a fox", seed=7).images, pipe.generate("a fox", seed=7, start=Text()).images)


def test_the_encoder_is_opened_once_and_closed_with_the_pipeline(pipe: Pipeline):
    opened = []

    def opens(graphs):
        opened.extend(graph.component for graph in graphs)
        return {graph.component: pipe.engines[graph.component] for graph in graphs}

    engines = {name: engine for name, engine in pipe.engines.items() if name != "encoder"}
    with Pipeline(pipe.bundle, EngineSet(engines, graphs=graphs_of(pipe), opens=opens)) as late:
        for _ in range(2):
            late.generate("a fox", seed=7, start=Image(PHOTO))
    assert opened == ["encoder"]
    with pytest.raises(RequestError, match="closed"):
        pipe.engines["encoder"].run(calls(pipe, "encoder")[0].feed)


def test_a_photo_is_encoded_with_the_first_draw_and_noised_with_the_second(pipe: Pipeline):
    pipe.generate(["a fox", "an owl"], seed=7, start=Image(PHOTO, 0.5))
    feed, rows = calls(pipe, "step")[0].feed, table(pipe, strength=0.5)
    assert len(calls(pipe, "step")) == 2
    for image in range(2):
        generator = Generator(7 + image)
        clean = encoded(pipe, PHOTO, generator.randn(SHAPE))
        expected = np.float32(rows.start_signal) * clean + np.float32(rows.start_noise) * generator.randn(SHAPE)[0]
        assert np.allclose(feed["state"][image, 0], expected, atol=1e-6)
    assert not feed["state"][:, 1:].any()
    assert (feed["mask"] == 1).all()
    assert not feed["known"].any()


def test_fresh_noise_follows_the_draws_of_the_start(pipe: Pipeline):
    pipe.generate("a fox", seed=7, sampler="euler-a", start=Image(PHOTO, 0.5))
    generator = Generator(7)
    for _ in range(2):
        generator.randn(SHAPE)
    for call in calls(pipe, "step"):
        assert np.array_equal(call.feed["noise"], generator.randn(SHAPE))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_holds_the_photos_latent_outside_the_mask(pipe: Pipeline, strength: float):
    pipe.generate("a fox", seed=7, start=Inpaint(PHOTO, MASK, strength))
    feed, rows, generator = calls(pipe, "step")[0].feed, table(pipe, strength=strength), Generator(7)
    clean = encoded(pipe, PHOTO, generator.randn(SHAPE))
    assert np.array_equal(feed["known"][0], clean)
    assert np.array_equal(feed["mask"][0, 0], MASK[::8, ::8])
    expected = np.float32(rows.start_signal) * clean + np.float32(rows.start_noise) * generator.randn(SHAPE)[0]
    assert np.allclose(feed["state"][0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_an_inpainting_model_sees_the_mask_and_the_photo_with_grey_in_it(pipe: Pipeline, strength: float):
    """As diffusers: nothing is held outside the mask, and strength 1 starts from noise without encoding the photo."""
    model = with_extra(pipe)
    model.generate("a fox", seed=7, start=Inpaint(PHOTO, MASK, strength))
    feed, generator = calls(model, "step")[0].feed, Generator(7)
    if strength < 1:
        rows = table(pipe, strength=strength)
        clean = encoded(pipe, PHOTO, generator.randn(SHAPE))
        state = np.float32(rows.start_signal) * clean + np.float32(rows.start_noise) * generator.randn(SHAPE)[0]
    else:
        state = np.float32(table(pipe).start_noise) * generator.randn(SHAPE)[0]
    assert np.allclose(feed["state"][0, 0], state, atol=1e-6)
    keep = (~MASK)[..., None].astype(np.float32)
    assert np.array_equal(feed["extra"][0, 0], MASK[::8, ::8])
    assert np.array_equal(feed["extra"][0, 1:], encoded(pipe, PHOTO, generator.randn(SHAPE), keep))
    assert (feed["mask"] == 1).all()
    assert not feed["known"].any()


def test_an_inpainting_model_without_a_photo_sees_grey(pipe: Pipeline):
    model = with_extra(pipe)
    model.generate("a fox", seed=7)
    (call,) = calls(model, "encoder")
    assert not call.feed["keep"].any()
    assert (calls(model, "step")[0].feed["extra"][0, 0] == 1).all()


def test_a_latent_in_the_middle_is_taken_as_it_is_and_draws_nothing(pipe: Pipeline):
    pipe.generate("a fox", seed=7, sampler="euler-a", start=Latent(LATENT, denoising_start=0.5))
    first, second = calls(pipe, "step")
    assert np.array_equal(first.feed["state"][0, 0], LATENT)
    assert first.feed["timestep"] == table(pipe).timestep[2]
    generator = Generator(7)
    assert np.array_equal(first.feed["noise"], generator.randn(SHAPE))
    assert np.array_equal(second.feed["noise"], generator.randn(SHAPE))


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
def test_a_run_that_is_handed_over_halfway_is_the_whole_run(pipe: Pipeline, sampler: str):
    request = Request("a fox", seed=7, sampler=sampler, steps=6)
    latents = [step.latent() for step in pipe.steps(request)]
    handed = list(pipe.steps(replace(request, start=Latent(latents[2], denoising_start=0.5))))
    assert handed[-1].total == 3
    assert np.allclose(handed[-1].latent(), latents[-1], atol=1e-6)


def test_a_clean_latent_is_noised_as_a_photo_is(pipe: Pipeline):
    batch = np.stack([LATENT, -LATENT])
    pipe.generate("a fox", images=2, seed=7, start=Latent(batch, strength=0.5))
    rows, state = table(pipe, strength=0.5), calls(pipe, "step")[0].feed["state"]
    for image in range(2):
        noise = np.float32(rows.start_noise) * Generator(7 + image).randn(SHAPE)[0]
        assert np.allclose(state[image, 0], np.float32(rows.start_signal) * batch[image] + noise, atol=1e-6)


def test_images_of_unlike_starts_share_a_batch_and_do_not_meet(pipe: Pipeline):
    starts = (Text(), Image(PHOTO, 0.5), Inpaint(PHOTO, MASK), Latent(LATENT, denoising_start=0.25))
    requests = [Request("a fox", seed=i, start=start, size=(64, 64)) for i, start in enumerate(starts)]
    together = pipe.run(*requests).images.astype(int)
    alone = np.concatenate([pipe.run(request).images for request in requests])
    assert np.abs(together - alone).max() <= 1


@pytest.mark.parametrize("start", [Image(PHOTO[:50], 0.5), Inpaint(PHOTO, MASK, margin=4), Outpaint(PHOTO, right=20)])
def test_the_request_of_a_result_makes_the_same_image(pipe: Pipeline, start):
    result = pipe.generate("a fox", start=start) if not isinstance(start, Image) else None
    if result is None:
        start = Image(np.tile(PHOTO, (2, 2, 1))[:83, :70], 0.5)
        result = pipe.generate("a fox", start=start)
    assert np.array_equal(pipe.run(*result.requests).images, result.images)


@pytest.mark.parametrize("space", ["latent", "pixel"])
def test_upscaling_runs_again_from_the_enlarged_result(pipe: Pipeline, space: str):
    upscale = Upscale(1.5, strength=0.5, space=space)
    result = pipe.generate(["a fox", "an owl"], seed=7, upscale=upscale)
    assert result.images.shape == (2, 96, 96, 3)
    assert [call.feed["state"].shape[-1] for call in calls(pipe, "step")] == [8] * 4 + [12] * 2
    assert len(result.timings.steps_ms) == 6
    assert len(calls(pipe, "encoder")) == (2 if space == "pixel" else 0)
    assert np.array_equal(pipe.run(*result.requests).images, result.images)
    assert np.array_equal(pipe.generate("an owl", seed=8, upscale=upscale).images[0], result.images[1])


def test_upscaling_in_latents_starts_from_the_enlarged_latent(pipe: Pipeline):
    *_, last = pipe.steps(Request("a fox", seed=7))
    final = last.latent()[0]
    pipe.generate("a fox", seed=7, upscale=Upscale(2.0, strength=0.5))
    rows, state = table(pipe, strength=0.5), calls(pipe, "step")[-2].feed["state"][0, 0]
    enlarged = (state - np.float32(rows.start_noise) * Generator(7).randn((1, 4, 16, 16))[0]) / rows.start_signal
    cells = enlarged.reshape(4, 8, 2, 8, 2).mean(axis=(2, 4))
    assert np.abs(cells - final).mean() < 0.2 * np.abs(final).mean()


EMPTY = np.zeros((64, 64), np.bool_)
THIN = EMPTY.copy()
THIN[:, 3] = True


BAD = [
    (lambda: Image(PHOTO, 0.0), "strength is 0.0; expected a number above 0, at most 1"),
    (lambda: Image(PHOTO, 1.5), "strength is 1.5"),
    (lambda: Image(PHOTO, float("nan")), "strength is nan"),
    (lambda: Image(PHOTO, 0.1), "strength 0.1 of 4 steps leaves no step to take; expected a strength of at least 0.25"),
    (lambda: Image(PHOTO[:20, :20]), "the photo is 20x20 px; expected sides of at least 64 px; give a size"),
    (lambda: Image(np.zeros((4000, 70, 3), np.uint8)), "the photo is 70x4000 px, 9x512 for this bundle"),
    (lambda: Image("nowhere.png"), "no photo at nowhere.png; expected an image file; check the path"),
    (lambda: Inpaint(PHOTO, MASK[:32]), "the mask is 64x32 px; expected 64x64, as the photo"),
    (lambda: Inpaint(PHOTO, EMPTY), "the mask is empty; expected white"),
    (lambda: Inpaint(PHOTO, THIN), "the mask is too thin"),
    (lambda: Inpaint(PHOTO), "no mask, and the photo is nowhere transparent"),
    (lambda: Inpaint(PHOTO, "nowhere.png"), "no mask at nowhere.png"),
    (lambda: Inpaint(PHOTO, MASK, margin=-1), "margin is -1; expected at least 0"),
    (lambda: Inpaint(PHOTO, MASK, feather=-1), "feather is -1; expected at least 0"),
    (lambda: Outpaint(PHOTO), "nothing to add to the photo"),
    (lambda: Outpaint(PHOTO, left=-8), "left is -8; expected at least 0"),
    (lambda: Outpaint(PHOTO, left=8, strength=2), "strength is 2"),
    (lambda: Latent(LATENT), "needs denoising_start or strength"),
    (lambda: Latent(LATENT, denoising_start=0.5, strength=0.5), "expected one of them, not both"),
    (lambda: Latent(LATENT, denoising_start=1.0), "denoising_start is 1.0; expected a number, 0 to below 1"),
    (lambda: Latent(LATENT, denoising_start=0.9), "denoising_start 0.9 of 4 steps leaves no step to take"),
    (lambda: Latent(LATENT, strength=0), "strength is 0"),
    (
        lambda: Latent(LATENT.astype(float), denoising_start=0.5),
        "the latent is float64 [4, 8, 8]; expected finite float32",
    ),
    (lambda: Latent(LATENT * np.nan, denoising_start=0.5), "expected finite float32"),
    (lambda: Latent([1.0], denoising_start=0.5), "the latent is list"),
    (lambda: Latent(LATENT[:3], denoising_start=0.5), "the latent is [3, 8, 8]; expected [4, 8, 8] for 64x64 px"),
    (lambda: Latent(LATENT[:, :4], denoising_start=0.5), "height is 32 px; expected 64 to 512"),
    (lambda: Latent(np.stack([LATENT] * 3), denoising_start=0.5), "3 latents for 1 images; expected 1 or 1"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_starts_say_what_was_found_and_compute_nothing(make, message: str, pipe: Pipeline):
    with pytest.raises(RequestError) as caught:
        pipe.generate("a fox", start=make())
    assert message in str(caught.value)
    assert not any(calls(pipe, name) for name in ("text_encoder", "encoder", "step"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"start": Latent(LATENT, denoising_start=0.5), "size": (128, 64)},
            "the latent is [4, 8, 8]; expected [4, 8, 16]",
        ),
        ({"upscale": Upscale(20.0)}, "width is 1280 px; expected 64 to 512 px"),
        ({"upscale": Upscale(), "start": Outpaint(PHOTO, left=64)}, "cropped or pasted"),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_first_pass(settings: dict, message: str, pipe: Pipeline):
    with pytest.raises(RequestError) as caught:
        pipe.generate("a fox", **settings)
    assert message in str(caught.value)
    assert not calls(pipe, "text_encoder")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factor": 1.0}, "factor of upscaling is 1.0; expected a number above 1"),
        ({"strength": 0.0}, "strength of upscaling is 0.0"),
        ({"space": "pixels"}, "space of upscaling is 'pixels'; expected latent or pixel"),
    ],
)
def test_bad_upscaling_is_refused(settings: dict, message: str):
    with pytest.raises(RequestError) as caught:
        Upscale(**settings)
    assert message in str(caught.value)


def test_finished_images_of_unlike_sizes_are_no_batch(pipe: Pipeline):
    starts = (Image(np.tile(PHOTO, (2, 2, 1))[:70, :66]), Image(np.tile(PHOTO, (2, 2, 1))[:71, :66]))
    with pytest.raises(RequestError, match="sizes 66x70, 66x71"):
        pipe.run(*[Request("a fox", start=start) for start in starts])


def test_the_photo_of_a_transparent_picture_is_its_mask(pipe: Pipeline):
    photo = np.dstack([PHOTO, np.where(MASK, 0, 255).astype(np.uint8)])
    by_alpha = pipe.generate("a fox", seed=7, start=Inpaint(photo)).images
    assert np.array_equal(by_alpha, pipe.generate("a fox", seed=7, start=Inpaint(PHOTO, MASK)).images)


def test_start_values_are_exported():
    assert {"Text", "Image", "Inpaint", "Outpaint", "Latent", "Upscale"} <= set(latentrt.__all__)

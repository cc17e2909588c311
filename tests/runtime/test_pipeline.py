"""The loop around the engines, on fakes: what is fed, in which order, and what is refused."""

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrt import BackendError, Pipeline, Request, RequestError
from latentrt.denoise.batch import make_plan
from latentrt.engine import EngineSet
from latentrt.graph import GraphFile
from latentrt.samplers.torch_rng import Generator
from latentrt.testing import FakeEngine, fake_pipeline

SAMPLERS = ("euler", "euler-a", "dpmpp-2m", "heun")


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    return fake_pipeline(tmp_path)


def calls(pipe: Pipeline, component: str = "step") -> list:
    engine = pipe.engines[component]
    assert isinstance(engine, FakeEngine)
    return engine.calls


def test_a_result_says_what_was_made(pipe: Pipeline):
    result = pipe.generate(["a fox", "an owl"], seed=7, images=2, size=(96, 64))
    assert result.images.shape == (4, 64, 96, 3)
    assert result.images.dtype == np.uint8
    assert result.seeds == (7, 8, 9, 10)
    assert len(result.timings.steps_ms) == 4
    assert result.timings.total_ms >= sum(result.timings.steps_ms)


def test_the_same_request_gives_the_same_picture_and_another_seed_another(pipe: Pipeline):
    first = pipe.generate("a fox", seed=7).images
    assert np.array_equal(first, pipe.generate("a fox", seed=7).images)
    assert not np.array_equal(first, pipe.generate("a fox", seed=8).images)


def test_a_drawn_seed_is_reported_and_repeats_the_picture(pipe: Pipeline):
    result = pipe.generate("a fox")
    (request,) = result.requests
    assert request.seed == result.seeds[0]
    assert np.array_equal(result.images, pipe.run(request).images)


@pytest.mark.parametrize("zero", [{"seed": 0}, {"guidance": 0.0}])
def test_zero_is_a_value_and_not_a_default(pipe: Pipeline, zero: dict):
    request = Request("a fox", **{"seed": 3, **zero})
    image_plan = make_plan([request], pipe.bundle.family).image_plans[0]
    assert image_plan.seed == zero.get("seed", 3)
    assert image_plan.guiding.scale == zero.get("guidance", 7.5)


@pytest.mark.parametrize(("guidance", "branches"), [(1.0, 1), (7.5, 2), (0.0, 1), (0.5, 1)])
def test_guidance_of_one_or_less_runs_a_single_branch(pipe: Pipeline, guidance: float, branches: int):
    pipe.generate("a fox", guidance=guidance, negative="blurry", seed=1)
    feed = calls(pipe)[0].feed
    assert feed["context"].shape == (branches, 1, 77, 8)
    assert np.allclose(feed["guidance"].ravel(), [1 - guidance, guidance] if branches == 2 else [1])


def test_the_state_starts_as_scaled_noise_of_the_images_own_seed(pipe: Pipeline):
    pipe.generate(["a fox", "an owl"], seed=7)
    state = calls(pipe)[0].feed["state"]
    table = make_plan([Request("a fox")], pipe.bundle.family).image_plans[0].table
    for image in range(2):
        expected = Generator(7 + image).randn((1, 4, 8, 8))[0] * np.float32(table.start_noise)
        assert np.array_equal(state[image, 0], expected)
    assert not state[:, 1:].any()


def test_fresh_noise_follows_the_start_noise_in_each_images_generator(pipe: Pipeline):
    pipe.generate(["a fox", "an owl"], seed=7, sampler="euler-a", steps=3)
    for image in range(2):
        generator = Generator(7 + image)
        generator.randn((1, 4, 8, 8))
        for call in calls(pipe):
            assert np.array_equal(call.feed["noise"][image], generator.randn((1, 4, 8, 8))[0])


def test_deterministic_samplers_are_fed_no_noise(pipe: Pipeline):
    pipe.generate("a fox", seed=7, sampler="dpmpp-2m")
    assert not any(call.feed["noise"].any() for call in calls(pipe))


def test_the_state_stays_on_the_device(pipe: Pipeline):
    pipe.generate("a fox", seed=7)
    assert all("next_state" in call.keep for call in calls(pipe))


def test_long_prompts_are_encoded_in_chunks_and_the_other_branch_padded(pipe: Pipeline):
    pipe.generate("x" * 100, negative="y", seed=7)
    assert calls(pipe, "text_encoder")[0].feed["ids"].shape == (4, 77)
    assert calls(pipe)[0].feed["context"].shape == (2, 1, 154, 8)


def test_each_text_is_encoded_once(pipe: Pipeline):
    pipe.generate(["a fox"] * 3, negative="blurry", seed=7)
    (call,) = calls(pipe, "text_encoder")
    assert len(call.feed["ids"]) == 2


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(["euler", "euler-a", "dpmpp-2m", "heun"]), st.integers(1, 7), st.sampled_from([1.0, 3.0])
        ),
        min_size=1,
        max_size=4,
    )
)
def test_an_image_does_not_depend_on_its_neighbours(rows, tmp_path_factory):
    pipe = fake_pipeline(tmp_path_factory.mktemp("fake"))
    requests = [
        Request(f"prompt {i}", seed=i, sampler=sampler, steps=steps, guidance=guidance)
        for i, (sampler, steps, guidance) in enumerate(rows)
    ]
    together = pipe.run(*requests).images.astype(int)
    alone = np.concatenate([pipe.run(request).images for request in requests])
    assert np.abs(together - alone).max() <= 1


def test_steps_yield_progress_previews_and_the_latent(pipe: Pipeline):
    seen = [(s.index, s.total, s.preview().shape, s.latent().shape) for s in pipe.steps(Request("a fox", steps=3))]
    assert seen == [(i, 3, (1, 8, 8, 3), (1, 4, 8, 8)) for i in range(3)]


def test_heun_calls_the_network_twice_in_every_step_but_the_last(pipe: Pipeline):
    assert [s.total for s in pipe.steps(Request("a fox", steps=3, sampler="heun"))] == [5] * 5


def test_leaving_the_loop_cancels_and_frees_the_pipeline(pipe: Pipeline):
    for step in pipe.steps(Request("a fox", steps=5)):
        if step.index == 1:
            break
    del step
    assert len(calls(pipe)) == 2
    assert pipe.generate("a fox").images.shape == (1, 64, 64, 3)


def test_a_second_run_at_the_same_time_is_refused(pipe: Pipeline):
    running = pipe.steps(Request("a fox"))
    next(running)
    errors = []

    def other() -> None:
        try:
            pipe.generate("an owl")
        except RequestError as error:
            errors.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert "one run at a time" in errors[0]
    running.close()
    pipe.generate("an owl")


def test_a_latent_that_is_not_finite_is_an_error_and_not_a_black_picture(pipe: Pipeline):
    with pytest.raises(BackendError, match="NaN or infinity"):
        pipe.decode(np.full((1, 4, 8, 8), np.nan, np.float32))


def test_a_closed_pipeline_refuses_to_run(pipe: Pipeline):
    with pipe:
        pass
    pipe.close()
    with pytest.raises(RequestError, match="closed"):
        pipe.generate("a fox")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (100, 64)}, "width is 100 px; expected a multiple of 8; the nearest is 96"),
        ({"size": (64, 1024)}, "height is 1024 px; expected 64 to 512 px"),
        ({"size": (8, 64)}, "width is 8 px; expected 64 to 512 px"),
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"images": 0}, "images is 0; expected at least 1"),
        ({"guidance": 1001}, "guidance is 1001.0; expected a number, 0 to 1000"),
        ({"guidance_scale": 7}, "an option guidance_scale; expected one of negative"),
        ({"seed": -1}, "seed -1"),
        ({"sampler": "dpm++2m"}, "did you mean dpmpp-2m"),
        ({"schedule": "karas"}, "did you mean karras"),
        ({"sampler": "flow-euler"}, "flow-euler"),
        ({"sigmas": [1.0, 2.0, 0.0]}, "expected"),
        ({"negative": ["a", "b"]}, "2 negative prompts for 1 prompts"),
    ],
)
def test_bad_requests_say_what_was_found_and_what_to_do(pipe: Pipeline, arguments: dict, message: str):
    with pytest.raises(RequestError) as caught:
        pipe.generate("a fox", **arguments)
    assert message in str(caught.value)
    assert not calls(pipe), "nothing may be computed for a request that cannot be served"


def test_no_prompt_is_refused(pipe: Pipeline):
    with pytest.raises(RequestError, match="no prompt"):
        pipe.generate([])


def test_a_batch_of_unlike_sizes_is_refused(pipe: Pipeline):
    with pytest.raises(RequestError, match="64x64, 96x64"):
        pipe.run(Request("a", size=(64, 64)), Request("b", size=(96, 64)))


def test_all_engines_are_closed_where_one_fails_to_be():
    closed = []

    class Engine(FakeEngine):
        def close(self) -> None:
            closed.append(self)
            if len(closed) < 3:
                raise ValueError(f"the error of close {len(closed)}")

    engines = EngineSet({name: Engine({}, {}, dict, component=name) for name in "abc"})
    with pytest.raises(ValueError, match="close 1"):
        engines.close()
    assert closed == [*engines.values()]


def test_engines_are_opened_together_when_they_are_needed_and_replaced_by_their_digests():
    def graph(name: str, digest: str) -> GraphFile:
        return GraphFile(name, path=Path(f"{name}.onnx"), inputs={}, outputs={}, digest=digest)

    asked: list[list[str]] = []

    def opens(graphs):
        asked.append([f"{graph.component} {graph.digest}" for graph in graphs])
        return {graph.component: FakeEngine({}, {}, dict, component=graph.component) for graph in graphs}

    every = {name: graph(name, "1") for name in "abcd"}
    engines = EngineSet({"a": FakeEngine({}, {}, dict, component="a")}, graphs=every, opens=opens)
    (a,), (b, c) = engines.need("a"), engines.need("b", "c")
    assert engines.need("c", "a") == (c, a)
    assert asked == [["b 1", "c 1"]]

    engines.replace({**every, "b": graph("b", "2"), "d": graph("d", "2")})
    assert asked[1:] == [["b 2"]]
    assert engines["b"] is not b and engines["a"] is a
    above = engines.under({"a": c})
    assert above["a"] is c and above.need("d") == engines.need("d")
    assert asked[2:] == [["d 2"]]

    engines.close()
    with pytest.raises(RequestError, match="no engine of e is open"):
        engines.need("e")

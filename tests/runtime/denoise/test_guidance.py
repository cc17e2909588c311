"""Prompts joined by AND, and guidance in a part of the run, on fakes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrt import Guidance, Pipeline, Request, RequestError, SkipLayers
from latentrt.denoise.batch import make_plan
from latentrt.denoise.guidance import Guiding, Segment, segments
from latentrt.testing import FakeEngine, fake_family, fake_pipeline
from latentrt.text.prompt_syntax import PromptPart, Text, read, read_negative, read_parts


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    return fake_pipeline(tmp_path)


def feeds(pipe: Pipeline) -> list:
    engine = pipe.engines["step"]
    assert isinstance(engine, FakeEngine)
    return [call.feed for call in engine.calls]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a fox", [("a fox", 1)]),
        ("a fox :0.5", [("a fox :0.5", 1)]),
        ("sand and sea", [("sand and sea", 1)]),
        ("a fox AND an owl", [("a fox", 1), ("an owl", 1)]),
        ("a fox :0.5 AND an owl:-1 AND x", [("a fox", 0.5), ("an owl", -1), ("x", 1)]),
    ],
)
def test_and_joins_prompts(prompt: str, expected: list):
    assert [(part.text, part.weight) for part in read_parts(prompt)] == [(Text.plain(t), w) for t, w in expected]


def test_and_is_a_word_in_the_plain_syntax():
    assert read_parts("a AND b", syntax="plain") == (PromptPart(Text.plain("a AND b")),)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a AND ", "AND in a prompt with nothing on one side"),
        ("a AND :0.5", "nothing on one side"),
        (f"a AND b :{'9' * 400}", "a weight of inf in a prompt"),
        ("(a AND b)", "without its other half"),
    ],
)
def test_bad_joints_are_refused(prompt: str, message: str):
    with pytest.raises(RequestError, match=message):
        read_parts(prompt)


def test_a_negative_prompt_is_a_single_one():
    with pytest.raises(RequestError, match="AND in a negative prompt; expected one text"):
        read_negative("a AND b")


def test_joined_prompts_share_the_scale_of_guidance_by_their_weights(pipe: Pipeline):
    pipe.generate("a fox AND an (owl:1.2) :0.5", negative="blurry", guidance=4, seed=7, steps=1)
    (feed,) = feeds(pipe)
    np.testing.assert_array_equal(feed["guidance"], np.float32([[1 - 6], [4], [2]]))
    expected = pipe.conditioner.encode([[read(t)] for t in ("blurry", "a fox", "an (owl:1.2)")]).context
    np.testing.assert_array_equal(feed["context"], expected)


@pytest.mark.parametrize(
    ("prompt", "guidance", "branches"),
    [("a :0.25 AND b :0.75", 1, 2), ("a AND b", 1, 3), ("a AND b AND c", 7.5, 4), ("a AND b :-1", 5, 3)],
)
def test_there_is_no_negative_branch_where_weights_leave_nothing_for_it(pipe, prompt, guidance, branches):
    pipe.generate(prompt, guidance=guidance, seed=7, steps=1)
    (feed,) = feeds(pipe)
    assert len(feed["guidance"]) == branches
    np.testing.assert_allclose(feed["guidance"].sum(axis=0), 1, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(["a", "a AND b :0.5", "a AND b AND (c:1.3)"]),
            st.sampled_from([1.0, 3.0]),
            st.sampled_from([(0.0, 1.0), (0.25, 0.6), (0.5, 0.5)]),
            st.integers(1, 6),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_an_image_does_not_depend_on_its_neighbours(rows, tmp_path_factory):
    pipe = fake_pipeline(tmp_path_factory.mktemp("fake"))
    requests = [
        Request(prompt, seed=i, guidance=Guidance(guidance, interval=interval), steps=steps, sampler="dpmpp-2m")
        for i, (prompt, guidance, interval, steps) in enumerate(rows)
    ]
    together = pipe.run(*requests).images.astype(int)
    alone = np.concatenate([pipe.run(request).images for request in requests])
    assert np.abs(together - alone).max() <= 1


@pytest.mark.parametrize(
    ("interval", "branches"),
    [
        ((0.0, 1.0), [2] * 10),
        ((0.2, 0.8), [1] * 2 + [2] * 6 + [1] * 2),
        ((0.0, 0.7), [2] * 7 + [1] * 3),
        ((0.55, 1.0), [1] * 6 + [2] * 4),
        ((0.5, 0.5), [1] * 10),
    ],
)
def test_calls_outside_of_the_interval_run_a_single_branch(pipe: Pipeline, interval, branches):
    pipe.generate("a fox", seed=7, steps=10, guidance=Guidance(3, interval=interval))
    assert [len(feed["context"]) for feed in feeds(pipe)] == branches
    for feed, n in zip(feeds(pipe), branches, strict=True):
        np.testing.assert_array_equal(feed["guidance"].ravel(), [1] if n == 1 else [-2, 3])


def one_segment(feed: dict, rows: dict, **_: object) -> list[Segment]:
    return [Segment(dict(feed), dict(rows), slice(None), np.ones(len(feed["context"]), bool))]


@pytest.mark.parametrize("sampler", ["euler", "dpmpp-2m", "heun", "euler-a"])
def test_leaving_out_branches_changes_nothing(pipe: Pipeline, sampler: str, monkeypatch: pytest.MonkeyPatch):
    request = Request("a fox AND an owl", seed=7, steps=7, sampler=sampler, guidance=Guidance(interval=(0.3, 0.6)))
    parts = pipe.run(request)
    monkeypatch.setattr("latentrt.pipeline.segments", one_segment)
    whole = pipe.run(request)
    assert np.abs(parts.images.astype(int) - whole.images).max() <= 1
    assert len(parts.timings.steps_ms) == len(whole.timings.steps_ms)


def test_an_interval_without_effect_gives_the_picture_without_one(pipe: Pipeline):
    plain = pipe.generate("a fox", seed=7, steps=5, guidance=1.0)
    none = pipe.generate("a fox", seed=7, steps=5, guidance=Guidance(6.0, interval=(0.4, 0.4)))
    some = pipe.generate("a fox", seed=7, steps=5, guidance=Guidance(6.0, interval=(0.4, 0.8)))
    np.testing.assert_array_equal(plain.images, none.images)
    assert not np.array_equal(plain.images, some.images)


@pytest.mark.compatibility(kind="request", what="guidance 0 or 1", recognised="a scale of 1 or below", outcome="works")
@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.4, 0.8)])
def test_a_scale_of_one_or_below_draws_the_prompt_beside_any_neighbour(pipe: Pipeline, guidance: float, interval):
    plain = Request("a fox", seed=7, steps=5, guidance=1.0)
    low = replace(plain, negative="blurry", guidance=Guidance(guidance, interval=interval))
    guided = replace(plain, negative="blurry", seed=9, guidance=6.0)
    assert (make_plan([low], pipe.bundle.family).guidance == 1).all()
    expected = pipe.run(plain).images
    np.testing.assert_array_equal(pipe.run(low).images, expected)
    beside = pipe.run(guided, low).images
    assert np.abs(beside[1:].astype(int) - expected).max() <= 1
    assert not np.array_equal(beside[:1], expected)


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_joined_prompts_without_guidance_weigh_as_at_one(pipe: Pipeline, guidance: float):
    pipe.generate("a AND b :0.5", guidance=guidance, seed=7, steps=1)
    np.testing.assert_array_equal(feeds(pipe)[0]["guidance"].ravel(), np.float32([-0.5, 1, 0.5]))


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0])
def test_without_guidance_no_layers_are_skipped(guidance: float):
    family = replace(fake_family(), blocks=4)
    asked = Request("a", steps=5, guidance=guidance, skip_layers=SkipLayers((1,), range=(0.0, 1.0)))
    assert make_plan([asked], family).branches == 1
    never = replace(asked, guidance=Guidance(5.0, interval=(0.4, 0.4)))
    assert make_plan([never], family).branches == 1
    part = replace(asked, guidance=Guidance(5.0, interval=(0.4, 0.8)))
    weights = make_plan([part], family).guidance[:, :, 0]
    np.testing.assert_allclose(weights[:2], [[0, 0, 1]] * 2)
    np.testing.assert_allclose(weights[2:4], [[-4, -2.8, 7.8]] * 2, rtol=1e-6)
    both = make_plan([asked, replace(part, guidance=Guidance(interval=(0.0, 1.0)))], family).guidance
    np.testing.assert_array_equal(both[:, :, 0], [[0, 0, 1]] * 5)
    with pytest.raises(RequestError, match="layer 9 in skip_layers"):
        make_plan([replace(asked, skip_layers=(9,))], family)


def test_a_model_that_is_told_its_guidance_is_told_any_value():
    family = replace(fake_family(), guidance_embedding=True)
    for guidance in (0.0, 0.5, 8.5):
        plan = make_plan([Request("a", guidance=guidance)], family)
        assert plan.branches == 1
        assert plan.image_plans[0].guidance_embed == guidance


def test_steps_are_counted_through(pipe: Pipeline):
    request = Request("a fox", seed=7, steps=6, guidance=Guidance(interval=(0.3, 0.6)))
    assert [(step.index, step.total) for step in pipe.steps(request)] == [(i, 6) for i in range(6)]


@settings(deadline=None)
@given(
    used=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=8),
    images=st.integers(1, 2),
)
def test_segments_keep_every_call_and_all_that_weighs(used: list, images: int):
    guidance = np.repeat(np.float32(used)[:, :, None], images, axis=2)
    context = np.arange(3, dtype=np.float32)[:, None, None, None] + np.zeros((3, images, 2, 1), np.float32)
    rows = {"guidance": guidance, "timestep": np.arange(len(used), dtype=np.float32)[:, None]}
    parts = list(segments({"context": context, "rescale": np.zeros(images, np.float32)}, rows))
    times = np.concatenate([part.rows["timestep"] for part in parts])
    np.testing.assert_array_equal(times, rows["timestep"])
    weighed = [np.einsum("nkb,kbld->nbld", part.rows["guidance"], part.feed["context"]) for part in parts]
    np.testing.assert_array_equal(np.concatenate(weighed), np.einsum("nkb,kbld->nbld", guidance, context))
    assert all((part.rows["guidance"][:, :-1] != 0).all() for part in parts)
    for part in parts:
        np.testing.assert_array_equal(guidance[part.calls][:, part.branches], part.rows["guidance"])


def test_the_interval_is_exact_where_its_fractions_are_whole_calls():
    for calls in range(1, 60):
        for first in range(calls + 1):
            weights = Guiding((PromptPart(Text.plain("a")),), 3.0, first / calls, 1.0).weights(calls)
            assert weights.ravel().tolist() == [1.0] * first + [3.0] * (calls - first)


@pytest.mark.parametrize("interval", [(0.5,), (0.8, 0.2), (-0.1, 0.5), (0.0, 1.5)])
def test_bad_intervals_are_refused(interval):
    with pytest.raises(RequestError, match=r"interval of guidance .*two fractions"):
        Request("a fox", guidance=Guidance(interval=interval))


@pytest.mark.parametrize("asked", [{"prompt": "a AND b"}, {"prompt": "a", "guidance": Guidance(interval=(0.2, 0.8))}])
def test_a_model_that_is_told_its_guidance_has_no_branches_to_weigh(asked: dict):
    with pytest.raises(RequestError, match=r"told its guidance.*neither"):
        make_plan([Request(**asked)], replace(fake_family(), guidance_embedding=True))


def test_what_a_plan_derives_is_computed_once(tmp_path: Path):
    plan = make_plan([Request("a fox", seed=1)], fake_pipeline(tmp_path).bundle.family)
    for name in ("texts", "guidance", "columns", "rescale", "changing"):
        assert getattr(plan, name) is getattr(plan, name)

"""Texts to contexts, on fakes: weights against the formula, BREAK, clip skip."""

from pathlib import Path

import numpy as np
import pytest

from latentrt import Pipeline, Request, RequestError
from latentrt.testing import FakeEngine, fake_pipeline
from latentrt.text.prompt_syntax import Text, read


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    return fake_pipeline(tmp_path)


def context(pipe: Pipeline, *prompts: str) -> np.ndarray:
    """[n, L, D]."""
    return pipe.conditioner.encode([[read(prompt) for prompt in prompts]]).context[0]


def test_a_weighted_token_moves_away_from_the_context_of_no_words(pipe: Pipeline):
    plain, empty, found = context(pipe, "a red fox", "", "a (red:1.5) fox")
    expected = plain.copy()
    places = slice(3, 6)  # a token a byte, behind the opening one
    expected[places] = empty[places] + 1.5 * (plain[places] - empty[places])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    outside = np.delete(np.arange(77), np.arange(77)[places])
    np.testing.assert_array_equal(found[outside], plain[outside])


def test_a_weight_of_zero_is_the_context_of_no_words(pipe: Pipeline):
    plain, empty, found = context(pipe, "a red fox", "", "a (red:0) fox")
    np.testing.assert_allclose(found[3:6], empty[3:6], atol=1e-6)
    assert np.abs(found[3:6] - plain[3:6]).max() > 0.1


def test_weights_do_not_depend_on_what_else_is_encoded(pipe: Pipeline):
    alone = context(pipe, "a (red:1.5) fox")[0]
    np.testing.assert_array_equal(alone, context(pipe, "an owl", "a (red:1.5) fox", "")[1])


def test_weights_do_not_change_what_the_text_encoder_reads(pipe: Pipeline):
    text_encoder = pipe.engines["text_encoder"]
    assert isinstance(text_encoder, FakeEngine)
    context(pipe, "a (red:1.5) fox")
    context(pipe, "a red fox")
    weighted, plain = (call.feed["ids"] for call in text_encoder.calls)
    np.testing.assert_array_equal(weighted[0], plain[0])
    assert len(weighted) == 2  # the text of no words, which weights refer to


def test_weights_reach_every_chunk_of_a_long_prompt(pipe: Pipeline):
    plain = context(pipe, "x" * 100)[0]
    empty = np.concatenate([context(pipe, "")[0]] * 2)
    found = context(pipe, "x" * 90 + "(" + "x" * 10 + ":2)")[0]
    changed = np.abs(found - plain).max(axis=-1) > 0
    assert np.flatnonzero(changed).tolist() == list(range(77 + 1 + 15, 77 + 1 + 25))
    np.testing.assert_allclose(found[changed], (2 * plain - empty)[changed], atol=1e-6)


def test_a_break_ends_a_chunk(pipe: Pipeline):
    (both,) = context(pipe, "a fox BREAK an owl")
    np.testing.assert_array_equal(both, np.concatenate(context(pipe, "a fox ", " an owl")))


def test_brackets_are_text_in_the_plain_syntax(pipe: Pipeline):
    weighted, plain = (pipe.generate("a (red:1.5) fox", seed=7, syntax=name).images for name in ("weighted", "plain"))
    escaped = pipe.generate(r"a \(red:1.5\) fox", seed=7).images
    np.testing.assert_array_equal(plain, escaped)
    assert not np.array_equal(weighted, plain)


def test_what_is_wrong_with_a_prompt_is_said_before_anything_runs(pipe: Pipeline):
    with pytest.raises(RequestError, match="without its other half"):
        pipe.steps(Request("a (fox"))
    assert not pipe.engines["text_encoder"].calls  # type: ignore[attr-defined]


def test_a_plain_string_is_a_text():
    assert Text.plain("") == read("")


def test_clip_skip_is_added_to_what_the_model_leaves_out(pipe: Pipeline):
    text_encoder = pipe.engines["text_encoder"]
    assert isinstance(text_encoder, FakeEngine)
    plain, skipped = (pipe.generate("a fox", seed=7, clip_skip=skip).images for skip in (0, 2))
    assert [call.feed["skip"].tolist() for call in text_encoder.calls] == [[0], [2]]
    assert not np.array_equal(plain, skipped)


@pytest.mark.parametrize("skip", [-1, 3])
def test_more_layers_than_there_are_cannot_be_left_out(pipe: Pipeline, skip: int):
    with pytest.raises(RequestError, match=f"clip_skip is {skip}; expected"):
        pipe.generate("a fox", clip_skip=skip)


def test_a_batch_has_one_clip_skip(pipe: Pipeline):
    with pytest.raises(RequestError, match=r"clip_skip 0, 1.*one for all"):
        pipe.run(Request("a fox"), Request("an owl", clip_skip=1))

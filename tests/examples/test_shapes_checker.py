"""The shapes checker against rendered truth: true captions pass, captions with one word changed do not."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "shapes"))

from checker import check, judge, look, score
from scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, Scene, Thing, draw_scenes, parse, render

COUNT = 200


def one_word_changed(scene: Scene) -> list[Scene]:
    """Every scene whose caption differs from this one's in one attribute, colours still unlike."""
    changed = [replace(scene, background=name) for name in BACKGROUNDS if name != scene.background]
    if scene.relation is not None:
        changed += [replace(scene, relation=name) for name in RELATIONS if name != scene.relation]
    taken = {thing.colour for thing in scene.things}
    for index, thing in enumerate(scene.things):
        others = [replace(thing, colour=name) for name in COLOURS if name not in taken]
        others += [replace(thing, shape=name) for name in SHAPES if name != thing.shape]
        changed += [replace(scene, things=_with(scene.things, index, other)) for other in others]
    return changed


def _with(things: tuple[Thing, ...], index: int, thing: Thing) -> tuple[Thing, ...]:
    return (*things[:index], thing, *things[index + 1 :])


def _blurred(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.2)))


@pytest.mark.parametrize("blur", [False, True], ids=["sharp", "blurred"])
def test_true_captions_pass_and_changed_ones_do_not(blur: bool) -> None:
    rng = np.random.default_rng(11)
    accepted_true, accepted_changed = [], []
    for scene in draw_scenes(COUNT // 2, rng, evaluator=False) + draw_scenes(COUNT // 2, rng, evaluator=True):
        image = render(scene, rng)
        seen = look(_blurred(image) if blur else image)
        accepted_true.append(judge(*seen, scene.caption).right)
        accepted_changed += [judge(*seen, other.caption).right for other in one_word_changed(scene)]
    assert np.mean(accepted_true) >= 0.99
    assert np.mean(accepted_changed) <= 0.01


@pytest.mark.parametrize("size", [96, 192])
def test_other_sizes(size: int) -> None:
    rng = np.random.default_rng(12)
    scenes = draw_scenes(30, rng, evaluator=False)
    images = np.stack([render(scene, rng, size=size) for scene in scenes])
    assert score(images, [scene.caption for scene in scenes]).mean() >= 0.96


def test_each_attribute_is_told_apart() -> None:
    caption = "a red circle left of a blue star on a white background"
    image = render(parse(caption), np.random.default_rng(3))
    assert check(image, caption).right
    wrong = {
        "colour": "a green circle left of a blue star on a white background",
        "shape": "a red ring left of a blue star on a white background",
        "background": "a red circle left of a blue star on a gray background",
        "relation": "a red circle below a blue star on a white background",
    }
    for attribute, other in wrong.items():
        verdict = check(image, other)
        fields = ("count", "colour", "shape", "background", "relation")
        assert [name for name in fields if not getattr(verdict, name)] == [attribute]


def test_a_missing_or_an_extra_shape_is_a_wrong_count() -> None:
    single, pair = "a red circle on a white background", "a red circle above a pink heart on a white background"
    rng = np.random.default_rng(4)
    assert not check(render(parse(single), rng), pair).count
    assert not check(render(parse(pair), rng), single).count
    blank = np.full((128, 128, 3), 250, dtype=np.uint8)
    verdict = check(blank, single)
    assert verdict.background
    assert not (verdict.count or verdict.colour or verdict.shape or verdict.right)


def test_captions_read_back() -> None:
    for scene in draw_scenes(200, np.random.default_rng(5), evaluator=False):
        assert parse(scene.caption) == scene
    with pytest.raises(ValueError, match="a mauve circle"):
        parse("a mauve circle on a white background")


def test_training_and_evaluator_scenes_share_no_attribute_combination() -> None:
    rng = np.random.default_rng(6)

    def combinations(evaluator: bool) -> set[tuple[Thing, str]]:
        scenes = draw_scenes(2000, rng, evaluator=evaluator, pairs=0.0)
        return {(thing, scene.background) for scene in scenes for thing in scene.things}

    trained, held = combinations(False), combinations(True)
    assert not trained & held
    assert len(trained) + len(held) == len(COLOURS) * len(SHAPES) * len(BACKGROUNDS)

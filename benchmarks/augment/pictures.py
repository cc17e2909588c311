"""A detection dataset of rendered scenes, whose boxes are known, and the prompts that describe it."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from latentrt.augment.labels import Bounds

SHAPES = Path(__file__).resolve().parents[2] / "examples" / "shapes"
PAIRS = 0.4  # share of pictures with two things; two leave hardly any room for a third


def shapes_module(name: str) -> Any:
    """A module of examples/shapes, which is no package."""
    if str(SHAPES) not in sys.path:
        sys.path.append(str(SHAPES))
    return importlib.import_module(name)


def write_dataset(root: Path, counts: dict[str, int], *, seed: int) -> Path:
    """Renders that many pictures of each split, with labels and `prompts.yaml`.

    Returns:
        The data.yaml.
    """
    scenes = shapes_module("scenes")
    captions: dict[str, str] = {}
    words: dict[str, dict[str, str]] = {}
    for number, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng([seed, number])
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        drawn = scenes.draw_scenes(count, rng, evaluator=split != "train", pairs=PAIRS)
        for index, scene in enumerate(drawn):
            pixels, places = scenes.render_placed(scene, rng)
            name = f"{split}{index:03d}"
            Image.fromarray(pixels).save(root / "images" / split / f"{name}.png")
            rows = [
                row(scenes.SHAPES.index(thing.shape), bounds_of(scenes.coverage(thing.shape, place)))
                for thing, place in zip(scene.things, places, strict=True)
            ]
            (root / "labels" / split / f"{name}.txt").write_text("".join(rows))
            captions[f"{name}.png"] = scene.caption
            words[f"{name}.png"] = {"ground": scene.background}
    prompts = {
        "classes": {"*": f"a {{{'|'.join(scenes.COLOURS)}}} $name on a $ground background"},
        "background": "a $ground background",
        "captions": captions,
        "words": words,
    }
    (root / "prompts.yaml").write_text(yaml.safe_dump(prompts))
    data = {**{split: f"images/{split}" for split in counts}, "names": list(scenes.SHAPES)}
    (root / "data.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return root / "data.yaml"


def class_prompts(path: Path) -> Path:
    """Writes templates for every shape from words alone, in the order of the classes."""
    scenes = shapes_module("scenes")
    text = f"a {{{'|'.join(scenes.COLOURS)}}} $name on a {{{'|'.join(scenes.BACKGROUNDS)}}} background"
    path.write_text(yaml.safe_dump({"classes": dict.fromkeys(scenes.SHAPES, text)}, sort_keys=False))
    return path


def bounds_of(coverage: np.ndarray) -> Bounds:
    """The box around what is covered by more than half, as shares of the picture."""
    rows, columns = np.nonzero(coverage > 0.5)
    height, width = coverage.shape
    return columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height


def row(category: int, bounds: Bounds) -> str:
    """A line of a file of labels."""
    left, top, right, bottom = bounds
    values = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
    return " ".join([str(category), *(f"{value:.6f}" for value in values)]) + "\n"

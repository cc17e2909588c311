"""Does a picture show what its caption says? Colour, shape, background and relation, read from the pixels.

Usable as a metric: `score(images, prompts)` says which pictures are right in everything.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parent))  # `scenes` is found also when a metric loader runs this file

from scenes import BACKGROUNDS, COLOURS, OUTLINES, RELATIONS, RGB, Placement, Thing, coverage, parse

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

CONTRAST = 45.0  # RGB distance from the background at which a pixel belongs to a shape
LEAST_AREA = 0.01  # of the image; what is smaller is a speck
LEAST_OVERLAP = 0.75  # with the best template, else the shape counts as unclear
GRID = 28  # samples across a shape's signature
REACH = 1.4  # half width of a signature, in units of sqrt(area)
UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Found:
    """One shape seen in a picture; centre and bounds (left, top, right, bottom) in pixels."""

    thing: Thing
    x: float
    y: float
    bounds: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What of a caption holds. `relation` is True for a caption that states none."""

    count: bool
    colour: bool
    shape: bool
    background: bool
    relation: bool

    @property
    def right(self) -> bool:
        return self.count and self.colour and self.shape and self.background and self.relation


def check(image: Pixels, caption: str) -> Verdict:
    """Judge a picture, uint8 [H, W, 3], by its caption. Raises ValueError for a caption outside the grammar."""
    return judge(*look(image), caption)


def score(images: Pixels, prompts: Sequence[str]) -> NDArray[np.bool_]:
    """Which pictures, uint8 [N, H, W, 3], are right in every attribute of their prompts: [N], 1 or 0."""
    return np.array([check(image, prompt).right for image, prompt in zip(images, prompts, strict=True)])


def judge(background: str, found: Sequence[Found], caption: str) -> Verdict:
    """Compare what `look` saw with a caption, in the reading of the picture that fits it best."""
    scene = parse(caption)
    slots = [*found, *[None] * (len(scene.things) - len(found))]
    readings = (_compare(scene.things, order) for order in permutations(slots, len(scene.things)))
    colour, shape, order = max(readings, key=lambda reading: (reading[0] + reading[1], reading[0]))
    return Verdict(
        count=len(found) == len(scene.things),
        colour=colour == len(scene.things),
        shape=shape == len(scene.things),
        background=background == scene.background,
        relation=scene.relation is None or _holds(scene.relation, order),
    )


def _compare(things: Sequence[Thing], order: Sequence[Found | None]) -> tuple[int, int, Sequence[Found | None]]:
    pairs = [(thing, seen.thing) for thing, seen in zip(things, order, strict=True) if seen is not None]
    return sum(a.colour == b.colour for a, b in pairs), sum(a.shape == b.shape for a, b in pairs), order


def _holds(relation: str, order: Sequence[Found | None]) -> bool:
    first, second = order
    if first is None or second is None:
        return False
    away = np.array((first.x - second.x, first.y - second.y))
    along = away @ RELATIONS[relation]
    return bool(along > 0 and along == np.abs(away).max())


def look(image: Pixels) -> tuple[str, list[Found]]:
    """Name the background and every shape of a picture, uint8 [H, W, 3]."""
    pixels = image.astype(np.float64)
    rim = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3), pixels[:, :3].reshape(-1, 3)])
    ground = np.median(rim, axis=0)
    mask = np.linalg.norm(pixels - ground, axis=2) > CONTRAST
    found = [_name(pixels, ground, part) for part in _parts(mask)]
    return _nearest(ground, BACKGROUNDS), found


def _name(pixels: Floats, ground: Floats, part: NDArray[np.bool_]) -> Found:
    """Name one connected part of a picture by its middle colour and the template that covers it best."""
    core = _shrink(part)
    colour = np.median(pixels[core if core.any() else part], axis=0)
    step = colour - ground
    cover = np.clip((pixels - ground) @ step / (step @ step), 0, 1) * ~_shrink(~part)
    y, x = _centre(cover)
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    bounds = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return Found(Thing(_nearest(colour, COLOURS), _best_shape(cover)), x, y, bounds)


def _nearest(colour: Floats, names: dict[str, RGB]) -> str:
    return min(names, key=lambda name: float(np.linalg.norm(colour - names[name])))


def _parts(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """4-connected parts of a mask that are larger than a speck: the highest index spreads until nothing changes."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        wide = np.pad(labels, 1)
        spread = np.max([labels, wide[2:, 1:-1], wide[:-2, 1:-1], wide[1:-1, 2:], wide[1:-1, :-2]], axis=0) * mask
        if (spread == labels).all():
            break
        labels = spread
    names, areas = np.unique(labels[mask], return_counts=True)
    return [labels == name for name in names[areas > LEAST_AREA * mask.size]]


def _shrink(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Take one pixel off a mask all round."""
    wide = np.pad(mask, 1, mode="edge")
    return mask & wide[2:, 1:-1] & wide[:-2, 1:-1] & wide[1:-1, 2:] & wide[1:-1, :-2]


def _best_shape(cover: Floats) -> str:
    names, templates = _templates()
    seen = _signature(cover)
    overlap = np.minimum(templates, seen).sum((1, 2)) / np.maximum(templates, seen).sum((1, 2))
    best = int(overlap.argmax())
    return names[best] if overlap[best] >= LEAST_OVERLAP else UNCLEAR


@cache
def _templates() -> tuple[list[str], Floats]:
    """Signatures of every shape at the turns that captions leave open: float64 [n, GRID, GRID]."""
    turns = np.linspace(-0.16, 0.16, 7)
    named = [(name, Placement(64, 64, 40, turn)) for name in OUTLINES for turn in turns]
    return [name for name, _ in named], np.stack([_signature(coverage(name, place)) for name, place in named])


def _signature(cover: NDArray[np.floating]) -> Floats:
    """A shape brought to one place and size: float64 [GRID, GRID], sampled between the pixels."""
    span = np.linspace(-REACH, REACH, GRID) * np.sqrt(cover.sum()) / 2
    y, x = _centre(cover)
    rows, columns = _weights(y + span, cover.shape[0]), _weights(x + span, cover.shape[1])
    sampled: Floats = rows @ cover @ columns.T
    return sampled


def _weights(at: Floats, size: int) -> Floats:
    """Linear interpolation at positions `at` as a matrix [len(at), size]; outside is zero."""
    weights: Floats = np.clip(1 - np.abs(at[:, None] - np.arange(size)), 0, None)
    return weights


def _centre(cover: NDArray[np.floating]) -> tuple[float, float]:
    """Centre of mass in pixels, as y, x."""
    total = cover.sum()
    y, x = (cover.sum(axis=1 - axis) @ np.arange(cover.shape[axis]) / total for axis in (0, 1))
    return float(y), float(x)

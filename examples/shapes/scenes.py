"""The world that the example checkpoint learns: coloured shapes on plain backgrounds, and captions for them."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

RGB = tuple[int, int, int]
Array = NDArray[np.uint8]

SIZE = 128  # pixels; the checkpoint's native width and height
SUPERSAMPLING = 4
HELD_OUT_ONE_IN = 5
PALE = 0.15  # share of its colour that the inside of an outlined shape has

COLOURS: dict[str, RGB] = {
    "red": (220, 30, 40),
    "orange": (255, 140, 0),
    "yellow": (255, 225, 25),
    "green": (40, 165, 60),
    "cyan": (40, 215, 225),
    "blue": (35, 75, 225),
    "purple": (130, 40, 170),
    "pink": (255, 130, 190),
}
BACKGROUNDS: dict[str, RGB] = {
    "white": (250, 250, 250),
    "black": (10, 10, 10),
    "gray": (128, 128, 128),
    "brown": (105, 65, 30),
    "navy": (15, 20, 75),
}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


@dataclass(frozen=True, slots=True)
class Thing:
    """One coloured shape."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{_article(self.colour)} {self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """What a caption says: one thing, or two with the relation of the first to the second."""

    things: tuple[Thing, ...]
    background: str
    relation: str | None = None

    @property
    def caption(self) -> str:
        subject = f" {self.relation} ".join(map(str, self.things))
        return f"{subject} on {_article(self.background)} {self.background} background"

    @property
    def evaluator(self) -> bool:
        """Whether some (colour, shape, background) of this scene is kept out of the training data."""
        keys = (f"{thing.colour} {thing.shape} on {self.background}" for thing in self.things)
        return any(zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0 for key in keys)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _regular(corners: int, *, radii: tuple[float, ...] = (1.0,), segment: float = 1.0) -> NDArray[np.float64]:
    """Corners on circles of the given radii, taken by turns, the first one at the top: [corners, 2] x, y."""
    turn = 2 * math.pi * np.arange(corners) / corners
    radius = np.resize(radii, corners)
    return np.stack([segment * radius * np.sin(turn), -radius * np.cos(turn)], axis=1)


def _cross(arm: float) -> NDArray[np.float64]:
    quarter = np.array([(-arm, -1), (arm, -1), (arm, -arm)], dtype=np.float64)
    turns = [np.array([(0, 1), (-1, 0)]), np.eye(2), np.array([(0, -1), (1, 0)]), -np.eye(2)]
    return np.concatenate([quarter @ turns[i] for i in (1, 0, 3, 2)])


def _heart() -> NDArray[np.float64]:
    t = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -(y + 2.5)], axis=1) / 15.5


# Outlines in a circle of about unit radius; what an outline after the first encloses is a hole.
OUTLINES: dict[str, tuple[NDArray[np.float64], ...]] = {
    "circle": (0.92 * _regular(64),),
    "square": (1.15 * _regular(4) @ np.array([(1, 1), (-1, 1)]) / math.sqrt(2),),
    "triangle": (1.15 * _regular(3) + (0.0, 0.2),),
    "star": (1.15 * _regular(10, radii=(1.0, 0.42)),),
    "ring": (_regular(64), 0.55 * _regular(64)),
    "cross": (_cross(0.32),),
    "heart": (_heart(),),
    "diamond": (1.15 * _regular(4, segment=0.62),),
}
SHAPES = tuple(OUTLINES)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a shape stands: centre and radius in pixels, turn in radians."""

    x: float
    y: float
    radius: float
    turn: float = 0.0


def coverage(shape: str, place: Placement, *, size: int = SIZE) -> NDArray[np.float32]:
    """How much of each pixel a shape covers, anti-aliased: float32 [size, size], 0 to 1."""
    cos, sin = math.cos(place.turn), math.sin(place.turn)
    turned = np.array([(cos, sin), (-sin, cos)])
    mask = Image.new("L", (size * SUPERSAMPLING,) * 2)
    draw = ImageDraw.Draw(mask)
    for index, outline in enumerate(OUTLINES[shape]):
        corners = (outline @ turned * place.radius + (place.x, place.y)) * SUPERSAMPLING
        draw.polygon(corners.ravel().tolist(), fill=0 if index else 255)
    return np.asarray(mask.reduce(SUPERSAMPLING), dtype=np.float32) / np.float32(255)


def render(scene: Scene, rng: np.random.Generator, *, size: int = SIZE, outline: int | None = None) -> Array:
    """Draw a scene with random places, sizes, slight turns and shades: uint8 [size, size, 3].

    With `outline`, shapes have their colour only that many pixels deep, and are nearly white inside.
    """
    return render_placed(scene, rng, size=size, outline=outline)[0]


def render_placed(
    scene: Scene, rng: np.random.Generator, *, size: int = SIZE, outline: int | None = None
) -> tuple[Array, list[Placement]]:
    """As `render`, and where each thing stands."""
    image = np.broadcast_to(_shade(BACKGROUNDS[scene.background], rng), (size, size, 3))
    places = _places(scene, rng, size)
    for thing, place in zip(scene.things, places, strict=True):
        cover, colour = coverage(thing.shape, place, size=size), _shade(COLOURS[thing.colour], rng)
        image = _paint(image, cover, colour)
        if outline is not None:
            image = _paint(image, _inside(cover, outline), 255 - PALE * (255 - colour))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), places


def _paint(image: NDArray[np.float32], cover: NDArray[np.float32], colour: NDArray[np.float32]) -> NDArray[np.float32]:
    cover = cover[..., None]
    return (1 - cover) * image + cover * colour


def _inside(cover: NDArray[np.float32], depth: int) -> NDArray[np.float32]:
    """What of a coverage lies deeper than that many pixels."""
    mask = Image.fromarray(np.rint(255 * cover).astype(np.uint8))
    return np.asarray(mask.filter(ImageFilter.MinFilter(2 * depth + 1)), dtype=np.float32) / np.float32(255)


def _shade(colour: RGB, rng: np.random.Generator) -> NDArray[np.float32]:
    return np.asarray(colour, dtype=np.float32) + rng.uniform(-6, 6, 3).astype(np.float32)


def _places(scene: Scene, rng: np.random.Generator, size: int) -> list[Placement]:
    """Random places; the two of a pair stand apart along their relation's axis and nearly level across it."""
    turns = rng.uniform(-0.12, 0.12, 2)
    if scene.relation is None:
        radius = rng.uniform(0.2, 0.32) * size
        x, y = rng.uniform(1.2 * radius, size - 1.2 * radius, 2)
        return [Placement(x, y, radius, turns[0])]
    step = np.array(RELATIONS[scene.relation])
    radii = rng.uniform(0.165, 0.205, 2) * size
    middle = size / 2 + np.where(step == 0, rng.uniform(-0.18, 0.18), rng.uniform(-0.03, 0.03)) * size
    places = []
    for side, radius, turn in zip((1, -1), radii, turns, strict=True):
        drift = np.where(step == 0, rng.uniform(-0.07, 0.07), 0) * size
        x, y = middle + drift + side * step * rng.uniform(0.235, 0.27) * size
        places.append(Placement(x, y, radius, turn))
    return places


def single_scenes() -> Iterator[Scene]:
    """Every scene with one thing."""
    for colour, shape, background in product(COLOURS, SHAPES, BACKGROUNDS):
        yield Scene((Thing(colour, shape),), background)


def random_pair(rng: np.random.Generator) -> Scene:
    """A scene of two things in different colours."""
    colours = rng.choice(list(COLOURS), 2, replace=False)
    shapes = rng.choice(SHAPES, 2)
    things = tuple(Thing(str(colour), str(shape)) for colour, shape in zip(colours, shapes, strict=True))
    return Scene(things, str(rng.choice(list(BACKGROUNDS))), str(rng.choice(list(RELATIONS))))


def random_single(rng: np.random.Generator) -> Scene:
    """A scene of one thing."""
    thing = Thing(str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)))
    return Scene((thing,), str(rng.choice(list(BACKGROUNDS))))


def draw_scenes(count: int, rng: np.random.Generator, *, evaluator: bool, pairs: float = 0.5) -> list[Scene]:
    """Random scenes, all from the training side or all from the held-out side; a share of them pairs."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_pair(rng) if rng.random() < pairs else random_single(rng)
        if scene.evaluator == evaluator:
            scenes.append(scene)
    return scenes


_THING = rf"an? (\w+) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(rf"{_THING}(?: ({'|'.join(RELATIONS)}) {_THING})? on an? (\w+) background")


def parse(caption: str) -> Scene:
    """Read a caption back into its scene. Raises ValueError for words outside the grammar."""
    match = _CAPTION.fullmatch(" ".join(caption.lower().split()))
    if match is None:
        raise ValueError(
            f"found caption {caption!r}; expected 'a red circle left of a blue star on a white background'"
        )
    colour, shape, relation, other_colour, other_shape, background = match.groups()
    things = (Thing(colour, shape),) + ((Thing(other_colour, other_shape),) if relation else ())
    if background not in BACKGROUNDS or any(thing.colour not in COLOURS for thing in things):
        raise ValueError(f"found an unknown colour in {caption!r}; expected {', '.join([*COLOURS, *BACKGROUNDS])}")
    return Scene(things, background, relation)

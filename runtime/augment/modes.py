"""Ways to make a new picture of a real one, and what becomes of its labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from latentrt.augment.geometry import STAY, Move, moved, placed
from latentrt.augment.labels import Bounds, Form, Label, box_outline
from latentrt.augment.masks import covered, dilated, free_place
from latentrt.augment.source import Picture
from latentrt.augment.templates import Templates
from latentrt.errors import RequestError
from latentrt.family import Family
from latentrt.images.control import Control
from latentrt.images.framing import Size, natural_sizes
from latentrt.images.photo import Bits
from latentrt.images.start import TEXT, Image, Inpaint, Outpaint, Start
from latentrt.values import Number

LEAST_BACKGROUND = 0.05
"""Share of a picture below which there is no background to repaint."""

LEAST_OWN = 0.6
"""Share of an object's box that no other object lies in, below which it is not repainted."""

_TRIES = 50  # sizes that are drawn for an object to insert
_STRENGTH = Number(0, 1, above=True)


class NotApplicable(Exception):  # noqa: N818 - no error: the mode has nothing to do for this picture
    """Why a mode makes nothing of a picture."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What all modes work with.

    Args:
        form: of the labels.
        templates: of the prompts.
        family: of the model.
        control: name of the ControlNet that reads edges.
        visible: the least share of an object's area that keeps its label.
        dilate: pixels around objects that stay when the background is repainted, and over which an object that is
            repainted fades into what is around it.
        extend: the most that a picture is continued by, as a share of its sides.
        objects: real ones by class, each with its picture.
    """

    form: Form
    templates: Templates
    family: Family
    control: str | None = None
    visible: float = 0.3
    dilate: int = 8
    extend: float = 0.25
    objects: Mapping[int, Sequence[tuple[Picture, Label]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class View:
    """A picture at the size at which it is worked on.

    Args:
        picture: the real one.
        path: of the file that is worked on.
        size: of that, in pixels.
        labels: on that.
        mask_path: where a mask may be written.
        start_path: where a picture to start from may be.
    """

    picture: Picture
    path: Path
    size: Size
    labels: tuple[Label, ...]
    mask_path: Path
    start_path: Path


@dataclass(frozen=True, slots=True)
class Paste:
    """A real object that a new one begins with, so that the noise leads to something of its size and place.

    Args:
        picture: that shows it.
        bounds: where it is on that.
        onto: where it comes to, within the mask.
    """

    picture: Picture
    bounds: Bounds
    onto: Bounds


@dataclass(frozen=True, slots=True)
class Made:
    """What is to be made of a picture.

    Args:
        start, control, size: of the request.
        prompt: its prompt.
        labels: that will be true of the result.
        mask: bool [H, W] to be written to the view's `mask_path`.
        edges: whether a picture of the view's edges is to be written there.
        paste: what the view has, at its `start_path`, where the mask is.
        changed: indices of labels that are of new objects.
    """

    start: Start
    prompt: str
    labels: tuple[Label, ...]
    control: tuple[Control, ...] = ()
    size: Size | None = None
    mask: Bits | None = None
    edges: bool = False
    paste: Paste | None = None
    changed: tuple[int, ...] = ()


Maker = Callable[[Ground, View, float, np.random.Generator], Made]


@dataclass(frozen=True, slots=True)
class Kind:
    """A mode.

    Args:
        help: a line about it.
        make: makes nothing yet, but says what is to be made.
        strength: used where none is given.
        tasks: of labels that it keeps true.
        needs: components of the bundle.
    """

    help: str
    make: Maker
    strength: float
    tasks: tuple[str, ...] = ("detect", "segment", "obb", "pose", "classify")
    needs: tuple[str, ...] = ("encoder",)


@dataclass(frozen=True, slots=True)
class Mode:
    """A mode and its strength.

    Raises:
        RequestError: no such mode, or a strength out of range.
    """

    name: str
    strength: float

    @classmethod
    def read(cls, text: str) -> "Mode":
        """`image:0.4` or `image`."""
        name, _, number = text.partition(":")
        if name not in MODES:
            raise RequestError(f"mode '{name}'", expected=f"one of {', '.join(MODES)}")
        try:
            strength = float(number) if number else MODES[name].strength
        except ValueError:
            raise RequestError(f"mode '{text}'", expected=f"such as {name}:{MODES[name].strength:g}") from None
        return cls(name, _STRENGTH.read(f"strength of {name}", strength))

    @property
    def kind(self) -> Kind:
        return MODES[self.name]

    def __str__(self) -> str:
        return f"{self.name}:{self.strength:g}"


def _image(ground: Ground, view: View, strength: float, rng: np.random.Generator) -> Made:
    return Made(Image(str(view.path), strength), _prompt(ground, view, rng), view.labels)


def _edges(ground: Ground, view: View, strength: float, rng: np.random.Generator) -> Made:
    control = Control(ground.control or "", str(view.mask_path))
    start = Image(str(view.path), strength)
    return Made(start, _prompt(ground, view, rng), view.labels, control=(control,), edges=True)


def _background(ground: Ground, view: View, strength: float, rng: np.random.Generator) -> Made:
    if not view.labels:
        raise NotApplicable("no objects")
    mask = ~dilated(covered(view.labels, view.size), ground.dilate)
    if mask.mean() < LEAST_BACKGROUND:
        raise NotApplicable("hardly any background")
    _, size = natural_sizes(view.size, ground.family)
    start = Inpaint(str(view.path), str(view.mask_path), strength, margin=0)
    return Made(start, _surroundings(ground, view, rng), view.labels, size=size, mask=mask)


def _object(ground: Ground, view: View, strength: float, rng: np.random.Generator) -> Made:
    index = _free_object(view, rng)
    return _repainted(ground, view, strength, rng, index, view.labels[index].category)


def _swap(ground: Ground, view: View, strength: float, rng: np.random.Generator) -> Made:
    if len(ground.form.names) < 2:
        raise NotApplicable("one class alone")
    index = _free_object(view, rng)
    other = int(rng.integers(len(ground.form.names) - 1))
    return _repainted(ground, view, strength, rng, index, other + (other >= view.labels[index].category))


def _insert(ground: Ground, view: View, strength: float, rng: np.random.Generator) -> Made:
    if not ground.objects:
        raise NotApplicable("no object whose size could be taken")
    kept = covered(view.labels, view.size)
    taken = dilated(kept, ground.dilate)
    for _ in range(_TRIES):
        category = int(rng.choice(sorted(ground.objects)))
        picture, model = ground.objects[category][int(rng.integers(len(ground.objects[category])))]
        width, height = model.bounds[2] - model.bounds[0], model.bounds[3] - model.bounds[1]
        at = free_place(taken, (width, height), rng)
        if at is not None:
            label = Label(category, box_outline((*at, at[0] + width, at[1] + height)))
            mask = dilated(covered([label], view.size), ground.dilate) & ~kept
            paste = Paste(picture, model.bounds, label.bounds)
            labels = (*view.labels, label)
            return _with_object(ground, view, strength, rng, mask, labels, len(view.labels), paste)
    raise NotApplicable("no room for an object")


def _outpaint(ground: Ground, view: View, strength: float, rng: np.random.Generator) -> Made:
    width, height = view.size
    across, down = round(ground.extend * width), round(ground.extend * height)
    left, top = int(rng.integers(across + 1)), int(rng.integers(down + 1))
    sides = {"left": left, "right": across - left, "top": top, "bottom": down - top}
    move = placed(view.size, (left, top), (width + across, height + down))
    start = Outpaint(str(view.path), strength=strength, **sides)
    return Made(start, _surroundings(ground, view, rng), moved_all(ground, view.labels, move))


def _prompts(ground: Ground, view: View, strength: float, rng: np.random.Generator) -> Made:
    name = view.picture.folder or ""
    return Made(TEXT, ground.templates.of_class(name, rng, file=view.picture.path.name), ())


MODES: Mapping[str, Kind] = {
    "image": Kind("the whole picture, changed a little", _image, 0.4),
    "edges": Kind("anew along its edges, through a ControlNet", _edges, 1.0),
    "background": Kind(
        "anew around the objects, which stay to the bit", _background, 1.0, ("detect", "segment", "obb", "pose")
    ),
    "object": Kind("one object anew in its place", _object, 1.0, ("detect", "segment", "obb")),
    "swap": Kind("one object as another class", _swap, 0.6, ("detect", "segment", "obb")),
    "insert": Kind("one more object where there is room", _insert, 0.6, ("detect", "obb")),
    "outpaint": Kind("continued beyond its sides", _outpaint, 1.0),
    "prompts": Kind("from words alone", _prompts, 1.0, ("classify",), ()),
}


def moved_all(ground: Ground, labels: Sequence[Label], move: Move) -> tuple[Label, ...]:
    """The labels on another picture, without those of which too little is left."""
    if move == STAY:
        return tuple(labels)
    found = (moved(label, move, task=ground.form.task, visible=ground.visible) for label in labels)
    return tuple(label for label in found if label is not None)


def _prompt(ground: Ground, view: View, rng: np.random.Generator) -> str:
    names = [ground.form.names[label.category] for label in view.labels]
    if view.picture.folder is not None:
        names = [view.picture.folder]
    return ground.templates.of_picture(names, rng, file=view.picture.path.name)


def _surroundings(ground: Ground, view: View, rng: np.random.Generator) -> str:
    """The template of backgrounds, so that no object is drawn that no label is of; the picture's without one."""
    prompt = ground.templates.of_background(rng, file=view.picture.path.name)
    return _prompt(ground, view, rng) if prompt is None else prompt


def _free_object(view: View, rng: np.random.Generator) -> int:
    """An object of which no other one covers much."""
    shares = []
    for index, label in enumerate(view.labels):
        own = covered([label], view.size)
        others = covered([*view.labels[:index], *view.labels[index + 1 :]], view.size)
        shares.append((own & ~others).sum() / max(1, own.sum()))
    free = [index for index, share in enumerate(shares) if share >= LEAST_OWN]
    if not free:
        raise NotApplicable("no object that stands free")
    return int(rng.choice(free))


def _repainted(
    ground: Ground, view: View, strength: float, rng: np.random.Generator, index: int, category: int
) -> Made:
    label = view.labels[index]
    others = [*view.labels[:index], *view.labels[index + 1 :]]
    mask = dilated(covered([label], view.size), ground.dilate) & ~covered(others, view.size)
    labels = list(view.labels)
    labels[index] = replace(label, category=category)
    paste = None
    if category != label.category and ground.objects.get(category):
        picture, model = min(ground.objects[category], key=lambda each: abs(_aspect(each[1]) - _aspect(label)))
        paste = Paste(picture, model.bounds, label.bounds)
    return _with_object(ground, view, strength, rng, mask, tuple(labels), index, paste)


def _with_object(
    ground: Ground,
    view: View,
    strength: float,
    rng: np.random.Generator,
    mask: Bits,
    labels: tuple[Label, ...],
    index: int,
    paste: Paste | None,
) -> Made:
    """A part of the picture anew, as the object of that index, seen with half its size around it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    longest = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    photo = view.path if paste is None else view.start_path
    start = Inpaint(str(photo), str(view.mask_path), strength, margin=int(longest) // 2, feather=ground.dilate)
    name = ground.form.names[labels[index].category]
    prompt = ground.templates.of_class(name, rng, file=view.picture.path.name)
    return Made(start, prompt, labels, mask=mask, paste=paste, changed=(index,))


def _aspect(label: Label) -> float:
    left, top, right, bottom = label.bounds
    return float(np.log((right - left) / (bottom - top)))

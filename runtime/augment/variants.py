"""Which new pictures are made of which real ones: copies, balance, modes by turns, seeds."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.augment.geometry import FITS, fitted, placed
from latentrt.augment.labels import Bounds, Label
from latentrt.augment.modes import Ground, Made, Mode, NotApplicable, Paste, View, moved_all
from latentrt.augment.source import Picture, Source, held_out
from latentrt.datasets.request_file import Line
from latentrt.errors import RequestError
from latentrt.images.edges import canny
from latentrt.images.framing import Size, resized
from latentrt.images.photo import Bits, Pixels, read_photo
from latentrt.images.start import TEXT
from latentrt.output.png import write_png
from latentrt.request import Request
from latentrt.values import Kind, Number, OneOf, Optional, Whole, settle
from latentrt.values import Size as SizeKind

PADDING = 114  # the grey that Ultralytics pads with
MOST_COPIES = 10_000
_PLAN: Mapping[str, Kind] = {
    "copies": Whole(0, MOST_COPIES),
    "balance": Number(0, 1),
    "most_copies": Whole(1, MOST_COPIES),
    "empty": Number(0, 100),
    "seed": Whole(0),
    "size": Optional(SizeKind()),
    "fit": OneOf(FITS),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """How many pictures are made, of which kind.

    Args:
        modes: taken by turns.
        copies: of each training picture.
        balance: 0 makes as many of each; 1 makes so many more of pictures with rare classes that classes become equal,
            as far as `most_copies` allows.
        most_copies: of one picture.
        empty: pictures without objects, as a share of the training pictures.
        seed: decides all seeds and draws.
        size: (width, height) that pictures have before anything is made of them; None is their own.
        fit: how they come to that: one of `FITS`.

    Raises:
        RequestError: a value out of range.
    """

    modes: tuple[Mode, ...]
    copies: int = 1
    balance: float = 0.0
    most_copies: int = 10
    empty: float = 0.0
    seed: int = 0
    size: Size | None = None
    fit: str = "crop"

    def __post_init__(self) -> None:
        settle(self, _PLAN)
        if not self.modes:
            raise RequestError("no mode", expected="one at least")


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """One picture to be made.

    Args:
        name: without suffix.
        source: the real picture; None of a picture from words alone.
        mode: None of a picture without objects.
        copy: its number among those of its source.
        seed: of the request.
        folder: its class, where folders are classes.
        view, made: what it is made of.
    """

    name: str
    source: Picture | None
    mode: Mode | None
    copy: int
    seed: int
    made: Made
    folder: str | None = None
    view: View | None = None

    @property
    def labels(self) -> tuple[Label, ...]:
        return self.made.labels

    def line(self, number: int, defaults: Request) -> Line:
        """As a line of a bulk run."""
        size = self.made.size if self.made.size is not None else (defaults.size if self.made.start == TEXT else None)
        request = replace(
            defaults,
            prompt=self.made.prompt,
            seed=self.seed,
            start=self.made.start,
            control=self.made.control,
            size=size,
        )
        return Line(number, request, (f"{self.name}.png",), {})


def plan(
    source: Source, ground: Ground, copies: Copies, folder: Path, *, per_class: Sequence[str] = ()
) -> tuple[list[Variant], Counter[str]]:
    """The pictures to make, and how often a mode had nothing to do, by its reason. Writes pictures of other sizes,
    masks and edges to `folder`, each once.

    Args:
        folder: is made if it is missing.
        per_class: names of classes that pictures are made of from words alone, without a source.
    """
    folder.mkdir(parents=True, exist_ok=True)
    skipped: Counter[str] = Counter()
    variants: list[Variant] = []
    train = source.of("train")
    counts = copies_of(source, copies)
    held = held_out(source)
    for picture in train:
        if picture.name in held:
            skipped["in val or test as well"] += counts[picture.name]
            continue
        variants += _of_picture(picture, counts[picture.name], ground, copies, folder, skipped)
    for index in range(round(copies.empty * len(train))):
        seed, rng = _draws(copies.seed, "empty", "", index)
        made = Made(TEXT, ground.templates.of_background(rng) or "", ())
        variants.append(Variant(f"empty-{index + 1:05d}", None, None, index, seed, made))
    for name in per_class:
        for index in range(copies.copies):
            seed, rng = _draws(copies.seed, "prompts", name, index)
            made = Made(TEXT, ground.templates.of_class(name, rng), ())
            variants.append(Variant(f"{name}-{index + 1:05d}", None, copies.modes[0], index, seed, made, folder=name))
    return variants, skipped


def copies_of(source: Source, copies: Copies) -> dict[str, int]:
    """How many are made of each training picture, by its name: (most / count) ** balance of its rarest class."""
    train = source.of("train")
    counts = class_counts(train)
    most = max(counts.values(), default=1)
    found = {}
    for picture in train:
        own = _classes(picture)
        factor = max(((most / counts[name]) ** copies.balance for name in own), default=1.0)
        found[picture.name] = min(max(copies.copies, copies.most_copies), int(copies.copies * factor + 0.5))
    return found


def class_counts(pictures: Sequence[Picture]) -> Counter[Any]:
    """How many objects of each class, by its index, or pictures by its folder."""
    return Counter(name for picture in pictures for name in _classes(picture))


def _classes(picture: Picture) -> list[Any]:
    return [label.category for label in picture.labels] if picture.folder is None else [picture.folder]


def _of_picture(
    picture: Picture, count: int, ground: Ground, copies: Copies, folder: Path, skipped: Counter[str]
) -> Iterator[Variant]:
    for index in range(count):
        mode = copies.modes[index % len(copies.modes)]
        seed, rng = _draws(copies.seed, str(mode), picture.name, index)
        name = f"{picture.name}-{mode.name}-{index + 1}"
        view = _view(picture, ground, copies, folder, name)
        try:
            made = mode.kind.make(ground, view, mode.strength, rng)
        except NotApplicable as why:
            skipped[f"{mode.name}: {why}"] += 1
            continue
        _write_parts(view, made)
        yield Variant(name, picture, mode, index, seed, made, folder=picture.folder, view=view)


def _view(picture: Picture, ground: Ground, copies: Copies, folder: Path, name: str) -> View:
    parts = folder / f"{name}.png", folder / f"{name}-start.png"
    if copies.size is None or copies.size == picture.size:
        return View(picture, picture.path.resolve(), picture.size, picture.labels, *parts)
    size, at = fitted(picture.size, copies.size, copies.fit)
    path = folder / f"{picture.name}-source.png"
    if not path.exists():
        write_png(path, _drawn_on(read_photo(picture.path).on_white(), size, at, copies.size))
    labels = moved_all(ground, picture.labels, placed(size, at, copies.size))
    return View(picture, path.resolve(), copies.size, labels, *parts)


def _drawn_on(pixels: Pixels, size: Size, at: tuple[int, int], canvas: Size) -> Pixels:
    """The picture at `size` with its top left corner at `at`, on grey."""
    (width, height), (left, top) = canvas, at
    drawn = resized(pixels, size)
    whole = np.full((height, width, 3), PADDING, np.uint8)
    inner = drawn[max(0, -top) : height - top, max(0, -left) : width - left]
    whole[max(0, top) : max(0, top) + len(inner), max(0, left) : max(0, left) + inner.shape[1]] = inner
    return whole


def _write_parts(view: View, made: Made) -> None:
    """Mask or edges, and what is pasted, unless they are there as they are to be."""
    if made.mask is not None:
        _write_if_new(view.mask_path, np.repeat(made.mask[..., None], 3, axis=2) * np.uint8(255))
    elif made.edges:
        _write_if_new(view.mask_path, canny(str(view.path)))
    if made.paste is not None and made.mask is not None:
        _write_if_new(view.start_path, _pasted(view, made.paste, made.mask))


def _pasted(view: View, paste: Paste, mask: Bits) -> Pixels:
    """The view, with a real object of another place where the mask is."""
    pixels = read_photo(view.path).on_white().copy()
    photo = read_photo(paste.picture.path).on_white()
    left, top, right, bottom = _in_pixels(paste.bounds, (photo.shape[1], photo.shape[0]))
    x, y, u, v = _in_pixels(paste.onto, view.size)
    inner = mask[y:v, x:u]
    pixels[y:v, x:u][inner] = resized(photo[top:bottom, left:right], (u - x, v - y))[inner]
    return pixels


def _in_pixels(bounds: Bounds, size: Size) -> tuple[int, int, int, int]:
    """A box in whole pixels, at least one each way."""
    (left, top, right, bottom), (width, height) = bounds, size
    x, y = min(int(left * width), width - 1), min(int(top * height), height - 1)
    return x, y, max(x + 1, min(width, round(right * width))), max(y + 1, min(height, round(bottom * height)))


def _write_if_new(path: Path, pixels: Pixels) -> None:
    from PIL import Image

    if path.exists():
        with Image.open(path) as there:
            if np.array_equal(np.asarray(there.convert("RGB")), pixels):
                return
    write_png(path, pixels)


def _draws(seed: int, mode: str, source: str, copy: int) -> tuple[int, np.random.Generator]:
    """A seed and a generator that depend on no other picture."""
    digest = hashlib.sha256(f"{seed}/{mode}/{source}/{copy}".encode()).digest()
    return int.from_bytes(digest[:4], "big"), np.random.default_rng(int.from_bytes(digest[4:20], "big"))

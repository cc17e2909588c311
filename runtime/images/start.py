"""Start values: what a run begins with. A task is one of these, not a pipeline of its own (docs/tasks.md)."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from latentrt.arrays import FloatArray
from latentrt.errors import RequestError
from latentrt.images.framing import (
    Canvas,
    Frame,
    Size,
    contained,
    covering,
    covering_mask,
    crop_around,
    inward,
    natural_sizes,
    resized,
    resized_mask,
    soft_border,
)
from latentrt.images.photo import Bits, Pixels, Source, read_mask, read_photo
from latentrt.values import Kind, Number, Optional, Whole, settle

if TYPE_CHECKING:
    from latentrt.family import Family
    from latentrt.images.photo import Mask, Photo

STRENGTH = Number(0, 1, above=True)
SIDE = Whole(0, 1 << 15)
"""Pixels at a side of a picture."""

MOST_PIXELS = 89_478_485
"""Of a picture that is made larger: as many as Pillow reads."""


@dataclass(frozen=True, slots=True)
class Text:
    """From noise alone: text to image."""

    def canvas(self, size: Size | None, family: Family) -> Canvas:
        return Canvas(size=size if size is not None else family.defaults.size)


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """From a photo: image to image.

    Args:
        photo: a path, a Pillow image, or uint8 [H, W], [H, W, 3] or [H, W, 4]. Transparent parts become white.
        strength: above 0, at most 1: the share of the steps that are taken, and how far the result may go.

    Raises:
        RequestError: a strength out of range.
    """

    photo: Photo
    strength: float = 0.75

    def __post_init__(self) -> None:
        settle(self, {"photo": Source("photo"), "strength": STRENGTH})

    def canvas(self, size: Size | None, family: Family) -> Canvas:
        photo = read_photo(self.photo).on_white()
        if size is not None:
            return Canvas(size=size, strength=self.strength, image=covering(photo, size))
        frame = _natural(photo, family)
        return Canvas(size=frame.size, strength=self.strength, image=frame.view(), frame=frame)


@dataclass(frozen=True, slots=True, eq=False)
class Inpaint:
    """A part of a photo anew.

    Args:
        photo: as for `Image`.
        mask: white (True, from 128) where to paint, of the photo's size; a path, a Pillow image, uint8 or bool. None:
            where the photo is transparent.
        strength: above 0, at most 1.
        margin: None works on the whole photo. A number crops the painted part with so many pixels around it, works on
            that at full size, and pastes it back: pixels outside the mask stay as they are, to the bit.
        feather: pixels of the photo, inside the mask's border, over which the paste fades in; with a margin only. None
            is a sixteenth of the painted part, or more where the model sees it reduced: see `soft_border`.

    Raises:
        RequestError: a value out of range.
    """

    photo: Photo
    mask: Mask | None = None
    strength: float = 1.0
    _: KW_ONLY
    margin: int | None = None
    feather: int | None = None

    def __post_init__(self) -> None:
        kinds: dict[str, Kind] = {"photo": Source("photo"), "mask": Optional(Source("mask")), "strength": STRENGTH}
        settle(self, kinds | {"margin": Optional(SIDE), "feather": Optional(Whole(0, 1024))})

    def canvas(self, size: Size | None, family: Family) -> Canvas:
        photo, mask = self._read()
        if self.margin is not None:
            size = size if size is not None else family.defaults.size
            box = crop_around(mask, self.margin, size)
            inner = contained((box[2] - box[0], box[3] - box[1]), size)
            feather = soft_border(mask, box, inner, family) if self.feather is None else self.feather
            frame = Frame(photo, box, inner, size, alpha=inward(mask, feather))
            return _painted(frame, mask, self.strength, family)
        if size is None:
            frame = _natural(photo, family)
            return _painted(frame, resized_mask(mask, frame.inner), self.strength, family)
        paint = _check_paint(covering_mask(mask, size), family)
        return Canvas(size=size, strength=self.strength, image=covering(photo, size), paint=paint)

    def _read(self) -> tuple[Pixels, Bits]:
        picture = read_photo(self.photo)
        if self.mask is not None:
            photo, mask = picture.on_white(), read_mask(self.mask)
        elif picture.opacity is not None:
            photo, mask = picture.rgb, picture.opacity < 128
        else:
            raise RequestError(
                "no mask, and the photo is nowhere transparent", expected="mask=, or transparent where to paint"
            )
        if (mask.shape[1], mask.shape[0]) != picture.size:
            raise RequestError(
                f"the mask is {mask.shape[1]}x{mask.shape[0]} px",
                expected=f"{picture.size[0]}x{picture.size[1]}, as the photo",
            )
        if not mask.any():
            raise RequestError("the mask is empty", expected="white (from 128) where to paint")
        return photo, mask


@dataclass(frozen=True, slots=True, eq=False)
class Outpaint:
    """A photo continued beyond its sides. The result has the photo's size and what was added; beyond the overlap, the
    photo's pixels are in it as they are, to the bit.

    Args:
        photo: as for `Image`.
        left, right, top, bottom: pixels to add, at least one of them.
        strength: above 0, at most 1. The new part starts from the photo's repeated edge pixels.
        overlap: pixels of the photo, along the sides that are continued, that are painted as well and fade into it.

    Raises:
        RequestError: a value out of range.
    """

    photo: Photo
    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0
    _: KW_ONLY
    strength: float = 1.0
    overlap: int = 16

    def __post_init__(self) -> None:
        sides = dict.fromkeys(("left", "right", "top", "bottom", "overlap"), SIDE)
        settle(self, {"photo": Source("photo"), "strength": STRENGTH, **sides})
        if not (self.left or self.right or self.top or self.bottom):
            raise RequestError("nothing to add to the photo", expected="left, right, top or bottom above 0")

    def canvas(self, size: Size | None, family: Family) -> Canvas:
        photo = read_photo(self.photo).on_white()
        area = (photo.shape[1] + self.left + self.right) * (photo.shape[0] + self.top + self.bottom)
        if area > MOST_PIXELS:
            raise RequestError(f"the continued photo has {area} pixels", expected=f"at most {MOST_PIXELS}")
        across = _share_made(photo.shape[1], self.left, self.right, self.overlap)
        down = _share_made(photo.shape[0], self.top, self.bottom, self.overlap)
        alpha = np.maximum(across[None, :], down[:, None])
        whole = np.pad(photo, ((self.top, self.bottom), (self.left, self.right), (0, 0)), mode="edge")
        full = whole.shape[1], whole.shape[0]
        inner, size = natural_sizes(full, family) if size is None else (contained(full, size), size)
        return _painted(Frame(whole, (0, 0, *full), inner, size, alpha=alpha), alpha > 0, self.strength, family)


@dataclass(frozen=True, slots=True, eq=False)
class Latent:
    """From a latent, in the scale that the network sees.

    Args:
        x: float32 [C, h, w], or [N, C, h, w] with one for each image of the request.
        denoising_start: share of the run's steps that the latent has behind it, from 0 to below 1. It stands
            at that noise level of this sampler and schedule, is taken as it is, and the rest of the steps is made: how
            a second model goes on where a first one stopped.
        strength: instead of `denoising_start`: the latent is clean and is noised as a photo's would be.

    Raises:
        RequestError: no finite latent of that shape, or not exactly one of the two, or one out of range.
    """

    x: FloatArray
    denoising_start: float | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        x = self.x
        if not isinstance(x, np.ndarray) or x.ndim not in (3, 4) or x.dtype != np.float32 or not np.isfinite(x).all():
            found = f"{x.dtype} {list(x.shape)}" if isinstance(x, np.ndarray) else type(x).__name__
            raise RequestError(f"the latent is {found}", expected="finite float32 [C, h, w] or [N, C, h, w]")
        if (self.denoising_start is None) == (self.strength is None):
            raise RequestError("a latent start needs denoising_start or strength", expected="one of them, not both")
        settle(self, {"denoising_start": Optional(Number(0, 1, below=True)), "strength": Optional(STRENGTH)})

    def canvas(self, size: Size | None, family: Family) -> Canvas:
        latents = self.x if self.x.ndim == 4 else self.x[None]
        own = latents.shape[3] * family.vae_factor, latents.shape[2] * family.vae_factor
        if latents.shape[1] != family.latent_channels or size not in (None, own):
            width, height = size if size is not None else own
            raise RequestError(
                f"the latent is {list(self.x.shape)}",
                expected=f"[{family.latent_channels}, {height // family.vae_factor}, {width // family.vae_factor}] "
                f"for {width}x{height} px",
            )
        return Canvas(size=own, strength=self.strength, latents=latents, denoising_start=self.denoising_start)


Start: TypeAlias = Text | Image | Inpaint | Outpaint | Latent
TEXT = Text()


def _natural(photo: Pixels, family: Family) -> Frame:
    """The photo at the size that it has by itself."""
    inner, size = natural_sizes((photo.shape[1], photo.shape[0]), family)
    return Frame(resized(photo, inner), (0, 0, *inner), inner, size)


def _painted(frame: Frame, mask: Bits, strength: float, family: Family) -> Canvas:
    """A canvas to be painted within a mask of the frame's whole picture. Where the result is pasted, every latent pixel
    that the mask touches is painted: what lies beyond the mask is not pasted."""
    paint = frame.view_mask(mask)
    if frame.alpha is not None:
        paint = _whole_cells(paint, family.vae_factor)
    paint = _check_paint(paint, family)
    return Canvas(size=frame.size, strength=strength, image=frame.view(), paint=paint, frame=frame)


def _whole_cells(paint: Bits, factor: int) -> Bits:
    height, width = paint.shape
    cells = np.asarray(paint.reshape(height // factor, factor, width // factor, factor).any(axis=(1, 3)))
    return cells.repeat(factor, axis=0).repeat(factor, axis=1)


def _share_made(length: int, before: int, after: int, overlap: int) -> FloatArray:
    """float32 [before + length + after]: 1 in what is added, falling to 0 over the overlap."""
    place = np.arange(-before, length + after, dtype=np.float32)
    share = np.zeros(len(place), np.float32)
    if before:
        share = np.maximum(share, (overlap - place) / (overlap + 1))
    if after:
        share = np.maximum(share, (overlap - (length - 1 - place)) / (overlap + 1))
    return share.clip(0, 1)


def _check_paint(paint: Bits, family: Family) -> Bits:
    """The mask, if any of the latent's pixels is painted."""
    if not paint[:: family.vae_factor, :: family.vae_factor].any():
        raise RequestError(
            "the mask is too thin: no pixel of the latent is painted",
            expected=f"strokes at least {family.vae_factor} px wide at the size that is made",
        )
    return paint

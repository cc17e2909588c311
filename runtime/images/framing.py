"""What a start value comes to for the model - a picture of an allowed size, where to paint - and the way back."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from latentrt.arrays import FloatArray
from latentrt.errors import RequestError
from latentrt.images.photo import HALF, Bits, Pixels

if TYPE_CHECKING:
    from latentrt.family import Family

Size: TypeAlias = tuple[int, int]
Box: TypeAlias = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom are the first ones beyond."""

log = logging.getLogger(__name__)
_T = TypeVar("_T", bound=np.generic)

LARGEST_AREA = 2.25
SMALLEST_AREA = 0.5
"""Areas that a model still composes well, as a share of the area that it was trained at."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """How a part of a picture lies in the model's picture: at its top left, edge pixels repeated beyond.

    Args:
        whole: uint8 [H, W, 3], the picture.
        box: the part of it.
        inner: (width, height) of that part in the model's picture.
        size: (width, height) of the model's picture.
        alpha: float32 [H, W] of `whole`, the share of what the model made; None keeps nothing of the picture, and
            then the result is the part alone.
    """

    whole: Pixels
    box: Box
    inner: Size
    size: Size
    alpha: FloatArray | None = None

    def view(self) -> Pixels:
        """The model's picture, uint8 [height, width, 3]."""
        return self._padded(resized(_cut(self.whole, self.box), self.inner))

    def view_mask(self, mask: Bits) -> Bits:
        """A mask of the whole picture, bool [H, W], in the model's; False beyond the part."""
        (width, height), (inner_width, inner_height) = self.size, self.inner
        seen = np.zeros((height, width), np.bool_)
        seen[:inner_height, :inner_width] = resized_mask(_cut(mask, self.box), self.inner)
        return seen

    def restore(self, made: Pixels) -> Pixels:
        """What the model made, uint8 [height, width, 3], put back. Pixels of alpha 0 are the picture's own."""
        left, top, right, bottom = self.box
        part = resized(made[: self.inner[1], : self.inner[0]], (right - left, bottom - top))
        if self.alpha is None:
            return part
        result = self.whole.copy()
        under = _cut(self.whole, self.box)
        alpha = _cut(self.alpha, self.box)[..., None]
        result[top:bottom, left:right] = np.rint(under + alpha * (part.astype(np.float32) - under))
        return result

    def _padded(self, pixels: Pixels) -> Pixels:
        (width, height), (inner_width, inner_height) = self.size, self.inner
        return np.pad(pixels, ((0, height - inner_height), (0, width - inner_width), (0, 0)), mode="edge")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Canvas:
    """What one request's images start from.

    Args:
        size: (width, height) of the model's picture.
        strength: share of the steps that are taken, from a noised picture or latent; None starts from noise alone.
        image: uint8 [H, W, 3], to be encoded.
        paint: bool [H, W], where the model paints; None is everywhere.
        latents: float32 [N, C, h, w] instead of an image, N one or the images of the request.
        denoising_start: share of the run that `latents` have behind them; they are taken as they are.
        frame: the way back; None leaves the model's picture as it is.
    """

    size: Size
    strength: float | None = None
    image: Pixels | None = None
    paint: Bits | None = None
    latents: FloatArray | None = None
    denoising_start: float | None = None
    frame: Frame | None = None

    @property
    def output_size(self) -> Size:
        """(width, height) of the finished image."""
        if self.frame is None:
            return self.size
        left, top, right, bottom = self.frame.box
        height, width = self.frame.whole.shape[:2]
        return (right - left, bottom - top) if self.frame.alpha is None else (width, height)

    def finish(self, made: Pixels) -> Pixels:
        """The finished image of the model's, both uint8 [H, W, 3]."""
        return made if self.frame is None else self.frame.restore(made)


def natural_sizes(photo: Size, family: Family) -> tuple[Size, Size]:
    """What to work at where nobody says: the photo's own size, less where that is far beyond the trained size.

    Returns:
        The photo's size for the model, and that rounded up to what the model takes.
    """
    width, height = photo
    low, high = family.size_range_px
    trained = math.prod(family.defaults.size)
    scale = min(1.0, math.sqrt(LARGEST_AREA * trained / (width * height)), high / max(photo))
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    size = _rounded_up(inner[0], family.vae_factor), _rounded_up(inner[1], family.vae_factor)
    if min(size) < low:
        raise RequestError(
            f"the photo is {width}x{height} px" + (f", {inner[0]}x{inner[1]} for this bundle" if scale < 1 else ""),
            expected=f"sides of at least {low} px",
            hint="give a size, to which it is enlarged and cropped",
        )
    return inner, size


@cache
def warn_untrained(size: Size, trained: Size) -> None:
    """Logs a warning, once for each size, where a picture made from noise alone is likely to be ill composed."""
    share = math.prod(size) / math.prod(trained)
    if not SMALLEST_AREA <= share <= LARGEST_AREA:
        fault = "repeat its subject" if share > 1 else "show a part of it"
        log.warning(
            "%dx%d px is %.2g times the area that this model is made for (%dx%d): the picture may %s; for a larger one"
            " ask for the trained size and upscale=",
            *size,
            share,
            *trained,
            fault,
        )


def covering(photo: Pixels, size: Size) -> Pixels:
    """The photo, resized to cover `size` (width, height) and cropped evenly."""
    return resized(photo, size, box=_middle(photo.shape[1], photo.shape[0], size))


def covering_mask(mask: Bits, size: Size) -> Bits:
    """A mask in the same way."""
    return resized_mask(mask, size, box=_middle(mask.shape[1], mask.shape[0], size))


def contained(part: Size, size: Size) -> Size:
    """`part` (width, height), scaled to lie within `size` and touch two sides."""
    scale = min(size[0] / part[0], size[1] / part[1])
    return min(size[0], max(1, round(part[0] * scale))), min(size[1], max(1, round(part[1] * scale)))


def crop_around(mask: Bits, margin: int, size: Size) -> Box:
    """The painted part of a mask with a margin around it, widened to the shape of `size` as far as there is room."""
    left, top, right, bottom = painted_part(mask, margin)
    aspect = size[0] / size[1]
    left, right = _widened(left, right, round((bottom - top) * aspect), mask.shape[1])
    top, bottom = _widened(top, bottom, round((right - left) / aspect), mask.shape[0])
    return left, top, right, bottom


def painted_part(mask: Bits, margin: int = 0) -> Box:
    """The painted part of a mask with a margin around it, as far as the picture goes."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, right = max(0, int(columns[0]) - margin), min(mask.shape[1], int(columns[-1]) + 1 + margin)
    top, bottom = max(0, int(rows[0]) - margin), min(mask.shape[0], int(rows[-1]) + 1 + margin)
    return left, top, right, bottom


def soft_border(mask: Bits, box: Box, inner: Size, family: Family) -> int:
    """Pixels over which a part that was made apart fades in: a sixteenth of the mask's thickness, and no less than what
    one value of the latent covers, whose tone ends as a step; at most a quarter, so that its middle is all new.

    Args:
        mask: bool [H, W], where the picture is painted.
        box, inner: the part that is worked on, and its (width, height) for the model.
    """
    border = int(np.count_nonzero(mask & (inward(mask, 1) < 1)))
    thickness = 4 * int(np.count_nonzero(mask)) / max(1, border)  # the side of a square, twice the width of a line
    cell = family.vae_factor * max((box[2] - box[0]) / inner[0], (box[3] - box[1]) / inner[1])
    return round(min(thickness / 4, max(thickness / 16, cell)))


def inward(mask: Bits, width: int) -> FloatArray:
    """float32 [H, W]: 0 outside the mask, rising over `width` pixels inside. Sides of the picture are no borders."""
    from PIL import Image, ImageFilter

    left, top, right, bottom = painted_part(mask, 1)
    share = np.zeros(mask.shape, np.float32)
    depth = mask[top:bottom, left:right].astype(np.float32)
    inside = Image.fromarray(depth.astype(np.uint8) * 255)
    for _ in range(width):
        inside = inside.filter(ImageFilter.MinFilter(3))
        depth += np.asarray(inside) == 255
    share[top:bottom, left:right] = depth / np.float32(width + 1)
    return share


def resized(pixels: Pixels, size: Size, *, box: tuple[float, float, float, float] | None = None) -> Pixels:
    """uint8 [H, W] or [H, W, 3] (or the part of it in `box`) at `size` (width, height), by Lanczos' filter."""
    from PIL import Image

    if box is None and (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=box))


def resized_mask(mask: Bits, size: Size, *, box: tuple[float, float, float, float] | None = None) -> Bits:
    """bool [H, W] at `size`: white where it is at least half white."""
    return resized(mask.astype(np.uint8) * np.uint8(255), size, box=box) >= HALF


def _middle(width: int, height: int, size: Size) -> tuple[float, float, float, float] | None:
    """The largest part of the shape of `size` in the middle of a picture; None where that is all of it."""
    scale = min(width / size[0], height / size[1])
    across, down = (width - scale * size[0]) / 2, (height - scale * size[1]) / 2
    return (across, down, width - across, height - down) if across or down else None


def _widened(low: int, high: int, length: int, limit: int) -> tuple[int, int]:
    """A span grown around its middle to `length`, moved to lie within 0..limit and cut to it."""
    length = min(max(length, high - low), limit)
    low = min(max(0, low - (length - (high - low)) // 2), limit - length)
    return low, low + length


def _rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _cut(array: npt.NDArray[_T], box: Box) -> npt.NDArray[_T]:
    left, top, right, bottom = box
    return array[top:bottom, left:right]

"""Pictures for ControlNets that read lines, made of photos: edges and line art, white on black."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from latentrt.errors import RequestError
from latentrt.images.photo import Bits, Pixels, read_photo
from latentrt.values import Number

if TYPE_CHECKING:
    from latentrt.images.photo import Photo

IntArray: TypeAlias = npt.NDArray[np.int32]
_LEVEL = Number(0, 1e6)
_FLAT, _STEEP = math.tan(math.radians(22.5)), math.tan(math.radians(67.5))
_BLUR_PX = 6
_FAINT, _LEAST, _USUAL = 8, 16, 127  # levels: lines that do not count, the least to divide by, what the median becomes


def canny(photo: Photo, *, low: float = 100, high: float = 200) -> Pixels:
    """Edges as ControlNets of that name were trained on, uint8 [H, W, 3].

    Source: Canny 1986; the variant of OpenCV's `Canny` with its defaults: Sobel's 3x3 derivatives without blur, the
    strongest channel, |dx| + |dy| as the magnitude.

    Args:
        photo: as for `latentrt.Image`.
        low, high: magnitudes from which a pixel continues an edge, and makes one.

    Raises:
        RequestError: no image, or thresholds that are not in order.
    """
    low, high = (_LEVEL.read(name, value) for name, value in (("low", low), ("high", high)))
    if low > high:
        raise RequestError(f"thresholds {low:g} and {high:g}", expected="0 or more, the lower one first")
    dx, dy = _gradient(read_photo(photo).on_white())
    size = np.abs(dx) + np.abs(dy)
    ridge = _is_ridge(size, dx, dy)
    edges = _grown(ridge & (size > high), ridge & (size > low))
    return _white_on_black(edges * np.uint8(255))


def lineart(photo: Photo) -> Pixels:
    """Dark strokes of a picture, uint8 [H, W, 3]: where it is darker than its surroundings.

    Source: `LineartStandardDetector` (controlnet_aux).

    Raises:
        RequestError: no image.
    """
    from PIL import Image, ImageFilter

    pixels = read_photo(photo).on_white()
    around = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(_BLUR_PX)), np.float32)
    dark = (around - pixels).min(axis=2).clip(0, 255)
    lines = dark[dark > _FAINT]
    scale = max(_LEAST, float(np.median(lines)) if lines.size else 0)
    return _white_on_black((dark / scale * _USUAL).clip(0, 255).astype(np.uint8))


def _gradient(pixels: Pixels) -> tuple[IntArray, IntArray]:
    """Derivatives [H, W] along x and y, of each pixel's strongest channel."""
    p = np.pad(pixels.astype(np.int32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    columns, rows = p[:-2] + 2 * p[1:-1] + p[2:], p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    dx, dy = columns[:, 2:] - columns[:, :-2], rows[2:] - rows[:-2]
    strongest = (np.abs(dx) + np.abs(dy)).argmax(axis=2)[..., None]
    return np.take_along_axis(dx, strongest, 2)[..., 0], np.take_along_axis(dy, strongest, 2)[..., 0]


def _is_ridge(size: IntArray, dx: IntArray, dy: IntArray) -> Bits:
    """Where the magnitude is the largest across the edge; of two alike the first."""
    height, width = size.shape
    p = np.pad(size, 1)

    def at(down: int, right: int) -> IntArray:
        return p[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    flat, steep = np.abs(dy) < _FLAT * np.abs(dx), np.abs(dy) > _STEEP * np.abs(dx)
    falling = dx.astype(np.int64) * dy < 0
    across = (size > at(0, -1)) & (size >= at(0, 1))
    along = (size > at(-1, 0)) & (size >= at(1, 0))
    diagonal = np.where(falling, (size > at(-1, 1)) & (size > at(1, -1)), (size > at(-1, -1)) & (size > at(1, 1)))
    ridge: Bits = np.where(flat, across, np.where(steep, along, diagonal))
    ridge[np.ix_((0, -1), (0, -1))] = False  # the picture's own corners: nothing lies across them
    return ridge


def _grown(seeds: Bits, allowed: Bits) -> Bits:
    """The pixels of `allowed` that are joined to `seeds`, diagonals counted."""
    found = seeds
    while True:
        p = np.pad(found, 1)
        wide = p[:, :-2] | p[:, 1:-1] | p[:, 2:]
        grown = (wide[:-2] | wide[1:-1] | wide[2:]) & allowed
        if (grown == found).all():
            return found
        found = grown


def _white_on_black(levels: Pixels) -> Pixels:
    return np.repeat(levels[..., None], 3, axis=2)

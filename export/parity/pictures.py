"""Pictures to start from and to be led by, in any size. Imports no torch."""

import numpy as np

from latentrt.images.photo import Bits, Pixels


def control_picture(size: tuple[int, int]) -> Pixels:
    """White lines on black: a ring and a frame, uint8 [height, width, 3] for (width, height)."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    radius = np.hypot((x - 0.4 * width) / width, (y - 0.45 * height) / height)
    edge = np.maximum(np.abs(x / width - 0.65), np.abs(y / height - 0.6))
    lines = (np.abs(radius - 0.25) < 0.012) | (np.abs(edge - 0.2) < 0.012)
    return np.repeat(lines[..., None] * np.uint8(255), 3, axis=-1)


def photo(size: tuple[int, int]) -> Pixels:
    """A red disc on a background that is nowhere the same, uint8 [height, width, 3] for (width, height)."""
    width, height = size
    y, x = (axis / length for axis, length in zip(np.mgrid[:height, :width], (height, width), strict=True))
    pixels = np.stack([200 + 30 * x, 255 - 50 * y, 180 + 15 * (x + y)], axis=-1).astype(np.uint8)
    pixels[np.hypot(x - 0.45, y - 0.5) < 0.25] = (220, 30, 30)
    return pixels


def mask(size: tuple[int, int]) -> Bits:
    """Where to paint: an oval, bool [height, width] for (width, height)."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    inside: Bits = np.hypot((x / width - 0.55) / 1.3, y / height - 0.45) < 0.25
    return inside

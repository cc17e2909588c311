"""Which pixels objects cover, and where there is room for one more."""

from collections.abc import Sequence

import numpy as np

from latentrt.augment.labels import Label, box_outline
from latentrt.images.framing import Size
from latentrt.images.photo import Bits


def covered(labels: Sequence[Label], size: Size) -> Bits:
    """bool [H, W], every pixel that an outline touches."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    canvas = Pillow.new("L", size)
    draw = ImageDraw.Draw(canvas)
    for label in labels:
        corners = label.outline * size
        draw.polygon([tuple(corner) for corner in corners], fill=255, outline=255)
        left, top, right, bottom = label.bounds
        if len(corners) == 4 and np.array_equal(label.outline, box_outline(label.bounds)):
            box = (
                int(left * size[0]),
                int(top * size[1]),
                int(np.ceil(right * size[0])),
                int(np.ceil(bottom * size[1])),
            )
            canvas.paste(255, box)
    return np.asarray(canvas) > 0


def dilated(mask: Bits, width: int) -> Bits:
    """The mask and what lies within `width` pixels of it, along rows and columns."""
    from PIL import Image as Pillow
    from PIL import ImageFilter

    grown = Pillow.fromarray(mask.astype(np.uint8) * np.uint8(255))
    for _ in range(width):
        grown = grown.filter(ImageFilter.MaxFilter(3))
    return np.asarray(grown) > 0


def free_place(taken: Bits, size: tuple[float, float], rng: np.random.Generator) -> tuple[float, float] | None:
    """Left and top of a box of this width and height that touches nothing taken, any such with equal chance.

    Args:
        taken: bool [H, W].
        size, and what is returned: as shares of the picture.
    """
    height, width = taken.shape
    across, down = min(width, int(np.ceil(size[0] * width))), min(height, int(np.ceil(size[1] * height)))
    sums = np.pad(taken.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    inside = sums[down:, across:] - sums[:-down, across:] - sums[down:, :-across] + sums[:-down, :-across]
    free = np.flatnonzero(inside == 0)
    if not free.size:
        return None
    row, column = divmod(int(rng.choice(free)), inside.shape[1])
    return min(column / width, 1 - size[0]), min(row / height, 1 - size[1])

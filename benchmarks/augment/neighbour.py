"""The detector that filters: parts that stand out from the rim, each of the class of the nearest labelled real one.

It knows the real training pictures alone, as a user's own detector does, and nothing of what the judge knows.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from latentrt.augment.scores import Detection, Detector
from latentrt.augment.source import Picture
from latentrt.images.photo import Pixels, read_photo

SIDE = 24  # of the mask by which parts are compared
CONTRAST = 60.0  # RGB distance from the rim
SPECK = 0.006  # share of a picture below which a part is none


def fitted(pictures: Sequence[Picture]) -> Detector:
    """The detector that these pictures make.

    A part is of the nearest one's class if it is as near to it as real ones of other pictures are to their own class.
    """
    known: list[tuple[int, int, np.ndarray]] = []
    for index, picture in enumerate(pictures):
        for box, mask in _parts(read_photo(picture.path).on_white()):
            centre = (np.array(box[:2]) + box[2:]) / 2 / picture.size
            nearest = min(picture.labels, key=lambda label: float(abs(label.outline.mean(axis=0) - centre).sum()))
            known.append((index, nearest.category, mask))
    owners, classes = np.array([each[:2] for each in known]).T
    masks = np.stack([mask for _, _, mask in known])
    near = 0.0
    for owner, category, mask in known:
        others = masks[(owners != owner) & (classes == category)]
        if len(others):
            near = max(near, float(abs(others - mask).mean(axis=(1, 2)).min()))

    def detect(pixels: Pixels) -> Iterator[Detection]:
        for box, mask in _parts(pixels):
            differences = abs(masks - mask).mean(axis=(1, 2))
            best = int(differences.argmin())
            yield (int(classes[best]) if differences[best] <= near else "unlike any", *box)

    return detect


def _parts(pixels: Pixels) -> Iterator[tuple[tuple[int, int, int, int], np.ndarray]]:
    """Box (left, top, right, bottom) and mask [SIDE, SIDE] of each connected part."""
    values = pixels.astype(np.float64)
    rim = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    ground = np.median(rim, axis=0)
    left = np.linalg.norm(values - ground, axis=2) > CONTRAST
    while left.any():
        part = _flooded(left)
        left &= ~part
        if part.mean() > SPECK:
            rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
            box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
            inner = part[box[1] : box[3], box[0] : box[2]]
            image = Image.fromarray(inner.astype(np.uint8) * np.uint8(255)).resize((SIDE, SIDE))
            yield box, np.asarray(image, np.float64) / 255


def _flooded(mask: np.ndarray) -> np.ndarray:
    """The 4-connected part of the first pixel."""
    part = np.zeros_like(mask)
    part.flat[int(mask.argmax())] = True
    while True:
        wide = np.pad(part, 1)
        grown = (part | wide[2:, 1:-1] | wide[:-2, 1:-1] | wide[1:-1, 2:] | wide[1:-1, :-2]) & mask
        if grown.sum() == part.sum():
            return part
        part = grown

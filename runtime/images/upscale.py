"""Two passes: a picture at the size that the model is made for, then enlarged and taken on from there."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

import numpy as np

from latentrt.arrays import FloatArray
from latentrt.images.framing import Size, resized
from latentrt.images.photo import Pixels
from latentrt.images.start import STRENGTH, Image, Latent, Start
from latentrt.values import Number, OneOf, settle

if TYPE_CHECKING:
    from latentrt.family import Family


SPACES = ("latent", "pixel")
FACTOR = Number(1, 64, above=True)


@dataclass(frozen=True, slots=True)
class Upscale:
    """A second pass over the enlarged picture: image to image with the same prompt, seed, sampler and steps.

    Args:
        factor: above 1; of the sides, which are rounded to what the bundle makes.
        strength: above 0, at most 1, of the second pass.
        space: `latent` enlarges the latent by bicubic interpolation, which blurs it: it wants a strength of about
            0.5 or more. `pixel` enlarges the picture by Lanczos' filter and encodes it: any strength.

    Raises:
        RequestError: a value out of range.
    """

    factor: float = 2.0
    _: KW_ONLY
    strength: float = 0.5
    space: str = "latent"

    def __post_init__(self) -> None:
        settle(self, {"factor": FACTOR, "strength": STRENGTH, "space": OneOf(SPACES)}, of=" of upscaling")

    def size(self, size: Size, family: Family) -> Size:
        """(width, height) in pixels of what becomes of a picture of this size."""
        step = family.vae_factor
        return round(size[0] * self.factor / step) * step, round(size[1] * self.factor / step) * step

    def start(self, image: Pixels, latent: FloatArray, size: Size) -> Start:
        """What the second pass starts from.

        Args:
            image: uint8 [H, W, 3], the first pass's.
            latent: float32 [C, h, w], what it was decoded from.
        """
        if self.space == "pixel":
            return Image(resized(image, size), self.strength)
        factor = image.shape[1] // latent.shape[2]
        return Latent(_enlarged(latent, (size[0] // factor, size[1] // factor)), strength=self.strength)


def _enlarged(latent: FloatArray, size: Size) -> FloatArray:
    """float32 [C, h, w] at `size` (width, height), each channel by itself."""
    from PIL import Image as Pillow

    planes = (Pillow.fromarray(np.ascontiguousarray(plane)) for plane in latent)
    return np.stack([np.asarray(plane.resize(size, Pillow.Resampling.BICUBIC)) for plane in planes])

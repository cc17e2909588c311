"""Two passes: a picture at the size that the model is made for, then enlarged and taken on from there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from latentrt.arrays import FloatArray
from latentrt.canvas import Size, resized
from latentrt.errors import RequestError
from latentrt.photo import Pixels
from latentrt.start import STRENGTH, Image, Latent, Start
from latentrt.values import Number, OneOf, settle

if TYPE_CHECKING:
    from latentrt.family import Family
    from latentrt.request import Request


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
            size: (width, height) of the result.
        """
        if self.space == "pixel":
            return Image(resized(image, size), self.strength)
        factor = image.shape[1] // latent.shape[2]
        return Latent(_enlarged(latent, (size[0] // factor, size[1] // factor)), strength=self.strength)


def second_pass(requests: Sequence[Request], images: Pixels, latents: FloatArray, family: Family) -> Iterator[Request]:
    """A request for each image of a first pass.

    Args:
        requests: of the first pass, each with `upscale`, with defaults and seeds filled in.
        images: uint8 [B, H, W, 3], what it made.
        latents: float32 [B, C, h, w], what that was decoded from.
        family: the model's row.
    """
    made = zip(images, latents, strict=True)
    for request in requests:
        upscale = request.upscale
        if upscale is None:
            raise RequestError(
                "a batch with and without upscaling", expected="all requests with it", hint="run them apart"
            )
        texts = zip(request.prompts, request.negatives, strict=True)
        for index, (prompt, negative) in enumerate(pair for pair in texts for _ in range(request.images)):
            image, latent = next(made)
            size = upscale.size((image.shape[1], image.shape[0]), family)
            yield replace(
                request,
                prompt=prompt,
                negative=negative,
                images=1,
                seed=request.seed + index if request.seed is not None else None,
                size=size,
                start=upscale.start(image, latent, size),
                upscale=None,
            )


def _enlarged(latent: FloatArray, size: Size) -> FloatArray:
    """float32 [C, h, w] at `size` (width, height), each channel by itself."""
    from PIL import Image as Pillow

    planes = (Pillow.fromarray(np.ascontiguousarray(plane)) for plane in latent)
    return np.stack([np.asarray(plane.resize(size, Pillow.Resampling.BICUBIC)) for plane in planes])

"""What a run gives: each step as it is made, and in the end images, seeds and timings."""

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from latentrt.engine import Value, slot, to_host
from latentrt.errors import RequestError
from latentrt.plan import FloatArray
from latentrt.request import Request

Images: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds of one run: encoding of texts and photos, each engine call, decoding, and everything together.

    An engine on a device returns from a call when it is launched. Its entries in `steps_ms` are what the launches took
    and equal shares of the wait for all of them, so that their sum and mean are right and single ones mean little.
    """

    text_ms: float
    steps_ms: tuple[float, ...]
    decode_ms: float
    total_ms: float

    def then(self, later: "Timings") -> "Timings":
        """Of two runs, one after the other."""
        return Timings(
            text_ms=self.text_ms + later.text_ms,
            steps_ms=self.steps_ms + later.steps_ms,
            decode_ms=self.decode_ms + later.decode_ms,
            total_ms=self.total_ms + later.total_ms,
        )


@dataclass(frozen=True, slots=True)
class Result:
    """Images uint8 [B, H, W, 3], the seed of each, how long it took, and the requests with their defaults and
    seeds filled in: run again, they give the same images. Where latents were asked for, these are float32 [B, C, h, w],
    and there are no images: [0, H, W, 3]."""

    images: Images
    seeds: tuple[int, ...]
    timings: Timings
    requests: tuple[Request, ...]
    latents: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One engine call that has just been made; valid until the loop goes on.

    Args:
        index: 0 for the first call.
        total: calls of the whole run (Heun and DPM2 make two a step).
        seconds: how long this call took; on an asynchronous device, its launch.
        state: [B, 4, C, h, w]; slot 0 is the latent.
        denoised: [B, C, h, w], the model's present idea of the final latent.
    """

    index: int
    total: int
    seconds: float
    state: Value
    denoised: Value
    _preview: FloatArray | None = field(repr=False)

    def latent(self) -> FloatArray:
        """A copy of the latent, float32 [B, C, h, w]."""
        return np.array(to_host(slot(self.state, 0)))

    def preview(self) -> Images:
        """A small picture of `denoised`, uint8 [B, h, w, 3], by a linear map from latents to colours.

        Raises:
            RequestError: the bundle was exported without the map.
        """
        if self._preview is None:
            raise RequestError("this bundle has no preview map", hint="export it again")
        latent = np.moveaxis(to_host(self.denoised), 1, -1)
        rgb = latent @ self._preview[:-1] + self._preview[-1]
        levels: Images = (rgb.clip(0, 1) * 255).round().astype(np.uint8)
        return levels

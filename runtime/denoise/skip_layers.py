"""Skip-layer guidance: away from what the network says when some of its blocks are skipped.

Source: `StableDiffusion3Pipeline.__call__` (diffusers), where Stable Diffusion 3.5 medium is to use blocks 7, 8 and 9.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from latentrt.errors import RequestError
from latentrt.family import Family
from latentrt.request import Request


@dataclass(frozen=True, slots=True)
class Skipping:
    """What one image asks for.

    Args:
        layers: indices of the blocks that are skipped.
        scale: adds `scale` times the difference between the prompt's output and that with blocks skipped.
        start, stop: it is on in the calls strictly between these fractions of the run.
    """

    layers: tuple[int, ...]
    scale: float
    start: float
    stop: float

    @classmethod
    def of(cls, request: Request, family: Family) -> Self | None:
        """What a request asks for; None without `skip_layers`.

        Raises:
            RequestError: a model without gates of blocks, or a block that it does not have.
        """
        layers = tuple(sorted(set(request.skip_layers)))
        if not layers:
            return None
        if not family.blocks:
            raise RequestError(
                "skip_layers with a model whose blocks cannot be skipped", expected="a model such as Stable Diffusion 3"
            )
        if beyond := [layer for layer in layers if not 0 <= layer < family.blocks]:
            raise RequestError(f"layer {beyond[0]} in skip_layers", expected=f"0 to {family.blocks - 1}")
        return cls(layers, request.skip_guidance, *request.skip_range)

    def weights(self, calls: int) -> npt.NDArray[np.float32]:
        """What the output with skipped blocks is subtracted with, by call: [calls]."""
        index = np.arange(calls)
        on = (index > calls * self.start) & (index < calls * self.stop)
        return np.where(on, self.scale, 0).astype(np.float32)


def skipped_layers(wishes: Iterable[Skipping | None]) -> tuple[int, ...]:
    """The blocks that a batch skips; empty where no image asks for it.

    Raises:
        RequestError: images that skip different ones, which share no call.
    """
    found = sorted({wish.layers for wish in wishes if wish is not None})
    if len(found) > 1:
        listed = " and ".join(", ".join(map(str, layers)) for layers in found)
        raise RequestError(f"a batch that skips layers {listed}", expected="one set of layers", hint="run them apart")
    return found[0] if found else ()

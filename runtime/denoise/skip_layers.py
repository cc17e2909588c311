"""Skip-layer guidance: away from what the network says when some of its blocks are skipped.

Source: `StableDiffusion3Pipeline.__call__` (diffusers), where Stable Diffusion 3.5 medium is to use blocks 7, 8 and 9.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from latentrt.errors import RequestError
from latentrt.family import Family
from latentrt.request import Request, SkipLayers


def skipping_of(request: Request, family: Family) -> SkipLayers | None:
    """What a request asks for, None where it asks for nothing."""
    wish = request.skipping
    if wish is None:
        return None
    if not family.blocks:
        raise RequestError(
            "skip_layers with a model whose blocks cannot be skipped", expected="a model such as Stable Diffusion 3"
        )
    if beyond := [layer for layer in wish.layers if layer >= family.blocks]:
        raise RequestError(f"layer {beyond[0]} in skip_layers", expected=f"0 to {family.blocks - 1}")
    return wish


def skip_weights(skipping: SkipLayers, calls: int) -> npt.NDArray[np.float32]:
    """What the output with skipped blocks is subtracted with, by call: [calls]."""
    index, (start, stop) = np.arange(calls), skipping.range
    on = (index > calls * start) & (index < calls * stop)
    return np.where(on, skipping.scale, 0).astype(np.float32)


def skipped_layers(wishes: Iterable[SkipLayers | None]) -> tuple[int, ...]:
    """The blocks that a batch skips, none where no image asks for it; images that skip different ones are refused."""
    found = sorted({tuple(wish.layers) for wish in wishes if wish is not None})
    if len(found) > 1:
        listed = " and ".join(", ".join(map(str, layers)) for layers in found)
        raise RequestError(f"a batch that skips layers {listed}", expected="one set of layers", hint="run them apart")
    return found[0] if found else ()

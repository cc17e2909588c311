"""What a LoRA layer adds to its weight, in float32 and in the checkpoint's orientation, [out, in, ...].

- LoRA (Hu et al. 2021, arXiv 2106.09685): alpha / r * up @ down.
- LoCon, for convolutions: down has the kernel and up is 1x1; or both are 1x1 and `mid` has it, a Tucker decomposition
  (LyCORIS, Yeh et al. 2023, arXiv 2309.14859, section 3).
- DoRA (Liu et al. 2024, arXiv 2402.09353, equation 5): the sum is scaled to the magnitudes that the file gives.
"""

from __future__ import annotations

import numpy as np

from latentrt.lora.file import Layer
from latentrt.weights import FloatArray, Weight


def difference(layer: Layer, weight: FloatArray, scale: float) -> FloatArray:
    """What the layer adds to `weight` at `scale`, of the weight's shape.

    A DoRA is found at scale 1, and `scale` times that difference is added.
    """
    if layer.magnitude is None:
        return _low_rank(layer, weight.shape, scale * layer.strength)
    whole = weight + _low_rank(layer, weight.shape, layer.strength)
    return np.float32(scale) * (whole * _rescaling(layer.magnitude, whole) - weight)


def fits(layer: Layer, shape: tuple[int, ...]) -> bool:
    """Whether the layer's difference is for a weight of this shape."""
    outer, inner = shape[:2]
    kernel = layer.down.shape[2:] if layer.mid is None else layer.mid.shape[2:]
    pointwise = layer.up.shape[2:] in ((), (1, 1)) and (layer.mid is None or layer.down.shape[2:] in ((), (1, 1)))
    same_kernel = tuple(kernel) == shape[2:] or {tuple(kernel), shape[2:]} == {(), (1, 1)}
    sizes = (layer.up.shape[0], layer.down.shape[1]) == (outer, inner)
    magnitude = layer.magnitude
    scaled = magnitude is None or magnitude.values.size == (outer if _by_output(magnitude, outer) else inner)
    return sizes and pointwise and same_kernel and scaled


def _low_rank(layer: Layer, shape: tuple[int, ...], factor: float) -> FloatArray:
    up = layer.up.float32().reshape(layer.up.shape[:2]) * np.float32(factor)
    down = layer.down.float32()
    if layer.mid is not None:
        down = np.einsum("pqkl,qi->pikl", layer.mid.float32(), down.reshape(down.shape[:2]))
    product = up @ down.reshape(len(down), -1)
    return product.astype(np.float32, copy=False).reshape(shape)


def _rescaling(magnitude: Weight, whole: FloatArray) -> FloatArray:
    """Magnitude over norm of each output or input channel, to be multiplied."""
    axis = 0 if _by_output(magnitude, whole.shape[0]) else 1
    others = tuple(i for i in range(whole.ndim) if i != axis)
    norms = np.sqrt(np.square(whole).sum(axis=others, keepdims=True))
    smallest = np.float32(np.finfo(np.float32).tiny)
    ratio: FloatArray = magnitude.float32().reshape(norms.shape) / np.maximum(norms, smallest)
    return ratio


def _by_output(magnitude: Weight, outer: int) -> bool:
    """Older LyCORIS files have the magnitudes of the input channels, [1, in, ...]; all others those of the output."""
    return magnitude.shape[:1] == (outer,)

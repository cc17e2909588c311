"""What a LoRA layer adds to its weight, in float32 and in the checkpoint's orientation, [out, in, ...].

- LoRA (Hu et al. 2021, arXiv 2106.09685): alpha / r * up @ down.
- LoCon, for convolutions: down has the kernel and up is 1x1; or both are 1x1 and `mid` has it, a Tucker decomposition
  (LyCORIS, Yeh et al. 2023, arXiv 2309.14859, section 3).
- DoRA (Liu et al. 2024, arXiv 2402.09353, equation 5): the sum is scaled to the magnitudes that the file gives.
"""

from __future__ import annotations

import math

import numpy as np

from latentrt.arrays import FloatArray
from latentrt.lora.file import Layer
from latentrt.weights.dtypes import Weight

# OpenBLAS (interface/gemm.c) computes a product of up to so many multiplications in the calling thread. Beyond that its
# threads wait for each other at every call, which for factors as thin as these costs more than the product.
_UNTHREADED = 2**18
_TILE_BYTES = 2**20  # of the product that is made at a time: it stays in the processor's cache


def add_difference(layer: Layer, scale: float, *, to: FloatArray, pristine: FloatArray) -> None:
    """Adds in place what the layer makes of a weight at `scale`.

    A DoRA is found at scale 1, and `scale` times that difference is added.

    Args:
        to: the weight, perhaps with the differences of other layers in it; a matrix in either order of its axes, or
            C-contiguous.
        pristine: the weight without them; read for a DoRA only.
    """
    if layer.magnitude is None:
        _add_low_rank(to, layer, scale * layer.strength)
        return
    whole = pristine.copy()
    _add_low_rank(whole, layer, layer.strength)
    to += np.float32(scale) * (whole * _rescaling(layer.magnitude, whole) - pristine)


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


def _add_low_rank(to: FloatArray, layer: Layer, factor: float) -> None:
    up = layer.up.float32().reshape(layer.up.shape[:2]) * np.float32(factor)
    down = layer.down.float32()
    if layer.mid is not None:
        down = np.einsum("pqkl,qi->pikl", layer.mid.float32(), down.reshape(down.shape[:2]))
    down = down.reshape(len(down), -1)
    if to.flags.c_contiguous:
        _add_product(to.reshape(len(to), -1), up, down)
    else:
        _add_product(to.T, down.T, up.T)


def _add_product(to: FloatArray, left: FloatArray, right: FloatArray) -> None:
    """to [m, n] += left [m, r] @ right [r, n], block by block."""
    (m, n), rank = to.shape, len(right)
    side = max(1, math.isqrt(_UNTHREADED // rank))
    rows, columns = _divisor(m, side), _divisor(n, side)
    blocks = right.reshape(rank, n // columns, columns).transpose(1, 0, 2)
    height = rows * max(1, _TILE_BYTES // (4 * n * rows))
    tile = np.empty((min(height, m), n), np.float32)
    for top in range(0, m, height):
        part = to[top : top + height]
        product, count = tile[: len(part)], len(part) // rows
        np.matmul(
            left[top : top + height].reshape(count, 1, rows, rank),
            blocks,
            out=product.reshape(count, rows, n // columns, columns).transpose(0, 2, 1, 3),
        )
        part += product


def _divisor(number: int, limit: int) -> int:
    """The largest divisor up to `limit`."""
    return next(n for n in range(min(number, limit), 0, -1) if number % n == 0)


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

"""The training betas by the names of their shapes, with the roundings of torch in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from latentrt.arrays import FloatArray


def _linspace(start: float, end: float, count: int) -> FloatArray:
    """`torch.linspace` in float32: from both ends to the middle, each value rounded once."""
    first, last = np.float32(start), np.float32(end)
    stride = np.float64(np.float32((last - first) / np.float32(max(count - 1, 1))))
    index = np.arange(count)
    rising, falling = first + stride * index, last - stride * (count - 1 - index)
    return np.where(index < count // 2, rising, falling).astype(np.float32)


def _scaled_linear(start: float, end: float, count: int) -> FloatArray:
    roots = _linspace(start**0.5, end**0.5, count)
    return roots * roots


def _squared_cosine(_start: float, _end: float, count: int) -> FloatArray:
    """Nichol and Dhariwal 2021 (arXiv 2102.09672), equation 17."""

    def signal(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - signal((i + 1) / count) / signal(i / count), 0.999) for i in range(count)]
    return np.asarray(betas, dtype=np.float32)


BETA_SHAPES: Mapping[str, Callable[[float, float, int], FloatArray]] = {
    "linear": _linspace,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _squared_cosine,
}


def alphas_cumprod(betas: FloatArray) -> FloatArray:
    """Share of signal variance at each training timestep."""
    return _cumprod(np.float32(1) - betas)


def _cumprod(factors: FloatArray) -> FloatArray:
    """`torch.cumprod` in float32: accumulates in float64, rounds each result."""
    return np.cumprod(factors.astype(np.float64)).astype(np.float32)


def rescaled_to_zero_snr(betas: FloatArray) -> FloatArray:
    """Betas whose last level has no signal (arXiv 2305.08891, Algorithm 1)."""
    roots = np.sqrt(alphas_cumprod(betas))
    first, last = roots[0], roots[-1]
    roots = (roots - last) * (first / (first - last))
    levels = roots * roots
    return np.float32(1) - np.concatenate([levels[:1], levels[1:] / levels[:-1]])

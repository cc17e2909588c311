"""Weights as files store them: numpy has no bfloat16, so that one is held as its bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]

BFLOAT16 = "bfloat16"
FLOATS = ("float64", "float32", "float16", BFLOAT16)


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """An array in the format that a file or a graph has it in.

    Args:
        dtype: numpy's name of the format, or `bfloat16`.
        values: the array; of a bfloat16 one its bits, uint16.
    """

    dtype: str
    values: npt.NDArray[Any]

    @classmethod
    def of(cls, values: npt.NDArray[Any], dtype: str) -> Weight:
        """Float values in `dtype`, each rounded once, to the nearest and at a tie to the even one."""
        if dtype != BFLOAT16:
            return cls(dtype, values.astype(dtype))
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
        quiet_nan = bits >> 16 | 0x40  # whose payload must not round up to infinity
        return cls(dtype, np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def float32(self) -> FloatArray:
        """The values in float32."""
        if self.dtype == BFLOAT16:
            return (self.values.astype(np.uint32) << 16).view(np.float32)
        return self.values.astype(np.float32, copy=False)


def from_bytes(data: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> Weight:
    """The weight whose little-endian values are `data`; a view, no copy.

    Raises:
        ValueError: the bytes are more or fewer than `shape` needs.
    """
    stored = np.dtype(np.uint16 if dtype == BFLOAT16 else dtype).newbyteorder("<")
    return Weight(dtype, np.frombuffer(data, stored).reshape(shape))

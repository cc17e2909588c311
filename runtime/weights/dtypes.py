"""Weights as files store them: numpy has no bfloat16 and no float8, so those are held as their bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latentrt.arrays import FloatArray

BFLOAT16, FLOAT8 = "bfloat16", "float8_e4m3fn"
BITS = {BFLOAT16: "uint16", FLOAT8: "uint8"}
FLOATS = ("float64", "float32", "float16", BFLOAT16, FLOAT8)
NUMBERS = (*FLOATS, *(f"{sign}int{size}" for sign in ("", "u") for size in (8, 16, 32, 64)))


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """An array in the format that a file or a graph has it in.

    Args:
        dtype: numpy's name of the format, `bfloat16` or `float8_e4m3fn`.
        values: the array; of the latter two the bits, uint16 and uint8.
    """

    dtype: str
    values: npt.NDArray[Any]

    @classmethod
    def of(cls, values: npt.NDArray[Any], dtype: str) -> Weight:
        """Float values in `dtype`, each rounded once, to the nearest and at a tie to the even one; float8 saturates."""
        if dtype == FLOAT8:
            return cls(dtype, _float8_bits(np.asarray(values, np.float32)))
        if dtype != BFLOAT16:
            return cls(dtype, values.astype(dtype))
        floats = np.ascontiguousarray(values, np.float32)
        bits = floats.view(np.uint32)
        rounded = bits >> 16  # in place from here on, three times as fast: weights are large
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        nan = np.isnan(floats)
        if nan.any():
            rounded[nan] = bits[nan] >> 16 | 0x40  # quiet, with a payload that must not round up to infinity
        return cls(dtype, rounded.astype(np.uint16))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def float32(self) -> FloatArray:
        """The values in float32."""
        if self.dtype == BFLOAT16:
            return (self.values.astype(np.uint32) << 16).view(np.float32)
        if self.dtype == FLOAT8:
            decoded: FloatArray = _FLOAT8_VALUES[self.values]
            return decoded
        return self.values.astype(np.float32, copy=False)


def from_bytes(data: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> Weight:
    """The weight whose little-endian values are `data`, a view of exactly as many bytes as `shape` needs."""
    return Weight(dtype, np.frombuffer(data, stored_dtype(dtype)).reshape(shape))


def stored_dtype(dtype: str) -> np.dtype[Any]:
    """What numpy holds a format of files in, little-endian."""
    return np.dtype(BITS.get(dtype, dtype)).newbyteorder("<")


def _float8_values() -> FloatArray:
    """All 256: sign, 4 bits of exponent, 3 of mantissa (Micikevicius et al. 2022, arXiv 2209.05433, table 1)."""
    exponent, mantissa = np.divmod(np.arange(128), 8)
    magnitudes = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10))
    magnitudes[127] = np.nan
    return np.concatenate([magnitudes, -magnitudes]).astype(np.float32)


_FLOAT8_VALUES = _float8_values()
_FLOAT8_LARGEST = 448.0
_FLOAT8_NORMAL = 2.0**-6
_FLOAT8_REBIAS = (127 - 7) << 3  # exponents of float32 and of this one, above three bits of mantissa


def _float8_bits(values: FloatArray) -> npt.NDArray[np.uint8]:
    magnitudes = np.minimum(np.abs(values), np.float32(_FLOAT8_LARGEST))
    bits = magnitudes.view(np.uint32)
    normal = ((bits + (0x7FFFF + (bits >> 20 & 1))) >> 20).astype(np.int32) - _FLOAT8_REBIAS
    subnormal = np.rint(np.minimum(magnitudes, _FLOAT8_NORMAL) * 2.0**9).astype(np.int32)
    code = np.where(magnitudes < _FLOAT8_NORMAL, subnormal, normal)
    signed: npt.NDArray[np.uint8] = (code | np.signbit(values) * 0x80).astype(np.uint8)
    return signed

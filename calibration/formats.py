"""The number formats that weights and activations are rounded to."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Floats = npt.NDArray[np.float64]

SMALLEST_SCALE = 2.0**-24  # float16 holds it: a scale must not become 0 there


@dataclass(frozen=True, slots=True, eq=False)
class Format:
    """A row of the table. Both formats are symmetric: the negative magnitudes are the positive ones.

    Args:
        name: as users write it, and the precision of a component in the manifest.
        magnitudes: [n] all that it holds, ascending from 0; a range becomes the last one, and what is beyond saturates.
    """

    name: str
    _: KW_ONLY
    dtype: ir.DataType
    magnitudes: Floats

    @property
    def largest(self) -> float:
        return float(self.magnitudes[-1])

    def rounded(self, array: npt.NDArray[np.float32]) -> npt.NDArray[np.generic]:
        """The nearest values that the format holds, of ties the even one."""
        bounded = np.clip(array, -self.largest, self.largest)
        whole = np.rint(bounded) if self.dtype == ir.DataType.INT8 else bounded
        return whole.astype(self.dtype.numpy())


INT8 = Format("int8", dtype=ir.DataType.INT8, magnitudes=np.arange(128.0))
# E4M3 without infinities (Micikevicius et al. 2022, arXiv 2209.05433, table 1): 126 bit patterns above 0, up to 448.
FP8 = Format(
    "fp8",
    dtype=ir.DataType.FLOAT8E4M3FN,
    magnitudes=np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64),
)
FORMATS = {row.name: row for row in (INT8, FP8)}

"""What engines take and give: arrays on the host, and outputs that stay on a device."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
FloatArray: TypeAlias = npt.NDArray[np.float32]
Shape: TypeAlias = tuple[int, ...]


@runtime_checkable
class DeviceArray(Protocol):
    """An output that stayed on the device: feed it back, or fetch it with `numpy()`."""

    @property
    def shape(self) -> Shape: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def numpy(self) -> Array:
        """The values on the host, waiting for the device where that is needed."""

    def slot(self, index: int) -> Value:
        """`[:, index]`: a view on the device, or on the host where a backend has none."""


Value: TypeAlias = Array | DeviceArray


def to_host(value: Value) -> Array:
    """The values of an output as a numpy array, wherever they live; no copy if they are on the host."""
    return value if isinstance(value, np.ndarray) else value.numpy()


def slot(value: Value, index: int) -> Value:
    """`value[:, index]`, where it lies."""
    return value[:, index] if isinstance(value, np.ndarray) else value.slot(index)


def format_shape(shape: Shape) -> str:
    """`2x4x64x64`, for messages."""
    return "x".join(str(n) for n in shape) if shape else "scalar"

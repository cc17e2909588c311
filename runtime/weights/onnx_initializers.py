"""The constants of an ONNX file, found without the onnx package: the two messages of the format that hold them.

Source: onnx.proto (ModelProto.graph = 7, GraphProto.initializer = 5, GraphProto.input = 11, TensorProto,
ValueInfoProto), and the wire format of protocol buffers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latentrt.errors import BundleError
from latentrt.weights.dtypes import BFLOAT16, FLOAT8, Weight, from_bytes, stored_dtype
from latentrt.weights.protobuf import fields_of, packed

_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    10: "float16",
    11: "float64",
    16: BFLOAT16,
    17: FLOAT8,
}
_GRAPH, _INITIALIZER, _INPUT = 7, 5, 11
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _EXTERNAL = 1, 2, 8, 9, 13
_VARINT, _BYTES = 0, 2


@dataclass(frozen=True, slots=True)
class Initializer:
    """A constant of a graph: its format, its shape, and where its bytes lie.

    Args:
        dtype: as in `Weight`.
        shape: as the graph has it.
        file: the graph's own file, or one of external weights.
        offset: where its bytes begin in that.
        data: the bytes, where the graph's own file holds them.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    data: bytes | None = None

    def empty(self) -> Weight:
        """Memory for new values."""
        return Weight(self.dtype, np.empty(self.shape, stored_dtype(self.dtype)))

    def read(self) -> Weight:
        """The values, mapped from the file and read where they are touched."""
        if self.data is not None:
            return from_bytes(self.data, self.dtype, self.shape)
        return Weight(self.dtype, np.memmap(self.file, stored_dtype(self.dtype), "r", self.offset, self.shape))


def read_initializers(path: Path) -> dict[str, Initializer]:
    """The initializers of the graph in `path` by name, those of other than the common number formats left out.

    Raises:
        BundleError: the file is damaged.
    """
    found: dict[str, Initializer] = {}
    try:
        for model_field, graph, start in fields_of(memoryview(path.read_bytes())):
            if model_field == _GRAPH and isinstance(graph, memoryview):
                for field, tensor, position in fields_of(graph):
                    if field == _INITIALIZER and isinstance(tensor, memoryview):
                        found |= _initializer(tensor, path, start + position)
    except (IndexError, UnicodeDecodeError, ValueError) as error:
        raise BundleError(
            f"{path} cannot be read ({error})", expected="an ONNX graph", hint="copy or export the bundle again"
        ) from error
    return found


def with_inputs(model: bytes, initializers: Mapping[str, Initializer]) -> bytes:
    """The model in which these initializers are inputs as well, and so only the defaults of what can be fed to it.

    They are appended as a second graph message: readers merge it with the first (Protocol Buffers, "Encoding").
    """
    return model + _field(_GRAPH, b"".join(_field(_INPUT, _value_info(name, i)) for name, i in initializers.items()))


def _value_info(name: str, initializer: Initializer) -> bytes:
    """ValueInfoProto: name = 1, type = 2, in which tensor_type = 1 has elem_type = 1 and shape = 2."""
    dims = b"".join(_field(1, _number(1, length)) for length in initializer.shape)
    kind = next(number for number, dtype in _DTYPES.items() if dtype == initializer.dtype)
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, kind) + _field(2, dims)))


def _field(number: int, message: bytes) -> bytes:
    return _as_varint(number << 3 | _BYTES) + _as_varint(len(message)) + message


def _number(number: int, value: int) -> bytes:
    return _as_varint(number << 3 | _VARINT) + _as_varint(value)


def _as_varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _initializer(tensor: memoryview, path: Path, start: int) -> dict[str, Initializer]:
    """By its name, of the message that begins at byte `start` of the graph's file."""
    shape: list[int] = []
    name, dtype, data, offset = "", None, None, 0
    external: dict[str, str] = {}
    for field, value, position in fields_of(tensor):
        if isinstance(value, int):
            if field == _DIMS:
                shape.append(value)
            elif field == _DATA_TYPE:
                dtype = _DTYPES.get(value)
        elif field == _DIMS:
            shape += packed(value)
        elif field == _NAME:
            name = str(value, "utf-8")
        elif field == _RAW_DATA:
            data, offset = bytes(value), start + position
        elif field == _EXTERNAL:
            pair = {number: str(text, "utf-8") for number, text, _ in fields_of(value) if isinstance(text, memoryview)}
            external[pair.get(1, "")] = pair.get(2, "")
    if dtype is None or (data is None and "location" not in external):
        return {}
    if data is not None:
        if len(data) != math.prod(shape) * stored_dtype(dtype).itemsize:
            raise ValueError(f"{name[:80]!r} of shape {shape} has {len(data)} bytes")
        return {name: Initializer(dtype, tuple(shape), path, offset, data)}
    offset = int(external.get("offset", "0"))
    return {name: Initializer(dtype, tuple(shape), path.parent / external["location"], offset)}

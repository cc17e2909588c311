"""The constants of an ONNX file, found without the onnx package: the messages of the format that hold them, and the
Casts that widen them.

Source: onnx.proto (ModelProto.graph = 7, GraphProto.node = 1, GraphProto.initializer = 5, GraphProto.input = 11,
NodeProto, TensorProto, ValueInfoProto), and the wire format of protocol buffers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from latentrt.errors import BundleError
from latentrt.weights.dtypes import BFLOAT16, FLOAT8, Weight, from_bytes, stored_dtype
from latentrt.weights.onnx_nodes import FLOAT, Node, read_node, rewritten
from latentrt.weights.protobuf import field as _field
from latentrt.weights.protobuf import fields_of, packed
from latentrt.weights.protobuf import number as _number

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
_GRAPH, _NODE, _INITIALIZER, _INPUT = 7, 1, 5, 11
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _EXTERNAL, _DATA_LOCATION = 1, 2, 8, 9, 13, 14
_NARROW = ("float16", BFLOAT16)


@dataclass(frozen=True, slots=True)
class Initializer:
    """A constant of a graph: its format, its shape, and where its bytes lie.

    Args:
        dtype: as in `Weight`.
        file: the graph's own file, or one of external weights.
        offset: where its bytes begin in that.
        data: the bytes, where the graph's own file holds them.
        widened: the float32 value that a Cast makes of it, which all nodes read in its place; None: they read it.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    data: bytes | None = None
    widened: str | None = None

    @property
    def read_dtype(self) -> str:
        """The format of the values that the nodes of the graph read."""
        return self.dtype if self.widened is None else "float32"

    def empty(self) -> Weight:
        """Memory for new values, in the format that nodes read."""
        return Weight(self.read_dtype, np.empty(self.shape, stored_dtype(self.read_dtype)))

    def read(self) -> Weight:
        """The values, mapped from the file and read where they are touched."""
        if self.data is not None:
            return from_bytes(self.data, self.dtype, self.shape)
        return Weight(self.dtype, np.memmap(self.file, stored_dtype(self.dtype), "r", self.offset, self.shape))


def read_initializers(path: Path) -> dict[str, Initializer]:
    """The initializers of the graph in `path` by name, those of other than the common number formats left out."""
    found: dict[str, Initializer] = {}
    widened: dict[str, str] = {}
    try:
        for model_field, graph, start in fields_of(memoryview(path.read_bytes())):
            if model_field == _GRAPH and isinstance(graph, memoryview):
                for field, tensor, position in fields_of(graph):
                    if field == _INITIALIZER and isinstance(tensor, memoryview):
                        found |= _initializer(tensor, path, start + position)
                    elif field == _NODE and isinstance(tensor, memoryview):
                        widened |= _widened(read_node(tensor)) if b"Cast" in bytes(tensor) else {}
    except (IndexError, UnicodeDecodeError, ValueError) as error:
        raise BundleError(
            f"{path} cannot be read ({error})", expected="an ONNX graph", hint="copy or export the bundle again"
        ) from error
    casts = {name: replace(found[name], widened=value) for name, value in widened.items() if name in found}
    return found | {name: place for name, place in casts.items() if place.dtype in _NARROW}


def with_inputs(model: bytes, initializers: Mapping[str, Initializer]) -> bytes:
    """The model in which these initializers are inputs as well, and so only the defaults of what can be fed to it. Of
    one that a Cast widens, the widened value is the input.

    They are appended as a second graph message: readers merge it with the first (Protocol Buffers, "Encoding").
    """
    inputs = b"".join(_field(_INPUT, _value_info(read_name(name, i), i)) for name, i in initializers.items())
    return _without_casts(model, initializers) + _field(_GRAPH, inputs)


def with_constants(model: bytes, initializers: Mapping[str, Initializer]) -> bytes:
    """The model in which the widened values of these initializers are constants in float32, as if they lay in their
    files, where nothing is read if other values are given."""
    widened = {name: place for name, place in initializers.items() if place.widened is not None}
    if not widened:
        return model
    tensors = b"".join(_field(_INITIALIZER, _external(read_name(name, i), i)) for name, i in widened.items())
    return _without_casts(model, widened) + _field(_GRAPH, tensors)


def read_name(name: str, initializer: Initializer) -> str:
    """The value that the nodes of a graph read of an initializer."""
    return name if initializer.widened is None else initializer.widened


def _without_casts(model: bytes, initializers: Mapping[str, Initializer]) -> bytes:
    """The model without the Casts that widen these initializers."""
    names = {place.widened for place in initializers.values() if place.widened is not None}
    if not names:
        return model
    return rewritten(
        model,
        lambda graph: {each.place: b"" for each in graph.nodes if not names.isdisjoint(_widened(each).values())},
        opsets={},
    )


def _widened(node: Node) -> dict[str, str]:
    """What a node reads and makes, if it is a Cast to float32."""
    casts = node.op == "Cast" and node.attributes().get("to") == FLOAT
    return {node.inputs[0]: node.outputs[0]} if casts else {}


def _external(name: str, initializer: Initializer) -> bytes:
    """TensorProto, in float32, that lies elsewhere (data_location = 1)."""
    dims = b"".join(_number(_DIMS, length) for length in initializer.shape)
    place = _field(1, b"location") + _field(2, initializer.file.name.encode())
    kind = _number(_DATA_TYPE, FLOAT) + _field(_NAME, name.encode())
    return dims + kind + _field(_EXTERNAL, place) + _number(_DATA_LOCATION, 1)


def _value_info(name: str, initializer: Initializer) -> bytes:
    """ValueInfoProto: name = 1, type = 2, in which tensor_type = 1 has elem_type = 1 and shape = 2."""
    dims = b"".join(_field(1, _number(1, length)) for length in initializer.shape)
    kind = next(number for number, dtype in _DTYPES.items() if dtype == initializer.read_dtype)
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, kind) + _field(2, dims)))


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

"""Nodes and tensors of an ONNX graph, read and written without the onnx package.

Source: onnx.proto (ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto, ValueInfoProto).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from latentrt.weights.protobuf import field, fields_of, number, packed

FLOAT, _INT64 = 1, 7
_GRAPH, _OPSET = 7, 8  # ModelProto
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 1, 5, 11, 12, 13  # GraphProto
_INPUTS, _OUTPUTS, _NAME, _OP, _ATTRIBUTE, _DOMAIN = 1, 2, 3, 4, 5, 7  # NodeProto
_A_FLOAT, _AN_INT = 1, 2  # AttributeProto.type
_FIXED32 = bytes([2 << 3 | 5])  # AttributeProto.f

Attribute = int | float | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A node; `place` is its message in the graph."""

    place: int
    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    written: tuple[memoryview, ...]

    def attributes(self) -> dict[str, Attribute]:
        """By name: integers, lists of them, and floats; others are empty lists."""
        return dict(map(_attribute, self.written))


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a graph says of a value: lengths, and names of those that are chosen per call."""

    dtype: int
    dims: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph as far as rewriting needs it.

    Args:
        opset: version of ONNX's operators.
        nodes: in the graph's order; those of other domains than ONNX's have an empty `op`.
        kept: names of the graph's outputs.
        values: what it says of others, by name.
    """

    opset: int
    nodes: tuple[Node, ...]
    kept: frozenset[str]
    values: Mapping[str, memoryview]

    def tensor(self, name: str) -> Tensor:
        """What it says of a value; of an unknown one a tensor of format 0 without axes."""
        return _tensor(self.values.get(name, memoryview(b"")))


def rewritten(model: bytes, rewrite: Callable[[Graph], Mapping[int, bytes]], *, opsets: Mapping[str, int]) -> bytes:
    """The model with other fields of its graph in the place of nodes, by their `place`; the same object where `rewrite`
    returns none. `opsets` are added for domains that it does not name."""
    fields = list(fields_of(memoryview(model)))
    named = {
        _text(value): _fields(value).get(2)
        for place, value, _ in fields
        if place == _OPSET and isinstance(value, memoryview)
    }
    parts: list[bytes] = []
    begin, changed = 0, False
    for place, value, position in fields:
        end = position + len(value) if isinstance(value, memoryview) else position
        part = model[begin:end]
        if place == _GRAPH and isinstance(value, memoryview):
            messages = [(kind, each) for kind, each, _ in fields_of(value) if isinstance(each, memoryview)]
            if new := rewrite(_graph(messages, named.get(""))):
                changed = True
                part = field(
                    _GRAPH, b"".join(new[i] if i in new else field(k, bytes(v)) for i, (k, v) in enumerate(messages))
                )
        parts.append(part)
        begin = end
    if not changed:
        return model
    added = [field(_OPSET, field(1, each.encode()) + number(2, opsets[each])) for each in opsets if each not in named]
    return b"".join([*parts, *added])


def node(
    op: str,
    inputs: Iterable[str],
    output: str,
    *,
    name: str,
    domain: str = "",
    attributes: Mapping[str, int | float] = {},
) -> bytes:
    """The field of a graph that is a node."""
    values = b"".join(field(_INPUTS, each.encode()) for each in inputs) + field(_OUTPUTS, output.encode())
    kind = field(_NAME, name.encode()) + field(_OP, op.encode()) + field(_DOMAIN, domain.encode())
    return field(_NODE, values + kind + b"".join(field(_ATTRIBUTE, _written(*each)) for each in attributes.items()))


def integers(name: str, values: Iterable[int]) -> bytes:
    """The field of a graph that is a constant vector of int64."""
    return _constant(name, _INT64, [struct.pack("<q", each) for each in values])


def floats(name: str, values: Iterable[float]) -> bytes:
    """The field of a graph that is a constant vector of float32."""
    return _constant(name, FLOAT, [struct.pack("<f", each) for each in values])


def _constant(name: str, dtype: int, values: list[bytes]) -> bytes:
    """TensorProto: dims = 1, data_type = 2, name = 8, raw_data = 9."""
    about = number(1, len(values)) + number(2, dtype) + field(8, name.encode())
    return field(_INITIALIZER, about + field(9, b"".join(values)))


def _written(name: str, value: int | float) -> bytes:
    """AttributeProto: name = 1, f = 2, i = 3, type = 20."""
    if isinstance(value, int):
        return field(1, name.encode()) + number(3, value) + number(20, _AN_INT)
    return field(1, name.encode()) + _FIXED32 + struct.pack("<f", value) + number(20, _A_FLOAT)


def _graph(messages: list[tuple[int, memoryview]], opset: int | memoryview | None) -> Graph:
    nodes = [read_node(value, index) for index, (place, value) in enumerate(messages) if place == _NODE]
    kept = [_text(value) for place, value in messages if place == _OUTPUT]
    return Graph(
        opset if isinstance(opset, int) else 0,
        tuple(nodes),
        frozenset(kept),
        {_text(value): value for place, value in messages if place in (_INPUT, _VALUE_INFO)},
    )


def read_node(message: memoryview, place: int = 0) -> Node:
    """A NodeProto."""
    parts: dict[int, list[memoryview]] = {}
    for kind, value, _ in fields_of(message):
        if isinstance(value, memoryview):
            parts.setdefault(kind, []).append(value)
    inputs, outputs, name, op, domain = (
        tuple(str(each, "utf-8") for each in parts.get(kind, ())) for kind in (_INPUTS, _OUTPUTS, _NAME, _OP, _DOMAIN)
    )
    return Node(
        place, "" if any(domain) else "".join(op), "".join(name), inputs, outputs, tuple(parts.get(_ATTRIBUTE, ()))
    )


def _attribute(message: memoryview) -> tuple[str, Attribute]:
    """AttributeProto: name = 1, f = 2, i = 3, ints = 8."""
    about = _fields(message)
    single, integer = _message(about.get(2)), about.get(3)
    value: Attribute = ()
    if len(single) == 4:
        (value,) = struct.unpack("<f", single)
    elif isinstance(integer, int):
        value = integer
    else:
        value = tuple(each for place, part, _ in fields_of(message) if place == 8 for each in _numbers(part))
    return str(_message(about.get(1)), "utf-8"), value


def _tensor(message: memoryview) -> Tensor:
    """ValueInfoProto: type = 2, in which tensor_type = 1 has elem_type = 1 and shape = 2; of a dimension dim_value = 1,
    dim_param = 2."""
    kind = _fields(_message(_fields(_message(_fields(message).get(2))).get(1)))
    dtype = kind.get(1, 0)
    dims = [_length(_fields(dim)) for _, dim, _ in fields_of(_message(kind.get(2))) if isinstance(dim, memoryview)]
    return Tensor(dtype if isinstance(dtype, int) else 0, tuple(dims))


def _length(dim: Mapping[int, int | memoryview]) -> int | str:
    length = dim.get(1)
    return length if isinstance(length, int) else str(_message(dim.get(2)), "utf-8")


def _text(message: memoryview) -> str:
    """The first field of a value or an opset, its name or its domain."""
    return next(
        (str(value, "utf-8") for place, value, _ in fields_of(message) if place == 1 and isinstance(value, memoryview)),
        "",
    )


def _fields(message: memoryview) -> dict[int, int | memoryview]:
    return {place: value for place, value, _ in fields_of(message)}


def _message(value: int | memoryview | None) -> memoryview:
    return value if isinstance(value, memoryview) else memoryview(b"")


def _numbers(value: int | memoryview) -> list[int]:
    """Of a repeated field, whose numbers are packed or not."""
    return [value] if isinstance(value, int) else packed(value)

"""A graph's references to files of weights, checked before any backend opens it.

A graph names the files of its external weights itself (ONNX external data), and backends open what it names: each must
be one of those that the manifest lists for it, and hold the bytes that are claimed.

Source: onnx.proto, the messages in which a tensor can lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from latentrt.errors import BundleError
from latentrt.graph import GraphFile
from latentrt.weights.dtypes import stored_dtype
from latentrt.weights.protobuf import fields_of, packed

_KEY = b"location"
_DEEPEST = 64
# By kind of message: field number and kind of the messages in it in which a tensor can lie.
_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_SHALLOW: Mapping[str, Mapping[int, str]] = {"model": {7: "graph"}, "graph": {5: "tensor"}}
_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool"}
_DTYPES |= {10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16", 17: "float8_e4m3fn"}


@dataclass(slots=True)
class _Tensor:
    name: str = ""
    dtype: str | None = None
    shape: list[int] = field(default_factory=list)
    external: dict[str, str] = field(default_factory=dict)


def check_graph(graph: GraphFile) -> None:
    """Checks every external tensor of a graph: its file, and that its bytes lie within it.

    Raises:
        BundleError: the graph cannot be read, names a file that is not among its weights, or bytes beyond its end.
    """
    folder = graph.path.parent
    beside = [path for path in graph.weights if path.is_relative_to(folder)]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in beside}
    try:
        data = graph.path.read_bytes()
        found = list(_tensors(memoryview(data), "model", _SHALLOW))
        if data.count(_KEY) != len(found):  # else there are no others: each holds that word
            found = list(_tensors(memoryview(data), "model", _MESSAGES))
        for tensor in found:
            _check(tensor, sizes, graph.path)
    except (IndexError, ValueError, OSError, RecursionError) as error:
        raise BundleError(
            f"{graph.path} cannot be read ({str(error)[:200]})",
            expected="an ONNX graph",
            hint="copy or export the bundle again",
        ) from error


def _check(tensor: _Tensor, sizes: Mapping[str, int], path: Path) -> None:
    place, named = tensor.external, f"{path}: the weight {tensor.name[:80]!r}"
    location = place.get("location", "")
    if location.removeprefix("./") not in sizes:
        raise BundleError(
            f"{named} lies in {location[:80]!r}",
            expected=f"one of the component's own weights: {', '.join(sizes) if sizes else 'it has none'}",
            hint="export the bundle again",
        )
    offset, size = int(place.get("offset", "0")), sizes[location.removeprefix("./")]
    holds = None if tensor.dtype is None else math.prod(tensor.shape) * stored_dtype(tensor.dtype).itemsize
    length = int(place["length"]) if "length" in place else holds if holds is not None else size - offset
    if offset < 0 or length < 0 or offset + length > size or (holds is not None and length != holds):
        raise BundleError(
            f"{named} of shape {tensor.shape} has {length} bytes from byte {offset} of {location}",
            expected=f"{'its own' if holds is None else holds} bytes, within the {size} of the file",
            hint="copy or export the bundle again",
        )


def _tensors(
    message: memoryview, kind: str, inside: Mapping[str, Mapping[int, str]], depth: int = 0
) -> Iterator[_Tensor]:
    """Those with external data in a message and below it."""
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    for number, value, _ in fields_of(message):
        child = inside[kind].get(number)
        if child is not None and isinstance(value, memoryview):
            if child != "tensor":
                yield from _tensors(value, child, inside, depth + 1)
            elif (tensor := _tensor(value)).external:
                yield tensor


def _tensor(message: memoryview) -> _Tensor:
    """TensorProto: dims = 1, data_type = 2, name = 8, external_data = 13 (key = 1, value = 2)."""
    tensor = _Tensor()
    for number, value, _ in fields_of(message):
        if number == 1:
            tensor.shape += [value] if isinstance(value, int) else packed(value)
        elif number == 2 and isinstance(value, int):
            tensor.dtype = _DTYPES.get(value)
        elif number == 8 and isinstance(value, memoryview):
            tensor.name = str(value, "utf-8", "replace")
        elif number == 13 and isinstance(value, memoryview):
            pair = {n: str(text, "utf-8") for n, text, _ in fields_of(value) if isinstance(text, memoryview)}
            if pair.get(1, "") in tensor.external:
                raise ValueError("a tensor says twice where it lies")
            tensor.external[pair.get(1, "")] = pair.get(2, "")
        elif number == 14 and value == 1:
            tensor.external.setdefault("location", "")
    return tensor

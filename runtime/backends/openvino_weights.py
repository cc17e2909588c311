"""The weights of a graph, as OpenVINO is to pack them.

Weights that files hold in 16 bit stay so: nodes that widen them are marked as what decompresses, which OpenVINO packs
from; unmarked ones it computes beforehand, and keeps a float32 copy beside the packed one.

In bf16 OpenVINO rounds the weights of products to bf16 as it packs them, on one core, and again whenever it reads what
it compiled and kept. What is to be kept is rounded beforehand instead, to the same values: it reads twice as fast, and
is half as large where files have float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from latentrt.environment.privacy import not_installed
from latentrt.graph import Override
from latentrt.weights.dtypes import BFLOAT16, Weight, stored_dtype
from latentrt.weights.onnx_initializers import Initializer

with not_installed("openvino_telemetry"):
    import openvino as ov

_NARROW = (ov.Type.f16, ov.Type.bf16)
_ROUNDED = (ov.Type.f16, ov.Type.f32)
_PRODUCTS = ("MatMul", "Convolution")
_LARGE = 1 << 12  # values; smaller weights take no time, and stay as they are
_BLOCK = 1 << 17  # values that are rounded at a time
_DECOMPRESSES = "decompression_0"


def override(model: Any, overrides: Sequence[Override]) -> None:
    """Puts new constants in the place of those that the graph's initializers became."""
    constants = {node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "Constant"}
    for each in overrides:
        olds = {name: _read_node(constants[name], place) for name, place in each.initializers.items()}
        # memory that the model can hold on to
        tensors = {name: ov.Tensor(old.get_element_type(), old.get_output_shape(0)) for name, old in olds.items()}
        places = each.initializers.items()
        each.fill({name: tensors[name].data.view(stored_dtype(place.read_dtype)) for name, place in places})
        for name, old in olds.items():
            old.output(0).replace(ov.op.Constant(tensors[name]).output(0))


def _read_node(constant: Any, place: Initializer) -> Any:
    """The constant itself, or the Convert that widens it."""
    if place.widened is None:
        return constant
    (reader,) = _readers(constant)
    return reader


def mark_widening(model: Any) -> None:
    """Marks what widens weights of 16 bit, as OpenVINO marks it in its own files of compressed weights."""
    for node in model.get_ops():
        if _widens(node) and node.input_value(0).get_node().get_output_element_type(0) in _NARROW:
            node.get_rt_info()[_DECOMPRESSES] = ""


def round_to_bf16(model: Any) -> None:
    """Rounds large weights that nothing but matrix products and convolutions read, each once, to the nearest."""
    found = [(node, read) for node in model.get_ops() if (read := _read_by_products(node)) is not None]
    with ThreadPoolExecutor() as pool:
        constants = list(pool.map(_rounded, [node for node, _ in found]))
    for (_, read), constant in zip(found, constants, strict=True):
        widened = ov.opset13.convert(constant, "f32")
        widened.set_friendly_name(read.get_friendly_name())
        widened.get_rt_info()[_DECOMPRESSES] = ""
        read.output(0).replace(widened.output(0))


def _read_by_products(node: Any) -> Any:
    """What large products read of a weight: the constant itself or the node that widens it; None if they do not, or if
    there is something else that does."""
    if node.get_type_name() != "Constant" or node.get_output_element_type(0) not in _ROUNDED:
        return None
    readers = _readers(node)
    read = readers[0] if len(readers) == 1 and _widens(readers[0]) else node
    products = all(reader.get_type_name() in _PRODUCTS for reader in _readers(read))
    floats = read.get_output_element_type(0) == ov.Type.f32
    return read if products and floats and node.data.size >= _LARGE else None


def _rounded(constant: Any) -> Any:
    tensor = ov.Tensor(ov.Type.bf16, constant.get_output_shape(0))
    values, bits = constant.data.reshape(-1), tensor.data.view(np.uint16).reshape(-1)
    for start in range(0, values.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        bits[block] = Weight.of(values[block], BFLOAT16).values
    return ov.op.Constant(tensor)


def _widens(node: Any) -> bool:
    """Whether the node gives a constant in float32."""
    if node.get_type_name() != "Convert" or node.get_output_element_type(0) != ov.Type.f32:
        return False
    source: str = node.input_value(0).get_node().get_type_name()
    return source == "Constant"


def _readers(node: Any) -> list[Any]:
    return [each.get_node() for each in node.output(0).get_target_inputs()]

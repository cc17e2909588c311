"""Writes scales into a graph: QuantizeLinear / DequantizeLinear pairs around weights and activations in int8 or fp8."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from latentrt.arrays import FloatArray
from latentrt.calibration.formats import SMALLEST_SCALE, Format
from latentrt.calibration.placement import Operator
from latentrt.calibration.smooth import fold, folds_into
from latentrt.export.passes.stated import stated
from latentrt.export.passes.storage import save_graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """What is needed to quantise a graph.

    Args:
        ranges: by tensor, the magnitude that becomes the largest of the format, after division by its factors.
        factors: by tensor, what its channels are divided by (SmoothQuant).
        folded: tensors whose division goes into the norm that makes them; the others get a Mul.
    """

    form: Format
    ranges: Mapping[str, float]
    factors: Mapping[str, FloatArray]
    folded: frozenset[str] = frozenset()


def quantize(model: ir.Model, found: Sequence[Operator], scales: Scales) -> None:
    """Changes the model in place. Weights are rounded when the model is saved, one after the other.

    Args:
        found: its operators; those that are kept stay as they are, but for weights behind a norm that is divided.
    """
    nodes = {node.name: node for node in model.graph}
    quantised = [operator for operator in found if operator.float_reason is None]
    if not quantised:
        return
    zero = constant(model, "quantize.zero", np.zeros((), scales.form.dtype.numpy()))
    pairs: dict[str, ir.Value] = {}
    for operator in quantised:
        tensor, node = operator.activation, nodes[operator.name]
        factors = scales.factors.get(tensor)
        _quantize_weight(model, node, operator, factors, scales.form)
        if tensor not in pairs:
            value = stated(node.inputs[0])
            if factors is not None:
                value = _divided(model, value, operator, factors, folded=tensor in scales.folded)
            pairs[tensor] = _pair(model, value, scales.ranges[tensor] / scales.form.largest, zero)
        node.replace_input_with(0, pairs[tensor])
    for operator in found:
        if operator.float_reason is not None and operator.activation in scales.folded & pairs.keys():
            _multiply_weight(model, nodes[operator.name], operator, scales.factors[operator.activation])


def save(model: ir.Model, path: Path) -> dict[str, int]:
    """Writes the graph, and its weights to a file of the same name in `.weights`; returns how many values are stored in
    each type."""
    stored = save_graph(model, path)
    unmap(model)
    return stored


def unmap(model: ir.Model) -> None:
    """Closes the weight files, which are mapped as they are read: what was read counts as memory of the process until
    then. They are opened again when needed."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value.release()


def _divided(model: ir.Model, value: ir.Value, operator: Operator, factors: FloatArray, *, folded: bool) -> ir.Value:
    """The value over its factors: by its norm, which changes it for all readers, or by a Mul."""
    norm = folds_into(value)
    if folded and norm is not None:
        fold(model, norm, factors)
        return value
    rank = len(stated(value.shape))
    shape = [-1 if axis == operator.channel_axis % rank else 1 for axis in range(rank)]
    inverse = (1 / factors).astype(stated(value.dtype).numpy()).reshape(shape)
    product = ir.node("Mul", [value, constant(model, f"{value.name}.inverse", inverse)], name=f"{value.name}/Smooth")
    _describe(product.outputs[0], f"{value.name}.smooth", stated(value.dtype), value.shape)
    _behind(model, value, [product])
    return product.outputs[0]


def _pair(model: ir.Model, value: ir.Value, step: float, zero: ir.Value) -> ir.Value:
    """QuantizeLinear and DequantizeLinear of an activation, right behind the node that makes it."""
    scale = constant(model, f"{value.name}.scale", np.array(step, stated(value.dtype).numpy()))
    q = ir.node("QuantizeLinear", [value, scale, zero], name=f"{value.name}/QuantizeLinear")
    dq = ir.node("DequantizeLinear", [q.outputs[0], scale, zero], name=f"{value.name}/DequantizeLinear")
    _describe(q.outputs[0], f"{value.name}.quantized", stated(zero.const_value).dtype, value.shape)
    _describe(dq.outputs[0], f"{value.name}.dequantized", stated(value.dtype), value.shape)
    _behind(model, value, [q, dq])
    return dq.outputs[0]


def _behind(model: ir.Model, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], nodes)
    else:
        model.graph.insert_after(producer, nodes)


def _quantize_weight(
    model: ir.Model, node: ir.Node, operator: Operator, factors: FloatArray | None, form: Format
) -> None:
    """Replaces a float weight by a rounded one behind DequantizeLinear, with one scale an output channel."""
    source = model.graph.initializers[operator.weight]
    dtype, shape = stated(source.dtype), stated(source.shape)
    weight = partial(_smoothed, stated(source.const_value), operator, factors)
    scale = _weight_scale(weight(), operator.out_axis, form).astype(dtype.numpy())
    rounded = partial(_rounded, weight, scale, operator.out_axis, form)
    stored = _lazy(model, f"{operator.weight}.{form.name}", rounded, form.dtype, shape)
    dq = ir.node(
        "DequantizeLinear",
        [stored, constant(model, f"{operator.weight}.scale", scale)],
        attributes={"axis": operator.out_axis},
        name=f"{operator.weight}/DequantizeLinear",
    )
    _describe(dq.outputs[0], f"{operator.weight}.dequantized", dtype, shape)
    model.graph.insert_before(node, dq)
    _replace_weight(model, node, source, dq.outputs[0])


def _multiply_weight(model: ir.Model, node: ir.Node, operator: Operator, factors: FloatArray) -> None:
    """Makes good in float weights what a norm's activation was divided by."""
    source = model.graph.initializers[operator.weight]
    dtype, weight = stated(source.dtype), stated(source.const_value)

    def product() -> npt.NDArray[Any]:
        return _smoothed(weight, operator, factors).astype(dtype.numpy())

    smoothed = _lazy(model, f"{operator.weight}.smoothed", product, dtype, stated(source.shape))
    _replace_weight(model, node, source, smoothed)


def _replace_weight(model: ir.Model, node: ir.Node, source: ir.Value, value: ir.Value) -> None:
    node.replace_input_with(1, value)
    if not source.uses():
        del model.graph.initializers[stated(source.name)]


def _lazy(
    model: ir.Model, name: str, make: Callable[[], npt.NDArray[Any]], dtype: ir.DataType, shape: ir.Shape
) -> ir.Value:
    """An initializer that is computed when the model is saved."""
    lazy = ir.LazyTensor(lambda: ir.Tensor(make(), dtype=dtype, name=name), dtype, shape, name=name)
    value = ir.Value(name=name, const_value=lazy, type=ir.TensorType(dtype), shape=shape)
    model.graph.register_initializer(value)
    return value


def _smoothed(tensor: ir.TensorProtocol, operator: Operator, factors: FloatArray | None) -> FloatArray:
    weight = tensor.numpy().astype(np.float32)
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()  # as `unmap`
    if factors is None:
        return weight
    shape = [1] * weight.ndim
    shape[operator.in_axis] = -1
    product: FloatArray = weight * factors.reshape(shape)
    return product


def _weight_scale(weight: FloatArray, out_axis: int, form: Format) -> FloatArray:
    """[out] largest magnitude of each output channel over that of the format."""
    axes = tuple(axis for axis in range(weight.ndim) if axis != out_axis)
    scale: FloatArray = np.maximum(np.abs(weight).max(axis=axes) / form.largest, SMALLEST_SCALE).astype(np.float32)
    return scale


def _rounded(
    weight: Callable[[], FloatArray], scale: npt.NDArray[Any], out_axis: int, form: Format
) -> npt.NDArray[np.generic]:
    array = weight()
    shape = [1] * array.ndim
    shape[out_axis] = -1
    return form.rounded(array / scale.astype(np.float32).reshape(shape))


def constant(model: ir.Model, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """A new initializer."""
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    model.graph.register_initializer(value)
    return value


def _describe(value: ir.Value, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    value.name, value.dtype, value.shape = name, dtype, shape

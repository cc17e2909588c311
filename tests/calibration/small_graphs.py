"""Graphs of a few nodes, for tests of single parts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from latentrt.backends.onnxruntime.session import make_session, settings
from latentrt.graph import GraphFile, TensorSpec

_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}


class Builder:
    """A graph in the making: one input, nodes one after the other, the last value is the output."""

    def __init__(self, dims: tuple[Any, ...], *, dtype: str = "float32") -> None:
        self.dtype = dtype
        self.input = self._value("x", dims)
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []

    def weight(self, name: str, array: np.ndarray) -> ir.Value:
        array = array.astype(self.dtype) if array.dtype.kind == "f" else array
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        self.weights.append(value)
        return value

    def node(self, name: str, *inputs: ir.Value, dims: tuple[Any, ...], **attributes: Any) -> ir.Value:
        node = ir.node(name.rpartition("/")[2], inputs, attributes, name=name)
        output = node.outputs[0]
        output.name, output.shape, output.dtype = f"{name}.y", ir.Shape(dims), _TYPES[self.dtype]
        self.nodes.append(node)
        return output

    def model(self, *outputs: ir.Value) -> ir.Model:
        graph = ir.Graph(
            [self.input], outputs, nodes=self.nodes, initializers=self.weights, opset_imports={"": 23}, name="small"
        )
        return ir.Model(graph, ir_version=10)

    def _value(self, name: str, dims: tuple[Any, ...]) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(_TYPES[self.dtype]))


def attention_front(*, dtype: str = "float32", seed: int = 0) -> ir.Model:
    """A layer norm read by two products, and a third product behind one of them: [B, N, 8] -> [B, N, 8]."""
    rng = np.random.default_rng(seed)
    make = Builder(("B", "N", 8), dtype=dtype)
    scale = make.weight("norm.weight", 1 + 5 * rng.random(8) ** 4)
    bias = make.weight("norm.bias", rng.standard_normal(8))
    normed = make.node("block.norm/LayerNormalization", make.input, scale, bias, dims=("B", "N", 8), axis=-1)
    q = make.node("block.to_q/MatMul", normed, make.weight("q", rng.standard_normal((8, 8))), dims=("B", "N", 8))
    k = make.node("block.to_k/MatMul", normed, make.weight("k", rng.standard_normal((8, 8))), dims=("B", "N", 8))
    gate = make.node("block.gate/Mul", q, k, dims=("B", "N", 8))
    out = make.node("block.to_out/MatMul", gate, make.weight("out", rng.standard_normal((8, 8))), dims=("B", "N", 8))
    return make.model(out)


def convolution_chain(layers: int) -> ir.Model:
    """Layers of 1x1 convolutions on [B, 8, h, w], all in the same size."""
    make = Builder(("B", 8, "h", "w"))
    value = make.input
    for layer in range(layers):
        kernel = np.random.default_rng(layer).standard_normal((8, 8, 1, 1)) / 3
        weight = make.weight(f"layer{layer}.weight", kernel)
        value = make.node(f"layer{layer}/Conv", value, weight, dims=("B", 8, "h", "w"))
    return make.model(value)


def graph_file(model: ir.Model, path: Path) -> GraphFile:
    """Saves the model, its weights beside it, and describes it."""
    ir.save(model, path, external_data=path.with_suffix(".weights").name, size_threshold_bytes=16)
    return GraphFile("small", path=path, inputs=_specs(model.graph.inputs), outputs=_specs(model.graph.outputs))


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """The first output, by ONNX Runtime."""
    session = make_session(ir.to_proto(model).SerializeToString(), settings(threads=None), precision="int8")
    return session.run(None, {"x": x})[0]


def _specs(values: Any) -> Mapping[str, TensorSpec]:
    return {
        value.name: TensorSpec(
            str(value.dtype.numpy()), tuple(dim if isinstance(dim, int) else None for dim in value.shape)
        )
        for value in values
    }

"""Magnitudes as outputs: a graph that says how large its inner tensors became, without giving them away.

Each tensor is reduced to its extremes where it is made, so that none lives longer than it did.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from latentrt.export.passes.stated import stated

_LAST_AXIS = "probe/last_axis"


@dataclass(frozen=True, slots=True)
class Probes:
    """The scalar outputs that were added.

    Args:
        tensors: by tensor, the names of its minimum and its maximum.
        scores: by `Attention` node, the names of the longest query, of the longest key (Euclidean), and the factor
            of their product. It bounds the scores inside the node, which no tensor shows.
    """

    tensors: Mapping[str, tuple[str, str]]
    scores: Mapping[str, tuple[str, str, float]]

    @property
    def names(self) -> list[str]:
        return [
            name for row in (*self.tensors.values(), *(score[:2] for score in self.scores.values())) for name in row
        ]


def add_probes(model: ir.Model, nodes: Sequence[ir.Node]) -> Probes:
    """Adds the extremes of every float32 tensor that `nodes` read or write, weights left out, as outputs.

    Returns:
        The names of the outputs.
    """
    graph = model.graph
    tensors, scores = {}, {}
    values = [value for node in nodes for value in (*node.inputs, *node.outputs)]
    for value in dict.fromkeys(values):
        if value is None or value.dtype != ir.DataType.FLOAT or value.is_initializer():
            continue
        low, high = (_reduced(graph, op, value) for op in ("ReduceMin", "ReduceMax"))
        tensors[str(value.name)] = (low, high)
    for node in nodes:
        if node.op_type == "Attention":
            scores[str(node.name)] = _score_bound(graph, node)
    return Probes(tensors, scores)


def _score_bound(graph: ir.Graph, node: ir.Node) -> tuple[str, str, float]:
    """Names of the longest query and key, and the scale; |q . k| <= |q| |k|, heads side by side or not."""
    query, key = (_reduced(graph, "ReduceMax", _norms(graph, stated(value))) for value in node.inputs[:2])
    return query, key, _scale(node)


def _scale(node: ir.Node) -> float:
    """The attribute, else one over the root of the head's width; 1 where that is unknown."""
    if "scale" in node.attributes:
        return node.attributes["scale"].as_float()
    query = node.inputs[0]
    width = None if query is None or query.shape is None else query.shape[-1]
    heads = node.attributes["q_num_heads"].as_int() if "q_num_heads" in node.attributes else 1
    return (width / heads) ** -0.5 if isinstance(width, int) else 1.0


def _norms(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The Euclidean length of each vector along the last axis."""
    if _LAST_AXIS not in graph.initializers:
        tensor = ir.tensor([-1], dtype=ir.DataType.INT64, name=_LAST_AXIS)
        graph.register_initializer(
            ir.Value(name=_LAST_AXIS, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]), const_value=tensor)
        )
    axes = graph.initializers[_LAST_AXIS]
    for use in value.uses():
        if use.node.op_type == "ReduceL2":
            return use.node.outputs[0]
    norms = _behind(graph, value, ir.node("ReduceL2", [value, axes], {"keepdims": 0}))
    norms.name = f"{value.name}/norms"
    return norms


def _reduced(graph: ir.Graph, op: str, value: ir.Value) -> str:
    """The name of a new output that holds a reduction of all of `value` to a scalar."""
    name = f"{value.name}/{op}"
    if all(output.name != name for output in graph.outputs):
        scalar = _behind(graph, value, ir.node(op, [value], {"keepdims": 0}))
        scalar.name, scalar.dtype, scalar.shape = name, ir.DataType.FLOAT, ir.Shape([])
        graph.outputs.append(scalar)
    return name


def _behind(graph: ir.Graph, value: ir.Value, node: ir.Node) -> ir.Value:
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return node.outputs[0]

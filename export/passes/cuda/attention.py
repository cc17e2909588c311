"""Attention over [B, heads, L, d] to the form that takes [B, L, heads * d], as the projections around it have it.

So its four Transposes are not needed. What stands between a Transpose and the Attention and works along other axes
(the join of two sequences, a norm of each head) is done before the heads are split off instead.
"""

import numpy as np
import onnx_ir as ir

from latentrt.export.passes.cuda.nodes import constant, insert, integer, permutation, replace
from latentrt.export.passes.stated import stated

_SWAP = (0, 2, 1, 3)


def flatten_attention(graph: ir.Graph) -> int:
    """Rewrites those whose inputs and outputs are transposed, and returns how many they were."""
    found = [node for node in graph if (node.domain, node.op_type) == ("", "Attention") and _fits(node)]
    for number, node in enumerate(found):
        _flatten(graph, node, f"attention_{number}")
    return len(found)


def _fits(node: ir.Node) -> bool:
    """Three inputs with heads, an optional mask, one output which only Transposes read."""
    if "q_num_heads" in node.attributes or any(value is not None for value in node.inputs[4:]):
        return False
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return False
    out = node.outputs[0]
    readers = [use.node for use in out.uses()]
    swapped = bool(readers) and all(permutation(reader) == _SWAP for reader in readers)
    return swapped and not out.is_graph_output() and all(_can_swap(stated(value)) for value in node.inputs[:3])


def _can_swap(value: ir.Value) -> bool:
    """Whether a value [B, heads, L, d] can be had as [B, L, heads, d] without a Transpose."""
    node = value.producer()
    if node is None or value.shape is None or len(value.shape) != 4:
        return False
    if permutation(node) == _SWAP:
        shape = stated(node.inputs[0]).shape
        return shape is not None and isinstance(shape[2], int) and isinstance(shape[3], int)
    return _moves(node) and all(_can_swap(stated(each)) for each in node.inputs[: _data(node)])


def _moves(node: ir.Node) -> bool:
    """Whether a node works along the sequence or within a head."""
    if node.op_type == "Concat":
        return node.attributes["axis"].as_int() in (2, -2)
    return node.op_type == "RMSNormalization" and integer(node, "axis", -1) in (3, -1)


def _data(node: ir.Node) -> int:
    """How many of its inputs have heads."""
    return len(node.inputs) if node.op_type == "Concat" else 1


def _swapped(value: ir.Value, before: ir.Node, name: str) -> ir.Value:
    """The value as [B, L, heads, d]."""
    node = stated(value.producer())
    if permutation(node) == _SWAP:
        return stated(node.inputs[0])
    count = _data(node)
    parts = [_swapped(stated(each), before, f"{name}.{place}") for place, each in enumerate(node.inputs[:count])]
    attributes = {"axis": 1} if node.op_type == "Concat" else dict(node.attributes)
    shape = ir.Shape([stated(value.shape)[axis] for axis in _SWAP])
    inputs = [*parts, *node.inputs[count:]]
    return insert(before, node.op_type, inputs, attributes, name=f"{name}.swapped", dtype=value.dtype, shape=shape)


def _flatten(graph: ir.Graph, node: ir.Node, name: str) -> None:
    inputs, widths, heads = [], [], []
    for place, value in enumerate(node.inputs[:3]):
        swapped = _swapped(stated(value), node, f"{name}.{place}")
        count, width = (int(dim) for dim in stated(swapped.shape)[2:])  # type: ignore[arg-type]
        inputs.append(_joined(graph, swapped, node, count * width, name=f"{name}.{place}.joined"))
        heads.append(count)
        widths.append(width)
    out = node.outputs[0]
    attributes = {**node.attributes, "q_num_heads": heads[0], "kv_num_heads": heads[1]}
    batch, length = stated(stated(node.inputs[0]).shape)[0], stated(stated(node.inputs[0]).shape)[2]
    flat = ir.Shape([batch, length, heads[0] * widths[2]])
    made = insert(node, "Attention", [*inputs, *node.inputs[3:]], attributes, name=name, dtype=out.dtype, shape=flat)
    for reader in [use.node for use in out.uses()]:
        _connect(graph, made, reader.outputs[0], heads=heads[0], width=widths[2], name=name)


def _joined(graph: ir.Graph, value: ir.Value, node: ir.Node, width: int, *, name: str) -> ir.Value:
    """[B, L, heads, d] as [B, L, heads * d]: what was reshaped to the former, or a Reshape."""
    producer, shape = value.producer(), stated(value.shape)
    if producer is not None and producer.op_type == "Reshape":
        source = stated(producer.inputs[0])
        if source.shape is not None and list(source.shape) == [shape[0], shape[1], width]:
            return source
    target = constant(graph, np.array([0, 0, width], np.int64), name=f"attention.join.{width}")
    made = ir.Shape([shape[0], shape[1], width])
    return insert(node, "Reshape", [value, target], name=name, dtype=value.dtype, shape=made)


def _connect(graph: ir.Graph, made: ir.Value, old: ir.Value, *, heads: int, width: int, name: str) -> None:
    """What reads [B, L, heads, d] after the Transpose gets it from [B, L, heads * d]; a Reshape to that is left out."""
    readers = [use.node for use in old.uses()]
    for reader in readers:
        result = reader.outputs[0]
        if reader.op_type == "Reshape" and result.shape is not None and result.shape == made.shape:
            replace(result, made)
    if all(not reader.outputs[0].uses() and not reader.outputs[0].is_graph_output() for reader in readers):
        return
    target = constant(graph, np.array([0, 0, heads, width], np.int64), name=f"attention.split.{heads}x{width}")
    first = stated(old.producer())
    split = insert(first, "Reshape", [made, target], name=f"{name}.split", dtype=old.dtype, shape=old.shape)
    replace(old, split)

"""Nodes put into a graph beside others, for passes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from latentrt.arrays import Array
from latentrt.export.passes.stated import stated


def insert(
    before: ir.Node,
    kind: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    name: str,
    domain: str = "",
    dtype: ir.DataType | None = None,
    shape: ir.Shape | None = None,
) -> ir.Value:
    """The output, called `name`, of a new node in front of another one."""
    node = ir.node(kind, inputs, attributes, domain=domain, name=f"/{name}")
    (value,) = node.outputs
    value.name, value.shape = name, shape
    if dtype is not None:
        value.dtype = dtype
    stated(before.graph).insert_before(before, node)
    return value


def constant(graph: ir.Graph, values: Array, *, name: str) -> ir.Value:
    """An initializer, made once a name."""
    if name not in graph.initializers:
        tensor = ir.tensor(np.ascontiguousarray(values), name=name)
        graph.register_initializer(
            ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape), const_value=tensor)
        )
    return graph.initializers[name]


def transposed(value: ir.Value, perm: Sequence[int], *, before: ir.Node, name: str) -> ir.Value:
    """A Transpose of a value."""
    shape = None if value.shape is None else ir.Shape([value.shape[axis] for axis in perm])
    return insert(before, "Transpose", [value], {"perm": list(perm)}, name=name, dtype=value.dtype, shape=shape)


def permutation(node: ir.Node | None) -> tuple[int, ...] | None:
    """The axes of a Transpose that states them; None for anything else."""
    if node is None or (node.domain, node.op_type) != ("", "Transpose") or "perm" not in node.attributes:
        return None
    return tuple(node.attributes["perm"].as_ints())


def replace(old: ir.Value, new: ir.Value) -> None:
    """Everything that reads one value reads another one; an output of the graph keeps its name."""
    if old.is_graph_output():
        old.name, new.name = f"{old.name}.before", old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def integer(node: ir.Node, attribute: str, default: int) -> int:
    """An attribute, or what it is where it is left out."""
    return node.attributes[attribute].as_int() if attribute in node.attributes else default

"""Which nodes of a component are its network, and which the algebra around it.

Exported nodes are named after the module that they come from, `conv_in/Conv`; those outside any module are
`/Mul`. Between the first and the last module lies the network; before and after it lies algebra: the
sampler, scaling, conversion from and to bytes.
"""

from typing import TypeGuard

import onnx_ir as ir

from latentrt.errors import BundleError

SHAPE_ONLY = frozenset({"Shape", "Size"})


def is_float(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Whether a value is a float32 tensor."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def float_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Nodes that read or write float32, those that only ask for a shape left out, in execution order."""
    nodes = []
    for node in graph:
        if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            raise BundleError(f"node {node.name} holds a graph of its own ({node.op_type})", expected="a flat graph")
        if node.op_type not in SHAPE_ONLY and any(map(is_float, (*node.inputs, *node.outputs))):
            nodes.append(node)
    return nodes


def network_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The float nodes that belong to a module or lie between two that do, in execution order."""
    nodes = float_nodes(graph)
    named = {node for node in nodes if node.name and not node.name.startswith("/")}
    if not named:
        raise BundleError(
            f"no node of graph '{graph.name}' carries the name of a module", hint="export the bundle again"
        )
    below, above = set(named), set(named)
    for node in nodes:
        if node not in below and not below.isdisjoint(value.producer() for value in node.inputs if is_float(value)):
            below.add(node)
    for node in reversed(nodes):
        readers = (reader for value in node.outputs if is_float(value) for reader in value.consumers())
        if node not in above and not above.isdisjoint(readers):
            above.add(node)
    return [node for node in nodes if node in below and node in above]

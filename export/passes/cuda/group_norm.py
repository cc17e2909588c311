"""GroupNormalization, which the CUDA provider has no kernel for and takes apart, to the channels-last one that it has.

The SiLU behind it goes into the kernel. Its scale and shift are float32 in every precision.
"""

import numpy as np
import onnx_ir as ir

from latentrt.export.passes.cuda.nodes import constant, insert, replace, transposed
from latentrt.export.passes.stated import stated

_TYPES = {ir.DataType.FLOAT, ir.DataType.FLOAT16}
_LARGEST_GROUP = 512  # channels; the kernel takes an even number of them, and no more than a block has
_PLANES, _ROWS = (0, 2, 3, 1), (0, 2, 1)  # channels from the second place to the last one
_BACK = {_PLANES: (0, 3, 1, 2), _ROWS: (0, 2, 1)}


def fuse_group_norms(graph: ir.Graph) -> int:
    """Rewrites those that the kernel can compute, and returns how many they were."""
    found = [node for node in graph if (node.domain, node.op_type) == ("", "GroupNormalization") and _fits(node)]
    for number, node in enumerate(found):
        _fuse(graph, node, f"group_norm_{number}")
    return len(found)


def _fits(node: ir.Node) -> bool:
    x, *affine = map(stated, node.inputs)
    if x.shape is None or len(x.shape) not in (3, 4) or x.dtype not in _TYPES:
        return False
    channels, groups = x.shape[1], node.attributes["num_groups"].as_int()
    if not isinstance(channels, int) or channels % (2 * groups) or channels // groups > _LARGEST_GROUP:
        return False
    return all(value.const_value is not None and value.is_initializer() for value in affine)


def _fuse(graph: ir.Graph, node: ir.Node, name: str) -> None:
    x, scale, shift = map(stated, node.inputs)
    perm = _PLANES if len(stated(x.shape)) == 4 else _ROWS
    product = _silu(node.outputs[0])
    result = node.outputs[0] if product is None else product
    value = transposed(x, perm, before=node, name=f"{name}.in")
    if perm == _ROWS:
        value = _with_axis(graph, value, node, "Unsqueeze", name=f"{name}.plane")
    attributes = {
        "groups": node.attributes["num_groups"].as_int(),
        "epsilon": node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5,
        "activation": 0 if product is None else 1,
        "channels_last": 1,
    }
    inputs = [value, _float32(graph, scale), _float32(graph, shift)]
    made = insert(
        node, "GroupNorm", inputs, attributes, name=name, domain="com.microsoft", dtype=x.dtype, shape=value.shape
    )
    if perm == _ROWS:
        made = _with_axis(graph, made, node, "Squeeze", name=f"{name}.rows")
    replace(result, transposed(made, _BACK[perm], before=node, name=f"{name}.out"))


def _silu(value: ir.Value) -> ir.Value | None:
    """x * sigmoid(x), where nothing else reads x and nothing else its sigmoid."""
    users = [use.node for use in value.uses()]
    gates = [user for user in users if user.op_type == "Sigmoid"]
    products = [user for user in users if user.op_type == "Mul"]
    if value.is_graph_output() or (len(users), len(gates), len(products)) != (2, 1, 1):
        return None
    gate = gates[0].outputs[0]
    alone = len(gate.uses()) == 1 and not gate.is_graph_output()
    return products[0].outputs[0] if alone and {*products[0].inputs} == {value, gate} else None


def _with_axis(graph: ir.Graph, value: ir.Value, node: ir.Node, kind: str, *, name: str) -> ir.Value:
    """[B, L, C] to [B, 1, L, C], or back."""
    axes = constant(graph, np.array([1], np.int64), name="group_norm.axis")
    dims = list(stated(value.shape))
    dims = [dims[0], 1, *dims[1:]] if kind == "Unsqueeze" else [dims[0], *dims[2:]]
    return insert(node, kind, [value, axes], name=name, dtype=value.dtype, shape=ir.Shape(dims))


def _float32(graph: ir.Graph, value: ir.Value) -> ir.Value:
    if value.dtype == ir.DataType.FLOAT:
        return value
    values = stated(value.const_value).numpy().astype(np.float32)
    return constant(graph, values, name=f"{value.name}.group_norm")

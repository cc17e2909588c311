"""ArgMax over truth values (where a prompt ends) in operators that have a CUDA kernel: ArgMax has none for integers.

Of N values the i-th true one weighs N - i, so that the largest weight is that of the first true one, and 0 where none
is; a table turns it back into the position, and 0 into 0, as ArgMax does.
"""

import numpy as np
import onnx_ir as ir

from latentrt.export.passes.cuda.nodes import constant, insert, integer, replace
from latentrt.export.passes.stated import stated

_LARGEST = 2**20  # whole numbers are exact in float32 far beyond


def replace_argmax(graph: ir.Graph) -> int:
    """Rewrites each ArgMax of what was true or false along the last axis, and returns how many they were."""
    count = 0
    for node in list(graph):
        truth = _truth(node)
        if truth is not None:
            _replace(graph, node, truth, f"first_true_{count}")
            count += 1
    return count


def _truth(node: ir.Node) -> ir.Value | None:
    """The truth values that an ArgMax is taken of, along their last axis of a fixed length."""
    if (node.domain, node.op_type) != ("", "ArgMax") or integer(node, "select_last_index", 0):
        return None
    cast = stated(node.inputs[0]).producer()
    truth = None if cast is None or cast.op_type != "Cast" else cast.inputs[0]
    if truth is None or truth.dtype != ir.DataType.BOOL or truth.shape is None:
        return None
    length, rank = truth.shape[-1], len(truth.shape)
    last = integer(node, "axis", 0) in (-1, rank - 1)
    return truth if last and isinstance(length, int) and 0 < length < _LARGEST else None


def _replace(graph: ir.Graph, node: ir.Node, truth: ir.Value, name: str) -> None:
    length, old = int(stated(truth.shape)[-1]), node.outputs[0]  # type: ignore[arg-type]
    weights = constant(graph, np.arange(length, 0, -1, dtype=np.float32), name=f"first_true.weights.{length}")
    zero = constant(graph, np.zeros(1, np.float32), name="first_true.zero")
    table = constant(graph, np.array([0, *range(length - 1, -1, -1)], np.int64), name=f"first_true.places.{length}")
    axes = constant(graph, np.array([-1], np.int64), name="first_true.axis")
    weighed = insert(node, "Where", [truth, weights, zero], name=f"{name}.weighed", dtype=ir.DataType.FLOAT)
    weighed.shape = truth.shape
    keep = {"keepdims": integer(node, "keepdims", 1)}
    largest = insert(node, "ReduceMax", [weighed, axes], keep, name=f"{name}.largest", dtype=ir.DataType.FLOAT)
    number = insert(node, "Cast", [largest], {"to": ir.DataType.INT64.value}, name=f"{name}.number")
    place = insert(node, "Gather", [table, number], {"axis": 0}, name=name, dtype=ir.DataType.INT64, shape=old.shape)
    largest.shape = number.shape = old.shape
    number.dtype = ir.DataType.INT64
    replace(old, place)

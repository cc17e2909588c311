"""Neighbouring Transposes to one, or to none where the second undoes the first."""

import onnx_ir as ir

from latentrt.export.passes.cuda.nodes import permutation, replace, transposed
from latentrt.export.passes.stated import stated


def fold_transposes(graph: ir.Graph) -> int:
    """Folds each Transpose of a Transpose, and returns how many there were."""
    count = 0
    for node in list(graph):  # in the order of execution, so that chains fold from their beginning
        own = permutation(node)
        before = stated(node.inputs[0]).producer() if own is not None else None
        first = permutation(before)
        if own is None or first is None:
            continue
        source, old = stated(stated(before).inputs[0]), node.outputs[0]
        perm = tuple(first[axis] for axis in own)
        if perm != tuple(range(len(perm))):
            replace(old, transposed(source, perm, before=node, name=f"{old.name}.folded"))
        elif old.is_graph_output() and (source.is_graph_output() or source.producer() is None):
            continue  # it has to have two names
        else:
            replace(old, source)
        count += 1
    return count

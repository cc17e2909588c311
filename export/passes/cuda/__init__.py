"""A graph in the operators that ONNX Runtime's CUDA provider computes fast: one pass a file, all of them here.

Looked at were the schemas and kernels of onnxruntime 1.31 (`com.microsoft`, version 1). Each pass leaves alone what it
does not know, so that a graph that it does not fit stays as it is.
"""

from collections.abc import Callable, Mapping

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from latentrt.export.passes.cuda.attention import flatten_attention
from latentrt.export.passes.cuda.first_true import replace_argmax
from latentrt.export.passes.cuda.group_norm import fuse_group_norms
from latentrt.export.passes.cuda.transposes import fold_transposes

ONNXRUNTIME = "1.31"
"""Major and minor version of the onnxruntime whose operators these passes write."""
RECIPE = 1  # raised when the same graph becomes another one

PASSES: Mapping[str, Callable[[ir.Graph], int]] = {
    "GroupNorm": fuse_group_norms,
    "Attention": flatten_attention,
    "ArgMax": replace_argmax,
    "Transpose": fold_transposes,
}


def for_cuda(model: ir.Model) -> dict[str, int]:
    """Rewrites a model in place; its weights are left where they lie.

    Returns:
        How many places each pass changed, by what it changes.
    """
    counts = {name: change(model.graph) for name, change in PASSES.items()}
    if any(node.domain == "com.microsoft" for node in model.graph):
        model.opset_imports["com.microsoft"] = 1
    RemoveUnusedNodesPass()(model)
    return counts

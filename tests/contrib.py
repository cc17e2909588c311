"""ONNX graphs without a runtime: onnx's reference evaluator, with `com.microsoft` operators written out in NumPy."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Array = npt.NDArray[Any]


class GroupNorm(OpRun):
    """As the schema of `com.microsoft.GroupNorm` has it, channels last: statistics over a group of channels and all
    places, scale and shift of each channel, then SiLU where `activation` is 1."""

    op_domain = "com.microsoft"

    def _run(self, x: Array, gamma: Array, beta: Array, **attributes: Any) -> tuple[Array]:
        if attributes["channels_last"] != 1 or x.ndim != 4 or {gamma.dtype, beta.dtype} != {np.dtype(np.float32)}:
            raise ValueError("the CUDA provider has no such kernel")
        groups = attributes["groups"]
        y = x.astype(np.float64).reshape(len(x), -1, groups, x.shape[-1] // groups)
        y = (y - y.mean((1, 3), keepdims=True)) / np.sqrt(y.var((1, 3), keepdims=True) + attributes["epsilon"])
        y = y.reshape(x.shape) * gamma + beta
        return ((y / (1 + np.exp(-y)) if attributes["activation"] else y).astype(x.dtype),)


class GatherElements(OpRun):
    """onnx's own takes up to 64 elements."""

    def _run(self, data: Array, indices: Array, axis: int = 0) -> tuple[Array]:
        return (np.take_along_axis(data, indices, axis),)


def evaluate(model: ir.Model | onnx.ModelProto, feed: dict[str, Array]) -> list[Array]:
    """The outputs of a model whose weights are in memory, or lie where the model was loaded from."""
    proto = ir.to_proto(loaded(model)) if isinstance(model, ir.Model) else model
    known = {each.name for each in proto.graph.input}
    outputs: list[Array] = ReferenceEvaluator(proto, new_ops=[GroupNorm, GatherElements]).run(
        None, {name: value for name, value in feed.items() if name in known}
    )
    return outputs


def loaded(model: ir.Model) -> ir.Model:
    """The model with its weights in memory."""
    return ir.external_data.load_to_model(model)

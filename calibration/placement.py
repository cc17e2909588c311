"""Which operators of a graph are quantised, and why the others are not.

Only the inputs of Conv, MatMul and Gemm with constant weights are: no outputs, no bias, nothing inside attention
products, softmax and norms. Quantised outputs or biases mean different things to different backends.
"""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass

import numpy as np
import onnx_ir as ir

from latentrt.errors import BundleError
from latentrt.export.passes.stated import stated

FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the float table: operators of modules that match stay as they are.

    Args:
        pattern: of the module's name, the node's name up to the slash.
        reason: shown in reports.
    """

    pattern: str
    reason: str

    def holds(self, module: str) -> bool:
        return re.fullmatch(self.pattern, module) is not None


FLOAT_TABLE = (
    Rule(r"(.*\.)?(conv_in|x_embedder|pos_embed\.proj|patch_embedding)", "reads the latent: few channels, little work"),
    Rule(r"(.*\.)?(conv_out|norm_out\.linear|proj_out_final)", "its error is the output's"),
    Rule(r"(.*\.)?(post_quant_conv|quant_conv)", "a product of the latent's few channels"),
    Rule(r".*conv_shortcut", "carries the residual past the block: its error is never normalised away"),
    Rule(r".*time_emb_proj", "one vector an image: no work, and it shifts every pixel"),
    Rule(r"(.*\.)?(time_embedding|add_embedding|time_text_embed)(\..*)?", "one vector an image: no work"),
    Rule(r"(.*\.)?(pos_embed|context_embedder)(\..*)?", "runs once a prompt token, feeds every block"),
    Rule(r"(.*\.)?norm\d*\.linear", "modulation: one vector an image, scales every token"),
)


@dataclass(frozen=True, slots=True)
class Operator:
    """A Conv, MatMul or Gemm with constant weights.

    Args:
        activation: the tensor that it reads.
        out_axis, in_axis: axes of the weight along output and input channels.
        channel_axis: axis of the activation along the input channels, counted from the front for Conv, else -1.
        float_reason: why it stays in float; None: it is quantised.
    """

    name: str
    _: KW_ONLY
    kind: str
    activation: str
    weight: str
    shape: tuple[int, ...]
    out_axis: int
    in_axis: int
    channel_axis: int
    float_reason: str | None = None

    @property
    def module(self) -> str:
        """The module that the operator comes from."""
        return self.name.partition("/")[0]

    @property
    def size(self) -> int:
        """Weights that it holds."""
        return int(np.prod(self.shape))


def operators(model: ir.Model, *, rules: tuple[Rule, ...] = FLOAT_TABLE) -> list[Operator]:
    """Every operator that could be quantised, in the graph's order, with the reason where one is not."""
    found = []
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise BundleError(
                f"the graph is quantised already: it holds {node.name}",
                expected="a float bundle",
                hint="calibrate the bundle that this one was made from",
            )
        if (operator := _operator(node, rules)) is not None:
            found.append(operator)
    return found


def _operator(node: ir.Node, rules: tuple[Rule, ...]) -> Operator | None:
    """The node as an operator; None where it is none, or has no constant weights in float."""
    if node.op_type not in _AXES or len(node.inputs) < 2:
        return None
    activation, weight = node.inputs[0], node.inputs[1]
    if activation is None or weight is None or not weight.is_initializer() or weight.dtype not in FLOAT_TYPES:
        return None
    if activation.is_initializer():
        return None
    axes = _AXES[node.op_type](node, len(stated(weight.shape)))
    if axes is None:
        return None
    out_axis, in_axis = axes
    name = stated(node.name)
    return Operator(
        name,
        kind=node.op_type,
        activation=stated(activation.name),
        weight=stated(weight.name),
        shape=stated(weight.shape).numpy(),
        out_axis=out_axis,
        in_axis=in_axis,
        channel_axis=1 if node.op_type == "Conv" else -1,
        float_reason=next((rule.reason for rule in rules if rule.holds(name.partition("/")[0])), None),
    )


def _conv_axes(node: ir.Node, rank: int) -> tuple[int, int] | None:
    """Grouped convolutions are left out: their input channels are not those of the weight."""
    return (0, 1) if rank >= 3 and _int(node, "group", 1) == 1 else None


def _matmul_axes(node: ir.Node, rank: int) -> tuple[int, int] | None:
    return (1, 0) if rank == 2 else None


def _gemm_axes(node: ir.Node, rank: int) -> tuple[int, int] | None:
    if _int(node, "transA", 0):
        return None
    return (0, 1) if _int(node, "transB", 0) else (1, 0)


_AXES = {"Conv": _conv_axes, "MatMul": _matmul_axes, "Gemm": _gemm_axes}


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()

"""Pooled self-attention: in the largest self-attentions of a U-Net, keys and values of 2x2 neighbours become one.

Queries stay as they are, so that the picture keeps its size; only what each place looks at is coarser. A simple
relative of token merging (Bolya and Hoffman 2023, arXiv 2303.17604), whose order of tokens depends on the picture, and
of token downsampling (Smith et al. 2024, arXiv 2402.13573). The average is taken of what the projections read: they
are linear, so that it is that of keys and of values.

Working on the graph, not on the torch module, leaves every other node and every weight as it is.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from latentrt.errors import RequestError
from latentrt.export.passes.stated import stated

FACTOR = 2
"""Neighbours along each side that become one."""

_KEYS = re.compile(r"(?P<attention>(?P<place>.+\.attentions\.\d+)\.transformer_blocks\.\d+\.attn1)\.to_k/MatMul")
_POOLED = re.compile(r"(?P<attention>.+\.attn1)\.pool/AveragePool")
_BLOCK = re.compile(r"(?P<side>down|up)_blocks\.(?P<number>\d+)\.")


def check_poolable(network: str) -> None:
    """Raises RequestError for a denoiser, `unet` or `transformer`, that cannot have it, before it is read."""
    if network != "unet":
        raise RequestError(
            "pooled attention of a transformer",
            expected="a U-Net: Stable Diffusion 1, 2 or XL",
            hint="all layers of a transformer have one size and attend to text and picture at once, so that pooling"
            " would blur every one of them; for fewer calls of all its blocks there is --step-cache",
        )


def pool_attention(model: ir.Model) -> None:
    """Pools keys and values of the self-attentions of the largest level that has any.

    Sides that are not even are averaged as they are: a window at the edge holds one or two values.

    Args:
        model: a step as it was traced.

    Raises:
        RequestError: a network without self-attentions.
    """
    graph = model.graph
    nodes = {str(node.name): node for node in graph}
    found = [match for name in nodes if (match := _KEYS.fullmatch(name)) and _is_self(nodes, match["attention"])]
    if not found:
        raise RequestError("pooled attention of a network without self-attentions", expected="a U-Net that has some")
    blocks = 1 + max(int(match["number"]) for name in nodes if (match := _BLOCK.match(name)))
    levels = [_level(match.string, blocks) for match in found]
    for match, level in zip(found, levels, strict=True):
        if level == min(levels):
            _pool(graph, nodes, match["attention"], match["place"])


def pooled_attentions(model: ir.Model) -> list[str]:
    """The attentions whose keys and values are pooled, as diffusers names them."""
    return [match["attention"] for node in model.graph if (match := _POOLED.fullmatch(str(node.name)))]


def _is_self(nodes: Mapping[str, ir.Node], attention: str) -> bool:
    """Whether queries and keys are of the same; a layer may attend to the text in both places."""
    queries, keys = (nodes[f"{attention}.{name}/MatMul"].inputs[0] for name in ("to_q", "to_k"))
    return queries is keys


def _level(name: str, blocks: int) -> int:
    """How often the grid was halved before a layer; the last of the down blocks does not halve it."""
    match = _BLOCK.match(name)
    if match is None:
        return blocks - 1  # of the middle
    number = int(match["number"])
    return number if match["side"] == "down" else blocks - 1 - number


def _pool(graph: ir.Graph, nodes: Mapping[str, ir.Node], attention: str, place: str) -> None:
    keys, values = (nodes[f"{attention}.{name}/MatMul"] for name in ("to_k", "to_v"))
    tokens, picture = stated(keys.inputs[0]), nodes[f"{place}.norm/GroupNormalization"].outputs[0]
    pooled = _pooled(graph, tokens, picture, f"{attention}.pool")
    before, after = stated(tokens.shape)[1], stated(pooled.shape)[1]
    for node in (keys, values):
        node.replace_input_with(0, pooled)
        _restate(node.outputs[0], before, after, nodes[f"{attention}/Attention"])


def _pooled(graph: ir.Graph, tokens: ir.Value, picture: ir.Value, name: str) -> ir.Value:
    """[N, h * w, C] as [N, ceil(h / 2) * ceil(w / 2), C]. The last row and column are repeated where a side is not
    even, which leaves every average right and no backend a say in how it rounds sizes."""
    rows, length, width = stated(tokens.shape)
    h, w = stated(picture.shape)[2:]
    made: list[ir.Node] = []

    def add(kind: str, inputs: list[ir.Value], shape: list[Any], like: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(kind, inputs, attributes, name=f"{name}/{kind}_{len(made)}")
        value = node.outputs[0]
        value.name, value.type, value.shape = f"{name}.{len(made)}", like.type, ir.Shape(shape)
        made.append(node)
        return value

    two, zeros = _constant(graph, [FACTOR]), _constant(graph, [0] * 6)
    keep, rest = _constant(graph, [0, 0]), _constant(graph, [0, 0, -1])
    sides = add("Shape", [picture], [2], two, start=2)
    square = add("Concat", [keep, sides], [4], two, axis=0)
    pads = add("Concat", [zeros, add("Mod", [sides, two], [2], two)], [8], two, axis=0)
    channels = add("Transpose", [tokens], [rows, width, length], tokens, perm=(0, 2, 1))
    spread = add("Reshape", [channels, square], [rows, width, h, w], tokens)
    even = add("Pad", [spread, pads], [rows, width, _dim(f"{_half(h)}*{FACTOR}"), _dim(f"{_half(w)}*{FACTOR}")], tokens,
               mode="edge")  # fmt: skip
    small = [_dim(_half(side)) for side in (h, w)]
    window = {"kernel_shape": (FACTOR, FACTOR), "strides": (FACTOR, FACTOR)}
    mean = add("AveragePool", [even], [rows, width, *small], tokens, **window)
    made[-1].name = f"{name}/AveragePool"
    after = _dim("*".join(str(_half(side)) for side in (h, w)))
    flat = add("Reshape", [mean, rest], [rows, width, after], tokens)
    result = add("Transpose", [flat], [rows, after, width], tokens, perm=(0, 2, 1))
    graph.insert_after(stated(tokens.producer()), made)
    return result


def _half(side: Any) -> str | int:
    """Half of an axis, rounded up, in the words in which exported graphs name their axes."""
    if isinstance(side, int):
        return -(-side // FACTOR)
    return f"((({side} + 1)//{FACTOR}))"


def _dim(name: str | int) -> int | ir.SymbolicDim:
    return name if isinstance(name, int) else ir.SymbolicDim(name)


def _constant(graph: ir.Graph, numbers: list[int]) -> ir.Value:
    """One initializer for all attentions."""
    name = "pool." + ".".join(map(str, numbers))
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(numbers, np.int64), name=name)
        kind, shape = ir.TensorType(ir.DataType.INT64), ir.Shape([len(numbers)])
        graph.register_initializer(ir.Value(name=name, type=kind, shape=shape, const_value=tensor))
    return graph.initializers[name]


def _restate(value: ir.Value, before: Any, after: Any, end: ir.Node) -> None:
    """States the new number of tokens of a value and of what is made of it, up to the attention."""
    value.shape = ir.Shape([after if dim == before else dim for dim in stated(value.shape)])
    for use in value.uses():
        if use.node is not end:
            for output in use.node.outputs:
                _restate(output, before, after, end)

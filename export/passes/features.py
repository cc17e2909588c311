"""A step in two graphs for step caching: one gives what changes little from call to call, one takes it back.

In a U-Net that is what enters one of the last layers of its last up block, beside the skip connections (Ma et al. 2023,
arXiv 2312.00858); in a transformer what all blocks behind the first ones add to the picture's tokens.

Working on the graph, not on the torch module, leaves every other node and every weight as it is, in any precision.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from latentrt.bundle import FEATURES
from latentrt.errors import BundleError, RequestError
from latentrt.export.passes.residuals import Dims, residual_dims, token_dims
from latentrt.export.passes.stated import stated

_JOIN = re.compile(r"up_blocks\.(?P<block>\d+)/Concat(_\d+)?")
_BLOCK = re.compile(r"transformer_blocks\.\d+\.norm1\.norm/LayerNormalization")
_NORM = "transformer_blocks.{}.norm1.norm/LayerNormalization"
_LAST_NORM = "norm_out.norm/LayerNormalization"
_PATCHES = "pos_embed.proj/Conv"
_CHANGE = "/features.change"
_RESULTS = ("next_state", "denoised")


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where a network is cut: what is kept is `value`, or what it has more than `base`."""

    value: ir.Value
    base: ir.Value | None
    dims: Dims


def gives_features(model: ir.Model) -> bool:
    """Whether a step is one that `shallow` can cut."""
    return any(output.name == FEATURES for output in model.graph.outputs)


def add_features(model: ir.Model, *, layers: int) -> None:
    """Gives a step the float32 output `features`.

    Args:
        model: as exported, in any precision; features that it gives already give way.
        layers: how many of the network's outermost layers shallow calls compute: of a U-Net those of its last up
            block, of a transformer its first blocks.

    Raises:
        RequestError: more layers than the network has.
        BundleError: a network of another kind.
    """
    graph = model.graph
    if gives_features(model):
        _remove_features(model)
    cut = _cut(graph, layers)
    guidance = next(value for value in graph.inputs if value.name == "guidance")
    value, lengths = cut.value, [_append(graph, "Shape", [guidance], "/features.branches")]
    if cut.base is None:
        lengths.append(_append(graph, "Shape", [value], "/features.sizes", start=1))
    else:
        patches = stated(_named(graph)[_PATCHES].outputs[0])
        lengths.append(_append(graph, "Shape", [patches], "/features.patches", start=2))
        lengths.append(_constant(graph, "features.width", [cut.dims[-1]]))
        value = _append(graph, "Sub", [_float(graph, value), _float(graph, cut.base)], _CHANGE)
    shape = _append(graph, "Concat", lengths, "/features.shape", axis=0)
    output = _append(graph, "Reshape", [_float(graph, value), shape], f"/{FEATURES}")
    output.name, output.type, output.shape = FEATURES, ir.TensorType(ir.DataType.FLOAT), ir.Shape(cut.dims)
    graph.outputs.append(output)


def shallow(model: ir.Model) -> None:
    """Makes of a step that gives `features` the one that takes them: the input stands where they came from, and what
    only they needed is gone, inputs included."""
    graph = model.graph
    output = next(output for output in graph.outputs if output.name == FEATURES)
    dims, (value, base) = stated(output.shape), _kept(output)
    for other in list(graph.outputs):
        if other.name not in _RESULTS:
            graph.outputs.remove(other)
    output.name = f"{FEATURES}.removed"
    given = ir.Value(name=FEATURES, type=ir.TensorType(ir.DataType.FLOAT), shape=dims)
    graph.inputs.append(given)
    if base is None:
        sizes = _node("Shape", [given], "/features.sizes", start=2)
        rows = _constant(graph, "features.rows", [-1])
        shape = _node("Concat", [rows, sizes.outputs[0]], "/features.flat_shape", axis=0)
        nodes = [sizes, shape]
    else:
        shape = _node("Shape", [base], "/features.flat_shape")
        nodes = [shape]
    nodes.append(_node("Reshape", [given, shape.outputs[0]], "/features.flat"))
    nodes[-1].outputs[0].shape = value.shape
    if value.dtype != ir.DataType.FLOAT:
        nodes.append(_node("Cast", list(nodes[-1].outputs), "/features.cast", to=int(stated(value.dtype))))
    if base is not None:
        nodes.append(_node("Add", [base, nodes[-1].outputs[0]], "/features.sum"))
    taken = nodes[-1].outputs[0]
    value.replace_all_uses_with(taken)
    if base is not None and (producer := base.producer()) is not None:
        graph.insert_after(producer, nodes)
    else:
        graph.insert_before(graph[0], nodes)
    _prune(model)


def shallow_inputs(model: ir.Model) -> list[str]:
    """Inputs of a step that gives `features` which its shallow graph has as well."""
    output = next(output for output in model.graph.outputs if output.name == FEATURES)
    value, base = _kept(output)
    seen: set[ir.Value] = {value}
    ahead = [other for other in model.graph.outputs if other is not output] + ([] if base is None else [base])
    while ahead:
        reached = ahead.pop()
        if reached not in seen:
            seen.add(reached)
            producer = reached.producer()
            ahead += [] if producer is None else [read for read in producer.inputs if read is not None]
    return [stated(given.name) for given in model.graph.inputs if given in seen]


def hand_on(model: ir.Model, names: Iterable[str]) -> None:
    """Gives a step outputs `next_NAME` with what these inputs hold, for the shallow calls after it."""
    for name in names:
        value = next(value for value in model.graph.inputs if value.name == name)
        output = _append(model.graph, "Identity", [value], f"/next_{name}")
        output.name, output.type, output.shape = f"next_{name}", value.type, value.shape
        model.graph.outputs.append(output)


def _cut(graph: ir.Graph, layers: int) -> _Cut:
    named = _named(graph)
    joins = [(node, int(match["block"])) for name, node in named.items() if (match := _JOIN.fullmatch(name))]
    if joins:
        last = max(block for _, block in joins)
        places = [node for node, block in joins if block == last]
        _check(layers, len(places), "layers of the last up block")
        value = stated(places[-layers].inputs[0])
        return _Cut(value, None, residual_dims(_length(value, 1), 0))
    if _LAST_NORM in named and _PATCHES in named:
        blocks = sum(_BLOCK.fullmatch(name) is not None for name in named)
        _check(layers, blocks - 1, "blocks, and one behind them")
        value = _uncast(stated(named[_LAST_NORM].inputs[0]))
        base = _uncast(stated(named[_NORM.format(layers)].inputs[0]))
        patch = named[_PATCHES].attributes["strides"].as_ints()[0]
        return _Cut(value, base, token_dims(_length(value, 2), patch))
    raise BundleError(
        "the denoiser has neither skip connections nor blocks of a transformer to cut at",
        expected="a U-Net or a transformer of Stable Diffusion",
    )


def _check(layers: int, most: int, what: str) -> None:
    if not 1 <= layers <= most:
        raise RequestError(f"shallow calls of {layers} layers", expected=f"1 to {most}: the network has {most} {what}")


def _kept(output: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """What an output `features` was made of: a value, or one and what is taken away from it."""
    flat = _uncast(stated(stated(output.producer()).inputs[0]))
    producer = flat.producer()
    if producer is None or producer.name != _CHANGE:
        return flat, None
    value, base = (_uncast(stated(read)) for read in producer.inputs)
    return value, base


def _uncast(value: ir.Value) -> ir.Value:
    """The value before it was converted to another type."""
    while (producer := value.producer()) is not None and producer.op_type == "Cast":
        value = stated(producer.inputs[0])
    return value


def _remove_features(model: ir.Model) -> None:
    output = next(output for output in model.graph.outputs if output.name == FEATURES)
    model.graph.outputs.remove(output)
    output.name = f"{FEATURES}.removed"
    _prune(model)


def _prune(model: ir.Model) -> None:
    """Removes what no output needs."""
    RemoveUnusedNodesPass()(model)
    for value in list(model.graph.inputs):
        if not value.uses():
            model.graph.inputs.remove(value)


def _named(graph: ir.Graph) -> dict[str, ir.Node]:
    return {str(node.name): node for node in graph}


def _length(value: ir.Value, axis: int) -> int:
    size = None if value.shape is None else value.shape[axis]
    if not isinstance(size, int):
        raise BundleError(f"the features of {value.name} are not known", hint="export the bundle again")
    return size


def _float(graph: ir.Graph, value: ir.Value) -> ir.Value:
    if value.dtype == ir.DataType.FLOAT:
        return value
    return _append(graph, "Cast", [value], f"/features.{value.name}.fp32", to=int(ir.DataType.FLOAT))


def _constant(graph: ir.Graph, name: str, numbers: list[str | int]) -> ir.Value:
    tensor = ir.tensor(np.array(numbers, np.int64), name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([len(numbers)]), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _append(graph: ir.Graph, kind: str, inputs: Sequence[ir.Value], name: str, **attributes: int) -> ir.Value:
    """The output of a new last node."""
    node = _node(kind, inputs, name, **attributes)
    graph.append(node)
    return node.outputs[0]


def _node(kind: str, inputs: Sequence[ir.Value], name: str, **attributes: int) -> ir.Node:
    """A node whose output states its name, type and shape; of a Reshape, those of what it reads."""
    node = ir.node(kind, inputs, attributes, name=name)
    made, first = node.outputs[0], inputs[0]
    made.name, made.type, made.shape = name.removeprefix("/"), first.type, first.shape
    if kind == "Shape":
        made.shape = ir.Shape([len(stated(first.shape)) - attributes.get("start", 0)])
        made.type = ir.TensorType(ir.DataType.INT64)
    elif kind == "Concat":
        made.shape = ir.Shape([sum(_length(value, 0) for value in inputs)])
    elif kind == "Cast":
        made.type = ir.TensorType(ir.DataType(attributes["to"]))
    return node

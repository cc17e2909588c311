"""Residuals of ControlNets into exported graphs: added to a denoiser's features, and handed on by a ControlNet.

Working on the graph, not on the torch module, leaves every other node and every weight as it is, in any precision.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from latentrt.errors import BundleError

_JOIN = re.compile(r"up_blocks\.(?P<block>\d+)/Concat(_\d+)?")
_BLOCK = re.compile(r"transformer_blocks\.(?P<block>\d+)\.norm1\.norm/LayerNormalization")
_PATCHES = "pos_embed.proj/Conv"

Dims = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class _Site:
    """A value that a residual is added to: which one, its axes, and the inputs of nodes that read the sum."""

    value: ir.Value
    readers: tuple[tuple[ir.Node, int], ...]
    residual: int
    dims: Dims


def residual_dims(channels: int, level: int) -> Dims:
    """Axes of a residual in a U-Net where the latent was halved `level` times: `h2` is the half of h, rounded up, `h4`
    that of `h2`, and so on."""
    return "K", "B", channels, _part("h", 2**level), _part("w", 2**level)


def token_dims(width: int, patch: int) -> Dims:
    """Axes of a residual in a transformer of this width, a token for `patch` latent pixels along each axis."""
    return "K", "B", _part("h", patch), _part("w", patch), width


def residual_of_block(block: int, *, blocks: int, made: int) -> int:
    """Which of the residuals that a ControlNet makes a block of a transformer takes.

    Source: `SD3Transformer2DModel.forward` (diffusers), `interval_control`; rounded as there.
    """
    return int(block / (blocks / made))


def residuals_taken(*, blocks: int, made: int) -> int:
    """How many of those a transformer takes: its last block adds none."""
    return 1 + residual_of_block(blocks - 2, blocks=blocks, made=made)


def add_step_residuals(model: ir.Model, *, made: int | None = None) -> list[Dims]:
    """Gives a step the float32 inputs `residual_0` to `residual_{R-1}`: in a U-Net one for each skip connection in the
    order in which they are made, and one for the middle block; in a transformer those that its blocks take.

    Source: `UNet2DConditionModel.forward`, `down_block_additional_residuals`, and `SD3Transformer2DModel.forward`,
    `block_controlnet_hidden_states` (diffusers).

    Args:
        model: as exported, in any precision.
        made: how many a ControlNet of a transformer makes; None is one for each block.

    Returns:
        The axes of each.

    Raises:
        BundleError: a network that no ControlNet is known for.
    """
    sites = _sites(model.graph, made)
    dims = {site.residual: site.dims for site in sites}
    inputs = {number: _new_input(model.graph, f"residual_{number}", axes) for number, axes in dims.items()}
    for place, site in enumerate(sites):
        _add(inputs[site.residual], site, label=f"control_{place}")
    return list(dims.values())


def add_running_residuals(model: ir.Model, dims: list[Dims]) -> None:
    """Gives a ControlNet, whose outputs are what it adds, the inputs `residual_0`...; its outputs become the sums."""
    graph = model.graph
    for number, (output, axes) in enumerate(zip(list(graph.outputs), dims, strict=True)):
        running = _new_input(graph, f"residual_{number}", axes)
        name, output.name = output.name, f"own_residual_{number}"
        total = ir.Node("", "Add", [running, output], name=f"/running_{number}")
        total.outputs[0].name, total.outputs[0].type, total.outputs[0].shape = name, output.type, ir.Shape(axes)
        graph.append(total)
        graph.outputs[number] = total.outputs[0]


def _sites(graph: ir.Graph, made: int | None) -> list[_Site]:
    """In the order of the residuals."""
    named = {str(node.name): node for node in graph}
    joins = [(node, int(match["block"])) for name, node in named.items() if (match := _JOIN.fullmatch(name))]
    norms = [node for name, node in named.items() if _BLOCK.fullmatch(name)]
    if joins:
        return list(_skip_sites(joins))
    if norms and _PATCHES in named:
        patch = named[_PATCHES].attributes["strides"].as_ints()[0]
        return list(_block_sites(norms, patch, len(norms) if made is None else made))
    raise BundleError(
        "the denoiser has neither skip connections nor blocks of a transformer to add to",
        expected="a U-Net or a transformer of Stable Diffusion",
    )


def _skip_sites(joins: Sequence[tuple[ir.Node, int]]) -> Iterator[_Site]:
    """Of a U-Net, whose up blocks join the skip connections from the last one on: nothing else reads the sums."""
    blocks = 1 + max(block for _, block in joins)
    skips = [(node, 1, blocks - 1 - block) for node, block in joins]
    for number, (node, index, level) in enumerate([*reversed(skips), (joins[0][0], 0, blocks - 1)]):
        value = _input(node, index)
        yield _Site(value, ((node, index),), number, residual_dims(_features(value, 1), level))


def _block_sites(norms: Sequence[ir.Node], patch: int, made: int) -> Iterator[_Site]:
    """Of a transformer: what a block makes is what the next one's first norm reads, and everything reads the sum."""
    for block, norm in enumerate(norms[1:]):
        value = _input(norm, 0)
        while (producer := value.producer()) is not None and producer.op_type == "Cast":  # the norm in another type
            value = _input(producer, 0)
        readers = tuple((use.node, use.idx) for use in value.uses())
        number = residual_of_block(block, blocks=len(norms), made=made)
        yield _Site(value, readers, number, token_dims(_features(value, 2), patch))


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None  # the inputs looked at here are not optional
    return value


def _features(value: ir.Value, axis: int) -> int:
    size = None if value.shape is None else value.shape[axis]
    if not isinstance(size, int) or value.dtype is None:
        raise BundleError(f"the features of {value.name} are not known", hint="export the bundle again")
    return size


def _part(axis: str, factor: int) -> str:
    return axis if factor == 1 else f"{axis}{factor}"


def _new_input(graph: ir.Graph, name: str, dims: Dims) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(dims))
    graph.inputs.append(value)
    return value


def _add(residual: ir.Value, site: _Site, *, label: str) -> None:
    """Adds a residual, [K, B, ...] float32, in the shape [K*B, ...] and the type of the value."""
    value = site.value
    shape = _node("Shape", [value], after=value, name=f"{label}.shape")
    fitted = _node("Reshape", [residual, shape], after=shape, name=f"{label}.flat")
    if value.dtype != ir.DataType.FLOAT:
        fitted = _node("Cast", [fitted], after=fitted, name=f"{label}.cast", to=value.dtype)
    total = _node("Add", [value, fitted], after=fitted, name=f"{label}.sum")
    total.type, total.shape = value.type, value.shape
    for node, index in site.readers:
        node.replace_input_with(index, total)


def _node(kind: str, inputs: list[ir.Value], *, after: ir.Value, name: str, to: ir.DataType | None = None) -> ir.Value:
    attributes = [] if to is None else [ir.AttrInt64("to", int(to))]
    node = ir.Node("", kind, inputs, attributes, name=f"/{name}")
    node.outputs[0].name = name
    before = after.producer()
    assert before is not None and isinstance(before.graph, ir.Graph)  # it was found in one
    before.graph.insert_after(before, node)
    return node.outputs[0]

"""Residuals of ControlNets into exported graphs: added to a U-Net's skip connections, and handed on by a ControlNet.

Working on the graph, not on the torch module, leaves every other node and every weight as it is, in any precision.
"""

import re
from dataclasses import dataclass

import onnx_ir as ir

from latentrt.errors import BundleError

_JOIN = re.compile(r"up_blocks\.(?P<block>\d+)/Concat(_\d+)?")

Dims = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class _Site:
    """An input of a node that a residual is added to, and how many times the latent was halved there."""

    node: ir.Node
    index: int
    level: int

    @property
    def value(self) -> ir.Value:
        value = self.node.inputs[self.index]
        assert value is not None  # inputs of a Concat are all there
        return value


def residual_dims(channels: int, level: int) -> Dims:
    """Axes of a residual: `h2` is the half of h, rounded up, `h4` that of `h2`, and so on."""
    factor = "" if level == 0 else str(2**level)
    return "K", "B", channels, f"h{factor}", f"w{factor}"


def add_step_residuals(model: ir.Model) -> list[Dims]:
    """Gives the step of a U-Net the float32 inputs `residual_0` to `residual_{R-1}`, one for each skip connection in
    the order in which they are made, and one for the middle block.

    Source: `UNet2DConditionModel.forward` (diffusers), `down_block_additional_residuals`.

    Returns:
        The axes of each.

    Raises:
        BundleError: a network without the skip connections of a U-Net.
    """
    sites = _sites(model.graph)
    found = []
    for number, site in enumerate(sites):
        value = site.value
        channels = None if value.shape is None else value.shape[1]
        if not isinstance(channels, int) or value.dtype is None:
            raise BundleError(f"the channels at {site.node.name} are not known", hint="export the bundle again")
        dims = residual_dims(channels, site.level)
        residual = _new_input(model.graph, f"residual_{number}", dims)
        flat = _fitted(residual, like=value, before=site.node)
        joined = _node("Add", [value, flat], before=site.node, name=f"residual_{number}.sum")
        site.node.replace_input_with(site.index, joined)
        found.append(dims)
    return found


def add_running_residuals(model: ir.Model, dims: list[Dims]) -> None:
    """Gives a ControlNet, whose outputs are what it adds, the inputs `residual_0`...; its outputs become the sums."""
    graph = model.graph
    for number, (output, axes) in enumerate(zip(list(graph.outputs), dims, strict=True)):
        running = _new_input(graph, f"residual_{number}", axes)
        name, output.name = output.name, f"own_residual_{number}"
        total = ir.Node("", "Add", [running, output], name=f"/running_{number}")
        total.outputs[0].name, total.outputs[0].dtype, total.outputs[0].shape = name, output.dtype, ir.Shape(axes)
        graph.append(total)
        graph.outputs[number] = total.outputs[0]


def _sites(graph: ir.Graph) -> list[_Site]:
    """In the order of the residuals: the up blocks take them from the last one on."""
    joins = [(node, int(match["block"])) for node in graph if (match := _JOIN.fullmatch(node.name or "")) is not None]
    if not joins:
        raise BundleError(
            "the denoiser has no skip connections to add to", expected="a U-Net", hint="ControlNet works with U-Nets"
        )
    blocks = 1 + max(block for _, block in joins)
    skips = [_Site(node, 1, blocks - 1 - block) for node, block in joins]
    return [*reversed(skips), _Site(joins[0][0], 0, blocks - 1)]


def _new_input(graph: ir.Graph, name: str, dims: Dims) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(dims))
    graph.inputs.append(value)
    return value


def _fitted(residual: ir.Value, *, like: ir.Value, before: ir.Node) -> ir.Value:
    """[K, B, ...] float32 in the shape [K*B, ...] and the type of another value."""
    name = str(residual.name)
    shape = _node("Shape", [like], before=before, name=f"{name}.shape")
    flat = _node("Reshape", [residual, shape], before=before, name=f"{name}.flat")
    if like.dtype == ir.DataType.FLOAT:
        return flat
    return _node("Cast", [flat], before=before, name=f"{name}.cast", to=like.dtype)


def _node(kind: str, inputs: list[ir.Value], *, before: ir.Node, name: str, to: ir.DataType | None = None) -> ir.Value:
    attributes = [] if to is None else [ir.AttrInt64("to", int(to))]
    node = ir.Node("", kind, inputs, attributes, name=f"/{name}")
    node.outputs[0].name = name
    graph = before.graph
    assert isinstance(graph, ir.Graph)  # it was found in one
    graph.insert_before(before, node)
    return node.outputs[0]

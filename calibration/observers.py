"""A copy of a graph that also counts: reductions of tensors as further outputs.

Only reductions leave the graph, so that memory grows neither with calls nor, much, with layers: a tensor is reduced as
soon as it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from latentrt.arrays import Array, FloatArray, Value
from latentrt.calibration.histogram import BINS, BINS_PER_OCTAVE, LOWEST_OCTAVE
from latentrt.calibration.placement import Operator
from latentrt.engine import EngineOptions
from latentrt.export.convert.extended_engine import Extended, ExtendedEngine
from latentrt.export.passes.stated import stated
from latentrt.graph import GraphFile

_SUM, _CHANNELS, _COUNTS = "sum", "channels", "counts"


@dataclass(frozen=True, slots=True)
class ObservedTensor:
    """A tensor to observe.

    Args:
        layer: the first operator that reads it, for messages.
        channel_axis: along which maxima are kept apart; negative counts from the end.
        divisor: per channel, what values are divided by before anything is counted; None is 1.
    """

    tensor: str
    _: KW_ONLY
    layer: str
    channel_axis: int
    channels: int
    rank: int
    divisor: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """What one call says of one tensor.

    Args:
        channels: [C] largest magnitude of each channel.
        counts: [BINS] histogram of the magnitudes.
    """

    finite: bool
    channels: FloatArray
    counts: npt.NDArray[np.int32]


Observations = Mapping[str, Observation]
Observer = Callable[[Mapping[str, Value], Observations], None]


class ObservingEngine(ExtendedEngine):
    """Runs a component and observes its tensors.

    Args:
        observe: called after each run with what it was fed and what it said of each tensor.
    """

    def __init__(
        self,
        graph: GraphFile,
        probes: Sequence[ObservedTensor],
        *,
        observe: Observer,
        options: EngineOptions | None = None,
    ) -> None:
        self.probes = tuple(probes)
        self._observe = observe
        super().__init__(graph, load=self._observing, seen=self._report, options=options)

    def _observing(self) -> Extended:
        names = [_name(probe, kind) for probe in self.probes for kind in (_SUM, _CHANNELS, _COUNTS)]
        return observing_graph(self.graph.path, self.probes), names

    def _report(self, feed: Mapping[str, Value], found: Mapping[str, Array]) -> None:
        self._observe(
            feed,
            {
                probe.tensor: Observation(
                    bool(np.isfinite(found[_name(probe, _SUM)])),
                    found[_name(probe, _CHANNELS)],
                    found[_name(probe, _COUNTS)],
                )
                for probe in self.probes
            },
        )


def probes(model: ir.Model, found: Sequence[Operator], *, divisors: Mapping[str, FloatArray]) -> list[ObservedTensor]:
    """A probe for each tensor that quantised operators read, in the graph's order.

    Args:
        divisors: [C] by tensor, what values are divided by before they are counted.
    """
    values = [value for node in model.graph for value in (*node.inputs, *node.outputs) if value]
    ranks = {value.name: len(stated(value.shape)) for value in values}
    first: dict[str, Operator] = {}
    for operator in found:
        if operator.float_reason is None:
            first.setdefault(operator.activation, operator)
    return [
        ObservedTensor(
            tensor,
            layer=operator.name,
            channel_axis=operator.channel_axis,
            channels=operator.shape[operator.in_axis],
            rank=ranks[tensor],
            divisor=divisors.get(tensor),
        )
        for tensor, operator in first.items()
    ]


def observing_graph(path: Path, probes: Sequence[ObservedTensor]) -> bytes:
    """The graph at `path` with observers, as a serialised model whose large weights stay in the file beside `path`."""
    model = ir.load(path)
    values = {value.name: value for node in model.graph for value in node.outputs}
    values |= {value.name: value for value in model.graph.inputs}
    constants = _Constants(model.graph)
    for probe in probes:
        value = values[probe.tensor]
        nodes = _observers(value, probe, constants)
        producer = value.producer()
        if producer is None:
            model.graph.insert_before(model.graph[0], nodes)
        else:
            model.graph.insert_after(producer, nodes)
        model.graph.outputs.extend(
            output for node in nodes for output in node.outputs if output.name and output.name.startswith("observed.")
        )
    serialised: bytes = ir.to_proto(model).SerializeToString()
    return serialised


def _observers(value: ir.Value, probe: ObservedTensor, constants: _Constants) -> list[ir.Node]:
    """The nodes that reduce one tensor: sum, largest magnitude of each channel, histogram."""
    nodes: list[ir.Node] = []

    def add(kind: str, *inputs: ir.Value, output: str | None = None, **attributes: Any) -> ir.Value:
        node = ir.node(kind, inputs=inputs, attributes=attributes)
        node.outputs[0].name = f"observe.{probe.tensor}.{len(nodes)}" if output is None else _name(probe, output)
        node.name = node.outputs[0].name
        nodes.append(node)
        return node.outputs[0]

    x = value if value.dtype == ir.DataType.FLOAT else add("Cast", value, to=ir.DataType.FLOAT)
    magnitude = add("Abs", x)
    if probe.divisor is not None:
        shape = [-1 if axis == probe.channel_axis % probe.rank else 1 for axis in range(probe.rank)]
        magnitude = add("Mul", magnitude, constants((1 / probe.divisor).astype(np.float32).reshape(shape)))
    axes = [axis for axis in range(probe.rank) if axis != probe.channel_axis % probe.rank]
    output = add("ReduceMax", magnitude, constants(np.array(axes, np.int64)), output=_CHANNELS, keepdims=0)
    output.dtype = ir.DataType.FLOAT
    flat = add("Reshape", magnitude, constants(np.array([-1], np.int64)))
    output = add("ReduceSum", flat, output=_SUM, keepdims=0)
    output.dtype = ir.DataType.FLOAT
    octave = add("Mul", add("Log", flat), constants(np.float32(BINS_PER_OCTAVE / np.log(2))))
    bin_ = add("Floor", add("Sub", octave, constants(np.float32(BINS_PER_OCTAVE * LOWEST_OCTAVE))))
    bounded = add("Clip", bin_, constants(np.float32(0)), constants(np.float32(BINS - 1)))
    # NaN passes Clip and becomes the lowest integer; the sum tells of it.
    index = add("Max", add("Cast", bounded, to=ir.DataType.INT32), constants(np.int32(0)))
    zeros = constants(np.zeros(BINS, np.int32))
    # One a value, by way of the values: ones of a known shape would be folded into a constant of that size.
    ones = add("Cast", add("GreaterOrEqual", index, constants(np.int32(0))), to=ir.DataType.INT32)
    output = add("ScatterElements", zeros, index, ones, output=_COUNTS, axis=0, reduction="add")
    output.dtype = ir.DataType.INT32
    return nodes


class _Constants:
    """Initializers of observers, each value once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._known: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def __call__(self, array: Any) -> ir.Value:
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            name = f"observe.constant.{len(self._known)}"
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            self._graph.register_initializer(value)
            self._known[key] = value
        return self._known[key]


def _name(probe: ObservedTensor, kind: str) -> str:
    return f"observed.{kind}.{probe.tensor}"

"""OpenVINO's profile: what each node of the compiled graph took in the latest run (PERF_COUNT).

Its products state their shapes. What it fuses into a node of another kind, as it does with attention, is counted on the
graph that was read, whose nodes are named there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from latentrt.arrays import Shape
from latentrt.backends.profiling.node_times import (
    NodeTime,
    Work,
    attention,
    convolution,
    joined,
    matmul,
    transposed_convolution,
)

_PRECISIONS = {"f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "int8"}
_Count = Callable[[Shape, Shape, Shape], Work]


def _convolution(data: Shape, weights: Shape, output: Shape) -> Work:
    return convolution(weights[len(weights) - len(output) :], output)  # groups come first


def _transposed(data: Shape, weights: Shape, output: Shape) -> Work:
    return transposed_convolution(weights[len(weights) - len(output) :], data)


def _matmul(left: Shape, right: Shape, output: Shape) -> Work:
    return matmul(left, output)


_READ: Mapping[str, _Count] = {
    "Convolution": _convolution,
    "GroupConvolution": _convolution,
    "ConvolutionBackpropData": _transposed,
    "MatMul": _matmul,
    "ScaledDotProductAttention": attention,
}
_COMPILED: Mapping[str, _Count] = {
    "Convolution": _convolution,
    "Deconvolution": _transposed,
    "FullyConnected": _matmul,
    "MatMul": _matmul,
}


@dataclass(frozen=True, slots=True)
class Compiled:
    """What is known of a compiled graph's nodes before it runs, by their names: precision and arithmetic."""

    precisions: Mapping[str, str]
    work: Mapping[str, Work]


def graph_work(model: Any) -> dict[str, Work]:
    """The arithmetic of each node of a graph with fixed shapes, by name."""
    counts = ((node, _READ.get(node.get_type_name())) for node in model.get_ops())
    return {node.get_friendly_name(): _counted(node, count) for node, count in counts if count is not None}


def compiled_nodes(compiled: Any, read: Mapping[str, Work]) -> Compiled:
    """Of a compiled model; what was read counts in the first node that was made of it."""
    precisions: dict[str, str] = {}
    work: dict[str, Work] = {}
    left = dict(read)
    fused: dict[str, list[str]] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        name, about = node.get_friendly_name(), node.get_rt_info()
        kind, precision, origins = (
            str(about[key].value) for key in ("layerType", "runtimePrecision", "originalLayersNames")
        )
        precisions[name] = precision
        fused[name] = origins.split(",")
        if kind in _COMPILED:
            # Weights may lie in fewer bits than their products are computed in, and count as the node's precision.
            precisions[name] = node.input(0).get_element_type().get_type_name()
            work[name] = _counted(node, _COMPILED[kind])
            for origin in fused.pop(name):
                left.pop(origin, None)
    for name, origins_of in fused.items():
        total = joined([left.pop(origin) for origin in origins_of if origin in left])
        if total is not None:
            work[name] = total
    return Compiled(precisions, work)


def _counted(node: Any, count: _Count) -> Work:
    data, weights = (tuple(node.input(place).get_shape()) for place in (0, 1))
    return count(data, weights, tuple(node.output(0).get_shape()))


def latest_run(request: Any, nodes: Compiled) -> tuple[NodeTime, ...]:
    """The nodes that ran in a request's latest run."""
    found = []
    for each in request.get_profiling_info():
        if each.status != each.Status.EXECUTED:
            continue
        precision = nodes.precisions.get(each.node_name, "")
        found.append(
            NodeTime(
                name=each.node_name,
                type=each.node_type,
                precision=_PRECISIONS.get(precision, precision),
                ms=each.real_time.total_seconds() * 1e3,
                work=nodes.work.get(each.node_name),
            )
        )
    return tuple(found)

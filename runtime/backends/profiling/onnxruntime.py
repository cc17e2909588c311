"""ONNX Runtime's profile: a JSON file of events, of which each kernel's names the shapes that it saw.

Source: onnxruntime/core/framework/sequential_executor.cc (KernelScope) and core/common/profiler.cc.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentrt.arrays import Shape
from latentrt.backends.profiling.node_times import (
    NodeTime,
    ProfiledRun,
    Work,
    attention,
    convolution,
    matmul,
    transposed_convolution,
)

_PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "uint8": "int8", "double": "fp64"}
_KERNEL, _RUN = "_kernel_time", "model_run"
_Count = Callable[[Sequence[Shape], Shape], Work | None]


def _convolution(given: Sequence[Shape], output: Shape) -> Work | None:
    weights = _weights(given, output)
    return None if weights is None else convolution(weights, output)


def _transposed(given: Sequence[Shape], output: Shape) -> Work | None:
    weights = _weights(given, output)
    return None if weights is None else transposed_convolution(weights, given[0])


def _weights(given: Sequence[Shape], output: Shape) -> Shape | None:
    """The second input of as many axes, with or without scales and zero points before it."""
    return next((shape for shape in given[1:] if len(shape) == len(output)), None)


def _matmul(given: Sequence[Shape], output: Shape) -> Work:
    return matmul(given[0], output)


def _attention(given: Sequence[Shape], output: Shape) -> Work:
    return attention(given[0], given[1], output)


_CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv", "ConvInteger", "QLinearConv")
_MATMULS = ("MatMul", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul")
_GEMMS = ("Gemm", "FusedGemm", "QGemm")
_WORK: Mapping[str, _Count] = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys((*_MATMULS, *_GEMMS), _matmul),
    **dict.fromkeys(("Attention", "MultiHeadAttention"), _attention),
    "ConvTranspose": _transposed,
}


def read_profile(path: Path) -> list[ProfiledRun]:
    """Every run of the session that wrote the file, in order."""
    runs: list[ProfiledRun] = []
    nodes: list[NodeTime] = []
    for event in json.loads(path.read_text(encoding="utf-8")):
        name = event["name"]
        if name.endswith(_KERNEL):
            nodes.append(_node(name.removesuffix(_KERNEL), event))
        elif name == _RUN:  # written when it is over
            runs.append(ProfiledRun(tuple(nodes), event["dur"] / 1e3))
            nodes = []
    return runs


def _node(name: str, event: Mapping[str, Any]) -> NodeTime:
    about = event["args"]
    kind = about["op_name"]
    given = [(dtype, tuple(shape)) for entry in about["input_type_shape"] for dtype, shape in entry.items()]
    made = [tuple(shape) for entry in about["output_type_shape"] for shape in entry.values()]
    count = _WORK.get(kind)
    work = None if count is None or not made else count([shape for _, shape in given], made[0])
    dtype = given[0][0] if given else ""
    return NodeTime(name=name, type=kind, precision=_PRECISIONS.get(dtype, dtype), ms=event["dur"] / 1e3, work=work)

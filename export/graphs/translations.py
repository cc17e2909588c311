"""Operators of torch that its ONNX exporter would trace a module a second time for, having no translation of them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnxscript import opset18 as op

aten = torch.ops.aten


def _to(value: Any, dtype: int, non_blocking: bool = False, copy: bool = False, memory_format: int = -1) -> Any:
    return op.Cast(value, to=dtype)


def _rsub(value: Any, other: float, alpha: float = 1.0) -> Any:
    scalars: tuple[Any, Any] = other, alpha  # constants of the graph by now
    minuend, factor = (op.CastLike(scalar, value) for scalar in scalars)
    return op.Sub(minuend, op.Mul(value, factor))


def _square(value: Any) -> Any:
    return op.Mul(value, value)


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    aten.to.dtype: _to,
    aten.rsub.Scalar: _rsub,
    aten.square.default: _square,
}

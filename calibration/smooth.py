"""SmoothQuant (Xiao et al. 2023, arXiv 2211.10438, equation 4): outliers move from activations into weights.

A channel of the activation is divided by a factor and the weights that read it are multiplied by the same: the product
stays, and the activation's channels become alike in size. The division is folded into the norm before the operator
where there is one; elsewhere it is one Mul, spent only on tensors with outliers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from latentrt.arrays import FloatArray
from latentrt.calibration.placement import Operator
from latentrt.export.passes.stated import stated

ALPHA = 0.8
WORTH_A_MUL = 8.0  # largest channel over the median one
_LINEAR = ("MatMul", "Gemm")
_NORMS = ("LayerNormalization", "GroupNormalization")
_SMALLEST = 1e-5  # of a factor: a dead channel must not blow the others up


@dataclass(frozen=True, slots=True)
class Group:
    """The quantised operators that read one tensor, which nothing else reads.

    Args:
        folds: the tensor comes from a norm whose scale and bias can take the division.
    """

    operators: tuple[Operator, ...]
    folds: bool


def smoothable(model: ir.Model, found: Sequence[Operator], maxima: Mapping[str, FloatArray]) -> dict[str, Group]:
    """What SmoothQuant is applied to, by tensor: all that folds into a norm, and linear layers' inputs with outliers.

    Args:
        maxima: [C] by tensor, largest magnitudes of the channels.
    """
    readers: dict[str, list[Operator]] = {}
    for operator in found:
        if operator.float_reason is None:
            readers.setdefault(operator.activation, []).append(operator)
    values = {value.name: value for node in model.graph for value in node.outputs}
    groups = {}
    for tensor, operators in readers.items():
        folds = tensor in values and _foldable(values[tensor], len(operators))
        linear = all(operator.kind in _LINEAR for operator in operators)
        if folds or (linear and _spread(maxima[tensor]) >= WORTH_A_MUL):
            groups[tensor] = Group(tuple(operators), folds)
    return groups


def smoothing_factors(
    model: ir.Model, groups: Mapping[str, Group], maxima: Mapping[str, FloatArray], *, alpha: float
) -> dict[str, FloatArray]:
    """What each tensor's channels are divided by, [C]: max|x|**alpha / max|w|**(1 - alpha), of geometric mean 1.

    Args:
        alpha: 0 leaves the activations as they are, 1 makes their channels equal.
    """
    factors = {}
    for tensor, group in groups.items():
        weights = np.max([_input_maxima(model, operator) for operator in group.operators], axis=0)
        activations = np.maximum(maxima[tensor].astype(np.float64), _SMALLEST)
        raw = np.log(activations) * alpha - np.log(np.maximum(weights, _SMALLEST)) * (1 - alpha)
        factors[tensor] = np.exp(raw - raw.mean()).astype(np.float32)
    return factors


def fold(model: ir.Model, norm: ir.Node, factors: FloatArray) -> None:
    """Divides scale and bias of a norm; the weights of its readers are the caller's to multiply."""
    for place in (1, 2):
        value = norm.inputs[place]
        if value is None:
            continue
        array = (stated(value.const_value).numpy().astype(np.float32) / factors).astype(stated(value.dtype).numpy())
        name = f"{norm.outputs[0].name}/{value.name}"  # norms whose constants are equal share them
        smoothed = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        model.graph.register_initializer(smoothed)
        norm.replace_input_with(place, smoothed)
        if not value.uses():
            del model.graph.initializers[stated(value.name)]


def folds_into(value: ir.Value) -> ir.Node | None:
    """The norm that makes a value and has constant scale and bias; None if there is none."""
    node = value.producer()
    if node is None or node.op_type not in _NORMS or len(node.inputs) < 2:
        return None
    return node if all(constant is None or constant.is_initializer() for constant in node.inputs[1:3]) else None


def _foldable(value: ir.Value, readers: int) -> bool:
    return folds_into(value) is not None and readers == len(value.uses()) and not value.is_graph_output()


def _spread(maxima: FloatArray) -> float:
    return float(maxima.max() / max(_SMALLEST, float(np.median(maxima))))


def _input_maxima(model: ir.Model, operator: Operator) -> npt.NDArray[np.float64]:
    """[C] largest magnitude of the weights that read each input channel."""
    weight = np.abs(stated(model.graph.initializers[operator.weight].const_value).numpy())
    axes = tuple(axis for axis in range(weight.ndim) if axis != operator.in_axis)
    maxima: npt.NDArray[np.float64] = weight.max(axis=axes).astype(np.float64)
    return maxima

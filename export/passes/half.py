"""float32 to a 16-bit format: chosen nodes and their weights are retyped, casts inserted at the borders.

The result states every type: no node takes operands of unlike types that its schema wants alike, so that a
strongly typed builder takes it as it stands. Graph inputs and outputs keep their types.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from latentrt.export.passes.network import float_nodes, is_float
from latentrt.export.passes.stated import stated


@dataclass(frozen=True, slots=True)
class HalfFormat:
    """A 16-bit float format.

    Args:
        onnx_type: in the type constraints of operator schemas.
    """

    name: str
    dtype: ir.DataType
    onnx_type: str
    largest: float


FORMATS: Mapping[str, HalfFormat] = {
    "fp16": HalfFormat("fp16", ir.DataType.FLOAT16, "tensor(float16)", 65504.0),
    "bf16": HalfFormat("bf16", ir.DataType.BFLOAT16, "tensor(bfloat16)", 3.3895e38),
}

# Their output's type is an attribute of theirs, not their input's.
_TYPED_BY_ATTRIBUTE = frozenset({"Cast", "CastLike", "Constant", "ConstantOfShape", "EyeLike", "RandomNormalLike"})


def allows_half(node: ir.Node, half: HalfFormat, opset: int) -> bool:
    """Whether ONNX defines this node, as it stands, in the format."""
    if node.op_type in _TYPED_BY_ATTRIBUTE:
        return False
    slots = [slot for slot, value in enumerate(node.inputs) if is_float(value)]
    results = [slot for slot, value in enumerate(node.outputs) if is_float(value)]
    taken = _half_slots(node, half, opset, output=False).intersection(slots)
    made = _half_slots(node, half, opset, output=True).intersection(results)
    return bool(taken or made) and len(made) == len(results)


def to_half(model: ir.Model, half: HalfFormat, nodes: Collection[ir.Node]) -> None:
    """Retypes `nodes` in place. Weights are converted when the model is saved, one after the other."""
    graph = model.graph
    wanted = _wanted_types(model, half, set(nodes))
    _retype_initializers(graph, half, wanted)
    for node in nodes:
        for slot in _half_slots(node, half, _opset(model), output=True):
            if slot < len(node.outputs) and is_float(node.outputs[slot]):
                node.outputs[slot].dtype = half.dtype
    casts = _Casts(graph)
    for position, output in enumerate(graph.outputs):
        if output.dtype == half.dtype:
            graph.outputs[position] = casts.output(output, half)
    for (node, slot), dtype in wanted.items():
        value = node.inputs[slot]
        if value is not None and value.dtype != dtype:
            node.replace_input_with(slot, casts.of(value, dtype, half))


def _wanted_types(
    model: ir.Model, half: HalfFormat, nodes: Collection[ir.Node]
) -> dict[tuple[ir.Node, int], ir.DataType]:
    """The type of each float32 operand, by node and position, once `nodes` are retyped."""
    wanted = {}
    for node in float_nodes(model.graph):
        slots = _half_slots(node, half, _opset(model), output=False) if node in nodes else ()
        for slot, value in enumerate(node.inputs):
            if is_float(value):
                wanted[node, slot] = half.dtype if slot in slots else ir.DataType.FLOAT
    return wanted


def _retype_initializers(graph: ir.Graph, half: HalfFormat, wanted: Mapping[tuple[ir.Node, int], ir.DataType]) -> None:
    """A weight changes its type; one that float32 nodes read as well gets a twin, `name.fp16`."""
    for value in list(graph.initializers.values()):
        uses = [(use.node, use.idx) for use in value.uses() if (use.node, use.idx) in wanted]
        halved = [use for use in uses if wanted[use] == half.dtype]
        if not halved:
            continue
        tensor = _half_tensor(stated(value.const_value), half)
        if len(halved) == len(uses):
            value.const_value, value.dtype = tensor, half.dtype
            continue
        twin = ir.Value(
            name=f"{value.name}.{half.name}", type=ir.TensorType(half.dtype), shape=value.shape, const_value=tensor
        )
        graph.register_initializer(twin)
        for node, slot in halved:
            node.replace_input_with(slot, twin)


def _half_tensor(tensor: ir.TensorProtocol, half: HalfFormat) -> ir.LazyTensor:
    """Read, rounded and forgotten again each time that it is asked for."""

    def convert() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().astype(half.dtype.numpy()), name=tensor.name)

    return ir.LazyTensor(convert, dtype=half.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)


class _Casts:
    """Casts by what they read and make: each is inserted once, right behind its value."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._names: dict[str, int] = {}

    def of(self, value: ir.Value, dtype: ir.DataType, half: HalfFormat) -> ir.Value:
        if (value, dtype) not in self._made:
            suffix = half.name if dtype == half.dtype else "fp32"
            self._made[value, dtype] = self._insert(value, dtype, f"{value.name}.{suffix}")
        return self._made[value, dtype]

    def output(self, value: ir.Value, half: HalfFormat) -> ir.Value:
        """The float32 output that takes the name of a value which is 16 bit now."""
        name = stated(value.name)
        value.name = f"{name}.{half.name}"
        self._made[value, ir.DataType.FLOAT] = self._insert(value, ir.DataType.FLOAT, name)
        return self._made[value, ir.DataType.FLOAT]

    def _insert(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        producer = value.producer()
        owner = "" if producer is None else str(producer.name).rpartition("/")[0]
        cast = ir.node("Cast", [value], {"to": dtype.value}, name=self._unused(f"{owner}/Cast_{dtype.short_name()}"))
        (result,) = cast.outputs
        result.name, result.dtype, result.shape = name, dtype, value.shape
        if producer is None:
            self._graph.insert_before(self._graph[0], cast)
        else:
            self._graph.insert_after(producer, cast)
        return result

    def _unused(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, -1) + 1
        return f"{name}_{count}" if count else name


def largest_weight(tensor: ir.TensorProtocol) -> float:
    """The largest finite magnitude."""
    array = tensor.numpy()
    if not array.size:
        return 0.0
    bound = max(float(array.max()), -float(array.min()))
    if np.isfinite(bound):
        return bound
    finite = array[np.isfinite(array)]
    return float(np.abs(finite).max()) if finite.size else 0.0


def _opset(model: ir.Model) -> int:
    return model.opset_imports[""]


def _half_slots(node: ir.Node, half: HalfFormat, opset: int, *, output: bool) -> set[int]:
    """Positions of the operands, or of the results, that the operator's schema allows in the format.

    `Resize`, for one, takes its data in any type and its scales in float32.
    """
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    formals = schema.outputs if output else schema.inputs
    types = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    count = len(node.outputs if output else node.inputs)
    last = len(formals) - 1  # variadic where there are more operands
    return {slot for slot in range(count) if half.onnx_type in types.get(formals[min(slot, last)].type_str, ())}

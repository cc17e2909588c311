"""Graphs in files: weights lie there in the narrowest type that holds their values, and a Cast widens them to float32.

Checkpoints are mostly float16 or bfloat16, and exports compute in float32. What is stored is decided by the values
alone: those that survive float32 -> float16 -> float32 (or bfloat16) to the bit are stored so. Passes see none of it:
`load_graph` gives float32 initializers of the same names, read when they are asked for.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from latentrt.arrays import Array
from latentrt.errors import BundleError
from latentrt.export.passes.stated import stated

SMALLEST = 1024  # values; smaller tensors, and vectors such as those of norms, are not worth a node
WIDENED = ".widened"
_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_NAMES: Mapping[ir.DataType, str] = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.INT8: "int8",
    ir.DataType.FLOAT8E4M3FN: "fp8",
}
_CHUNK = 2**20  # values that are compared at a time


class Widened(ir.LazyTensor):
    """A stored weight in float32, widened each time that it is asked for."""

    __slots__ = ("source",)

    def __init__(self, source: ir.TensorProtocol) -> None:
        self.source = source
        shape = ir.Shape(source.shape.numpy())
        super().__init__(partial(_widened, source), ir.DataType.FLOAT, shape, name=source.name)


def load_graph(path: Path) -> ir.Model:
    """The graph in a file, with float32 initializers in the place of those that a Cast widens.

    Raises:
        BundleError: weights in a file with several hard links, which onnx_ir reads nothing from.
    """
    model = ir.load(path)
    values = (value.const_value for value in model.graph.initializers.values())
    for file in sorted({Path(value.path) for value in values if isinstance(value, ir.ExternalTensor)}):
        if file.is_file() and (links := file.stat().st_nlink) > 1:
            raise BundleError(
                f"{file} has {links} hard links", expected="a file of its own", hint="copy the bundle: cp -r BUNDLE NEW"
            )
    for node in list(model.graph):
        source, result = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type != "Cast" or source is None or not source.is_initializer() or result.is_graph_output():
            continue
        widens = source.dtype in _NARROW and result.dtype == ir.DataType.FLOAT
        if widens and len(source.uses()) == 1 and source.const_value is not None:
            result.replace_all_uses_with(source)
            model.graph.remove(node, safe=True)
            source.const_value, source.dtype = Widened(source.const_value), ir.DataType.FLOAT
    return model


def save_graph(model: ir.Model, path: Path) -> dict[str, int]:
    """Writes a graph, and its weights to a file of the same name in `.weights`, each in the narrowest type.

    Returns:
        How many values of weights are stored in each type, such as `fp16`.
    """
    narrow(model)
    ir.save(model, path, external_data=path.with_suffix(".weights").name)
    return stored_values(model)


def narrow(model: ir.Model) -> None:
    """Stores large float32 weights in float16 or bfloat16 where that holds every value of them: in the type that holds
    more of the graph's weights where both do."""
    fitting = {value: _fitting(stated(value.const_value)) for value in _large(model.graph)}
    sizes = {kind: sum(_size(value) for value, kinds in fitting.items() if kind in kinds) for kind in _NARROW}
    ordered = sorted(_NARROW, key=lambda kind: -sizes[kind])
    chosen = {value: next((kind for kind in ordered if kind in kinds), None) for value, kinds in fitting.items()}
    _insert_casts(model.graph, {value: kind for value, kind in chosen.items() if kind is not None})


def restore(model: ir.Model) -> None:
    """Undoes what `load_graph` changed: weights are those of the file again, for a graph that shares it."""
    values = model.graph.initializers.values()
    kinds = {v: v.const_value.source.dtype for v in values if isinstance(v.const_value, Widened) and v.uses()}
    _insert_casts(model.graph, kinds)


def stored_values(model: ir.Model) -> dict[str, int]:
    """How many values of initializers are stored in each type of weights."""
    counts: dict[str, int] = {}
    for value in model.graph.initializers.values():
        name = _NAMES.get(stated(value.const_value).dtype)  # nodes that passes add have values of no stated type
        if name is not None:
            counts[name] = counts.get(name, 0) + _size(value)
    return dict(sorted(counts.items()))


def _widened(source: ir.TensorProtocol) -> ir.TensorProtocol:
    values = source.numpy().astype(np.float32)
    if isinstance(source, ir.ExternalTensor):
        source.release()  # what is mapped and was read counts as memory of the process
    return ir.Tensor(values, name=source.name)


def _large(graph: ir.Graph) -> Iterable[ir.Value]:
    """Matrices and kernels in float32 that nodes of the graph itself read."""
    for value in graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT and len(stated(value.shape)) > 1 and _size(value) >= SMALLEST:
            inner = any(use.node.graph is not graph for use in value.uses())
            if value.uses() and not (inner or value.is_graph_input() or value.is_graph_output()):
                yield value


def _size(value: ir.Value) -> int:
    return stated(value.const_value).size


def _fitting(tensor: ir.TensorProtocol) -> tuple[ir.DataType, ...]:
    """The types that hold every value of a float32 tensor."""
    if isinstance(tensor, Widened):
        return (tensor.source.dtype,)
    kinds = _holding(tensor.numpy())
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()  # as above
    return kinds


def _holding(array: Array) -> tuple[ir.DataType, ...]:
    rows = max(1, _CHUNK * len(array) // array.size)
    left: tuple[ir.DataType, ...] = _NARROW
    for start in range(0, len(array), rows):
        part = np.ascontiguousarray(array[start : start + rows])
        left = tuple(kind for kind in left if _holds(kind, part))
        if not left:
            break
    return left


def _holds(kind: ir.DataType, values: Array) -> bool:
    with np.errstate(over="ignore"):
        back = values.astype(kind.numpy()).astype(np.float32)
    return np.array_equal(back.view(np.uint32), values.view(np.uint32))


def _insert_casts(graph: ir.Graph, kinds: Mapping[ir.Value, ir.DataType]) -> None:
    """Retypes initializers, each with a Cast before the first node that reads it."""
    order = {node: place for place, node in enumerate(graph)}
    for value, kind in kinds.items():
        uses = [(use.node, use.idx) for use in value.uses()]
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value}, name=f"/{value.name}{WIDENED}")
        (result,) = cast.outputs
        result.name, result.dtype, result.shape = f"{value.name}{WIDENED}", ir.DataType.FLOAT, value.shape
        graph.insert_before(min((node for node, _ in uses), key=order.__getitem__), cast)
        for node, slot in uses:
            node.replace_input_with(slot, result)
        value.const_value, value.dtype = _stored(stated(value.const_value), kind), kind


def _stored(tensor: ir.TensorProtocol, kind: ir.DataType) -> ir.TensorProtocol:
    """The tensor in another type; read, converted and forgotten again each time that it is asked for."""
    if isinstance(tensor, Widened):
        return tensor.source

    def convert() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().astype(kind.numpy()), name=tensor.name)

    return ir.LazyTensor(convert, dtype=kind, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)

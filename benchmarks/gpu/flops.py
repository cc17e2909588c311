"""How much arithmetic a graph does at given sizes, counted from its nodes.

Convolutions, matrix products and attention, a multiplication and an addition as two operations; the rest (norms,
activations, sampler algebra) is below one percent and left out. So counts `torch.utils.flop_counter` as well, which
the tests compare with.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TypeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

SMALL = 256  # values of a tensor that is followed by its values, not only by its shape

Array = npt.NDArray[np.generic]
Shape = tuple[int, ...]


def graph_flops(path: Path, dims: Mapping[str, int]) -> int:
    """Operations of one run of a graph; its weights are not read.

    Args:
        path: the `.onnx` file.
        dims: length of every named axis, such as B, K, h, w, L.

    Raises:
        KeyError: an axis of an input that `dims` does not name.
        ValueError: a tensor whose shape cannot be followed.
    """
    return sum(_work(node, shapes) for node, shapes in _walk(onnx.load(path, load_external_data=False), dims))


def _walk(model: onnx.ModelProto, dims: Mapping[str, int]) -> list[tuple[onnx.NodeProto, dict[str, Shape]]]:
    """Every node, and the shapes of the tensors around it.

    onnx's own inference over a whole graph loses shapes that are computed (Reshape, Resize); node by node, with the
    values of small tensors at hand, none is lost.
    """
    graph = model.graph
    types = {value.name: _bound(value.type, dims) for value in graph.input}
    types |= {i.name: onnx.helper.make_tensor_type_proto(i.data_type, i.dims) for i in graph.initializer}
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer if _inline(i) and prod(i.dims) <= SMALL}
    versions = {entry.domain: entry.version for entry in model.opset_import}
    walked = []
    for node in graph.node:
        outputs = _infer(node, types, values, versions)
        types |= outputs
        values |= _values(node, types, values, model)
        names = [name for name in (*node.input, *node.output) if name in types]
        walked.append((node, {name: _shape(node, types[name]) for name in names}))
    return walked


def _infer(
    node: onnx.NodeProto, types: Mapping[str, TypeProto], values: Mapping[str, Array], versions: Mapping[str, int]
) -> dict[str, TypeProto]:
    if node.op_type == "GroupNormalization":  # a function in onnx, which infers no shape of it
        return {node.output[0]: types[node.input[0]]}
    schema = onnx.defs.get_schema(node.op_type, versions[node.domain], node.domain)
    names = [name for name in node.input if name]
    known = {name: numpy_helper.from_array(values[name]) for name in names if name in values}
    return dict(
        onnx.shape_inference.infer_node_outputs(
            schema,
            node,
            {name: types[name] for name in names},
            known,
            opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in versions.items()],
        )
    )


def _values(
    node: onnx.NodeProto, types: Mapping[str, TypeProto], values: Mapping[str, Array], model: onnx.ModelProto
) -> dict[str, Array]:
    """The outputs of a node whose inputs are known and small: the arithmetic of shapes."""
    if node.op_type == "Shape":
        return {node.output[0]: _sliced(node, np.array(_shape(node, types[node.input[0]]), np.int64))}
    names = [name for name in node.input if name]
    sizes = [prod(_shape(node, types[name])) for name in node.output if name in types]
    if not all(name in values for name in names) or max(sizes, default=0) > SMALL:
        return {}
    inputs = [onnx.helper.make_value_info(name, types[name]) for name in names]
    results = [onnx.helper.make_value_info(name, types[name]) for name in node.output]
    alone = onnx.helper.make_model(
        onnx.helper.make_graph([node], "one node", inputs, results), opset_imports=model.opset_import
    )
    found = ReferenceEvaluator(alone).run(None, {name: values[name] for name in names})
    return dict(zip(node.output, (np.asarray(value) for value in found), strict=True))


def _work(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    if node.op_type == "Conv":
        return 2 * prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
    if node.op_type in ("MatMul", "Gemm"):
        inner = shapes[node.input[0]][0 if _attribute(node, "transA", 0) else -1]
        return 2 * prod(shapes[node.output[0]]) * inner
    if node.op_type == "Attention":
        return _attention_work(node, shapes)
    return 0


def _attention_work(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Queries by keys, then weights by values, for every head; masked products count."""
    query, key, value = (shapes[name] for name in node.input[:3])
    if len(query) == 4:  # [B, heads, length, width]
        return 2 * prod(query[:3]) * key[2] * (query[3] + value[3])
    heads, key_heads = _attribute(node, "q_num_heads", 1), _attribute(node, "kv_num_heads", 1)
    return 2 * query[0] * query[1] * key[1] * (query[2] + value[2] // key_heads * heads)


def _bound(kind: TypeProto, dims: Mapping[str, int]) -> TypeProto:
    """The type of an input with every axis a number."""
    tensor = kind.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else dims[dim.dim_param] for dim in tensor.shape.dim]
    return onnx.helper.make_tensor_type_proto(tensor.elem_type, shape)


def _shape(node: onnx.NodeProto, kind: TypeProto) -> Shape:
    tensor = kind.tensor_type
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        raise ValueError(f"the shapes around {node.name or node.op_type} cannot be followed")
    return tuple(dim.dim_value for dim in tensor.shape.dim)


def _sliced(node: onnx.NodeProto, shape: Array) -> Array:
    return shape[_attribute(node, "start", 0) : _attribute(node, "end", len(shape))]


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _inline(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location != onnx.TensorProto.EXTERNAL

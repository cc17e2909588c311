"""Checks of ONNX graphs that several tests share."""

import onnx

_NAMES = {
    onnx.TensorProto.FLOAT: "tensor(float)",
    onnx.TensorProto.FLOAT16: "tensor(float16)",
    onnx.TensorProto.BFLOAT16: "tensor(bfloat16)",
    onnx.TensorProto.INT64: "tensor(int64)",
    onnx.TensorProto.INT32: "tensor(int32)",
    onnx.TensorProto.UINT8: "tensor(uint8)",
    onnx.TensorProto.BOOL: "tensor(bool)",
}


def stated_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor, as the graph states it."""
    graph = model.graph
    values = (*graph.value_info, *graph.input, *graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values} | {
        tensor.name: tensor.data_type for tensor in graph.initializer
    }


def type_errors(model: onnx.ModelProto) -> list[str]:
    """Where operands break the type constraints of their operator: what a strongly typed builder refuses.

    Independent of what ONNX infers: its inference leaves out functions such as GroupNormalization.
    """
    types = stated_types(model)
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    found = []
    for node in model.graph.node:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        bound: dict[str, str] = {}
        for formals, names in ((schema.inputs, node.input), (schema.outputs, node.output)):
            for position, name in enumerate(names):
                if not name:
                    continue
                kind = _NAMES[types[name]]
                formal = formals[min(position, len(formals) - 1)].type_str
                if kind not in allowed.get(formal, (formal,)) or bound.setdefault(formal, kind) != kind:
                    found.append(f"{node.name}: {name} is {kind}")
        if node.op_type == "Cast" and types[node.output[0]] != node.attribute[0].i:
            found.append(f"{node.name}: makes {node.attribute[0].i}")
    return found

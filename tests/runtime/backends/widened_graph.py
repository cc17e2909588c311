"""A small graph whose weights lie in 16 bit and are widened, as exports write them."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from latentrt.graph import GraphFile, TensorSpec

WIDE = 128  # products of weights that are worth packing
FEED = {"x": np.random.default_rng(0).standard_normal((2, WIDE, 4, 4), np.float32)}


def widened_graph(folder: Path, kind: int = TensorProto.FLOAT16, *, scale: float = 1.0) -> GraphFile:
    """A convolution, a norm of groups and a matrix product, whose weights both float16 and bfloat16 hold exactly; not
    once `scale` multiplies them. In float32 nothing widens them."""
    rng = np.random.default_rng(1)
    shapes = {"kernel": (WIDE, WIDE, 3, 3), "scale": (WIDE,), "matrix": (WIDE, WIDE)}
    weights = []
    for name, shape in shapes.items():
        values = (scale * rng.integers(-8, 8, shape) / 64).astype(np.float32)
        if kind != TensorProto.BFLOAT16:
            stored = helper.tensor_dtype_to_np_dtype(kind)
            weights.append(numpy_helper.from_array(values.astype(stored), name))
        else:
            raw = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
            weights.append(helper.make_tensor(name, TensorProto.BFLOAT16, shape, raw, raw=True))
    nodes = [
        *(helper.make_node("Cast", [name], [f"{name}.widened"], to=TensorProto.FLOAT) for name in shapes),
        helper.make_node("Conv", ["x", "kernel.widened"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("GroupNormalization", ["a", "scale.widened", "scale.widened"], ["n"], num_groups=8),
        helper.make_node("Transpose", ["n"], ["b"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["b", "matrix.widened"], ["y"]),
    ]
    picture = ["B", WIDE, "h", "w"]
    x, a = (helper.make_tensor_value_info(name, TensorProto.FLOAT, picture) for name in ("x", "a"))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "h", "w", WIDE])
    made = helper.make_graph(nodes, "g", [x], [y], weights, value_info=[a])
    folder.mkdir(exist_ok=True)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, folder / "g.onnx", save_as_external_data=True, location="g.weights", size_threshold=16)
    return GraphFile(
        "step",
        path=folder / "g.onnx",
        inputs={"x": TensorSpec("float32", (None, WIDE, None, None))},
        outputs={"y": TensorSpec("float32", (None, None, None, WIDE))},
        weights=(folder / "g.weights",),
    )

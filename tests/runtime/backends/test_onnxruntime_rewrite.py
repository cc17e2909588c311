"""What the CPU is given in other words has the same values, and nothing else is changed."""

import struct

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from latentrt.backends.onnxruntime.rewrite import for_cpu

HEADS, WIDTH = 2, 8
GROUPS, CHANNELS = 4, 12
BLOCKS = 1e-5  # sums of 33 products in another order


def serialised(nodes: list, inputs: list, outputs: list, constants: list, known: list, *, opset: int = 23) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants, value_info=known)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return bytes(model.SerializeToString())


def attention(
    *, keys: str = "L", causal: int = 0, scale: float | None = None, kind: int = TensorProto.FLOAT, watched: str = ""
) -> bytes:
    """Queries, keys and values of a projection each, [B, L, heads * width], as an export has them."""

    def info(name: str, dims: list[str | int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, dims)

    wide, nodes, known, inputs = HEADS * WIDTH, [], [], []
    for name, length in (("q", "L"), ("k", keys), ("v", keys)):
        nodes.append(helper.make_node("Reshape", [name, "apart"], [f"{name}4"]))
        nodes.append(helper.make_node("Transpose", [f"{name}4"], [f"{name}t"], perm=[0, 2, 1, 3]))
        known.append(info(f"{name}t", ["B", HEADS, length, WIDTH]))
        inputs.append(info(name, ["B", length, wide]))
    attributes = {"is_causal": causal, "softcap": 0.0, **({} if scale is None else {"scale": scale})}
    nodes.append(helper.make_node("Attention", ["qt", "kt", "vt"], ["made"], name="attn", **attributes))
    nodes.append(helper.make_node("Transpose", ["made"], ["back"], perm=[0, 2, 1, 3]))
    nodes.append(helper.make_node("Reshape", ["back", "flat"], ["y"]))
    constants = [
        helper.make_tensor("apart", TensorProto.INT64, [4], [0, 0, HEADS, WIDTH]),
        helper.make_tensor("flat", TensorProto.INT64, [3], [0, 0, wide]),
    ]
    outputs = [info("y", ["B", "L", wide]), *([info(watched, ["B", HEADS, "L", WIDTH])] if watched else [])]
    return serialised(nodes, inputs, outputs, constants, known)


def groups(*, rank: int = 4, opset: int = 23, kind: int = TensorProto.FLOAT, epsilon: float = 1e-5) -> bytes:
    dims = ["B", CHANNELS, *"hwd"[: rank - 2]]
    scale, bias = parameters()
    node = helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], "n", num_groups=GROUPS, epsilon=epsilon)
    return serialised(
        [node],
        [helper.make_tensor_value_info("x", kind, dims)],
        [helper.make_tensor_value_info("y", kind, dims)],
        [helper.make_tensor("s", kind, [CHANNELS], scale), helper.make_tensor("b", kind, [CHANNELS], bias)],
        [],
        opset=opset,
    )


def parameters() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.standard_normal(CHANNELS, np.float32), rng.standard_normal(CHANNELS, np.float32)


def outputs(source: bytes, **feed: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(None, feed)]


def kinds(source: bytes) -> set[str]:
    model = onnx.load_from_string(source)
    onnx.checker.check_model(model)
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(("scale", "keys", "length"), [(None, "L", 33), (0.7, "L", 33), (None, "((L + 1)//2)", 17)])
def test_attention_in_blocks_gives_the_same_values(scale: float | None, keys: str, length: int):
    source = attention(scale=scale, keys=keys)
    blocks = for_cpu(source)
    assert kinds(blocks) == {"Reshape", "MultiHeadAttention"}
    rng = np.random.default_rng(0)
    lengths = {"q": 33, "k": length, "v": length}
    feed = {name: rng.standard_normal((3, each, HEADS * WIDTH), np.float32) for name, each in lengths.items()}
    (whole,), (found,) = outputs(source, **feed), outputs(blocks, **feed)
    assert (found.shape, found.dtype) == (whole.shape, whole.dtype)
    np.testing.assert_allclose(found, whole, rtol=0, atol=BLOCKS)


def test_what_is_watched_stays():
    """Calibration and comparisons make values in the middle of a graph its outputs."""
    assert for_cpu(attention(watched="made")) == attention(watched="made")
    assert kinds(for_cpu(attention(watched="qt"))) == {"Reshape", "Transpose", "MultiHeadAttention"}


@pytest.mark.parametrize("rank", [3, 4, 5])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-2])
def test_groups_are_normalised_as_in_torch(rank: int, epsilon: float):
    found = for_cpu(groups(rank=rank, epsilon=epsilon))
    assert "InstanceNormalization" in kinds(found)
    assert "GroupNormalization" not in kinds(found)
    x = np.random.default_rng(0).normal(3, 2, size=(2, CHANNELS, 5, 7, 3)[:rank]).astype(np.float32)
    scale, bias = map(torch.from_numpy, parameters())
    wanted = torch.nn.functional.group_norm(torch.from_numpy(x), GROUPS, scale, bias, epsilon).numpy()
    np.testing.assert_allclose(outputs(found, x=x)[0], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "source",
    [
        attention(keys="K"),
        attention(causal=1),
        attention(kind=TensorProto.FLOAT16),
        groups(kind=TensorProto.FLOAT16),
        groups(opset=18),
        b"Attention and GroupNormalization, and no model",
        groups()[:-3],
        groups().replace(b"\x15" + struct.pack("<f", 1e-5), b"\x12\x03abc"),
    ],
    ids=[
        "cross-attention", "causal", "float16 attention", "float16 groups", "a scale for each group", "text", "cut off",
        "an epsilon that is none",
    ],
)  # fmt: skip
def test_all_else_stays(source: bytes):
    assert for_cpu(source) is source

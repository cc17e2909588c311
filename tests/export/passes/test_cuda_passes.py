"""Each pass for ONNX Runtime's CUDA provider on a few nodes: what it changes, what it leaves, the same numbers."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from contrib import Array, evaluate
from onnx import numpy_helper, parser

from latentrt.export.passes.cuda import for_cuda

RANDOM = np.random.default_rng(3)


def model(text: str, **weights: Array) -> ir.Model:
    """A model from ONNX's text syntax, its inner shapes filled in."""
    made = parser.parse_model(f'<ir_version: 11, opset_import: ["": 23]> {text}')
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(made, data_prop=True))


def kinds(made: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in made.graph)


def rewritten(made: ir.Model, feed: dict[str, Array]) -> ir.Model:
    """The model after the passes, which has to give what it gave before, and to pass ONNX's checker."""
    expected = evaluate(made, feed)
    for_cuda(made)
    onnx.checker.check_model(ir.to_proto(made))
    for found, want in zip(evaluate(made, feed), expected, strict=True):
        assert (found.dtype, found.shape) == (want.dtype, want.shape)
        assert np.abs(found - want).max() <= 1e-5 * max(1, np.abs(want).max())
    return made


def affine(channels: int, dtype: Any = np.float32) -> dict[str, Array]:
    return {name: RANDOM.standard_normal(channels).astype(dtype) for name in ("scale", "shift")}


SILU = """g (float[B, 8, h, w] x) => (float[B, 8, h, w] y) {
    n = GroupNormalization <num_groups = 2, epsilon = 0.001> (x, scale, shift)
    s = Sigmoid (n)
    y = Mul (n, s)
}"""


def test_a_group_norm_takes_the_silu_behind_it_in():
    made = rewritten(model(SILU, **affine(8)), {"x": images()})
    assert kinds(made) == {"Transpose": 2, "GroupNorm": 1}
    (norm,) = (node for node in made.graph if node.op_type == "GroupNorm")
    assert {name: each.value for name, each in norm.attributes.items()} == {
        "groups": 2,
        "epsilon": pytest.approx(1e-3),
        "activation": 1,
        "channels_last": 1,
    }
    assert norm.domain == "com.microsoft"
    assert made.opset_imports["com.microsoft"] == 1
    assert [str(value.name) for value in made.graph.outputs] == ["y"]


def test_a_silu_whose_norm_something_else_reads_stays():
    text = SILU.replace("y = Mul (n, s)", "m = Mul (n, s)\n y = Add (m, n)")
    assert kinds(rewritten(model(text, **affine(8)), {"x": images()}))["Sigmoid"] == 1


def test_a_gate_of_something_else_is_no_silu():
    text = SILU.replace("y = Mul (n, s)", "y = Mul (x, s)")
    assert kinds(rewritten(model(text, **affine(8)), {"x": images()}))["Sigmoid"] == 1


def test_a_group_norm_of_rows_becomes_one_of_a_plane():
    text = """g (float[B, 8, l] x) => (float[B, l, 8] y) {
        n = GroupNormalization <num_groups = 2> (x, scale, shift)
        y = Transpose <perm = [0, 2, 1]> (n)
    }"""
    made = rewritten(model(text, **affine(8)), {"x": images()[..., 0]})
    assert kinds(made) == {"Transpose": 1, "Unsqueeze": 1, "GroupNorm": 1, "Squeeze": 1}


def test_scale_and_shift_are_float32_and_those_of_the_file_are_shared():
    text = SILU.replace("float[", "float16[")
    made = model(text, **affine(8, np.float16))
    for_cuda(made)
    (norm,) = (node for node in made.graph if node.op_type == "GroupNorm")
    assert [value.dtype for value in norm.inputs] == [ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.FLOAT]
    plain = model(SILU, **affine(8))
    for_cuda(plain)
    assert {"scale", "shift"} <= plain.graph.initializers.keys()


@pytest.mark.parametrize(
    ("before", "after"),
    [("num_groups = 2", "num_groups = 8"), ("8", "1032"), ("float[", "bfloat16[")],
    ids=["an odd number of channels a group", "too many a group", "a type without a kernel"],
)
def test_a_group_norm_without_a_kernel_is_left(before: str, after: str):
    channels = 1032 if after == "1032" else 8
    weights = affine(channels)
    if "bfloat16" in after:
        weights = {name: value.astype(ir.DataType.BFLOAT16.numpy()) for name, value in weights.items()}
    made = model(SILU.replace(before, after), **weights)
    for_cuda(made)
    assert kinds(made) == {"GroupNormalization": 1, "Sigmoid": 1, "Mul": 1}


ATTENTION = """g (float[B, L, 8] q, float[B, M, 4] k, float[B, M, 6] v, float[L, M] mask) => (float[B, L, 12] y) {
    q4 = Reshape (q, qs)
    k4 = Reshape (k, ks)
    v4 = Reshape (v, vs)
    qt = Transpose <perm = [0, 2, 1, 3]> (q4)
    kt = Transpose <perm = [0, 2, 1, 3]> (k4)
    vt = Transpose <perm = [0, 2, 1, 3]> (v4)
    a = Attention <scale = 0.3> (qt, kt, vt, mask)
    t = Transpose <perm = [0, 2, 1, 3]> (a)
    y = Reshape (t, ys)
}"""
SHAPES = {
    name: np.array(dims, np.int64)
    for name, dims in (("qs", (0, 0, 4, 2)), ("ks", (0, 0, 2, 2)), ("vs", (0, 0, 2, 3)), ("ys", (0, 0, 12)))
}


def sequences() -> dict[str, Array]:
    shapes = {"q": (2, 5, 8), "k": (2, 7, 4), "v": (2, 7, 6), "mask": (5, 7)}
    return {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def images() -> Array:
    return RANDOM.standard_normal((2, 8, 3, 5)).astype(np.float32)


def test_attention_loses_its_transposes():
    made = rewritten(model(ATTENTION, **SHAPES), sequences())
    assert kinds(made) == {"Attention": 1}
    (node,) = made.graph
    values = {name: each.value for name, each in node.attributes.items()}
    assert (values["q_num_heads"], values["kv_num_heads"], values["scale"]) == (4, 2, pytest.approx(0.3))
    assert [str(value.name) for value in node.inputs if value is not None] == ["q", "k", "v", "mask"]


def test_another_reader_of_the_heads_gets_them():
    text = ATTENTION.replace("y = Reshape (t, ys)", "r = Relu (t)\n y = Reshape (r, ys)")
    assert kinds(rewritten(model(text, **SHAPES), sequences()))["Transpose"] == 0


@pytest.mark.parametrize(
    "between",
    [
        "qn = RMSNormalization <axis = -1> (qt, head)",
        "qj = Concat <axis = 2> (qt, qt)\n qn = Slice (qj, zero, five, two)",
    ],
    ids=["norm of each head", "a slice"],
)
def test_what_is_between_a_transpose_and_the_attention(between: str):
    text = ATTENTION.replace("a = Attention", f"{between}\n a = Attention").replace("(qt, kt,", "(qn, kt,")
    numbers = {name: np.array([each], np.int64) for name, each in (("zero", 0), ("five", 5), ("two", 2))}
    made = rewritten(model(text, **SHAPES, head=np.array([0.5, 2], np.float32), **numbers), sequences())
    assert kinds(made)["Transpose"] == (0 if "RMS" in between else 4), "what cannot be moved keeps its Transposes"


def test_two_sequences_are_joined_before_their_heads_are_split_off():
    text = ATTENTION.replace(
        "a = Attention", "kj = Concat <axis = -2> (kt, kt)\n vj = Concat <axis = 2> (vt, vt)\n a = Attention"
    )
    made = model(text.replace("(qt, kt, vt, mask)", "(qt, kj, vj)").replace(", float[L, M] mask", ""), **SHAPES)
    feed = sequences()
    feed.pop("mask")
    assert kinds(rewritten(made, feed)) == {"Reshape": 4, "Concat": 2, "Attention": 1}


def test_attention_that_something_else_reads_is_left():
    text = ATTENTION.replace("(float[B, L, 12] y)", "(float[B, L, 12] y, float[B, 4, L, 3] a)")
    assert kinds(rewritten(model(text, **SHAPES), sequences()))["Transpose"] == 4


ARGMAX = """g (bool[N, 7] truth) => (int64[N] y) {
    number = Cast <to = 6> (truth)
    y = ArgMax <axis = 1, keepdims = 0> (number)
}"""


@pytest.mark.parametrize(
    "text", [ARGMAX, ARGMAX.replace("keepdims = 0", "keepdims = 1").replace("int64[N] y", "int64[N, 1] y")]
)
def test_the_first_true_one_is_found_without_argmax(text: str):
    truth = np.concatenate(
        [np.eye(7, dtype=bool), np.tri(7, dtype=bool)[::-1], np.zeros((1, 7), bool), np.triu(np.ones((7, 7), bool))]
    )
    assert kinds(rewritten(model(text), {"truth": truth})) == {"Where": 1, "ReduceMax": 1, "Cast": 1, "Gather": 1}


@pytest.mark.parametrize(
    "text",
    [
        ARGMAX.replace("keepdims = 0", "keepdims = 0, select_last_index = 1"),
        ARGMAX.replace("bool[", "float["),
        ARGMAX.replace("axis = 1", "axis = 0").replace("int64[N]", "int64[7]"),
    ],
    ids=["the last one", "of numbers", "along another axis"],
)
def test_another_argmax_is_left(text: str):
    made = model(text)
    for_cuda(made)
    assert kinds(made)["ArgMax"] == 1


TRANSPOSES = """g (float[B, 8, h, w] x) => (float[p, q, r, s] y, float[B, h, w, 8] first) {
    first = Transpose <perm = [0, 2, 3, 1]> (x)
    second = Transpose <perm = [0, 3, 1, 2]> (first)
    y = Relu (second)
}"""


@pytest.mark.parametrize(
    ("second", "left"),
    [("[0, 3, 1, 2]", 1), ("[0, 3, 2, 1]", 2), ("[3, 0, 1, 2]", 2)],
    ids=["undone", "other", "moved"],
)
def test_neighbouring_transposes_are_one_or_none(second: str, left: int):
    made = model(TRANSPOSES.replace("[0, 3, 1, 2]", second))
    assert kinds(rewritten(made, {"x": images()}))["Transpose"] == left
    assert all(str(node.inputs[0].name) == "x" for node in made.graph if node.op_type == "Transpose")


def test_a_transpose_that_is_an_output_keeps_its_name():
    made = model(TRANSPOSES.replace("y = Relu (second)", "y = Transpose <perm = [0, 2, 1, 3]> (second)"))
    rewritten(made, {"x": images()})
    assert [str(value.name) for value in made.graph.outputs] == ["y", "first"]

"""The passes on small graphs: what counts as network, how types are kept consistent, what the probes report."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from graphs import stated_types, type_errors
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrt import BundleError
from latentrt.export.convert.half_policy import ALGEBRA, WEIGHTS, place
from latentrt.export.passes.half import FORMATS, allows_half, largest_weight, to_half
from latentrt.export.passes.network import network_nodes
from latentrt.export.passes.probe import add_probes
from latentrt.export.passes.storage import load_graph

FLOAT = onnx.TensorProto.FLOAT
HALF = FORMATS["fp16"]
RNG = np.random.default_rng(0)
WEIGHTS_OF = {
    "conv.weight": RNG.standard_normal((8, 4, 3, 3), np.float32),
    "shared": np.full((1, 1, 1, 1), 0.5, np.float32),
    "norm.weight": np.ones(8, np.float32),
    "norm.bias": RNG.standard_normal(8, np.float32),
    "scales": np.float32([1, 1, 2, 2]),
}
NODES = [
    ("/Mul", "Mul", ["x", "shared"], ["scaled"], {}),
    ("conv/Conv", "Conv", ["scaled", "conv.weight"], ["features"], {"pads": [1, 1, 1, 1]}),
    ("/Shape", "Shape", ["features"], ["shape"], {}),
    ("norm/GroupNormalization", "GroupNormalization", ["features", "norm.weight", "norm.bias"], ["normed"],
     {"num_groups": 2}),
    ("/Mul_1", "Mul", ["normed", "shared"], ["halved"], {}),
    ("up/Resize", "Resize", ["halved", "", "scales"], ["large"], {"mode": "nearest"}),
    ("act/Sigmoid", "Sigmoid", ["large"], ["gate"], {}),
    ("act/Mul", "Mul", ["large", "gate"], ["inner"], {}),
    ("/Add", "Add", ["inner", "shared"], ["y"], {}),
]  # fmt: skip


def small_model(**weights: np.ndarray) -> ir.Model:
    """x [1, 4, 6, 6] -> y [1, 8, 12, 12] and the inner value before the last sum."""
    tensors = {**WEIGHTS_OF, **weights}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, i, o, name=name, **attributes) for name, op, i, o, attributes in NODES],
        "small",
        [onnx.helper.make_tensor_value_info("x", FLOAT, [1, 4, 6, 6])],
        [
            onnx.helper.make_tensor_value_info("y", FLOAT, [1, 8, 12, 12]),
            onnx.helper.make_tensor_value_info("inner", FLOAT, [1, 8, 12, 12]),
            onnx.helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, [4]),
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()],
        value_info=[
            onnx.helper.make_tensor_value_info(name, FLOAT, [1, 4 if name == "scaled" else 8, size, size])
            for name, size in {"scaled": 6, "features": 6, "normed": 6, "halved": 6, "large": 12, "gate": 12}.items()
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
    return ir.from_proto(model)


def run(model: ir.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    names = [output.name for output in model.graph.outputs]
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, {"x": x}), strict=True))


def checked(model: ir.Model) -> onnx.ModelProto:
    """The model, once ONNX accepts it and every operator's operands agree in type."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    assert type_errors(proto) == []
    return proto


def test_the_network_reaches_from_the_first_module_to_the_last():
    model = small_model()
    assert [node.name for node in network_nodes(model.graph)] == [
        "conv/Conv", "norm/GroupNormalization", "/Mul_1", "up/Resize", "act/Sigmoid", "act/Mul",
    ]  # fmt: skip


def test_a_graph_without_names_of_modules_is_refused():
    model = small_model()
    for node in model.graph:
        node.name = f"/{node.op_type}"
    with pytest.raises(BundleError, match="carries the name of a module"):
        network_nodes(model.graph)


def test_a_graph_within_a_graph_is_refused():
    model = small_model()
    inner = ir.Graph([], [], nodes=[], name="branch")
    model.graph.append(ir.node("If", [model.graph.inputs[0]], {"then_branch": inner, "else_branch": inner}))
    with pytest.raises(BundleError, match="holds a graph of its own"):
        network_nodes(model.graph)


@pytest.mark.parametrize("name", FORMATS)
def test_the_network_is_retyped_and_the_rest_is_not(name: str):
    model, half = small_model(), FORMATS[name]
    to_half(model, half, network_nodes(model.graph))
    proto = checked(model)
    types = stated_types(proto)
    assert {types[v] for v in ("features", "normed", "halved", "large", "gate", f"inner.{name}")} == {half.dtype.value}
    assert {types[v] for v in ("conv.weight", "norm.weight", "norm.bias", f"shared.{name}")} == {half.dtype.value}
    assert {types[v] for v in ("scaled", "y", "inner", "shared", "scales")} == {FLOAT}
    assert types["shape"] == onnx.TensorProto.INT64
    assert [node.name for node in proto.graph.node if node.op_type == "Cast"] == [
        f"/Cast_{half.dtype.short_name()}", "act/Cast_f32",
    ]  # fmt: skip


@given(chosen=st.sets(st.sampled_from([name for name, op, *_ in NODES if op != "Shape"])))
@settings(max_examples=60, deadline=None)
def test_any_choice_of_nodes_gives_a_well_typed_graph(chosen: set[str]):
    model = small_model()
    x = np.random.default_rng(1).standard_normal((1, 4, 6, 6), np.float32)
    expected = run(model, x)
    to_half(model, HALF, [node for node in model.graph if node.name in chosen])
    proto = checked(model)
    for node in proto.graph.node:
        assert node.op_type != "Cast" or node.name not in chosen
    found = run(model, x)
    assert {name: (v.shape, v.dtype) for name, v in found.items()} == {
        name: (v.shape, v.dtype) for name, v in expected.items()
    }
    for name, value in found.items():
        assert np.abs(value - expected[name]).max() <= (0.02 if chosen else 0.0)  # 2^-11 of values up to 7, a few times


def test_casts_are_shared():
    """A value that several nodes want in another type is cast once."""
    model = small_model()
    to_half(model, HALF, [node for node in model.graph if node.name in ("act/Sigmoid", "act/Mul")])
    proto = checked(model)
    assert sum(node.op_type == "Cast" and node.input[0] == "large" for node in proto.graph.node) == 1


@pytest.mark.parametrize(
    ("op", "attributes", "allowed"),
    [
        ("Sigmoid", {}, True),
        ("Cast", {"to": 1}, False),
        ("Round", {}, False),
        ("IsNaN", {}, True),
    ],
)
def test_the_schema_says_what_exists_in_the_format(op: str, attributes: dict, allowed: bool):
    """`Round` has no bfloat16 form at opset 23; the type of a `Cast` is an attribute."""
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node(op, [value], attributes)
    node.outputs[0].dtype = ir.DataType.BOOL if op == "IsNaN" else ir.DataType.FLOAT
    assert allows_half(node, FORMATS["bf16"], 21 if op == "Round" else 23) is allowed


def test_a_weight_that_would_become_infinite_keeps_its_node_in_float32():
    heavy = {"conv.weight": np.where(WEIGHTS_OF["conv.weight"] > 2.5, np.float32(7e4), WEIGHTS_OF["conv.weight"])}
    for half, kept in ((FORMATS["fp16"], True), (FORMATS["bf16"], False)):
        placement = place(small_model(**heavy), half)
        assert (placement.float32.get("conv/Conv") == WEIGHTS) is kept
        assert ("conv/Conv" in placement.half) is not kept
    assert placement.float32["/Mul"] == placement.float32["/Add"] == ALGEBRA


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, -3], 3), ([-np.inf, 0], 0), ([np.inf, -2, 1], 2), ([-np.inf], 0), ([], 0), ([65505, -np.inf], 65505)],
)
def test_the_largest_weight_is_finite(values: list[float], expected: float):
    assert largest_weight(ir.tensor(np.float32(values))) == expected


def test_probes_report_extremes_and_change_nothing():
    model = small_model()
    x = 10 * np.random.default_rng(2).standard_normal((1, 4, 6, 6), np.float32)
    plain = run(model, x)
    probes = add_probes(model, network_nodes(model.graph))
    found = run(model, x)
    assert all(np.array_equal(found[name], value) for name, value in plain.items())
    assert set(probes.tensors) == {"scaled", "features", "normed", "halved", "large", "gate", "inner"}
    low, high = probes.tensors["scaled"]
    assert (found[low], found[high]) == ((x / 2).min(), (x / 2).max())
    low, high = probes.tensors["inner"]
    assert (found[low], found[high]) == (plain["inner"].min(), plain["inner"].max())


@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_bound_of_attention_scores_holds_and_is_near(scale: float | None):
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((1, 2, 12, 8)).astype(np.float32) for _ in range(3))
    q[0, 1, 5] = 40 * k[0, 1, 3]  # one query along one key: there the bound is an equality
    k[0, 1, 3] *= 20
    names = ("q", "k", "v")
    node = onnx.helper.make_node(
        "Attention", names, ["out"], name="attn/Attention", **({"scale": scale} if scale else {})
    )
    graph = onnx.helper.make_graph(
        [node],
        "attention",
        [onnx.helper.make_tensor_value_info(name, FLOAT, [1, 2, 12, 8]) for name in names],
        [onnx.helper.make_tensor_value_info("out", FLOAT, [1, 2, 12, 8])],
    )
    model = ir.from_proto(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
    )
    probes = add_probes(model, list(model.graph))
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    query, key, factor = probes.scores["attn/Attention"]
    longest = session.run([query, key], {"q": q, "k": k, "v": v})
    bound = float(longest[0]) * float(longest[1]) * factor
    scores = np.abs(q @ k.swapaxes(2, 3)).max() * (8**-0.5 if scale is None else scale)
    assert scores <= bound * (1 + 1e-6)
    assert bound == pytest.approx(scores, rel=1e-5)


def test_weights_are_written_one_after_the_other(shapes_bundle: Path, tmp_path: Path):
    """Memory holds no second model: the peak of what is allocated while saving stays far below the weights."""
    import tracemalloc

    model = load_graph(shapes_bundle / "step.onnx")
    to_half(model, HALF, network_nodes(model.graph))
    tracemalloc.start()
    ir.save(model, tmp_path / "step.onnx", external_data="step.weights")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    written = (tmp_path / "step.weights").stat().st_size
    largest = max(value.const_value.nbytes for value in model.graph.initializers.values())
    assert written > 8 * largest
    assert peak < 3 * 2 * largest + 2**21  # one tensor in float32, one in 16 bit, one as bytes; and the graph

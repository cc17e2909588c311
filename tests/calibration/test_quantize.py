"""Q/DQ pairs and SmoothQuant on small graphs, against the arithmetic that they stand for."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import Builder, attention_front, run

from latentrt.backends.onnxruntime import session as onnxruntime_session
from latentrt.backends.processor import has_int8_products
from latentrt.calibration.formats import INT8
from latentrt.calibration.placement import operators
from latentrt.calibration.quantize import Scales, quantize
from latentrt.calibration.smooth import fold, smoothable, smoothing_factors

LEVELS = 127
NORMED, GATED = "block.norm/LayerNormalization.y", "block.gate/Mul.y"


def inputs(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def rounded(x: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
    return np.clip(np.rint(x / scale), -128, 127) * scale


def product(x: np.ndarray, weight: np.ndarray, limit: float) -> np.ndarray:
    """A quantised product in numpy: the activation rounded per tensor, the weight per column."""
    return rounded(x, limit / LEVELS) @ rounded(weight, np.abs(weight).max(axis=0) / LEVELS)


def linear(weight: np.ndarray) -> ir.Model:
    make = Builder(("B", weight.shape[0]))
    return make.model(make.node("layer/MatMul", make.input, make.weight("w", weight), dims=("B", weight.shape[1])))


def test_a_product_is_that_of_the_rounded_operands():
    weight, x = inputs(16, 5, seed=1), 2 * inputs(40, 16)
    model = linear(weight)
    quantize(model, operators(model), Scales(form=INT8, ranges={"x": 2.0}, factors={}))
    # Beyond the range values are clipped; the sums are of the same terms in another order.
    np.testing.assert_allclose(run(model, x), product(x, weight, 2.0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("products", "kept_in_float"), [(True, False), (False, True)])
def test_products_stay_in_float_where_those_of_int8_saturate(products, kept_in_float, monkeypatch, tmp_path):
    """As products of int8, this one is off by 40 % of the largest value on an emulated processor with AVX2 alone."""
    monkeypatch.setattr(onnxruntime_session, "has_int8_products", lambda: products)
    weight, x = inputs(16, 5, seed=1), 2 * inputs(40, 16)
    model = linear(weight)
    quantize(model, operators(model), Scales(form=INT8, ranges={"x": 2.0}, factors={}))
    options = onnxruntime_session.settings(threads=None)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = onnxruntime_session.make_session(ir.to_proto(model).SerializeToString(), options, precision="int8")
    if kept_in_float or has_int8_products():
        np.testing.assert_allclose(session.run(None, {"x": x})[0], product(x, weight, 2.0), rtol=1e-5, atol=1e-5)
    kinds = {node.op_type for node in ir.load(tmp_path / "optimised.onnx").graph}
    assert ("MatMul" in kinds) is kept_in_float


@pytest.mark.parametrize(
    ("kind", "shape", "axis", "attributes"),
    [
        ("Conv", (6, 4, 3, 3), 0, {"pads": [1, 1, 1, 1]}),
        ("Gemm", (6, 4), 0, {"transB": 1}),
        ("Gemm", (4, 6), 1, {}),
        ("MatMul", (4, 6), 1, {}),
    ],
)
def test_weights_are_int8_with_a_scale_for_each_output_channel(kind, shape, axis, attributes):
    weight = inputs(*shape) * np.geomspace(1e-3, 10, shape[axis]).reshape(
        [-1 if i == axis else 1 for i in range(len(shape))]
    )
    dims = ("B", 4, "h", "w") if kind == "Conv" else ("B", 4)
    make = Builder(dims)
    bias = [make.weight("bias", inputs(6))] if kind != "MatMul" else []
    out = make.node(
        f"a/{kind}", make.input, make.weight("w", weight), *bias, dims=(*dims[:1], 6, *dims[2:]), **attributes
    )
    model = make.model(out)
    quantize(model, operators(model), Scales(form=INT8, ranges={"x": 3.0}, factors={}))
    graph = model.graph
    stored = graph.initializers["w.int8"].const_value.numpy()
    scale = graph.initializers["w.scale"].const_value.numpy()
    assert stored.dtype == np.int8
    assert scale.shape == (6,)
    assert "w" not in graph.initializers
    assert np.abs(stored).max(axis=tuple(i for i in range(len(shape)) if i != axis)).tolist() == [LEVELS] * 6
    spread = scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    assert (np.abs(stored * spread - weight) <= spread * 0.5001).all()
    (node,) = [node for node in graph if node.op_type == kind]
    assert [value.producer().op_type for value in node.inputs[:2]] == ["DequantizeLinear"] * 2
    assert [value.name for value in node.inputs[2:]] == ["bias"] * len(bias)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_one_pair_serves_all_readers_and_no_output_is_quantised():
    model = attention_front()
    found = operators(model)
    quantize(model, found, Scales(form=INT8, ranges={NORMED: 4.0, GATED: 9.0}, factors={}))
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("QuantizeLinear") == 2
    assert kinds.count("DequantizeLinear") == 2 + 3
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            readers = {use.node.op_type for use in node.outputs[0].uses()}
            assert readers == {"DequantizeLinear"}
            assert node.inputs[2].const_value.numpy() == 0
            assert node.inputs[2].const_value.numpy().dtype == np.int8


def test_operators_that_are_kept_stay_as_they_are():
    make = Builder(("B", 4, "h", "w"))
    first = make.node("conv_in/Conv", make.input, make.weight("w0", inputs(4, 4, 1, 1)), dims=("B", 4, "h", "w"))
    second = make.node("conv/Conv", first, make.weight("w1", inputs(4, 4, 1, 1)), dims=("B", 4, "h", "w"))
    model = make.model(second)
    found = operators(model)
    quantize(model, found, Scales(form=INT8, ranges={found[1].activation: 1.0}, factors={}))
    nodes = {node.name: node for node in model.graph}
    assert [value.name for value in nodes["conv_in/Conv"].inputs] == ["x", "w0"]
    assert nodes["conv/Conv"].inputs[0].producer().op_type == "DequantizeLinear"


def test_a_channel_of_zeros_stays_zero():
    weight = inputs(4, 3)
    weight[:, 1] = 0
    model = linear(weight)
    quantize(model, operators(model), Scales(form=INT8, ranges={"x": 3.0}, factors={}))
    assert (run(model, inputs(5, 4))[:, 1] == 0).all()


def test_a_float16_graph_keeps_float16_around_int8():
    model = attention_front(dtype="float16")
    reference = run(model, (x := inputs(2, 30, 8).astype(np.float16)))
    quantize(model, operators(model), Scales(form=INT8, ranges={NORMED: 12.0, GATED: 300.0}, factors={}))
    assert {value.dtype for node in model.graph for value in node.outputs if node.op_type == "DequantizeLinear"} == {
        ir.DataType.FLOAT16
    }
    found = run(model, x)
    assert found.dtype == np.float16
    error = np.square(found.astype(np.float64) - reference).sum() / np.square(reference.astype(np.float64)).sum()
    assert error < 10**-2.5


def smoothed_scales(model: ir.Model, x: np.ndarray, *, alpha: float) -> Scales:
    """Scales from the layer norm's own output, which is computed by a copy of the model that ends there."""
    found = operators(model)
    normed = run(ending_at_norm(), x)
    maxima = {NORMED: np.abs(normed).max(axis=(0, 1)), GATED: np.ones(8, np.float32)}
    groups = smoothable(model, found, maxima)
    factors = smoothing_factors(model, groups, maxima, alpha=alpha)
    limit = float((np.abs(normed) / factors[NORMED]).max())
    return Scales(form=INT8, ranges={NORMED: limit, GATED: 300.0}, factors=factors, folded=frozenset(groups))


def ending_at_norm() -> ir.Model:
    model = attention_front()
    value = next(node for node in model.graph if node.op_type == "LayerNormalization").outputs[0]
    model.graph.outputs[0] = value
    return model


def test_only_what_a_norm_makes_or_has_outliers_is_smoothed():
    model = attention_front()
    found = operators(model)
    even = np.ones(8, np.float32)
    uneven = np.array([100, *[1] * 7], np.float32)
    assert set(smoothable(model, found, {NORMED: even, GATED: even})) == {NORMED}
    groups = smoothable(model, found, {NORMED: even, GATED: uneven})
    assert {tensor: group.folds for tensor, group in groups.items()} == {NORMED: True, GATED: False}


@pytest.mark.parametrize("folded", [True, False])
def test_smoothing_changes_nothing_but_the_rounding(folded):
    """Factors that cancel leave the result where it was, but for rounding."""
    x = inputs(2, 40, 8)
    reference = run(attention_front(), x)
    factors = {NORMED: np.geomspace(0.5, 2, 8).astype(np.float32)}
    errors = {}
    for name, its in {"plain": {}, "smoothed": factors}.items():
        model = attention_front()
        scales = Scales(
            form=INT8,
            ranges={NORMED: 20.0 if its else 12.0, GATED: 300.0},
            factors=its,
            folded=frozenset(factors if folded else ()),
        )
        quantize(model, operators(model), scales)
        errors[name] = np.linalg.norm(run(model, x) - reference) / np.linalg.norm(reference)
        assert [node.name for node in model.graph if node.name.endswith("/Smooth")] == (
            [f"{NORMED}/Smooth"] if its and not folded else []
        )
    assert errors["plain"] < 0.03
    assert errors["smoothed"] < 0.06  # without the division or the multiplication it is above 0.5


def test_norms_that_share_their_constants_are_divided_apart():
    model = attention_front()
    norm = next(node for node in model.graph if node.op_type == "LayerNormalization")
    other = ir.node("LayerNormalization", norm.inputs, {"axis": -1}, name="other")
    other.outputs[0].name = "other"
    model.graph.insert_after(norm, other)
    factors = {node: np.geomspace(0.5, 2, 8).astype(np.float32) ** power for node, power in ((norm, 1), (other, -1))}
    shared = norm.inputs[1].const_value.numpy()
    for node, its in factors.items():
        fold(model, node, its)
    for node, its in factors.items():
        np.testing.assert_allclose(node.inputs[1].const_value.numpy(), shared / its, rtol=1e-6)


def test_smoothing_helps_where_channels_are_unlike():
    x = inputs(4, 64, 8)
    errors = []
    for alpha in (0.0, 0.8):
        model = attention_front(seed=0)
        reference = run(attention_front(seed=0), x)
        weights = model.graph.initializers["norm.weight"].const_value.numpy()
        assert weights.max() / np.median(weights) > 1.5
        scales = smoothed_scales(model, x, alpha=alpha)
        quantize(model, operators(model), scales)
        errors.append(np.square(run(model, x) - reference).sum())
    assert errors[1] < errors[0]


def test_factors_have_geometric_mean_one_and_level_the_channels_at_alpha_one():
    model = attention_front()
    maxima = {NORMED: np.geomspace(0.1, 30, 8).astype(np.float32), GATED: np.ones(8, np.float32)}
    groups = smoothable(model, operators(model), maxima)
    factors = smoothing_factors(model, groups, maxima, alpha=1.0)[NORMED]
    assert np.log(factors).mean() == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(maxima[NORMED] / factors, (maxima[NORMED] / factors)[0], rtol=1e-5)


def test_the_same_scales_give_the_same_bytes(tmp_path):
    files = []
    for name in ("a", "b"):
        model = attention_front()
        quantize(model, operators(model), Scales(form=INT8, ranges={NORMED: 4.0, GATED: 9.0}, factors={}))
        (folder := tmp_path / name).mkdir()
        ir.save(model, folder / "g.onnx", external_data="g.weights", size_threshold_bytes=16)
        files.append([(folder / file).read_bytes() for file in ("g.onnx", "g.weights")])
    assert files[0] == files[1]

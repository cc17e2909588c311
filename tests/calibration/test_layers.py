"""Each operator's own damage, against the arithmetic in NumPy; nothing of it disturbs the float graph."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import Builder, attention_front, run

from latentrt.backends.onnxruntime.session import make_session, settings
from latentrt.bundle import Bundle
from latentrt.calibration.formats import FP8, INT8
from latentrt.calibration.layers import GATES, compare
from latentrt.calibration.placement import operators
from latentrt.calibration.quantize import Scales, quantize
from latentrt.export.passes.storage import load_graph

NORMED, GATED = "block.norm/LayerNormalization.y", "block.gate/Mul.y"


def outputs(model: ir.Model, x: np.ndarray, *, gates: list[bool]) -> dict[str, np.ndarray]:
    session = make_session(ir.to_proto(model).SerializeToString(), settings(threads=None), precision="int8")
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": x, GATES: np.array(gates)}), strict=True))


def inputs(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape, np.float32)


def test_noise_is_that_of_the_operators_own_input_and_weights_rounded():
    # No value lies near the middle of two steps, where its last bit would decide.
    step, rng = np.float32(3 / 127), np.random.default_rng(1)
    x = step * (rng.integers(-127, 128, (30, 16)) + rng.uniform(-0.4, 0.4, (30, 16))).astype(np.float32)
    weight = (rng.integers(-126, 127, (16, 5)) + rng.uniform(-0.4, 0.4, (16, 5))).astype(np.float32) / 50
    weight[0] = 127 / np.float32(50)
    make = Builder(("B", 16))
    model = make.model(make.node("layer/MatMul", make.input, make.weight("w", weight), dims=("B", 5)))
    compare(model, operators(model), Scales(form=INT8, ranges={"x": 3.0}, factors={}))
    found = outputs(model, x, gates=[False])
    steps = np.abs(weight).max(axis=0) / 127
    rounded = (np.clip(np.rint(x / step), -127, 127) * step) @ (np.rint(weight / steps) * steps)
    np.testing.assert_allclose(found["layer/MatMul.y"], x @ weight, rtol=1e-5, atol=1e-5)
    assert found["layer.power.layer/MatMul"] == pytest.approx(np.square(x @ weight).sum(), rel=1e-5)
    assert found["layer.noise.layer/MatMul"] == pytest.approx(np.square(x @ weight - rounded).sum(), rel=1e-4)
    assert found["layer.size.layer/MatMul"] == 30 * 5


def test_rounding_before_an_operator_is_not_counted_as_its_own():
    """The twin reads float, and the next operator does too: the output of the graph stays as it was."""
    x = inputs(2, 30, 8)
    model = attention_front()
    found = operators(model)
    factors = {NORMED: np.geomspace(0.5, 2, 8).astype(np.float32)}
    scales = Scales(form=INT8, ranges={NORMED: 20.0, GATED: 300.0}, factors=factors, folded=frozenset(factors))
    compare(model, found, scales)
    measured = outputs(model, x, gates=[False] * 3)
    np.testing.assert_array_equal(measured["block.to_out/MatMul.y"], run(attention_front(), x))
    for operator in found:
        ratio = measured[f"layer.power.{operator.name}"] / measured[f"layer.noise.{operator.name}"]
        assert 20 < 10 * np.log10(ratio) < 60


def test_an_open_gate_is_the_graph_with_that_operator_alone_quantised():
    x = inputs(2, 30, 8)
    ranges = {NORMED: 12.0, GATED: 300.0}
    compared = attention_front()
    compare(compared, operators(compared), Scales(form=INT8, ranges=ranges, factors={}))
    for place in range(3):
        alone = attention_front()
        found = [o if i == place else replace(o, float_reason="for a test") for i, o in enumerate(operators(alone))]
        quantize(alone, found, Scales(form=INT8, ranges=ranges, factors={}))
        gated = outputs(compared, x, gates=[i == place for i in range(3)])["block.to_out/MatMul.y"]
        np.testing.assert_allclose(gated, run(alone, x), rtol=1e-5, atol=1e-4)
        assert np.abs(gated - run(attention_front(), x)).max() > 1e-2


def test_operators_that_stay_in_float_have_work_and_no_damage():
    make = Builder(("B", 4, "h", "w"))
    first = make.node("conv_in/Conv", make.input, make.weight("w0", inputs(4, 4, 1, 1)), dims=("B", 4, "h", "w"))
    second = make.node("conv/Conv", first, make.weight("w1", inputs(4, 4, 1, 1)), dims=("B", 4, "h", "w"))
    model = make.model(second)
    compare(model, operators(model), Scales(form=FP8, ranges={"conv_in/Conv.y": 9.0}, factors={}))
    names = {value.name for value in model.graph.outputs}
    assert names == {"conv/Conv.y", "layer.size.conv_in/Conv", *(f"layer.{k}.conv/Conv" for k in _ALL)}


_ALL = ("size", "power", "noise")


def test_an_operator_returned_to_float_behind_a_divided_norm_gets_its_weights_multiplied():
    """Its siblings keep the division in the norm; without the multiplication the result would be another one."""
    x = inputs(2, 40, 8)
    model = attention_front()
    found = [replace(o, float_reason="for a test") if o.name == "block.to_q/MatMul" else o for o in operators(model)]
    factors = {NORMED: np.geomspace(0.5, 2, 8).astype(np.float32)}
    scales = Scales(form=INT8, ranges={NORMED: 20.0, GATED: 300.0}, factors=factors, folded=frozenset(factors))
    quantize(model, found, scales)
    reference = run(attention_front(), x)
    assert np.linalg.norm(run(model, x) - reference) / np.linalg.norm(reference) < 0.05
    assert "q.smoothed" in model.graph.initializers
    assert "q" not in model.graph.initializers


def test_every_layer_of_the_example_is_in_the_manifest(calibrated, shapes_bundle):
    found = operators(load_graph(Bundle.open(shapes_bundle).component("step").graph.path))
    step = calibrated.bundle.manifest["calibration"]["components"]["step"]
    layers = step["layers"]
    assert [(layer["name"], layer["op"], layer["weight"], layer["parameters"]) for layer in layers] == [
        (o.name, o.kind, o.weight, o.size) for o in found
    ]
    assert [layer["name"] for layer in layers if layer["precision"] == "int8"] == step["quantised"]
    assert all((layer["sqnr_db"] is None) == (layer["precision"] == "float") for layer in layers)
    ratios = [layer["sqnr_db"] for layer in layers if layer["sqnr_db"] is not None]
    assert 15 < min(ratios) < max(ratios) < 60
    assert {layer["reason"] for layer in layers if layer["precision"] == "float"} == {
        group["reason"] for group in step["float"]
    }


def test_work_is_counted_for_one_image_and_branch(calibrated, brief):
    """A 3x3 convolution at the latent's size: its weights at every latent pixel."""
    layers = {
        layer["name"]: layer for layer in calibrated.bundle.manifest["calibration"]["components"]["step"]["layers"]
    }
    pixels = (brief.size[0] // 8) * (brief.size[1] // 8)
    for name in ("conv_in/Conv", "down_blocks.0.resnets.0.conv1/Conv"):
        assert layers[name]["work_macs"] == layers[name]["parameters"] * pixels

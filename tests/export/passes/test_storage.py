"""Weights as the checkpoint has them: what is stored, and that float32 graphs compute with the same numbers to the bit.

The other side is a bundle in float32 throughout, as earlier versions wrote it: it has to load, too.
"""

import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from safetensors import safe_open

from latentrt.backends import open_engine
from latentrt.bundle import Bundle
from latentrt.calibration.formats import FORMATS as QUANTISED
from latentrt.calibration.placement import operators
from latentrt.calibration.quantize import Scales, quantize, save
from latentrt.errors import BundleError
from latentrt.export.convert.bake import bake_lora
from latentrt.export.convert.precision import convert_bundle
from latentrt.export.passes.storage import SMALLEST, load_graph, narrow, restore, save_graph, stored_values
from latentrt.graph import GraphFile, TensorSpec
from latentrt.lora import Lora, merge
from latentrt.weights.onnx_initializers import read_initializers

BACKENDS = ("onnxruntime", "openvino")
FLOAT, HALF, BRAIN = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
LORA = Path(__file__).parents[3] / "examples" / "shapes" / "lora" / "outlined.safetensors"


@pytest.fixture(scope="module")
def widened(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same bundle with float32 in its files, as earlier versions wrote it."""
    from latentrt.export.bundles.derived import derive_bundle

    bundle = Bundle.open(shapes_bundle)

    def write(name: str, staging: Path) -> dict:
        row = {key: value for key, value in bundle.manifest["components"][name].items() if key != "stored"}
        path = staging / row["graph"]
        ir.save(load_graph(bundle.root / row["graph"]), path, external_data=path.with_suffix(".weights").name)
        (staging / row["keys"]).write_bytes((bundle.root / row["keys"]).read_bytes())
        return row

    writers = {name: (lambda staging, name=name: write(name, staging)) for name in bundle.components}
    return derive_bundle(bundle, tmp_path_factory.mktemp("old") / "widened", writers=writers, options={})


def feed_of(bundle: Bundle, component: str) -> dict[str, np.ndarray]:
    """Random values, seeded, of a small size."""
    part, rng = bundle.component(component), np.random.default_rng(0)
    lengths = {"B": 1, "K": 2, "N": 2, "E": 1, "h": 8, "w": 8, "H": 64, "W": 64, "L": 77, "8*h": 64, "8*w": 64}
    feed = {}
    for name, spec in part.graph.inputs.items():
        shape = tuple(dim if isinstance(dim, int) else lengths[dim] for dim in part.dims[name])
        whole = np.dtype(spec.dtype).kind in "iu"
        feed[name] = rng.integers(0, 2, shape, spec.dtype) if whole else rng.random(shape, np.float32)
    return feed


def outputs(graph, feed, backend: str) -> dict[str, np.ndarray]:
    with open_engine(graph, backend=backend) as engine:
        return dict(engine.run(feed))


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def model_of(**weights: np.ndarray) -> ir.Model:
    """A sum of a float32 input and each weight."""
    x = ir.Value(name="x", type=ir.TensorType(FLOAT), shape=ir.Shape(("n",)))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 23}, name="sum")
    total = x
    for name, array in weights.items():
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        graph.register_initializer(value)
        node = ir.node("Add", [total, value], name=f"/add.{name}")
        node.outputs[0].name, node.outputs[0].dtype = f"sum.{name}", FLOAT
        graph.append(node)
        total = node.outputs[0]
    graph.outputs.append(total)
    return ir.Model(graph, ir_version=10)


def types_of(model: ir.Model) -> dict[str, ir.DataType]:
    return {name: value.dtype for name, value in model.graph.initializers.items()}


def test_weights_lie_in_the_type_of_the_checkpoint(shapes_bundle: Path, shapes_checkpoint: Path, widened: Bundle):
    bundle = Bundle.open(shapes_bundle)
    (file,) = (shapes_checkpoint / "unet").glob("*.safetensors")
    keys, found = bundle.keys("step"), read_initializers(shapes_bundle / "step.onnx")
    with safe_open(file, "numpy") as checkpoint:
        for name, entry in keys.items():
            tensor, place = checkpoint.get_tensor(entry["key"]), found[name]
            large = tensor.ndim > 1 and tensor.size >= SMALLEST
            assert (place.dtype, place.read_dtype) == ("float16" if large else "float32", "float32"), name
            values = place.read().values
            np.testing.assert_array_equal(values.T if entry["transposed"] else values, tensor)
    small, large = (
        sum(path.stat().st_size for path in each.component("step").graph.weights) for each in (bundle, widened)
    )
    assert small < 0.51 * large
    stored = bundle.component("step").stored
    assert stored["fp16"] > 100 * stored["fp32"]
    assert sum(stored.values()) == sum(widened_values(widened, "step").values())


def widened_values(bundle: Bundle, component: str) -> dict[str, int]:
    return stored_values(ir.load(bundle.component(component).graph.path))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("component", ["text_encoder", "step", "decoder", "encoder"])
def test_outputs_are_those_of_float32_files_to_the_bit(
    shapes_bundle: Path, widened: Bundle, component: str, backend: str
):
    bundle = Bundle.open(shapes_bundle)
    feed = feed_of(bundle, component)
    found, expected = (outputs(each.component(component).graph, feed, backend) for each in (bundle, widened))
    assert_equal(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_loras_are_added_in_float32(shapes_bundle: Path, widened: Bundle, backend: str):
    """To matrices, which ONNX Runtime is fed, and to kernels, which become constants."""
    bundle = Bundle.open(shapes_bundle)
    feed = feed_of(bundle, "step")
    plain = outputs(bundle.component("step").graph, feed, backend)
    found, expected = (outputs(merge(each, [Lora(LORA)]).graphs["step"], feed, backend) for each in (bundle, widened))
    assert_equal(found, expected)
    assert not np.array_equal(found["denoised"], plain["denoised"])


def test_a_baked_lora_is_not_rounded(shapes_bundle: Path, widened: Bundle, tmp_path: Path):
    new, old = (bake_lora(each, tmp_path / each.name, [Lora(LORA)]) for each in (Bundle.open(shapes_bundle), widened))
    assert new.component("step").stored["fp32"] > 0
    found, expected = (load_graph(each.component("step").graph.path).graph.initializers for each in (new, old))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name].const_value.numpy(), value.const_value.numpy(), err_msg=name)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_conversion_gives_the_same_bytes(shapes_bundle: Path, widened: Bundle, tmp_path: Path, precision: str):
    chosen = {"text_encoder": precision, "decoder": precision}
    new, old = (
        convert_bundle(each, tmp_path / f"{each.name}-16", precision=chosen, range_check="none")
        for each in (Bundle.open(shapes_bundle), widened)
    )
    for name in chosen:
        for first, second in zip(files_of(new, name), files_of(old, name), strict=True):
            assert first.read_bytes() == second.read_bytes(), first
    assert new.component("decoder").stored[precision] > 0


def files_of(bundle: Bundle, component: str) -> list[Path]:
    graph = bundle.component(component).graph
    return [graph.path, *graph.weights]


def test_calibration_gives_the_same_bytes(shapes_bundle: Path, widened: Bundle, tmp_path: Path):
    made = []
    for bundle in (Bundle.open(shapes_bundle), widened):
        model = load_graph(bundle.component("decoder").graph.path)
        found = operators(model)
        ranges = {operator.activation: 3.0 for operator in found}
        quantize(model, found, Scales(form=QUANTISED["int8"], ranges=ranges, factors={}))
        path = tmp_path / bundle.name / "decoder.onnx"
        path.parent.mkdir()
        assert save(model, path)["int8"] > 0
        made.append((path.read_bytes(), path.with_suffix(".weights").read_bytes()))
    assert made[0] == made[1]


def test_a_float32_bundle_that_half_floats_hold_becomes_small_when_it_is_rewritten(widened: Bundle, tmp_path: Path):
    path = tmp_path / "step.onnx"
    stored = save_graph(load_graph(widened.component("step").graph.path), path)
    assert stored["fp16"] > 100 * stored["fp32"]


def test_each_weight_takes_the_narrowest_type_that_holds_it_to_the_bit(tmp_path: Path):
    rng = np.random.default_rng(0)
    shape = (32, 64)
    half = rng.standard_normal(shape, np.float32).astype(np.float16).astype(np.float32)
    brain = (1e-3 * rng.standard_normal(shape, np.float32)).astype(ml_dtypes.bfloat16).astype(np.float32)
    almost, tiny, huge = half.copy(), half.copy(), half.copy()
    almost[-1, -1] = 1 + 2**-12  # one bit too many in the last value
    tiny[0, 0], huge[0, 0] = 2.0**-30, 1e5
    signed = half.copy()
    signed[3] = -0.0
    weights = {"half": half, "brain": brain, "almost": almost, "tiny": tiny, "huge": huge, "signed": signed}
    weights |= {"vector": half.ravel(), "small": half[:4]}
    path = tmp_path / "g.onnx"
    save_graph(model_of(**weights), path)
    assert types_of(ir.load(path)) == {
        **dict.fromkeys(weights, FLOAT),
        **dict.fromkeys(("half", "signed"), HALF),
        "brain": BRAIN,
    }
    loaded = load_graph(path)
    assert set(types_of(loaded).values()) == {FLOAT} and len(list(loaded.graph)) == len(weights)
    for name, value in loaded.graph.initializers.items():
        found = value.const_value.numpy()
        np.testing.assert_array_equal(found.view(np.uint32), weights[name].view(np.uint32), err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_is_widened_to_the_bit(backend: str, tmp_path: Path):
    weight = (1e-3 * np.random.default_rng(0).standard_normal((32, 64), np.float32)).astype(ml_dtypes.bfloat16)
    found = {}
    for name, save_model in (("narrow", save_graph), ("wide", lambda model, path: ir.save(model, path))):
        path = tmp_path / f"{name}.onnx"
        save_model(model_of(weight=weight.astype(np.float32)), path)
        specs = {"x": TensorSpec("float32", (None,))}, {"sum.weight": TensorSpec("float32", (None, None))}
        graph = GraphFile("step", path=path, inputs=specs[0], outputs=specs[1])
        found[name] = outputs(graph, {"x": np.zeros(64, np.float32)}, backend)
    assert types_of(ir.load(tmp_path / "narrow.onnx")) == {"weight": BRAIN}
    assert_equal(found["narrow"], {"sum.weight": weight.astype(np.float32)})
    assert_equal(found["narrow"], found["wide"])


@pytest.mark.parametrize("kind", [HALF, BRAIN])
def test_a_weight_that_both_types_hold_takes_that_of_the_others(kind: ir.DataType):
    other = (1e-3 * np.random.default_rng(0).standard_normal((64, 64), np.float32)).astype(kind.numpy())
    model = model_of(zeros=np.zeros((64, 32), np.float32), other=other.astype(np.float32))
    narrow(model)
    assert set(types_of(model).values()) == {kind}


def test_a_graph_that_shares_a_file_names_its_bytes_again(shapes_bundle: Path):
    path = shapes_bundle / "step.onnx"
    model, raw = load_graph(path), ir.load(path)
    restore(model)
    assert types_of(model) == types_of(raw)
    assert len(ir.to_proto(model).SerializeToString()) < 1.1 * path.stat().st_size


def test_memory_is_expected_for_what_is_computed_with(shapes_bundle: Path, widened: Bundle):
    narrowed, wide = (each.component("step").graph for each in (Bundle.open(shapes_bundle), widened))
    assert narrowed.widened_bytes == 4 * sum(widened_values(widened, "step").values())
    assert wide.widened_bytes is None


def test_weights_with_several_names_are_refused(shapes_bundle: Path, tmp_path: Path):
    """onnx_ir reads none from such files."""
    linked = tmp_path / "linked"
    shutil.copytree(shapes_bundle, linked, copy_function=os.link)
    with pytest.raises(BundleError, match=r"text_encoder\.weights has 2 hard links.*cp -r"):
        load_graph(linked / "text_encoder.onnx")

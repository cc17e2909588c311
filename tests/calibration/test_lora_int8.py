"""LoRA on int8 and fp8 bundles: merged in float, smoothed and rounded by the layer's own rule."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from lora_files import random_layers, write_lora

import latentrt
from latentrt import Bundle, Request
from latentrt.calibration.formats import FORMATS
from latentrt.calibration.package import Calibrated
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.convert.bake import bake_lora
from latentrt.lora import merge
from latentrt.lora.merge import _along, _factors, _pristine
from latentrt.lora.targets import Site, bundle_parts
from latentrt.weights.dtypes import FLOAT8, Weight
from latentrt.weights.onnx_initializers import read_initializers

# One call in the middle of the noise: at the first timestep hardly anything of the network is in the output.
REQUEST = Request(
    "a red circle on a white background", seed=3, timesteps=(500,), size=(64, 64), guidance=1.0, sampler="euler"
)


@pytest.fixture(scope="module")
def style(shapes_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = random_layers(SimpleNamespace(unet=Checkpoint.open(shapes_checkpoint).unet()), strength=0.3)
    return write_lora(tmp_path_factory.mktemp("lora") / "style.safetensors", layers)


@pytest.fixture(scope="module")
def rounded(calibrated: Calibrated, calibrated_fp8: Calibrated) -> Callable[[str], Bundle]:
    """The example bundle with its step in a format."""
    return {"int8": calibrated.bundle, "fp8": calibrated_fp8.bundle}.__getitem__


def sites(bundle: Bundle) -> dict[str, Site]:
    return {target.key: target.sites[0] for part in bundle_parts(bundle) for target in part.targets.values()}


@pytest.mark.parametrize("form", FORMATS)
def test_every_weight_keeps_its_key_and_says_how_it_was_made(form: str, rounded, shapes_bundle: Path):
    """The float32 weight by the factors and over the scales of the keys, rounded, is the stored one."""
    found, exact = sites(rounded(form)), sites(Bundle.open(shapes_bundle))
    assert found.keys() == exact.keys()
    assert any(site.scaling is not None and site.scaling.factors is not None for site in found.values())
    for key, site in found.items():
        stored, weight = site.stored.read(), exact[key].stored.read().float32()
        if site.scaling is not None:
            weight = weight * _factors(site.scaling, weight.ndim)
        if site.scaling is not None and site.scaling.scales is not None:
            steps = weight / _along(site.scaling.scales[1].read().float32(), site.scaling.axis, weight.ndim)
            np.testing.assert_array_equal(stored.float32(), FORMATS[form].rounded(steps).astype(np.float32), key)
            back = _pristine(site) * _as_checkpoint(_factors(site.scaling, weight.ndim), site)
            assert np.linalg.norm(back - _as_checkpoint(weight, site)) < 0.05 * np.linalg.norm(weight)
        else:
            np.testing.assert_array_equal(stored.float32(), weight, key)


def _as_checkpoint(array: np.ndarray, site: Site) -> np.ndarray:
    return array.T if site.transposed else array


@pytest.mark.parametrize("form", FORMATS)
def test_changed_weights_are_rounded_by_the_rule_of_calibration(form: str, rounded, style: Path):
    """Each output channel has its largest weight at the end of the grid, and formats and shapes are the graph's own."""
    graph = merge(rounded(form), [style]).graphs["step"]
    stored, values = read_initializers(graph.path), dict(graph.new_weights())
    places = {site.name: site for site in sites(rounded(form)).values() if site.component == "step"}
    names = [name for name in values if name.endswith(f".{form}")]
    assert len(names) > 30
    for name in names:
        weight, axis = values[name], places[name].scaling.axis
        assert (weight.dtype, weight.shape) == (stored[name].dtype, stored[name].shape)
        others = tuple(i for i in range(len(weight.shape)) if i != axis)
        np.testing.assert_array_equal(np.abs(weight.float32()).max(axis=others), FORMATS[form].largest)
        assert values[f"{name.removesuffix(f'.{form}')}.scale"].shape == (weight.shape[axis],)


def outputs(bundle: Path, style: Path, *, backend: str, cache: Path) -> list[np.ndarray]:
    """Of one step, with the LoRA and without."""
    with latentrt.load(bundle, backend=backend, cache_dir=cache) as pipe:
        found = []
        for lora in ([style], []):
            pipe.set_lora(lora)
            (step,) = pipe.steps(REQUEST)
            found.append(np.array(step.denoised))
        return found


@pytest.fixture(scope="module")
def float32_outputs(shapes_bundle: Path, style: Path, tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    return outputs(shapes_bundle, style, backend="onnxruntime", cache=tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_network_is_as_near_to_float_with_the_lora_as_without(
    form: str, backend: str, rounded, float32_outputs: list[np.ndarray], style: Path, tmp_path: Path
):
    """Signal-to-noise ratio of the step's output against the float32 bundle's, both with the LoRA and both without."""
    found = outputs(rounded(form).root, style, backend=backend, cache=tmp_path)
    pairs = zip(float32_outputs, found, strict=True)
    with_lora, without = (10 * np.log10(np.square(x).sum() / np.square(x - y).sum()) for x, y in pairs)
    assert without > 15
    assert with_lora > without - 6


@pytest.mark.parametrize("form", FORMATS)
def test_a_baked_one_holds_what_the_runtime_would_load(form: str, rounded, style: Path, tmp_path: Path):
    baked = bake_lora(rounded(form), tmp_path / "baked", [latentrt.Lora(style)])
    graph = merge(rounded(form), [style]).graphs["step"]
    stored = read_initializers(baked.component("step").graph.path)
    for name, weight in graph.new_weights():
        np.testing.assert_array_equal(stored[name].read().values, weight.values)
    assert baked.component("step").precision == form
    assert baked.manifest["calibration"]["judged"] == []


def test_keys_name_initializers_of_the_graph(calibrated: Calibrated):
    root, row = calibrated.bundle.root, calibrated.bundle.manifest["components"]["step"]
    names = {tensor.name for tensor in onnx.load(root / row["graph"], load_external_data=False).graph.initializer}
    keys = json.loads((root / row["keys"]).read_text())
    assert keys.keys() <= names
    assert {entry["scale"] for entry in keys.values() if entry.get("scale")} <= names


def test_float8_without_a_library_equals_that_of_one():
    kind = ml_dtypes.float8_e4m3fn
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(Weight(FLOAT8, codes).float32(), codes.view(kind).astype(np.float32))
    values = np.sort(codes.view(kind).astype(np.float32)[(codes & 127) < 127])
    ties = (values[1:] + values[:-1]) / 2
    near = np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))
    x = np.concatenate([values, ties, *near, np.random.default_rng(0).standard_normal(5000).astype(np.float32) * 50])
    np.testing.assert_array_equal(Weight.of(x, FLOAT8).values, x.astype(kind).view(np.uint8))
    assert Weight.of(np.array([449.0, -1e9]), FLOAT8).float32().tolist() == [448, -448]
    assert ir.DataType.FLOAT8E4M3FN.numpy() == kind

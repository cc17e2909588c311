"""LoRA on int8 bundles: merged in float, smoothed and rounded by the layer's own rule."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from lora_files import random_layers, write_lora

import latentrt
from latentrt import Bundle, Request
from latentrt.calibration.package import Calibrated
from latentrt.calibration.quantize import LEVELS
from latentrt.export.checkpoint import Checkpoint
from latentrt.initializers import read_initializers
from latentrt.lora import merge
from latentrt.lora.targets import bundle_parts


@pytest.fixture(scope="module")
def style(shapes_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = random_layers(SimpleNamespace(unet=Checkpoint.open(shapes_checkpoint).unet()), strength=0.3)
    return write_lora(tmp_path_factory.mktemp("lora") / "style.safetensors", layers)


def test_every_weight_keeps_its_key_and_is_near_the_float_one(calibrated: Calibrated, shapes_bundle: Path):
    """Scales undone and factors divided out, an int8 weight is the checkpoint's to half a step."""
    from latentrt.lora.merge import _pristine

    rounded, float32 = (
        {target.key: target.sites[0] for part in bundle_parts(bundle) for target in part.targets.values()}
        for bundle in (calibrated.bundle, Bundle.open(shapes_bundle))
    )
    assert rounded.keys() == float32.keys()
    smoothed = [site for site in rounded.values() if site.scaling is not None and site.scaling.factors is not None]
    assert smoothed
    for key, site in rounded.items():
        found, expected = _pristine(site), _pristine(float32[key])
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error < (0.02 if site.scaling is not None and site.scaling.scales is not None else 1e-6), key


def test_changed_weights_are_rounded_by_the_rule_of_calibration(calibrated: Calibrated, style: Path):
    graph = merge(calibrated.bundle, [style]).graphs["step"]
    stored = read_initializers(graph.path)
    values = dict(graph.overrides())
    names = [name for name in values if name.endswith(".int8")]
    assert len(names) > 30
    for name in names:
        weight, scale = values[name], values[f"{name.removesuffix('.int8')}.scale"]
        assert (weight.dtype, weight.shape) == (stored[name].dtype, stored[name].shape)
        # Each output channel has its largest weight at the end of the grid.
        largest = np.abs(weight.values.astype(np.int16)).reshape(weight.shape)
        axis = (
            int(np.argmax([n == len(scale.values) for n in weight.shape])) if weight.shape[0] != weight.shape[1] else 1
        )
        assert (largest.max(axis=tuple(i for i in range(largest.ndim) if i != axis)) == LEVELS).all()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_network_is_as_near_to_float_with_the_lora_as_without(
    backend: str, calibrated: Calibrated, shapes_bundle: Path, style: Path, tmp_path: Path
):
    """Signal-to-noise ratio of the step's output against the float32 bundle's, both with the LoRA and both without."""
    request = Request(
        "a red circle on a white background", seed=3, steps=1, size=(64, 64), guidance=1.0, sampler="euler"
    )

    def output(bundle: Path, lora: list[Path]) -> np.ndarray:
        with latentrt.load(bundle, backend=backend, cache_dir=tmp_path, lora=lora) as pipe:
            (step,) = pipe.steps(request)
            return np.array(step.denoised if isinstance(step.denoised, np.ndarray) else step.denoised.numpy())

    def sqnr_db(lora: list[Path]) -> float:
        exact, rounded = output(shapes_bundle, lora), output(calibrated.bundle.root, lora)
        return float(10 * np.log10(np.square(exact).sum() / np.square(exact - rounded).sum()))

    with_lora, without = sqnr_db([style]), sqnr_db([])
    print(f"{backend}: {with_lora:.1f} dB with the LoRA, {without:.1f} dB without")
    assert without > 25
    assert with_lora > without - 6


def test_keys_name_initializers_of_the_graph(calibrated: Calibrated):
    root, row = calibrated.bundle.root, calibrated.bundle.manifest["components"]["step"]
    names = {tensor.name for tensor in onnx.load(root / row["graph"], load_external_data=False).graph.initializer}
    keys = json.loads((root / row["keys"]).read_text())
    assert keys.keys() <= names
    assert {entry["scale"] for entry in keys.values() if entry.get("scale")} <= names

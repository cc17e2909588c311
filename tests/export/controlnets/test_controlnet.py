"""ControlNets into bundles: what is refused, what is shared, and what later passes make of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from diffusers import ControlNetModel

import latentrt
from latentrt import Control, Request
from latentrt.bundle import STEP_CONTROL, Bundle
from latentrt.errors import BundleError, CheckpointError, RequestError
from latentrt.export.cli.control import opened_controlnets
from latentrt.export.controlnets.controlnet import ControlNet, add_controlnets
from latentrt.export.convert.precision import convert_bundle
from latentrt.export.engines.ranges import Ranges, profile
from latentrt.export.passes.residuals import add_step_residuals
from latentrt.manifest.axes import axis_lengths, tensor_shape


def changed(source: Path, folder: Path, **values: object) -> Path:
    """The ControlNet with other settings, or of another class with no others; its weights then do not fit, which is
    looked at later."""
    shutil.copytree(source, folder)
    config = {} if "_class_name" in values else json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return folder


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"cross_attention_dim": 768}, "features of a token's context: 768; expected 128"),
        ({"in_channels": 16}, "channels of the latent: 16; expected 4"),
        ({"addition_embed_type": "text_time"}, "inputs for pooled texts and sizes: 1; expected 0"),
        ({"conditioning_embedding_out_channels": [4, 8, 16]}, "pixels for one of the latent: 4; expected 8"),
        ({"block_out_channels": [64, 128, 256]}, "channels of its residuals"),
        ({"layers_per_block": 2}, "channels of its residuals"),
        ({"_class_name": "SD3ControlNetModel"}, "belongs to a transformer, and the model's denoiser is a unet"),
    ],
)
def test_a_controlnet_of_another_family_is_refused(
    values: dict, says: str, shapes_bundle: Path, random_controlnet: Path, tmp_path: Path
):
    net = ControlNet.open("other", changed(random_controlnet, tmp_path / "other", **values))
    with pytest.raises(CheckpointError, match=says):
        add_controlnets(Bundle.open(shapes_bundle), tmp_path / "bundle", [net])
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "is a UNet2DConditionModel; expected ControlNetModel or SD3Control"),
        ({"global_pool_conditions": True}, "sets global_pool_conditions to True; expected false"),
        (
            {"_class_name": "SD3ControlNetModel", "extra_conditioning_channels": 1},
            "sets extra_conditioning_channels to 1",
        ),
    ],
)
def test_what_is_no_controlnet_or_none_that_is_covered_is_refused(
    values: dict, says: str, random_controlnet: Path, tmp_path: Path
):
    with pytest.raises(CheckpointError, match=says):
        ControlNet.open("other", changed(random_controlnet, tmp_path / "other", **values))


def test_missing_truncated_and_misnamed_ones_are_refused(random_controlnet: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="no folder"):
        ControlNet.open("edges", tmp_path / "none")
    with pytest.raises(RequestError, match="a ControlNet of the name 'a/b'"):
        ControlNet.open("a/b", random_controlnet)
    with pytest.raises(RequestError, match="expected NAME=FOLDER"):
        opened_controlnets(["canny"])
    with pytest.raises(RequestError, match="two ControlNets"):
        opened_controlnets([f"canny={random_controlnet}"] * 2)
    folder = changed(random_controlnet, tmp_path / "cut")
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="incomplete or damaged"):
        ControlNet.open("cut", folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        ControlNet.open("cut", folder)


def test_weights_that_are_not_finite_are_refused(random_controlnet: Path, shapes_bundle: Path, tmp_path: Path):
    net = ControlNetModel.from_pretrained(random_controlnet)
    with torch.no_grad():
        net.conv_in.weight[0, 0, 0, 0] = float("nan")
    net.save_pretrained(tmp_path / "nan")
    with pytest.raises(CheckpointError, match=r"conv_in.weight of .*NaN"):
        ControlNet.open("nan", tmp_path / "nan").load()


def test_a_denoiser_with_nothing_to_add_to_is_refused():
    model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    with pytest.raises(BundleError, match="neither skip connections nor blocks"):
        add_step_residuals(model)


def test_the_step_with_residuals_has_the_weights_of_the_step(controlled_bundle: Path, shapes_bundle: Path):
    bundle, plain = Bundle.open(controlled_bundle), Bundle.open(shapes_bundle)
    assert bundle.controls == ("random",)
    step, controlled = bundle.component("step"), bundle.component(STEP_CONTROL)
    assert controlled.graph.weights == step.graph.weights
    assert controlled.graph.path.stat().st_size < step.graph.path.stat().st_size + 20_000
    assert bundle.component("step").graph.digest == plain.component("step").graph.digest
    assert not (controlled_bundle / "step-control.weights").exists()
    rows = bundle.manifest["parity"]
    assert {row["component"] for row in rows} >= {"step", "controlnet-random"} and all(row["passed"] for row in rows)
    assert bundle.manifest["controlnets"]["random"]["sha256"].keys() == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }


def test_engines_can_be_built_for_all_of_it(controlled_bundle: Path):
    """Every axis has a range, and the shapes of a call lie within those of the profile."""
    bundle = Bundle.open(controlled_bundle)
    ranges = Ranges.of(bundle.family)
    lengths = axis_lengths(bundle.family, size=bundle.family.defaults.size, batch=1, branches=2, context=77)
    for name in (STEP_CONTROL, "controlnet-random"):
        component = bundle.component(name)
        shapes = {tensor: tensor_shape(component.dims[tensor], lengths) for tensor in component.graph.inputs}
        assert profile(component, ranges.lengths(bundle.family)).covers(shapes)
        assert ranges.options(component).keys() == {"size", "batch", "branches", "context"}


def test_a_converted_bundle_is_controlled_as_before(controlled_bundle: Path, controlled_fp16: Path):
    bundle = Bundle.open(controlled_fp16)
    found = {name: bundle.component(name).precision for name in ("step", STEP_CONTROL, "controlnet-random")}
    assert set(found.values()) == {"fp16"}
    assert bundle.component(STEP_CONTROL).graph.weights == bundle.component("step").graph.weights
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    request = Request("a circle", seed=1, steps=2, size=(64, 64), control=[Control("random", picture)])
    latents = []
    for root in (controlled_bundle, controlled_fp16):
        with latentrt.load(root, backend="onnxruntime") as pipe:
            *_, last = pipe.steps(request)
            latents.append(last.latent())
    whole, half = latents
    assert np.abs(half - whole).max() / np.abs(whole).max() <= 0.02  # of half precision, judged in test_half.py


def test_the_step_with_residuals_follows_the_step_and_is_not_converted_alone(controlled_bundle: Path, tmp_path: Path):
    with pytest.raises(RequestError, match="step, from which it is made"):
        convert_bundle(
            Bundle.open(controlled_bundle),
            tmp_path / "bundle",
            precision={STEP_CONTROL: "fp16"},
            range_check="none",
        )

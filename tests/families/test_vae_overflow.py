"""A VAE that overflows in float16, as Stable Diffusion XL's does: found by the range check, cured in the graph."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers import AutoencoderKL
from graphs import stated_types, type_errors

import latentrt
from latentrt import Bundle
from latentrt.backends import open_engine
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.convert.half_policy import RANGE
from latentrt.export.convert.precision import convert_bundle
from latentrt.export.engines.build import build_engines
from latentrt.export.engines.ranges import Ranges
from latentrt.export.engines.variants import variant
from latentrt.export.graphs.modules.vae import Decoder
from latentrt.export.package import export_bundle
from latentrt.export.parity.metrics import signal_to_noise_db
from latentrt.export.synthetic.checkpoints import make_checkpoint

pytestmark = pytest.mark.families

BLOCK = "up_blocks.3"  # the last one, where the sums of SDXL's VAE grow beyond float16 as well
LOUDER = 2.0**18
BACKENDS = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Made:
    checkpoint: Path
    whole: Path
    half: Path


@pytest.fixture(scope="module")
def made(once: Callable[..., Any]) -> Made:
    return once("family-overflow", make)


def make(folder: Path) -> Made:
    checkpoint = make_checkpoint("tiny-sdxl", folder / "checkpoint")
    vae = AutoencoderKL.from_pretrained(checkpoint / "vae")
    with torch.no_grad():
        for name, weight in vae.decoder.named_parameters():
            if name.startswith(BLOCK) and ".conv2." in name:
                weight *= LOUDER
    vae.save_pretrained(checkpoint / "vae")
    whole = export_bundle(Checkpoint.open(checkpoint), folder / "fp32")
    half = convert_bundle(whole, folder / "fp16", precision=dict.fromkeys(whole.components, "fp16"))
    return Made(checkpoint, whole.root, half.root)


@pytest.fixture(scope="module")
def latent(made: Made) -> np.ndarray:
    """One that the model makes, of another prompt, seed and size than the range check's."""
    with latentrt.load(made.whole, backend="onnxruntime") as pipe:
        found = pipe.generate("a fox", seed=5, steps=4, size=(96, 128), output="latent").latents
    assert found is not None
    return found


@pytest.fixture(scope="module")
def expected(made: Made, latent: np.ndarray) -> Iterator[np.ndarray]:
    """torch's picture, in float32: what `force_upcast` has diffusers do."""
    checkpoint = Checkpoint.open(made.checkpoint)
    assert checkpoint.config("vae")["force_upcast"] is True
    with torch.no_grad():
        yield Decoder(checkpoint.vae())(torch.from_numpy(latent)).numpy()


def test_in_half_precision_torch_loses_the_picture(made: Made, latent: np.ndarray):
    vae = AutoencoderKL.from_pretrained(made.checkpoint / "vae")
    x = torch.from_numpy(latent) / vae.config.scaling_factor
    with torch.no_grad():
        fine = vae.decode(x).sample
        vae.half()
        assert all(weight.isfinite().all() for weight in vae.parameters())
        lost = vae.decode(x.half()).sample
    assert fine.isfinite().all()
    assert not lost.isfinite().any()


def test_what_overflows_is_named_and_is_float32_in_the_graph(made: Made):
    bundle = Bundle.open(made.half)
    assert {part.precision for part in bundle.components.values()} == {"fp16"}
    conversion = bundle.manifest["components"]["decoder"]["conversion"]
    beyond = conversion["range"]["beyond"]
    assert f"decoder.{BLOCK}.resnets.0.conv2/Conv" in beyond
    assert all(BLOCK in name or "conv_norm_out" in name for name in beyond)
    assert max(beyond.values()) > 65504
    assert conversion["range"]["largest"] < conversion["range"]["limit"]
    (listed,) = (group["nodes"] for group in conversion["float32"] if group["reason"] == RANGE)
    assert set(listed) == beyond.keys()
    model = onnx.load(bundle.component("decoder").graph.path, load_external_data=False)
    types = stated_types(model)
    assert type_errors(model) == []
    written = {types[node.output[0]] for node in model.graph.node if node.name in beyond}
    assert written == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_picture_is_that_of_float32(made: Made, latent: np.ndarray, expected: np.ndarray, backend: str):
    with open_engine(Bundle.open(made.half).component("decoder").graph, backend=backend) as engine:
        found = np.asarray(engine.run({"latent": latent})["image"])
    assert found.shape == expected.shape
    assert signal_to_noise_db(found, expected) > 45
    assert expected.std() > 5  # there is something to see


@pytest.mark.skipif(
    not variant("tensorrt-rtx").installed(), reason="TensorRT for RTX has wheels for x86-64 Linux and Windows"
)
def test_the_cured_decoder_becomes_an_engine_of_both_types(made: Made, tmp_path: Path):
    bundle = Bundle.open(made.half)
    (engine,) = build_engines(
        bundle,
        backend="tensorrt-rtx",
        folder=tmp_path,
        ranges=Ranges.of(bundle.family),
        gpus=["sm89"],
        components=["decoder"],
    )
    assert engine.record.types["float16"] > engine.record.types["float32"] > 0

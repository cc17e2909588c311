"""Between latents and pictures: the settings of an autoencoder as the pipelines of diffusers use them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

from latentrt.backends import open_engine
from latentrt.export.checkpoint.family import read_family
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.graphs.components import ComponentSpec, component_specs
from latentrt.export.graphs.onnx_from_torch import export_graph
from latentrt.export.graphs.preview import fit_preview
from latentrt.export.quiet import quiet
from latentrt.export.synthetic.checkpoints import make_checkpoint
from latentrt.graph import GraphFile, TensorSpec

MEAN, DEVIATION = [-1.6, 1.1, 2.8, -0.6], [8.4, 0.9, 1.4, 5.0]
SIZE = (64, 48)  # width, height


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of SDXL's kind whose autoencoder has a mean and a deviation for each channel."""
    root = make_checkpoint("tiny-sdxl", tmp_path_factory.mktemp("normalised") / "checkpoint")
    file = root / "vae" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "latents_mean": MEAN, "latents_std": DEVIATION}))
    return root


@pytest.fixture(scope="module")
def specs(folder: Path) -> dict[str, ComponentSpec]:
    checkpoint = Checkpoint.open(folder)
    return {spec.name: spec for spec in component_specs(checkpoint, read_family(checkpoint))}


def run(spec: ComponentSpec, folder: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    """The only output of a component, exported."""
    path = folder / f"{spec.name}.onnx"
    graph = export_graph(spec.build(), inputs=spec.inputs, outputs=spec.outputs, path=path, prefix=spec.prefix)
    inputs, outputs = (
        {n: TensorSpec(dtype, tuple(d if isinstance(d, int) else None for d in dims)) for n, (dtype, dims) in io}
        for io in (graph.inputs.items(), graph.outputs.items())
    )
    weights = (path.with_suffix(".weights"),)
    file = GraphFile(spec.name, path=path, inputs=inputs, outputs=outputs, weights=weights, digest=spec.name)
    with open_engine(file, backend="onnxruntime") as engine:
        (found,) = engine.run(feed).values()
        return np.array(found)


@pytest.mark.compatibility(
    kind="VAE",
    what="latents_mean and latents_std, as SDXL models of other makers have",
    recognised="its config.json",
    outcome="works",
)
def test_the_decoder_is_that_of_diffusers_pipeline(folder: Path, specs, tmp_path: Path):
    """What the pipeline makes of its own last latent, by its own decoding."""
    with quiet(), torch.no_grad():
        pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        common = {"num_inference_steps": 2, "width": SIZE[0], "height": SIZE[1], "guidance_scale": 1.0}
        latent, image = (
            pipeline("a fox", generator=torch.Generator().manual_seed(3), output_type=kind, **common).images
            for kind in ("latent", "np")
        )
    found = run(specs["decoder"], tmp_path, {"latent": latent.numpy()})
    assert found.shape == (1, SIZE[1], SIZE[0], 3)
    off = np.abs(found - (255 * image).round())
    assert off.max() <= 1 and (off > 0).mean() <= 1e-3 and found.std() > 5


def test_the_encoder_is_that_of_diffusers_pipeline(folder: Path, specs, tmp_path: Path):
    """Image to image: `prepare_latents` without the noise of the run, and with that of the posterior."""
    photo = np.random.default_rng(0).integers(0, 256, (1, SIZE[1], SIZE[0], 3), np.uint8)
    with quiet(), torch.no_grad():
        pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder)
        expected = pipeline.prepare_latents(
            pipeline.image_processor.preprocess(photo.astype(np.float32) / 255),
            torch.tensor([1]), 1, 1, torch.float32, "cpu", torch.Generator().manual_seed(5), add_noise=False,
        ).numpy()  # fmt: skip
    noise = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5)).numpy()
    feed = {"image": photo, "keep": np.ones((1, *photo.shape[1:3], 1), np.float32), "noise": noise}
    found = run(specs["encoder"], tmp_path, feed)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_the_preview_sees_them(folder: Path, specs, tmp_path: Path):
    """The colours of a preview are fitted through the same decoder."""
    plain = shutil.copytree(folder, tmp_path / "plain")
    file = plain / "vae" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "latents_mean": None, "latents_std": None}))
    checkpoint = Checkpoint.open(plain)
    (other,) = (s for s in component_specs(checkpoint, read_family(checkpoint)) if s.name == "decoder")
    fits = [np.array(fit_preview(spec.build(), channels=4)) for spec in (specs["decoder"], other)]
    assert np.abs(fits[0] - fits[1]).max() > 0.05
